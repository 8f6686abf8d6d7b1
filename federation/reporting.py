"""What the hub learns of a node: counts, sizes and versions; never a patient, never a person.

The report is built from numbers only, each under a fixed name. A count of deeds about patients that is above zero and
below K_FLOOR is not told, so that nobody can be picked out; counts of the machine's own troubles are exact. The
same fixed names are all that the hub accepts.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib.metadata import version
from typing import Any, ClassVar, Self

from sqlalchemy import Column, String, Table, Text, delete, func, insert, select

from consent.errors import Corrupt, Denied, Invalid
from consent.fields import unix
from consent.signed import peek, sign, verify
from consent.vocabulary import EventKind
from federation.client import PeerClient
from federation.fields import read_object
from federation.held import LIVING, held_grant
from federation.members import Members
from federation.notices import GrantState, issued_grant
from federation.protocol import MESSAGE_SECONDS, PREFIX
from federation.roster import Member
from node.audit.log import Log
from node.audit.note import MAX_NOTE_BYTES, open_checkpoint
from node.clock import Clock
from node.database import Database, UtcDateTime, metadata
from node.identity import Identity

K_FLOOR = 5
PERIOD = timedelta(hours=24)
SILENT_AFTER = timedelta(minutes=10)

Json = dict[str, Any]

PEOPLE_COUNTS: Mapping[str, EventKind] = {
    "instances_stored_batches": EventKind.INSTANCES_STORED,
    "studies_opened": EventKind.STUDY_OPENED,
    "access_refused": EventKind.ACCESS_REFUSED,
    "emergencies_opened": EventKind.EMERGENCY_OPENED,
    "studies_requested": EventKind.STUDY_REQUESTED,
    "grants_issued": EventKind.GRANT_ISSUED,
    "grants_revoked": EventKind.GRANT_REVOKED,
    "packs_released": EventKind.PACK_RELEASED,
    "packs_held": EventKind.PACK_HELD,
    "leases_released": EventKind.LEASE_RELEASED,
    "copies_shredded": EventKind.COPY_SHREDDED,
    "receipts_received": EventKind.SHRED_RECEIPT_RECEIVED,
}
"""Counts of deeds about patients, over the period; told from K_FLOOR on."""

ALARM_COUNTS: Mapping[str, EventKind] = {
    "integrity_failed": EventKind.INTEGRITY_FAILED,
    "peers_refused": EventKind.PEER_REFUSED,
    "associations_refused": EventKind.ASSOCIATION_REFUSED,
    "rosters_refused": EventKind.ROSTER_REFUSED,
    "witness_alarms": EventKind.WITNESS_ALARMED,
}
"""Counts of the machine's own troubles, exact."""

STOCK_COUNTS = ("grants_alive", "copies_held")
"""What there is now; told from K_FLOOR on."""

NAMES = frozenset({*PEOPLE_COUNTS, *ALARM_COUNTS, *STOCK_COUNTS})


@dataclass(frozen=True)
class NodeReport:
    """One report. A count of None means: some, but fewer than K_FLOOR."""

    KIND: ClassVar[str] = "node-report"
    VERSION: ClassVar[int] = 1

    at: datetime
    software: str
    roster: int
    log_sound: bool
    checkpoint: str
    counts: Mapping[str, int | None]

    def to_json(self) -> Json:
        return {
            "at": unix(self.at),
            "software": self.software,
            "roster": self.roster,
            "log_sound": self.log_sound,
            "checkpoint": self.checkpoint,
            "counts": dict(self.counts),
        }

    @classmethod
    def from_json(cls, data: Json) -> Self:
        """Raise Invalid for a count that has no place in a report: a hub must not even be told by mistake."""
        read = read_object(data, "node report")
        counts = read.mapping("counts")
        if not NAMES.issuperset(counts):
            raise Invalid("The report holds a count that is not among the agreed ones.", code="report-count")
        for name, value in counts.items():
            whole = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53
            if value is not None and not whole:
                raise Invalid(f"The count {name!r} is not a number.", code="report-count")
            if name not in ALARM_COUNTS and value is not None and 0 < value < K_FLOOR:
                raise Invalid(f"The count {name!r} is too small to be told.", code="report-floor")
        return cls(
            at=read.moment("at"),
            software=read.text("software", limit=64),
            roster=read.integer("roster"),
            log_sound=read.flag("log_sound"),
            checkpoint=read.text("checkpoint", limit=MAX_NOTE_BYTES, empty=True),
            counts=counts,
        )


