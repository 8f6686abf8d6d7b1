"""Wrapping one key under another: AES-256-GCM with the use of the key as associated data.

Used by the custody (root key over KEKs and secrets) and by the key ring (KEK over study keys).
Format: docs/formats/keystore.md, "Wrapped keys".
"""

from __future__ import annotations

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from consent.errors import Corrupt

SUITE = 1


def seal_key(aead: AESGCM, key: bytes, aad: bytes) -> bytes:
    """Wrap `key`: suite, nonce, ciphertext with tag."""
    nonce = os.urandom(12)
    return bytes([SUITE]) + nonce + aead.encrypt(nonce, key, aad)


def open_key(aead: AESGCM, wrapped: bytes, aad: bytes) -> bytes:
    """Unwrap a key; raises Corrupt when it was wrapped by another key, for another use, or was altered."""
    if wrapped[:1] != bytes([SUITE]):
        raise Corrupt("A wrapped key has an unknown suite.", code="wrapped-key")
    try:
        return aead.decrypt(wrapped[1:13], wrapped[13:], aad)
    except (InvalidTag, ValueError) as error:
        raise Corrupt(
            "A wrapped key does not open: it was altered, or moved from another place.",
            mend="Restore the keys from their backup.",
            code="wrapped-key",
        ) from error
