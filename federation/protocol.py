"""What members say to each other: the signed statements of an exchange, and the bounds of every message.

Pure. Each statement is a `consent.signed.Body` and travels as a JWS inside a JSON object over mutual TLS, so it
can be kept and shown later. What identifies a patient (`Particulars`) travels only inside an HPKE envelope to
the home hospital. Format: docs/formats/peer-protocol.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from hashlib import sha256
from typing import Any, ClassVar, Self

from consent.errors import Invalid
from consent.fields import unix
from consent.signed import canonical_json, parse_json
from consent.vocabulary import Purpose, Right
from federation.envelope import HpkePrivateKey, HpkePublicKey, open_sealed_for, seal_for
from federation.fields import DIGEST, NODE_ID, OBJECT_ID, RECORD_ID, STUDY_ID, base64_text, read_object

PREFIX = "/peer/v1"

MAX_BODY_BYTES = 512 * 1024
MAX_ROSTER_BODY_BYTES = 8 * 1024 * 1024
MAX_CHECKPOINT_BODY_BYTES = 64 * 1024
MAX_MANIFEST_BYTES = 32 * 1024 * 1024
MAX_PACK_BYTES = 256 * 1024**3
MAX_RANGE_BYTES = 64 * 1024 * 1024
MAX_GRANTS_ASKED = 1000
MAX_LEASE_OBJECTS = 4096
MAX_SEALED_BYTES = 512 * 1024
MAX_PERSON = 120
MAX_REASON = 500
MAX_HOURS = 24 * 366
MESSAGE_SKEW_SECONDS = 120
MESSAGE_SECONDS = 300
REQUEST_DAYS = 7

Json = dict[str, Any]


class RequestState(StrEnum):
    """How a request stands. UNSENT is the asker's only; UNMATCHED is the home's, shown outside as WAITING."""

    UNSENT = "unsent"
    WAITING = "waiting"
    UNMATCHED = "unmatched"
    GRANTED = "granted"
    DECLINED = "declined"
    EXPIRED = "expired"


@dataclass(frozen=True)
class Particulars:
    """What only the two clinicians may read: which study, who asks, and why in words.

    The study is named by its StudyInstanceUID, or by accession number and patient ID as the asker typed them.
    """

    person_name: str
    reason: str
    study_instance_uid: str = ""
    accession_number: str = ""
    patient_id: str = ""

    def __post_init__(self) -> None:
        if not self.study_instance_uid and not (self.accession_number and self.patient_id):
            raise Invalid(
                "Name the study by its StudyInstanceUID, or by accession number and patient ID.",
                mend="Give one of the two.",
                code="study-unnamed",
            )

    def seal(self, key: HpkePublicKey, request_id: str) -> bytes:
        """Encrypt for the holder of `key`; opens only as part of this request."""
        return seal_for(key, canonical_json(vars(self)), _particulars_info(request_id))

    @classmethod
    def open(cls, key: HpkePrivateKey, sealed: bytes, request_id: str) -> Self:
        """Raise Corrupt when it was sealed for another node or request, Invalid when it is malformed."""
        read = read_object(parse_json(open_sealed_for(key, sealed, _particulars_info(request_id))), "request")
        return cls(
            person_name=read.text("person_name", limit=MAX_PERSON),
            reason=read.text("reason", limit=MAX_REASON),
            study_instance_uid=read.text("study_instance_uid", limit=64, empty=True),
            accession_number=read.text("accession_number", limit=64, empty=True),
            patient_id=read.text("patient_id", limit=128, empty=True),
        )


def _particulars_info(request_id: str) -> bytes:
    return b"accord/study-request/v1|" + request_id.encode()


@dataclass(frozen=True)
class StudyRequest:
    """A clinician of the issuing node asks the home hospital for one study."""

    KIND: ClassVar[str] = "study-request"
    VERSION: ClassVar[int] = 1

    home: str
    person: str
    purpose: Purpose
    rights: frozenset[Right]
    hours: int
    sealed: bytes

    def to_json(self) -> Json:
        return {
            "home": self.home,
            "person": self.person,
            "purpose": str(self.purpose),
            "rights": sorted(self.rights),
            "hours": self.hours,
            "sealed": base64_text(self.sealed),
        }

    @classmethod
    def from_json(cls, data: Json) -> Self:
        read = read_object(data, "study request")
        rights = read.choices("rights", Right)
        if not rights:
            raise Invalid("A study request must ask for at least one right.")
        return cls(
            home=read.matching("home", NODE_ID),
            person=read.text("person", limit=MAX_PERSON),
            purpose=read.choice("purpose", Purpose),
            rights=rights,
            hours=read.integer("hours", low=1, high=MAX_HOURS),
            sealed=read.octets("sealed", 16 * 1024),
        )


@dataclass(frozen=True)
class LeaseRequest:
    """The holder asks for the keys of some objects of a granted study, for one person, now."""

    KIND: ClassVar[str] = "lease-request"
    VERSION: ClassVar[int] = 1

    home: str
    grant: str
    study: str
    objects: tuple[str, ...]
    person: str
    purpose: Purpose
    opening: str
    nonce: str
    roster: int

    def to_json(self) -> Json:
        return {
            "home": self.home,
            "grant": self.grant,
            "study": self.study,
            "objects": list(self.objects),
            "person": self.person,
            "purpose": str(self.purpose),
            "opening": self.opening,
            "nonce": self.nonce,
            "roster": self.roster,
        }

    @classmethod
    def from_json(cls, data: Json) -> Self:
        read = read_object(data, "lease request")
        objects = read.matchings("objects", OBJECT_ID, MAX_LEASE_OBJECTS)
        if not objects:
            raise Invalid("A lease request names at least one object.", code="field")
        return cls(
            home=read.matching("home", NODE_ID),
            grant=read.matching("grant", RECORD_ID),
            study=read.matching("study", STUDY_ID),
            objects=objects,
            person=read.text("person", limit=MAX_PERSON),
            purpose=read.choice("purpose", Purpose),
            opening=read.text("opening", limit=64),
            nonce=read.matching("nonce", DIGEST),
            roster=read.integer("roster", low=1),
        )


@dataclass(frozen=True)
class Lease:
    """The home's answer: object keys sealed for the holder, bound to grant, nonce and end. See `leases`."""

    KIND: ClassVar[str] = "lease"
    VERSION: ClassVar[int] = 1

    grant: str
    nonce: str
    until: datetime
    sealed: bytes

    @property
    def info(self) -> bytes:
        """What the envelope is bound to."""
        return lease_info(self.grant, self.nonce, self.until)

    def to_json(self) -> Json:
        return {
            "grant": self.grant,
            "nonce": self.nonce,
            "until_ms": int(self.until.timestamp() * 1000),
            "sealed": base64_text(self.sealed),
        }

    @classmethod
    def from_json(cls, data: Json) -> Self:
        read = read_object(data, "lease")
        return cls(
            grant=read.matching("grant", DIGEST),
            nonce=read.matching("nonce", DIGEST),
            until=from_milliseconds(read.integer("until_ms", high=2**46)),
            sealed=read.octets("sealed", MAX_SEALED_BYTES),
        )


