"""Turns at the packs within one process: who changes a pack's file has its turn, and sometimes one keeps everybody out.

Other processes are kept out by the lock on the file itself (`blobs`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition


class Turns:
    """One holder a name; or one for all names. A thread takes one turn at a time."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._taken: set[str] = set()
        self._closed = False

    def take(self, name: str) -> None:
        """Wait for the turn at `name`."""
        with self._changed:
            self._changed.wait_for(lambda: not self._closed and name not in self._taken)
            self._taken.add(name)

    def give_back(self, name: str) -> None:
        """Let the next one in."""
        with self._changed:
            self._taken.discard(name)
            self._changed.notify_all()

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """The turn at `name` for a block."""
        self.take(name)
        try:
            yield
        finally:
            self.give_back(name)

    @contextmanager
    def everybody(self) -> Iterator[None]:
        """A block in which nobody else has a turn at anything."""
        with self._changed:
            self._changed.wait_for(lambda: not self._closed)
            self._closed = True
            self._changed.wait_for(lambda: not self._taken)
        try:
            yield
        finally:
            with self._changed:
                self._closed = False
                self._changed.notify_all()
