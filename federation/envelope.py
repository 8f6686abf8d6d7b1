"""Sealing for one receiving node: HPKE (RFC 9180) with the hybrid ML-KEM-768 + X25519, HKDF-SHA256, AES-256-GCM.

HPKE's base mode does not say who sent; every envelope therefore travels inside a signed record. `info` binds
the envelope to its meaning, so that it opens nowhere else. A public key is 1216 bytes: ML-KEM-768 encapsulation
key (1184) then X25519 (32).
"""

from __future__ import annotations

from hashlib import sha256

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

from consent.errors import Corrupt, Invalid

MLKEM768_KEY_BYTES = 1184
HPKE_KEY_BYTES = MLKEM768_KEY_BYTES + 32

HpkePublicKey = hpke.MLKEM768X25519PublicKey
HpkePrivateKey = hpke.MLKEM768X25519PrivateKey

_SUITE = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)


def read_hpke_key(raw: bytes) -> HpkePublicKey:
    """Raise Invalid when `raw` is not such a key."""
    if len(raw) != HPKE_KEY_BYTES:
        raise Invalid(f"An HPKE key has {HPKE_KEY_BYTES} bytes, not {len(raw)}.", code="hpke-key")
    try:
        return HpkePublicKey(
            MLKEM768PublicKey.from_public_bytes(raw[:MLKEM768_KEY_BYTES]),
            X25519PublicKey.from_public_bytes(raw[MLKEM768_KEY_BYTES:]),
        )
    except ValueError as error:
        raise Invalid("The HPKE key cannot be read.", code="hpke-key") from error


def thumbprint(raw: bytes) -> str:
    """SHA-256 of the raw public key, hex."""
    return sha256(raw).hexdigest()


def seal_for(key: HpkePublicKey, plaintext: bytes, info: bytes) -> bytes:
    """Encrypt `plaintext` so that only the holder of `key`'s private part opens it, and only with `info`."""
    return _SUITE.encrypt(plaintext, key, info=info)


def open_sealed_for(key: HpkePrivateKey, sealed: bytes, info: bytes) -> bytes:
    """Raise Corrupt when it was sealed for another key, under another meaning, or was changed."""
    try:
        return _SUITE.decrypt(sealed, key, info=info)
    except (InvalidTag, ValueError) as error:
        raise Corrupt("The envelope does not open: another key, another meaning, or changed.") from error