def lease_info(grant_digest: str, nonce: str, until: datetime) -> bytes:
    """SHA-256 over the grant's digest, the nonce and the end: HPKE's `info` for a lease."""
    text = f"accord/lease/v1|{grant_digest}|{nonce}|{int(until.timestamp() * 1000)}"
    return sha256(text.encode("ascii")).digest()


@dataclass(frozen=True)
class GrantEnded:
    """The home hospital says that a grant no longer lives, and why."""

    KIND: ClassVar[str] = "grant-ended"
    VERSION: ClassVar[int] = 1

    grant: str
    holder: str
    reason: str

    def to_json(self) -> Json:
        return {"grant": self.grant, "holder": self.holder, "reason": self.reason}

    @classmethod
    def from_json(cls, data: Json) -> Self:
        read = read_object(data, "notice that a grant ended")
        return cls(
            grant=read.matching("grant", RECORD_ID),
            holder=read.matching("holder", NODE_ID),
            reason=read.text("reason", limit=MAX_REASON),
        )


@dataclass(frozen=True)
class ShredReceipt:
    """The holder says that its copy is gone: what, why, how much, how and when."""

    KIND: ClassVar[str] = "shred-receipt"
    VERSION: ClassVar[int] = 1

    grant: str
    study: str
    home: str
    reason: str
    method: str
    size_bytes: int
    shredded: datetime

    def to_json(self) -> Json:
        return {
            "grant": self.grant,
            "study": self.study,
            "home": self.home,
            "reason": self.reason,
            "method": self.method,
            "size_bytes": self.size_bytes,
            "shredded": unix(self.shredded),
        }

    @classmethod
    def from_json(cls, data: Json) -> Self:
        read = read_object(data, "shred receipt")
        return cls(
            grant=read.matching("grant", RECORD_ID),
            study=read.matching("study", STUDY_ID),
            home=read.matching("home", NODE_ID),
            reason=read.text("reason", limit=MAX_REASON),
            method=read.text("method", limit=200),
            size_bytes=read.integer("size_bytes", high=MAX_PACK_BYTES),
            shredded=read.moment("shredded"),
        )


def from_milliseconds(value: int) -> datetime:
    """An aware UTC moment from milliseconds since 1970."""
    return datetime.fromtimestamp(value / 1000, UTC)
