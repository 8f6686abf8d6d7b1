"""How much all streams together hold opened and unsent: whoever reads fast is read ahead for, whoever stops holds little.

A client that stops reading keeps what was opened for it until it goes on or is cut, a minute later. Without a bound over
all of them a crowd of such clients would fill the memory.
"""

from __future__ import annotations

HELD_BYTES = 64 * 1024 * 1024
"""Enough to read ahead for four streams at full speed; the next ones are read as they are sent."""


class Held:
    """Counts bytes. Everybody who takes some gives them back."""

    def __init__(self, limit_bytes: int = HELD_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0

    def has_room(self, size: int) -> bool:
        """Whether `size` more bytes may be held now."""
        return self.held_bytes + size <= self.limit_bytes

    def take(self, size: int) -> int:
        """Hold `size` bytes if there is room; return how many are held, `size` or none."""
        if not self.has_room(size):
            return 0
        self.held_bytes += size
        return size

    def give_back(self, size: int) -> None:
        """Hold `size` bytes no longer."""
        self.held_bytes -= size
