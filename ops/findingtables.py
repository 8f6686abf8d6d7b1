"""What a finding is: its kinds, grades and states, its table, and what shows that one begins, goes on or is over.

Holds no rule and no transaction: `findings` keeps them, `sightings` and `checks` find them, `findingwords` says them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from hashlib import sha256
from typing import Any, Final

from sqlalchemy import BigInteger, Column, String, Table, Text, case

from node.database import UtcDateTime, metadata

MAX_SUBJECT_CHARACTERS: Final = 200

finding_table = Table(
    "finding",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("kind", String(40), nullable=False),
    Column("severity", String(16), nullable=False),
    Column("subject", String(MAX_SUBJECT_CHARACTERS), nullable=False),
    Column("living", String(64), unique=True),
    Column("code", String(64), nullable=False),
    Column("told", Text, nullable=False),
    Column("state", String(16), nullable=False, index=True),
    Column("first_seen", UtcDateTime, nullable=False),
    Column("last_seen", UtcDateTime, nullable=False),
    Column("count", BigInteger, nullable=False),
    Column("entry", BigInteger),
    Column("acknowledged", UtcDateTime),
    Column("acknowledged_by", String(120)),
    Column("acknowledged_words", Text),
    Column("resolved", UtcDateTime),
    Column("resolved_by", String(120)),
    Column("resolved_words", Text),
)
"""`living` names kind and subject while the finding is not resolved: so there is one of each."""


class Severity(StrEnum):
    """How grave. An incident is for the security officer at once."""

    NOTICE = "notice"
    WARNING = "warning"
    INCIDENT = "incident"


class FindingKind(StrEnum):
    """What was found."""

    DEVICE_REFUSED = "device-refused"
    STRANGER_REFUSED = "stranger-refused"
    DOOR_CROWDED = "door-crowded"
    DEVICE_FAULTY = "device-faulty"
    INSTANCE_REFUSED = "instance-refused"
    INTEGRITY_FAILED = "integrity-failed"
    ROW_ALTERED = "row-altered"
    LOG_ALTERED = "log-altered"
    DATABASE_DAMAGED = "database-damaged"
    WITNESS_ALARMED = "witness-alarmed"
    STORAGE_DEGRADED = "storage-degraded"
    SIGN_IN_RESET = "sign-in-reset"
    SIGN_IN_DISOWNED = "sign-in-disowned"
    AGENT_REPLACED = "agent-replaced"
    ROSTER_REFUSED = "roster-refused"
    MEMBER_REFUSED = "member-refused"
    DISK_LOW = "disk-low"
    CERTIFICATE_EXPIRING = "certificate-expiring"
    CERTIFICATE_ENDED = "certificate-ended"
    CLOCK_BEHIND = "clock-behind"
    JOB_FAILING = "job-failing"


class FindingState(StrEnum):
    """Where it stands."""

    OPEN = "open"
    ACKNOWLEDGED = "acknowledged"
    RESOLVED = "resolved"


TRANSITIONS: Final[Mapping[FindingState, frozenset[FindingState]]] = {
    FindingState.OPEN: frozenset({FindingState.ACKNOWLEDGED, FindingState.RESOLVED}),
    FindingState.ACKNOWLEDGED: frozenset({FindingState.RESOLVED}),
    FindingState.RESOLVED: frozenset(),
}
"""Everything else is a Conflict. What comes back after it was resolved opens a finding of its own."""
LIVING: Final = (FindingState.OPEN, FindingState.ACKNOWLEDGED)
CHOICES: Final[Mapping[str, tuple[FindingState, ...]]] = {
    "living": LIVING,
    "open": (FindingState.OPEN,),
    "acknowledged": (FindingState.ACKNOWLEDGED,),
    "resolved": (FindingState.RESOLVED,),
    "all": tuple(FindingState),
}
"""What `state` may ask for, on the page, in the API and at the command line."""
OVERFLOW: Final = "*"
"""The subject of the finding that counts what has no room of its own."""


@dataclass(frozen=True)
class Sighting:
    """Something seen once, or `count` times, about `subject`.

    `code` names the words that say it (`findingwords.WORDS`), `values` fill their places; `entry` is the index of the log
    entry that showed it, None for a condition.
    """

    kind: FindingKind
    severity: Severity
    subject: str
    code: str
    at: datetime
    values: Mapping[str, str] = field(default_factory=dict)
    count: int = 1
    entry: int | None = None
    details: tuple[tuple[str, Mapping[str, str]], ...] = ()
    """Further words with their values: each fault of a refusal that had several."""
    key: str = ""
    """What tells it from others of its kind, where the subject alone does not."""

    @property
    def living(self) -> str:
        """The name that a living finding of this kind and subject has."""
        return living_name(self.kind, self.key or self.subject)


@dataclass(frozen=True)
class Mended:
    """What shows that living findings of `kinds` about `subject` are over."""

    kinds: tuple[FindingKind, ...]
    subject: str

    @property
    def living(self) -> tuple[str, ...]:
        """The names that these findings have while they live."""
        return tuple(living_name(kind, self.subject) for kind in self.kinds)


@dataclass(frozen=True)
class Handled:
    """Who acknowledged or resolved, when, and in which words."""

    at: datetime
    by: str
    words: str


@dataclass(frozen=True)
class Finding:
    """One finding, as it stands."""

    id: str
    kind: FindingKind
    severity: Severity
    subject: str
    code: str
    values: Mapping[str, str]
    details: tuple[tuple[str, Mapping[str, str]], ...]
    state: FindingState
    first_seen: datetime
    last_seen: datetime
    count: int
    entry: int | None
    acknowledged: Handled | None
    resolved: Handled | None

    @property
    def living(self) -> bool:
        """Whether it is not resolved."""
        return self.state in LIVING


GRAVEST_FIRST: Final = (
    case({Severity.INCIDENT: 0, Severity.WARNING: 1}, value=finding_table.c.severity, else_=2),
    finding_table.c.last_seen.desc(),
    finding_table.c.id,
)


def living_name(kind: FindingKind, subject: str) -> str:
    """The name that a living finding of this kind and subject has."""
    return sha256(f"{kind.value}\x00{subject}".encode()).hexdigest()


def told_values(one: Sighting) -> dict[str, Any]:
    """The columns that hold the words of a finding, as codes and values."""
    told = {"values": dict(one.values), "details": [[code, dict(values)] for code, values in one.details]}
    return {"code": one.code, "told": json.dumps(told, ensure_ascii=False)}


def finding_of(row: Any) -> Finding:
    """Read a row of `finding_table`."""
    told = json.loads(row.told)
    return Finding(
        row.id,
        FindingKind(row.kind),
        Severity(row.severity),
        row.subject,
        row.code,
        told["values"],
        tuple((code, values) for code, values in told["details"]),
        FindingState(row.state),
        row.first_seen,
        row.last_seen,
        row.count,
        row.entry,
        _handled(row.acknowledged, row.acknowledged_by, row.acknowledged_words),
        _handled(row.resolved, row.resolved_by, row.resolved_words),
    )


def _handled(at: datetime | None, by: str | None, words: str | None) -> Handled | None:
    return None if at is None else Handled(at, by or "", words or "")
