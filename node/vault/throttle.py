"""A pace for what is done beside everything else: so many bytes a second, and an end at once when the node stops."""

from __future__ import annotations

from threading import Event, Lock
from time import monotonic

from consent.errors import Unavailable

BURST_SECONDS = 0.25


class Throttle:
    """Called with the number of bytes that come next; waits while that would be too much. For threads."""

    def __init__(self, bytes_per_second: float) -> None:
        self._rate = bytes_per_second
        self._free_at = monotonic()
        self._turn = Lock()
        self._stopped = Event()

    def __call__(self, size: int) -> None:
        """Wait for room for `size` bytes. Raises Unavailable once the node stops."""
        with self._turn:
            now = monotonic()
            self._free_at = max(self._free_at, now - BURST_SECONDS) + size / self._rate
            wait = self._free_at - now
        if self._stopped.wait(max(0.0, wait)):
            raise Unavailable("The node is stopping.", code="stopping")

    def stop(self) -> None:
        """Let nobody wait any longer."""
        self._stopped.set()
