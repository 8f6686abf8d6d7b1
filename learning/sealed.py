"""Bytes in sealed memory: a file descriptor with no name and no disk behind it, handed from process to process.

`seal_bytes` makes a memfd that nobody can change any more; `reserve` one of a fixed size that a child may fill
but not grow. The receiver checks the seals before it maps anything, so a sender cannot change or shrink what
was judged (F_SEAL_WRITE, F_SEAL_GROW, F_SEAL_SHRINK; memfd_create(2), fcntl(2)).
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Iterable

from consent.errors import Corrupt

MAX_SEALED_BYTES = 4 * 1024**3
_SIZE_SEALS = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
_ALL_SEALS = _SIZE_SEALS | fcntl.F_SEAL_WRITE


def seal_bytes(name: str, parts: Iterable[bytes | memoryview]) -> int:
    """Write `parts` into a new memfd and seal it. The caller owns the descriptor that is returned."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        for part in parts:
            view = memoryview(part).cast("B")
            while view:
                view = view[os.write(descriptor, view[: 1 << 20]) :]
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _ALL_SEALS)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def reserve(name: str, size_bytes: int) -> int:
    """A memfd of exactly `size_bytes` that may be written through a mapping but never grow or shrink."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size_bytes)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SIZE_SEALS)
    return descriptor


def map_sealed(descriptor: int, *, writable: bool = False, limit: int = MAX_SEALED_BYTES) -> mmap.mmap:
    """Map a sealed memfd; the descriptor may be closed afterwards.

    The mapping is left out of core dumps. Raises Corrupt when the descriptor lacks the seals, is empty or is
    larger than `limit` bytes.
    """
    wanted = _SIZE_SEALS if writable else _ALL_SEALS
    try:
        seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    except OSError:
        seals = 0
    size = os.fstat(descriptor).st_size
    if seals & wanted != wanted or not 0 < size <= limit:
        raise Corrupt("What came is not sealed memory of an allowed size.", code="not-sealed")
    mapping = mmap.mmap(descriptor, size, access=mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ)
    mapping.madvise(mmap.MADV_DONTDUMP)
    return mapping


def read_sealed(descriptor: int, *, limit: int = MAX_SEALED_BYTES) -> bytes:
    """Copy a sealed memfd's bytes and close it."""
    try:
        with map_sealed(descriptor, limit=limit) as mapping:
            return bytes(mapping)
    finally:
        os.close(descriptor)
