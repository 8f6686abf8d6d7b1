"""What the home hospital tells holders of its grants: here is your grant, your grant has ended.

A grant ends by itself wherever it is used (`consent.grants.alive`); this makes it known. `sweep` reads the log from its
own cursor for consents that changed, marks what has ended, on record, and tells holders until they have heard: one that
refuses is asked again, ever more seldom, and what it said is shown with the grant. Nothing damaged stops the rest.
Holds the table of issued grants; issuing and judging is `grants`.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

import structlog
from sqlalchemy import Boolean, Column, Select, String, Table, Text, select, update

from consent.decision import Deny
from consent.directives import Directive
from consent.errors import AccordError, Corrupt, NotFound, Unavailable
from consent.grants import Grant, alive
from consent.signed import Signed, sign
from consent.vocabulary import EventKind, Outcome
from federation.client import PeerClient
from federation.members import Members
from federation.protocol import MESSAGE_SECONDS, PREFIX, GrantEnded, Json
from node.audit.event import Event
from node.audit.log import Log
from node.clock import Clock
from node.database import Database, Tx, UtcDateTime, metadata
from node.identity import Identity
from node.records import Records

logger = structlog.get_logger()

ENTRIES_AT_ONCE = 500
CURSOR = "grants"
FIRST_RETRY = timedelta(minutes=1)
LONGEST_RETRY = timedelta(hours=1)
"""A holder that refuses is asked again after one minute, then after twice as long each time, up to this."""
MAX_NAMED = 20


class GrantState(StrEnum):
    """How a grant stands at its home."""

    ALIVE = "alive"
    ENDED = "ended"
    SHREDDED = "shredded"


class Told(StrEnum):
    """What came of telling a holder."""

    HEARD = "heard"
    AWAY = "away"
    REFUSED = "refused"


@dataclass(frozen=True)
class _Changes:
    """What the log says after a cursor: whose consents changed, up to which entry, and what could not be read."""

    patients: frozenset[str]
    last: int
    unreadable: tuple[int, ...]
    more: bool


issued_grant = Table(
    "issued_grant",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("holder", String(32), nullable=False, index=True),
    Column("study", String(40), nullable=False),
    Column("patient", String(40), nullable=False, index=True),
    Column("state", String(16), nullable=False, index=True),
    Column("request", String(32), nullable=False),
    Column("issued_by", String(120), nullable=False),
    Column("ends", UtcDateTime, nullable=False),
    Column("words", Text, nullable=False, default=""),
    Column("delivered", Boolean, nullable=False, default=False),
    Column("notified", Boolean, nullable=False, default=False),
)


class Notices:
    """Keeps holders informed, and the table of issued grants true."""

    def __init__(
        self,
        *,
        database: Database,
        log: Log,
        clock: Clock,
        identity: Identity,
        members: Members,
        client: PeerClient,
        records: Records,
    ) -> None:
        self._database = database
        self._log = log
        self._clock = clock
        self._identity = identity
        self._members = members
        self._client = client
        self._records = records
        self._refusals: dict[tuple[str, str], tuple[int, datetime]] = {}
        self._told_damaged: set[str] = set()

    async def sweep(self) -> None:
        """A job: mark what has ended, then tell holders what they have not heard. Away holders delay nobody."""
        await self._mark_ended()
        async with self._database.read() as tx:
            waiting = (
                await tx.execute(
                    select(issued_grant.c.id, issued_grant.c.holder, issued_grant.c.state).where(
                        (issued_grant.c.delivered.is_(False) & (issued_grant.c.state == GrantState.ALIVE))
                        | (issued_grant.c.notified.is_(False) & (issued_grant.c.state == GrantState.ENDED))
                    )
                )
            ).all()
        self._refusals = {
            key: kept for key, kept in self._refusals.items() if key[0] in {row.id for row in waiting}
        }
        away: set[str] = set()
        for row in waiting:
            mark = "delivered" if row.state == GrantState.ALIVE else "notified"
            if row.holder in away or not self._due(row.id, mark):
                continue
            try:
                told = await (self.deliver(row.id) if mark == "delivered" else self.notify(row.id))
            except AccordError as error:
                await self._damaged(row, error)
                continue
            if told is Told.AWAY:
                away.add(row.holder)

    async def _mark_ended(self) -> None:
        after = await self._log.cursor(CURSOR)
        more = True
        while more:
            changes = await self._changes(after)
            query = select(issued_grant).where(issued_grant.c.state == GrantState.ALIVE)
            if not changes.unreadable:  # else it may have been a withdrawal: look at every grant
                run_out = issued_grant.c.ends <= self._clock.now()
                query = query.where(run_out | issued_grant.c.patient.in_(changes.patients))
            async with self._database.read() as tx:
                any_over = (await tx.execute(query.limit(1))).first() is not None
            if changes.last > after or any_over:
                await self._end_these(query, changes, after)
            after, more = changes.last, changes.more

    async def _end_these(self, query: Select[Any], changes: _Changes, after: int) -> None:
        damaged: list[tuple[Any, AccordError]] = []
        async with self._database.write() as tx:
            for row in (await tx.execute(query)).all():
                try:
                    await self._end_if_over(tx, row)
                except AccordError as error:
                    damaged.append((row, error))
                    if row.ends <= self._clock.now():
                        await self.end(tx, row, "The grant has run out.", "job:sweep")
            if changes.unreadable:
                await self._log.append(tx, _unreadable(changes.unreadable))
            if changes.last > after:
                await self._log.advance(tx, CURSOR, changes.last)
        for row, fault in damaged:
            await self._damaged(row, fault)

    async def _changes(self, after: int) -> _Changes:
        """The next entries; where one of them cannot be read, the others all the same."""
        unreadable: list[int] = []
        try:
            entries = await self._log.entries(after, ENTRIES_AT_ONCE)
            last = entries[-1].index if entries else after
            more = len(entries) == ENTRIES_AT_ONCE
        except Corrupt:
            entries, size = [], await self._log.size()
            last = max(after, min(after + ENTRIES_AT_ONCE, size - 1))
            more = last < size - 1
            for index in range(after + 1, last + 1):
                try:
                    entries += [entry] if (entry := await self._log.entry(index)) else []
                except Corrupt:
                    unreadable.append(index)
        told = {EventKind.CONSENT_WITHDRAWN, EventKind.CONSENT_RECORDED}
        patients = {entry.event.patient for entry in entries if entry.event.kind in told}
        return _Changes(frozenset(one for one in patients if one), last, tuple(unreadable), more)

    async def _damaged(self, row: Any, error: AccordError) -> None:
        """Tell of a grant whose record cannot be used, once while this process runs."""
        if row.id in self._told_damaged:
            return
        self._told_damaged.add(row.id)
        logger.error("issued grant unreadable", grant=row.id, code=error.code, error=error.message)
        await self._log.record(
            Event(
                EventKind.INTEGRITY_FAILED,
                "job:sweep",
                outcome=Outcome.FAILED,
                reason=error.message,
                detail={"grant": row.id, "holder": row.holder, "code": error.code, "where": "record"},
            )
        )

    async def _end_if_over(self, tx: Tx, row: Any) -> None:
        grant = await self._records.get(row.id, Grant, tx=tx)
        known = await self.directives(row.patient, tx)
        verdict = alive(grant, known, frozenset(), self._clock.now())
        if isinstance(verdict, Deny):
            await self.end(tx, row, " ".join(verdict.reasons), "job:sweep")

    async def end(self, tx: Tx, row: Any, words: str, actor: str) -> bool:
        """Mark one grant ended, on record; whether it was alive before."""
        changed = await tx.execute(
            update(issued_grant)
            .where(issued_grant.c.id == row.id, issued_grant.c.state == GrantState.ALIVE)
            .values(state=GrantState.ENDED, words=words[:500])
        )
        if not changed.rowcount:
            return False
        run_out = row.ends <= self._clock.now()
        await self._log.append(
            tx,
            Event(
                EventKind.GRANT_ENDED if run_out else EventKind.GRANT_REVOKED,
                actor,
                patient=row.patient,
                study=row.study,
                reason=words,
                detail={"grant": row.id, "holder": row.holder},
            ),
        )
        return True

    async def deliver(self, grant_id: str) -> Told:
        """Give the holder its grant. Raises Corrupt when its record is damaged."""
        grant = await self._records.get(grant_id, Grant)
        consent = await self._records.by_digest(grant.body.consent, Directive)
        row = await self.row(grant_id)
        body = {"request": row.request, "grant": grant.token, "consent": consent.token}
        return await self._tell(row, f"{PREFIX}/grants", body, "delivered")

    async def notify(self, grant_id: str) -> Told:
        """Tell the holder that its grant has ended."""
        row = await self.row(grant_id)
        now = self._clock.now()
        notice = sign(
            GrantEnded(grant_id, row.holder, row.words or "The grant has ended."),
            record_id=secrets.token_hex(16),
            issuer=self._identity.node_id,
            key=self._identity.signing,
            issued=now,
            expires=now + timedelta(seconds=MESSAGE_SECONDS),
        )
        return await self._tell(row, f"{PREFIX}/grants/ended", {"token": notice.token}, "notified")

    async def _tell(self, row: Any, path: str, body: Json, mark: str) -> Told:
        try:
            await self._client.post(row.holder, path, body)
        except Unavailable:
            return Told.AWAY
        except AccordError as error:
            # A holder without the grant, or that sees its end by its own clock, need not hear of the end.
            known = isinstance(error, NotFound) or row.ends <= self._clock.now()
            if mark == "delivered" or not known:
                await self._refused(row, mark, error)
                return Told.REFUSED
        this = update(issued_grant).where(issued_grant.c.id == row.id)
        async with self._database.write() as tx:
            await tx.execute(this.values({mark: True}))
            await tx.execute(this.where(issued_grant.c.state == GrantState.ALIVE).values(words=""))
        return Told.HEARD

    async def _refused(self, row: Any, mark: str, error: AccordError) -> None:
        """Keep what the holder said, for people to see, and when to ask again."""
        tries, _ = self._refusals.get((row.id, mark), (0, None))
        wait = min(FIRST_RETRY * 2 ** min(tries, 10), LONGEST_RETRY)
        self._refusals[(row.id, mark)] = (tries + 1, self._clock.now() + wait)
        logger.warning("holder refused", grant=row.id, holder=row.holder, what=mark, code=error.code)
        async with self._database.write() as tx:
            await tx.execute(
                update(issued_grant)
                .where(issued_grant.c.id == row.id, issued_grant.c.state == GrantState.ALIVE)
                .values(words=error.message[:500])
            )

    def _due(self, grant_id: str, mark: str) -> bool:
        _, at = self._refusals.get((grant_id, mark), (0, None))
        return at is None or self._clock.now() >= at

    async def directives(self, patient: str, tx: Tx | None = None) -> tuple[Signed[Directive], ...]:
        return await self._records.find(Directive, subject=patient, issuer=self._identity.node_id, tx=tx)

    async def row(self, grant_id: str) -> Any:
        async with self._database.read() as tx:
            row = (await tx.execute(select(issued_grant).where(issued_grant.c.id == grant_id))).first()
        if row is None:
            raise NotFound("There is no such grant.", code="grant")
        return row


def _unreadable(entries: tuple[int, ...]) -> Event:
    return Event(
        EventKind.INTEGRITY_FAILED,
        "job:sweep",
        outcome=Outcome.FAILED,
        reason="Entries of the log cannot be read; every living grant was looked at instead.",
        detail={"where": "log", "entries": list(entries[:MAX_NAMED]), "count": len(entries)},
    )
