"""The sealed object: one payload encrypted once, bound to what it means.

Holds the header, sealing, opening whole, opening a range, and the derivation of object keys. Leaves to others
where keys come from (`keys`) and where bytes lie (`pack`, `blobs`). Pure: no file, no clock.

Invariants: what is handed out was proved by a tag under a key that was committed to, for exactly the header that the
caller asked for; a body without its last chunk gives nothing. Format: docs/formats/sealed-object.md.
"""

from __future__ import annotations

import hmac
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256

from cryptography.cobblestone import Cobblestone256Decryptor, Cobblestone256Encryptor
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256, SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from consent.errors import Corrupt, Invalid
from consent.signed import canonical_json

Buffer = bytes | bytearray | memoryview
Payload = Buffer | Sequence[Buffer]
"""Bytes, or pieces of them in order. They must not change until sealing has returned."""

SUITE_COBBLESTONE_256 = 1
KEY_BYTES = 32
PREFIX_BYTES = 56
CHUNK_BYTES = 16 * 1024
TAG_BYTES = 16
PIECE_BYTES = 1024 * 1024  # more at once falls out of the processor's cache: half the speed
MAX_OBJECT_BYTES = 4 * 1024**3
SEALED_DIGEST_BYTES = 12 + 32 + TAG_BYTES

_STUDY_ID = re.compile(r"st_[a-z0-9]{4,64}")
_OBJECT_ID = re.compile(r"[a-z0-9][a-z0-9_.-]{0,127}")
_KIND = re.compile(r"[a-z][a-z-]{0,31}")
_INFO = b"c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\x00"


@dataclass(frozen=True)
class ObjectHeader:
    """What an object is. Raises Invalid when a field breaks its pattern: ids come from outside."""

    study: str
    object_id: str
    kind: str
    grade: int
    suite: int = SUITE_COBBLESTONE_256

    def __post_init__(self) -> None:
        check_study_id(self.study)
        if _OBJECT_ID.fullmatch(self.object_id) is None:
            raise Invalid("An object id has forbidden characters or is too long.", code="object-id")
        if _KIND.fullmatch(self.kind) is None:
            raise Invalid("An object kind has forbidden characters or is too long.", code="object-kind")
        if self.grade not in (1, 2, 3):
            raise Invalid(f"There is no grade {self.grade}.", mend="Use 1, 2 or 3.", code="grade")
        if self.suite != SUITE_COBBLESTONE_256:
            raise Invalid(
                f"This object uses cipher suite {self.suite}, which this node does not know.",
                mend="Upgrade this node.",
                code="suite",
            )

    def to_bytes(self) -> bytes:
        """The canonical clear header."""
        return canonical_json(
            {
                "format": "accord-object",
                "grade": int(self.grade),
                "id": self.object_id,
                "kind": self.kind,
                "study": self.study,
                "suite": self.suite,
            }
        )

    @property
    def context(self) -> bytes:
        """What the body is bound to: SHA-256 of the clear header, 32 bytes."""
        return sha256(self.to_bytes()).digest()


@cache
def keep_freed_memory() -> None:
    """Teach the C library, once, to keep freed buffers of up to 31 MiB instead of giving them back each time.

    glibc raises its threshold for that when a buffer of such a size is freed once. Without it every object pays for fresh
    pages: opening 525 kB took 0.7 ms instead of 0.14 ms. Harmless elsewhere; costs no memory by itself.
    """
    bytearray(31 * 1024 * 1024)


def check_study_id(study: str) -> str:
    """Return `study` when it is a study pseudonym; raise Invalid: such ids become file names."""
    if _STUDY_ID.fullmatch(study) is None:
        raise Invalid(
            "This is not a study id.", mend="Study ids look like st_ and 26 letters.", code="study-id"
        )
    return study


def object_key(study_key: bytes, object_id: str) -> bytes:
    """Derive the 32-byte key of one object."""
    return HKDF(SHA256(), KEY_BYTES, None, b"accord/object/v1|" + object_id.encode()).derive(study_key)


