"""Memory that is used again: page-aligned, so that a disk takes it as it is.

Holds one buffer for one user at a time. Leaves its contents to whoever took it. Fresh memory costs more than sealing
what goes into it (each page is a fault, dear on a virtual machine), so a buffer of ordinary size is kept.
"""

from __future__ import annotations

import mmap

KEEP_BYTES = 16 * 1024 * 1024
"""A larger buffer is made for one use and given back: a long cine run must not stay in memory for ever."""


class Arena:
    """A buffer that grows to what was asked for, up to KEEP_BYTES."""

    def __init__(self) -> None:
        self._kept: mmap.mmap | None = None

    def take(self, size: int) -> memoryview:
        """`size` bytes of memory with whatever was in it before; valid until the next `take`."""
        if size > KEEP_BYTES:
            return memoryview(mmap.mmap(-1, size))[:size]
        if self._kept is None or len(self._kept) < size:
            self._kept = mmap.mmap(-1, max(size, mmap.PAGESIZE))
        return memoryview(self._kept)[:size]
