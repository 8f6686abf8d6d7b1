"""How a data set reaches its worker: anonymous shared memory that the node writes and the worker can only read.

One piece of memory a worker, used again for each job, so that a slice is copied once and no pipe has to carry it. The
node writes with system calls and never maps it: a worker that cut the memory short could else end the node. Where the
system has no such memory there is no passage, and the data goes through the pipe.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from threading import Lock
from typing import Self

READY = b"R"
"""What a worker writes once its imports are done and its limits are set."""
KEPT_BYTES = 8 * 1024 * 1024
"""What stays allocated between jobs."""
_MAX_PARTS_BYTES = 1 << 30


class Passage:
    """The node's end. `reader` is a descriptor for the worker, which cannot write by it."""

    def __init__(self, writer: int, reader: int) -> None:
        self._writer = writer
        self.reader = reader
        self._size = 0
        self._lock = Lock()
        self._closed = False

    @classmethod
    def opened(cls) -> Self | None:
        """A new passage, or None where the system has none."""
        try:
            writer = os.memfd_create("accord-picture", os.MFD_CLOEXEC)
        except (AttributeError, OSError):
            return None
        try:
            return cls(writer, os.open(f"/proc/self/fd/{writer}", os.O_RDONLY | os.O_CLOEXEC))
        except OSError:
            os.close(writer)
            return None

    def put(self, parts: Sequence[bytes | bytearray]) -> None:
        """Lay the parts one behind the other; may run in a thread. Raises OSError when there is no memory for them."""
        with self._lock:
            if self._closed:
                raise OSError("the passage is closed")
            offset = 0
            for part in parts:
                view = memoryview(part)
                while view:
                    written = os.pwrite(self._writer, view[:_MAX_PARTS_BYTES], offset)
                    view, offset = view[written:], offset + written
            self._size = max(self._size, offset)

    def clear(self) -> None:
        """Give back the memory of a large data set."""
        if self._size > KEPT_BYTES:
            os.ftruncate(self._writer, 0)
            self._size = 0

    def close(self) -> None:
        """Give back all of it, once nothing is being laid: the number of a closed descriptor may be another file's."""
        with self._lock:
            self._closed = True
            for descriptor in (self._writer, self.reader):
                with suppress(OSError):
                    os.close(descriptor)