def object_keys(study_key: bytes, object_ids: Iterable[str]) -> dict[str, bytes]:
    """Derive the keys of some objects: what a lease releases, never the study key itself."""
    return {object_id: object_key(study_key, object_id) for object_id in object_ids}


def sealed_length(plain_bytes: int) -> int:
    """Length in bytes of the body that seals `plain_bytes` bytes of payload."""
    return PREFIX_BYTES + plain_bytes + TAG_BYTES * (plain_bytes // CHUNK_BYTES + 1)


def plain_length(sealed_bytes: int) -> int:
    """Length in bytes of the payload inside a body; raises Corrupt when no body has this length."""
    full, rest = divmod(sealed_bytes - PREFIX_BYTES, CHUNK_BYTES + TAG_BYTES)
    if full < 0 or rest < TAG_BYTES:
        raise _damaged("its length is impossible: the end is missing")
    return full * CHUNK_BYTES + rest - TAG_BYTES


def payload_bytes(payload: Payload) -> int:
    """The length of a payload. Raises Invalid when it is more than one object holds."""
    total = sum(part.nbytes for part in pieces(payload))
    if total > MAX_OBJECT_BYTES:
        raise Invalid(f"An object may hold {MAX_OBJECT_BYTES} bytes, not {total}.", code="object-size")
    return total


def seal(payload: Payload, key: bytes, header: ObjectHeader) -> bytearray:
    """Encrypt `payload` as the object that `header` names; return the body."""
    body = bytearray(sealed_length(payload_bytes(payload)))
    seal_into(memoryview(body), payload, key, header)
    return body


def seal_into(body: memoryview, payload: Payload, key: bytes, header: ObjectHeader) -> None:
    """Encrypt `payload` into `body`, which has `sealed_length` of its bytes. Nothing is allocated or copied."""
    encryptor = Cobblestone256Encryptor(key, header.context)
    at = 0
    for part in pieces(payload):
        for start in range(0, part.nbytes, PIECE_BYTES):
            at += encryptor.update_into(part[start : start + PIECE_BYTES], body[at:])
    body[at:] = encryptor.finalize()


def open_sealed(body: Buffer, key: bytes, header: ObjectHeader) -> bytes:
    """Decrypt and prove the whole body; raises Corrupt when anything is not as it was sealed."""
    view = memoryview(body).cast("B")
    plain = memoryview(bytearray(plain_length(view.nbytes)))
    decryptor = Cobblestone256Decryptor(key, header.context)
    at = 0
    try:
        for start in range(0, view.nbytes, PIECE_BYTES):
            at += decryptor.update_into(view[start : start + PIECE_BYTES], plain[at:])
        plain[at:] = decryptor.finalize()
    except InvalidTag as error:
        raise _damaged("its key, its name or its bytes do not match") from error
    return bytes(plain)


def digest_of_sealed(
    read: Callable[[int, int], bytes], sealed_bytes: int, key: bytes, header: ObjectHeader
) -> bytes:
    """The SHA-256 of the payload of a body, proved to its end, without keeping any of it; raises Corrupt.

    `read(offset, length)` gives bytes of the body.
    """
    decryptor, hasher = Cobblestone256Decryptor(key, header.context), sha256()
    try:
        for start in range(0, sealed_bytes, PIECE_BYTES):
            sealed = read(start, min(PIECE_BYTES, sealed_bytes - start))
            hasher.update(decryptor.update(sealed))
        hasher.update(decryptor.finalize())
    except InvalidTag as error:
        raise _damaged("its key, its name or its bytes do not match") from error
    return hasher.digest()


def open_range(
    read: Callable[[int, int], bytes],
    sealed_bytes: int,
    key: bytes,
    header: ObjectHeader,
    offset: int,
    length: int,
) -> bytes:
    """Decrypt `length` bytes of payload from `offset`, reading only the prefix and the chunks that cover them.

    `read(offset, length)` gives bytes of the body (fewer at its end); `sealed_bytes` is the body's length.
    Raises Invalid for a range outside the payload, Corrupt when a byte that was read is not as it was sealed.
    """
    total = plain_length(sealed_bytes)
    if offset < 0 or length < 0 or offset + length > total:
        raise Invalid(f"The range {offset}+{length} is outside this object of {total} bytes.", code="range")
    cipher, nonce = _derive(read(0, PREFIX_BYTES), key, header.context)
    if length == 0:
        return b""
    first, last = offset // CHUNK_BYTES, (offset + length - 1) // CHUNK_BYTES
    step = CHUNK_BYTES + TAG_BYTES
    start = PREFIX_BYTES + first * step
    stop = min(PREFIX_BYTES + (last + 1) * step, sealed_bytes)
    sealed = memoryview(read(start, stop - start))
    if sealed.nbytes != stop - start:
        raise _damaged("it ends too early")
    plain = memoryview(bytearray(stop - start - TAG_BYTES * (last - first + 1)))
    for number in range(first, last + 1):
        place = (number - first) * step
        chunk = sealed[place : place + step]
        target = (number - first) * CHUNK_BYTES
        try:
            cipher.decrypt_into(
                (nonce ^ number).to_bytes(12, "big"),
                chunk,
                None,
                plain[target : target + chunk.nbytes - TAG_BYTES],
            )
        except InvalidTag as error:
            raise _damaged(f"chunk {number} does not match") from error
    skip = offset - first * CHUNK_BYTES
    return bytes(plain[skip : skip + length])


def seal_digest(digest: bytes, key: bytes, header: ObjectHeader) -> bytes:
    """Seal the SHA-256 of a payload (32 bytes) so that it travels with the object without telling anything."""
    if len(digest) != 32:
        raise Invalid("A SHA-256 digest has 32 bytes.", code="digest")
    nonce = os.urandom(12)
    return nonce + AESGCM(_digest_key(key)).encrypt(nonce, digest, header.context)


def open_digest(sealed: bytes, key: bytes, header: ObjectHeader) -> bytes:
    """Give back the SHA-256 of the payload; raises Corrupt."""
    if len(sealed) != SEALED_DIGEST_BYTES:
        raise _damaged("its sealed digest has the wrong length")
    try:
        return AESGCM(_digest_key(key)).decrypt(sealed[:12], sealed[12:], header.context)
    except InvalidTag as error:
        raise _damaged("its sealed digest does not match") from error


def pieces(payload: Payload) -> list[memoryview]:
    """The payload as byte views, without copying."""
    if isinstance(payload, bytes | bytearray | memoryview):
        return [memoryview(payload).cast("B")]
    return [memoryview(part).cast("B") for part in payload]


def _derive(prefix: bytes, key: bytes, context: bytes) -> tuple[AESGCM, int]:
    """Key and base nonce of a body (C2SP chunked-encryption, key derivation); the commitment is checked first."""
    if len(prefix) != PREFIX_BYTES:
        raise _damaged("it ends too early")
    salt, commitment = prefix[:24], prefix[24:]
    derived = HKDFExpand(SHA512(), KEY_BYTES + 12 + 32, _INFO + salt + context).derive(key)
    if not hmac.compare_digest(derived[44:], commitment):
        raise _damaged("its key or its name does not match")
    return AESGCM(derived[:32]), int.from_bytes(derived[32:44], "big")


def _digest_key(key: bytes) -> bytes:
    return HKDF(SHA256(), KEY_BYTES, None, b"accord/digest/v1").derive(key)


def _damaged(why: str) -> Corrupt:
    return Corrupt(
        f"A sealed object is not what was written: {why}.",
        mend="Restore it from a replica or from the sender; nothing of it was shown.",
        code="sealed-object",
    )
