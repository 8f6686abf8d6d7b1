"""What the log is made of: an event in the past tense, its salted record, and the record's sealed form.

A record is 16 random bytes of salt followed by canonical JSON; the salt keeps whoever holds a leaf hash from
guessing what it stands for. A record lies on disk as AES-256-GCM under the audit key, bound to its index and
the log's origin, beside keyed blind values of the few columns that are searched.
Leaves tree, tables and times to `log`. Format: docs/formats/log.md.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import sha256
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from consent.errors import Corrupt, Invalid
from consent.signed import canonical_json, parse_json
from consent.vocabulary import EventKind, Outcome, Purpose

SALT_BYTES = 16
NONCE_BYTES = 12
BLIND_BYTES = 16
MAX_RECORD_BYTES = 32 * 1024
MAX_REASON_CHARACTERS = 2000
RECORD_VERSION = 1

Detail = str | int | float | bool | None | Sequence["Detail"] | Mapping[str, "Detail"]


@dataclass(frozen=True)
class Event:
    """A deed, in the past tense.

    `actor` is who did it, with its kind: `person:li@a-general`, `device:CT1`, `member:b-central`,
    `job:sweep`, `system`. `patient` and `study` are pseudonyms. Raises Invalid when it is too large to keep;
    a reason that a person typed at length is cut instead, so that no deed goes unrecorded over its wording.
    """

    kind: EventKind
    actor: str
    outcome: Outcome = Outcome.DONE
    patient: str | None = None
    study: str | None = None
    purpose: Purpose | None = None
    address: str | None = None
    reason: str = ""
    detail: Mapping[str, Detail] = field(default_factory=dict)
    rows: int | None = field(default=None, compare=False)
    """The state of the access rows that this deed made (docs/formats/access-rows.md); the log adds it."""

    def __post_init__(self) -> None:
        if len(self.reason) > MAX_REASON_CHARACTERS:
            object.__setattr__(self, "reason", self.reason[: MAX_REASON_CHARACTERS - 1] + "…")
        try:
            size = len(canonical_json(self._fields()))
        except (TypeError, ValueError) as error:
            raise Invalid(f"A log entry holds plain JSON values only ({self.kind}): {error}.") from error
        if size > MAX_RECORD_BYTES:
            raise Invalid(f"A log entry is at most {MAX_RECORD_BYTES} bytes; this {self.kind} has {size}.")

    def to_record(self, at: datetime, salt: bytes) -> bytes:
        """The salted record: salt, then canonical JSON."""
        fields = {"v": RECORD_VERSION, "at": _time_text(at), **self._fields()}
        return salt + canonical_json(fields)

    def _fields(self) -> dict[str, Any]:
        return {
            "kind": str(self.kind),
            "actor": self.actor,
            "outcome": str(self.outcome),
            "patient": self.patient,
            "study": self.study,
            "purpose": str(self.purpose) if self.purpose else None,
            "address": self.address,
            "reason": self.reason,
            "detail": dict(self.detail),
        } | ({} if self.rows is None else {"rows": self.rows})


@dataclass(frozen=True)
class Entry:
    """An event with its place: zero-based index, moment, and leaf hash."""

    index: int
    at: datetime
    event: Event
    leaf: bytes = field(repr=False)


def read_record(record: bytes) -> tuple[datetime, Event]:
    """Parse a salted record. Raises Invalid when it is not one that this version can read."""
    fields = parse_json(record[SALT_BYTES:])
    try:
        if fields["v"] != RECORD_VERSION:
            raise Invalid(f"A log record of version {fields['v']!r} is not known.", mend="Upgrade this node.")
        event = Event(
            kind=EventKind(fields["kind"]),
            actor=fields["actor"],
            outcome=Outcome(fields["outcome"]),
            patient=fields["patient"],
            study=fields["study"],
            purpose=Purpose(fields["purpose"]) if fields["purpose"] else None,
            address=fields["address"],
            reason=fields["reason"],
            detail=fields["detail"],
            rows=fields.get("rows"),
        )
        return _time(fields["at"]), event
    except (KeyError, TypeError, ValueError) as error:
        raise Invalid(f"Not a log record: {error!r}.") from error


class RecordSealer:
    """Seals records, and blinds the values they are searched by, under keys derived from the audit key."""

    def __init__(self, audit_key: bytes, origin: str) -> None:
        self._origin = origin.encode()
        self._cipher = AESGCM(_derive(audit_key, b"accord/log-record/v1"))
        blind_key = _derive(audit_key, b"accord/log-blind/v1")

        @lru_cache(maxsize=4096)
        def blind(column: str, value: str) -> bytes:
            return hmac.digest(blind_key, f"{column}\x00{value}".encode(), sha256)[:BLIND_BYTES]

        self._blind = blind

    def seal(self, index: int, record: bytes) -> bytes:
        """Nonce, then ciphertext and tag; the index and the origin are authenticated."""
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, record, self._context(index))

    def open(self, index: int, sealed: bytes) -> bytes:
        """Raises Corrupt when the bytes are not what was sealed for this index of this log."""
        try:
            return self._cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], self._context(index))
        except (InvalidTag, ValueError, TypeError) as error:
            raise Corrupt(f"Log entry {index} was altered.", mend="Run `accord log verify`.") from error

    def blind(self, column: str, value: str | None) -> bytes | None:
        """The keyed value under which `value` is looked up in `column`; None stays None."""
        return None if value is None else self._blind(column, value)

    def _context(self, index: int) -> bytes:
        return b"%d|%s" % (index, self._origin)


def _derive(audit_key: bytes, info: bytes) -> bytes:
    return HKDF(SHA256(), length=32, salt=None, info=info).derive(audit_key)


def _time_text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _time(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a time without a zone")
    return moment
