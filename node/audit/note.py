"""Signed notes, verifier keys, checkpoints and cosignatures: C2SP signed-note, tlog-checkpoint, tlog-cosignature.

Pure: text in, text out; keys and times are arguments. A note is a text, an empty line, and signature lines.
Two kinds of key are spoken: Ed25519 (0x01), with which a log signs its checkpoints, and timestamped Ed25519
cosignatures (0x04, "cosignature/v1"), with which witnesses vouch for them.

Invariant: signatures by unknown keys are ignored; a signature that claims a known key and fails spoils the
whole note. Format: docs/formats/checkpoint.md.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum
from hashlib import sha256
from typing import Self

from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from consent.errors import Corrupt, Invalid
from node.audit.merkle import HASH_BYTES

MAX_NOTE_BYTES = 128 * 1024
MAX_SIGNATURES = 64
MAX_NAME_CHARACTERS = 255
KEY_BYTES = 32
SIGNATURE_BYTES = 64
KEY_ID_BYTES = 4
TIMESTAMP_BYTES = 8

_DASH = "— "
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f]")
_SIZE = re.compile(r"0|[1-9][0-9]{0,18}")


class SignatureType(IntEnum):
    """The signature type bytes of C2SP signed-note that this node speaks."""

    ED25519 = 0x01
    COSIGNATURE_V1 = 0x04


@dataclass(frozen=True)
class Verifier:
    """A public key under a name: who may sign a note, and how."""

    name: str
    type: SignatureType
    key: bytes

    def __post_init__(self) -> None:
        if not _good_name(self.name):
            raise Invalid(f"{self.name!r} is not a key name: no spaces, no plus, not empty.")
        if len(self.key) != KEY_BYTES:
            raise Invalid(f"An Ed25519 public key has {KEY_BYTES} bytes, not {len(self.key)}.")

    @property
    def key_id(self) -> bytes:
        """The first four bytes of SHA-256(name, newline, type, key)."""
        return sha256(self.name.encode() + b"\n" + bytes([self.type]) + self.key).digest()[:KEY_ID_BYTES]

    def as_cosigner(self) -> Verifier:
        """The same key and name as a witness: another type, hence another key id and another signed message."""
        return Verifier(self.name, SignatureType.COSIGNATURE_V1, self.key)

    @property
    def vkey(self) -> str:
        """The verifier key as text: name+hex(key id)+base64(type, key)."""
        return f"{self.name}+{self.key_id.hex()}+{encode(bytes([self.type]) + self.key)}"

    @classmethod
    def from_vkey(cls, vkey: str) -> Self:
        """Raises Invalid when the text is not a verifier key or its key id does not match."""
        parts = vkey.split("+", 2)
        if len(parts) != 3:
            raise Invalid("Not a verifier key: name+id+key is needed.", code="bad-vkey")
        name, key_id, material = parts
        data = decode(material, "verifier key")
        if not data or data[0] not in list(SignatureType):
            raise Invalid("This verifier key is of a type that this node does not speak.", code="bad-vkey")
        verifier = cls(name, SignatureType(data[0]), data[1:])
        if verifier.key_id.hex() != key_id:
            raise Invalid("The verifier key's id does not match its name and key.", code="bad-vkey")
        return verifier


@dataclass(frozen=True)
class NoteSignature:
    """One signature line: a claim, until it is verified."""

    name: str
    key_id: bytes
    value: bytes

    @property
    def line(self) -> str:
        return f"{_DASH}{self.name} {encode(self.key_id + self.value)}\n"


class Signer:
    """A private Ed25519 key under a name."""

    def __init__(self, name: str, seed: bytes, signature_type: SignatureType = SignatureType.ED25519) -> None:
        self._key = SigningKey(seed)
        self.verifier = Verifier(name, signature_type, bytes(self._key.verify_key))

    @property
    def name(self) -> str:
        return self.verifier.name

    def as_cosigner(self) -> Signer:
        """The same key as a witness."""
        return Signer(self.name, bytes(self._key), SignatureType.COSIGNATURE_V1)

    def sign(self, text: str, now: datetime) -> NoteSignature:
        """Sign a note's text; a cosignature says that the text was seen at `now`, a plain one drops the time."""
        value = b""
        message = text.encode()
        if self.verifier.type is SignatureType.COSIGNATURE_V1:
            seconds = int(now.timestamp())
            value = seconds.to_bytes(TIMESTAMP_BYTES, "big")
            message = _cosigned_message(text, seconds)
        value += self._key.sign(message).signature
        return NoteSignature(self.name, self.verifier.key_id, value)


@dataclass(frozen=True)
class Vouched:
    """A signature that held: by whom and, for a cosignature, when."""

    verifier: Verifier
    at: datetime | None


@dataclass(frozen=True)
class Note:
    """A text ending in a newline, and its signature lines."""

    text: str
    signatures: tuple[NoteSignature, ...]

    def __str__(self) -> str:
        return f"{self.text}\n{''.join(signature.line for signature in self.signatures)}"

    @classmethod
    def parse(cls, data: str) -> Self:
        """Split text from signatures. Raises Invalid when the note is malformed or past its bounds."""
        if len(data.encode(errors="replace")) > MAX_NOTE_BYTES:
            raise Invalid(f"A note is at most {MAX_NOTE_BYTES} bytes.", code="bad-note")
        if _CONTROL.search(data):
            raise Invalid("A note holds no control character but newline.", code="bad-note")
        text, found, lines = data.rpartition("\n\n")
        if not found or not text or not lines.endswith("\n"):
            raise Invalid(
                "Not a signed note: text, an empty line and signatures are needed.", code="bad-note"
            )
        return cls(text + "\n", parse_signatures(lines))

    def verify(self, verifiers: Iterable[Verifier]) -> tuple[Vouched, ...]:
        """Return who of `verifiers` signed; possibly nobody.

        Raises Corrupt when a signature claims one of them and does not hold.
        """
        known = {(verifier.name, verifier.key_id): verifier for verifier in verifiers}
        vouched: list[Vouched] = []
        for signature in self.signatures:
            verifier = known.get((signature.name, signature.key_id))
            if verifier is not None:
                vouched.append(_check(self.text, signature, verifier))
        return tuple(vouched)

    def with_signatures(self, more: Iterable[NoteSignature]) -> Note:
        """The same note with further signatures; one that is there already is not repeated."""
        return Note(self.text, tuple(dict.fromkeys((*self.signatures, *more))))