class Reporter:
    """Sends this node's report to the hub."""

    def __init__(
        self,
        *,
        database: Database,
        log: Log,
        clock: Clock,
        identity: Identity,
        members: Members,
        client: PeerClient,
    ) -> None:
        self._database = database
        self._log = log
        self._clock = clock
        self._identity = identity
        self._members = members
        self._client = client

    async def build(self) -> NodeReport:
        """The report as of now."""
        now = self._clock.now()
        found = await self._log.counts(now - PERIOD, now + timedelta(seconds=1))
        counts: dict[str, int | None] = {
            name: floored(found.get(kind, 0)) for name, kind in PEOPLE_COUNTS.items()
        }
        counts |= {name: found.get(kind, 0) for name, kind in ALARM_COUNTS.items()}
        alive, held = await self._stock()
        counts |= {"grants_alive": floored(alive), "copies_held": floored(held)}
        sound, checkpoint = True, ""
        try:
            checkpoint = await self._log.checkpoint()
        except Corrupt:
            sound = False
        return NodeReport(now, version("accord-imaging"), self._members.version, sound, checkpoint, counts)

    async def send(self) -> None:
        """A job: report to the hub. Does nothing while there is none. Raises Unavailable when it is away."""
        hub = self._members.hub()
        if hub is None:
            return
        now = self._clock.now()
        report = sign(
            await self.build(),
            record_id=secrets.token_hex(16),
            issuer=self._identity.node_id,
            key=self._identity.signing,
            issued=now,
            expires=now + timedelta(seconds=MESSAGE_SECONDS),
        )
        await self._client.post(hub.id, f"{PREFIX}/reports", {"token": report.token})

    async def _stock(self) -> tuple[int, int]:
        issued = (
            select(func.count()).select_from(issued_grant).where(issued_grant.c.state == GrantState.ALIVE)
        )
        held = select(func.count()).select_from(held_grant).where(held_grant.c.state.in_(LIVING))
        async with self._database.read() as tx:
            return int((await tx.execute(issued)).scalar_one()), int((await tx.execute(held)).scalar_one())


member_report = Table(
    "member_report",
    metadata,
    Column("member", String(32), primary_key=True),
    Column("received", UtcDateTime, nullable=False),
    Column("token", Text, nullable=False),
)


@dataclass(frozen=True)
class MemberState:
    """A member as the hub sees it. `report` is None before its first."""

    member: Member
    report: NodeReport | None
    received: datetime | None
    silent: bool
    log_size: int | None


class Reports:
    """The hub's side: the latest report of each member."""

    def __init__(self, *, database: Database, clock: Clock, members: Members) -> None:
        self._database = database
        self._clock = clock
        self._members = members

    async def receive(self, member: Member, token: str) -> None:
        """Take a member's report. Raises Invalid, Corrupt or Denied."""
        now = self._clock.now()
        signed = verify(token, NodeReport, keys_of=self._members.keys_of, now=now)
        if signed.issuer != member.id:
            raise Denied("This report is another member's.", code="wrong-party")
        if signed.body.checkpoint:
            open_checkpoint(signed.body.checkpoint, [member.log_verifier])
        async with self._database.write() as tx:
            await tx.execute(delete(member_report).where(member_report.c.member == member.id))
            await tx.execute(insert(member_report).values(member=member.id, received=now, token=token))

    async def members(self) -> tuple[MemberState, ...]:
        """Every listed member with what it said last, in the order of the roster."""
        async with self._database.read() as tx:
            rows = {row.member: row for row in await tx.execute(select(member_report))}
        return tuple(self._state(member, rows.get(member.id)) for member in self._members.current().members)

    def _state(self, member: Member, row: Any) -> MemberState:
        if row is None:
            return MemberState(member, None, None, True, None)
        report = NodeReport.from_json(peek(row.token)[2]["body"])
        size = None
        if report.checkpoint:
            checkpoint, _ = open_checkpoint(report.checkpoint, [member.log_verifier])
            size = checkpoint.size
        silent = self._clock.now() - row.received > SILENT_AFTER
        return MemberState(member, report, row.received, silent, size)


def floored(count: int) -> int | None:
    """The count, or None when it is above zero and below K_FLOOR."""
    return None if 0 < count < K_FLOOR else count
