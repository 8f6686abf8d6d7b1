"""What a device or a server wraps: one 32-byte key, used once, that seals what the caller brought.

Tokens and servers differ in how long a plaintext they take and in whether they bind a context. So they are asked for
the least that all of them can do, and the context is bound here, under the one-use key.
Format: docs/formats/keystore.md, "Wrapped by a device or a server".
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Callable

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from consent.errors import Corrupt
from node.vault.wrapping import open_key, seal_key

CONTEXT = b"accord/custody/v1\x00"
KEY_BYTES = 32
MAX_OUTER_BYTES = 4096
_LENGTH = struct.Struct(">H")


def seal_in_envelope(suite: int, outer: Callable[[bytes], bytes], payload: bytes, context: bytes) -> bytes:
    """Seal `payload` under a one-use key that `outer` wraps: suite, length, wrapped one-use key, sealed payload."""
    key = secrets.token_bytes(KEY_BYTES)
    wrapped = outer(key)
    if len(wrapped) > MAX_OUTER_BYTES:
        raise ValueError("a wrapped key is longer than any that is known")
    inner = seal_key(AESGCM(key), payload, CONTEXT + context)
    return bytes([suite]) + _LENGTH.pack(len(wrapped)) + wrapped + inner


def open_envelope(wrapped: bytes, outer: Callable[[bytes], bytes], context: bytes) -> bytes:
    """Give back what was sealed; `outer` unwraps the one-use key. Raises Corrupt, and what `outer` raises."""
    try:
        (length,) = _LENGTH.unpack_from(wrapped, 1)
    except struct.error as error:
        raise altered() from error
    start = 1 + _LENGTH.size
    if not 0 < length <= MAX_OUTER_BYTES or len(wrapped) <= start + length:
        raise altered()
    key = outer(wrapped[start : start + length])
    if len(key) != KEY_BYTES:
        raise altered()
    return open_key(AESGCM(key), wrapped[start + length :], CONTEXT + context)


def altered() -> Corrupt:
    """The error for a wrapped key that does not open."""
    return Corrupt(
        "A wrapped key does not open: it was altered, or wrapped under another root key.",
        mend="Restore the keys from their backup, or name the root key that wrapped them in [custody].",
        code="wrapped-key",
    )