def parse_signatures(lines: str) -> tuple[NoteSignature, ...]:
    """Parse signature lines, each ended by a newline. Raises Invalid when one is malformed or they are too many."""
    parts = lines.split("\n")
    if parts.pop() != "" or not parts:
        raise Invalid("A signature line ends in a newline.", code="bad-note")
    if len(parts) > MAX_SIGNATURES:
        raise Invalid(f"A note carries at most {MAX_SIGNATURES} signatures.", code="bad-note")
    return tuple(_parse_signature(line) for line in parts)


@dataclass(frozen=True)
class Checkpoint:
    """A log's tree head: origin, size in entries, root; extension lines are carried and not used."""

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The note text."""
        lines = (self.origin, str(self.size), encode(self.root), *self.extensions)
        return "".join(f"{line}\n" for line in lines)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises Invalid when the text is not a checkpoint's."""
        lines = text.split("\n")
        if len(lines) < 4 or lines.pop() != "" or "" in lines:
            raise Invalid("Not a checkpoint: origin, size and root are needed.", code="bad-checkpoint")
        origin, size, root, *extensions = lines
        if not _SIZE.fullmatch(size):
            raise Invalid("The checkpoint's size is not a plain decimal number.", code="bad-checkpoint")
        value = decode(root, "checkpoint's root")
        if len(value) != HASH_BYTES:
            raise Invalid(f"The checkpoint's root is not {HASH_BYTES} bytes.", code="bad-checkpoint")
        return cls(origin, int(size), value, tuple(extensions))


def cosigned_by(note: str, verifiers: Sequence[Verifier]) -> tuple[str, ...]:
    """The names of those of `verifiers` whose cosignature on a checkpoint holds."""
    return tuple(one.verifier.name for one in Note.parse(note).verify(verifiers))


def open_checkpoint(note: str, verifiers: Sequence[Verifier]) -> tuple[Checkpoint, tuple[Vouched, ...]]:
    """Parse a checkpoint and check it: at least one plain signature by one of `verifiers`.

    Returns it with everybody of `verifiers` who signed. Raises Invalid when malformed, Corrupt when no known
    log key signed it or a known key's signature fails.
    """
    parsed = Note.parse(note)
    checkpoint = Checkpoint.parse(parsed.text)
    vouched = parsed.verify(verifiers)
    if not any(one.verifier.type is SignatureType.ED25519 for one in vouched):
        raise Corrupt("No known log key signed this checkpoint.", code="unsigned-checkpoint")
    return checkpoint, vouched


def encode(data: bytes) -> str:
    """Standard base64 (RFC 4648 §4)."""
    return base64.b64encode(data).decode()


def decode(text: str, what: str) -> bytes:
    """Standard base64, canonical only. Raises Invalid, naming `what`."""
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise Invalid(f"The {what} is not base64.", code="bad-base64") from error
    if encode(data) != text:
        raise Invalid(f"The {what} is not canonical base64.", code="bad-base64")
    return data


def _check(text: str, signature: NoteSignature, verifier: Verifier) -> Vouched:
    message, value, at = text.encode(), signature.value, None
    if verifier.type is SignatureType.COSIGNATURE_V1:
        seconds = int.from_bytes(value[:TIMESTAMP_BYTES], "big")
        value = value[TIMESTAMP_BYTES:]
        message = _cosigned_message(text, seconds)
        at = _moment(seconds, verifier.name)
    if len(value) != SIGNATURE_BYTES:
        raise _bad_signature(verifier.name)
    try:
        VerifyKey(verifier.key).verify(message, value)
    except BadSignatureError as error:
        raise _bad_signature(verifier.name) from error
    return Vouched(verifier, at)


def _cosigned_message(text: str, seconds: int) -> bytes:
    return f"cosignature/v1\ntime {seconds}\n{text}".encode()


def _moment(seconds: int, name: str) -> datetime:
    if not 0 < seconds < 2**36:
        raise Corrupt(f"The cosignature by {name!r} has an impossible time.", code="bad-signature")
    return datetime.fromtimestamp(seconds, UTC)


def _parse_signature(line: str) -> NoteSignature:
    name, found, value = line.removeprefix(_DASH).partition(" ")
    if not line.startswith(_DASH) or not found or not _good_name(name):
        raise Invalid("Not a signature line: dash, name and signature are needed.", code="bad-note")
    data = decode(value, "signature")
    if len(data) <= KEY_ID_BYTES:
        raise Invalid("The signature is too short.", code="bad-note")
    return NoteSignature(name, data[:KEY_ID_BYTES], data[KEY_ID_BYTES:])


def _good_name(name: str) -> bool:
    return 0 < len(name) <= MAX_NAME_CHARACTERS and "+" not in name and not any(c.isspace() for c in name)


def _bad_signature(name: str) -> Corrupt:
    return Corrupt(f"The signature by {name!r} does not hold.", code="bad-signature")
