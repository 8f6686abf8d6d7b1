"""What the home hospital tells holders of its grants: here is your grant, your grant has ended.

A grant ends by itself wherever it is used (`consent.grants.alive`); this makes it known. `sweep` reads the log from its
own cursor for consents that changed, marks what has ended, on record, and tells holders until they have heard. Holds
the table of issued grants; issuing and judging is `grants`.
"""

from __future__ import annotations

import secrets
from datetime import timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import Boolean, Column, String, Table, Text, select, update

from consent.decision import Deny
from consent.directives import Directive
from consent.errors import AccordError, NotFound, Unavailable
from consent.grants import Grant, alive
from consent.signed import Signed, sign
from consent.vocabulary import EventKind
from federation.client import PeerClient
from federation.members import Members
from federation.protocol import MESSAGE_SECONDS, PREFIX, GrantEnded, Json
from node.audit.event import Event
from node.audit.log import Log
from node.clock import Clock
from node.database import Database, Tx, UtcDateTime, metadata
from node.identity import Identity
from node.records import Records

ENTRIES_AT_ONCE = 500
CURSOR = "grants"


class GrantState(StrEnum):
    """How a grant stands at its home."""

    ALIVE = "alive"
    ENDED = "ended"
    SHREDDED = "shredded"


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
        away: set[str] = set()
        for row in waiting:
            if row.holder in away:
                continue
            tell = self.deliver if row.state == GrantState.ALIVE else self.notify
            if not await tell(row.id):
                away.add(row.holder)

    async def _mark_ended(self) -> None:
        now = self._clock.now()
        after = await self._log.cursor(CURSOR)
        while True:
            entries = await self._log.entries(after, ENTRIES_AT_ONCE)
            told = {EventKind.CONSENT_WITHDRAWN, EventKind.CONSENT_RECORDED}
            patients = {entry.event.patient for entry in entries if entry.event.kind in told} - {None}
            over = (issued_grant.c.ends <= now) | issued_grant.c.patient.in_(patients)
            query = select(issued_grant).where(issued_grant.c.state == GrantState.ALIVE, over)
            async with self._database.read() as tx:
                any_over = (await tx.execute(query.limit(1))).first() is not None
            if entries or any_over:
                async with self._database.write() as tx:
                    for row in (await tx.execute(query)).all():
                        await self._end_if_over(tx, row)
                    if entries:
                        after = entries[-1].index
                        await self._log.advance(tx, CURSOR, after)
            if len(entries) < ENTRIES_AT_ONCE:
                return

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

    async def deliver(self, grant_id: str) -> bool:
        """Give the holder its grant; whether it has it now."""
        grant = await self._records.get(grant_id, Grant)
        consent = await self._records.by_digest(grant.body.consent, Directive)
        row = await self.row(grant_id)
        body = {"request": row.request, "grant": grant.token, "consent": consent.token}
        return await self._tell(row.holder, f"{PREFIX}/grants", body, grant_id, "delivered")

    async def notify(self, grant_id: str) -> bool:
        """Tell the holder that its grant has ended; whether it has heard."""
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
        return await self._tell(
            row.holder, f"{PREFIX}/grants/ended", {"token": notice.token}, grant_id, "notified"
        )

    async def _tell(self, holder: str, path: str, body: Json, grant_id: str, mark: str) -> bool:
        try:
            await self._client.post(holder, path, body)
        except Unavailable:
            return False
        except AccordError:
            pass  # it heard and refused: asking again would change nothing, and the lease is refused anyway
        async with self._database.write() as tx:
            await tx.execute(update(issued_grant).where(issued_grant.c.id == grant_id).values({mark: True}))
        return True

    async def directives(self, patient: str, tx: Tx | None = None) -> tuple[Signed[Directive], ...]:
        return await self._records.find(Directive, subject=patient, issuer=self._identity.node_id, tx=tx)

    async def row(self, grant_id: str) -> Any:
        async with self._database.read() as tx:
            row = (await tx.execute(select(issued_grant).where(issued_grant.c.id == grant_id))).first()
        if row is None:
            raise NotFound("There is no such grant.", code="grant")
        return row
