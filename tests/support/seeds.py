"""Seeds for identities in tests: the same salt gives the same node again."""

from __future__ import annotations

from hashlib import sha256

from node.identity import Secret

ROWS = bytes(range(32))
"""The key that seals the rows of access tables."""


def seeds(salt: str) -> Secret:
    """A secret function whose 32-byte values depend on `salt` and the secret's name alone."""

    async def secret(name: str) -> bytes:
        return sha256(f"{salt}\x00{name}".encode()).digest()

    return secret
