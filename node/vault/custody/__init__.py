"""Who keeps the root key: the seam, and (beside it) its implementations.

The root key never leaves its custody; it only wraps and unwraps the few keys below it.
"""

from __future__ import annotations

from typing import Protocol


class Custody(Protocol):
    """Keeps one root key. Both verbs may block (a device, a network): callers use a thread."""

    def wrap(self, key: bytes, context: bytes) -> bytes:
        """Encrypt `key` so that only this custody opens it again, and only for the same `context`."""
        ...

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """Give the key back. Raises Corrupt when key, context or bytes do not belong together."""
        ...

    def describe(self) -> str:
        """One line for reports: what kind of custody, which root key. No secret."""
        ...
