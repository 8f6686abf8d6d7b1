"""The end of a held copy: overwritten and removed, on record, and a signed receipt sent to its home until it has been taken.

Takes over when a grant is written down as ended (`holdings`). Everything may be repeated after a crash.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import structlog
from sqlalchemy import select, update

from consent.errors import AccordError, NotFound, Unavailable
from consent.grants import Grant
from consent.signed import sign
from consent.vocabulary import EventKind, Outcome
from federation.client import PeerClient
from federation.held import LIVING, HeldState, held_grant, held_row, living_rows, shredded_event
from federation.protocol import PREFIX, ShredReceipt
from node.audit.event import Event
from node.audit.log import Log
from node.clock import Clock
from node.database import Database
from node.identity import Identity
from node.records import Records
from node.vault.blobs import FileBlobs
from node.vault.pack import pack_name

logger = structlog.get_logger()

OVERWRITTEN = "overwritten and removed"
REMOVED_BEFORE = "removed before"
"""A copy was held and is gone: with another grant's end, or by an end that was cut short after the removal."""
NEVER_HELD = "no copy was held"
KEPT_ELSEWHERE = "another living grant keeps the copy"


class Shredding:
    """What has ended here, until its home has the receipt. Packs lie in `root/<home>`."""

    def __init__(
        self,
        *,
        root: Path,
        database: Database,
        log: Log,
        clock: Clock,
        identity: Identity,
        client: PeerClient,
        records: Records,
    ) -> None:
        self._root = root
        self._database = database
        self._log = log
        self._clock = clock
        self._identity = identity
        self._client = client
        self._records = records
        self._told_damaged: set[str] = set()
        self._turns: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    def turn(self, home: str, study: str) -> asyncio.Lock:
        """What keeps fetching and shredding of one copy apart."""
        return self._turns.setdefault((home, study), asyncio.Lock())

    async def sweep(self) -> None:
        """Shred what has ended, then send the receipts that are not taken yet."""
        query = select(held_grant.c.id, held_grant.c.home).where(
            held_grant.c.state.in_((HeldState.ENDED, HeldState.SHREDDED)),
            held_grant.c.receipt_taken.is_(None),
        )
        async with self._database.read() as tx:
            ended = [(str(row.id), str(row.home)) for row in await tx.execute(query)]
        away: set[str] = set()
        for grant_id, home in ended:
            await each(grant_id, self._finish(grant_id, home, away))

    async def _finish(self, grant_id: str, home: str, away: set[str]) -> None:
        """As `finish`; a home that did not answer is not waited for again."""
        if not await self.finish(grant_id, send=home not in away):
            away.add(home)

    async def finish(self, grant_id: str, *, send: bool = True) -> bool:
        """Do what is left of one ended grant; False when its home did not answer. Repeating it changes nothing."""
        row = await held_row(self._database, grant_id)
        async with self.turn(row.home, row.study):
            row = await held_row(self._database, grant_id)  # what happened while others had their turn
            if row.state in LIVING or row.receipt_taken is not None:
                return True
            token = row.receipt or await self._shred(row)
        return await self._send_receipt(row, token) if send else True

    async def _shred(self, row: Any) -> str:
        """Remove the copy; return the signed receipt, which is durable with the log's entry. Within the turn only."""
        try:
            purpose = (await self._records.get(row.id, Grant)).body.purpose
        except AccordError as error:  # the copy goes all the same
            await self.tell_unreadable(row, error)
            purpose = None
        # The size was set when the copy came, so it tells of one that was removed before this could be written down.
        method, size = (REMOVED_BEFORE, int(row.size_bytes)) if row.size_bytes else (NEVER_HELD, 0)
        name, home = pack_name(row.study), self._root / row.home
        if await living_rows(self._database, row.home, row.study):
            method, size = KEPT_ELSEWHERE, 0
        else:
            removed = [await _remove(FileBlobs(folder), name) for folder in (home, home / "incoming")]
            if any(found is not None for found in removed):
                method, size = OVERWRITTEN, sum(found or 0 for found in removed)
        now = self._clock.now()
        receipt = sign(
            ShredReceipt(row.id, row.study, row.home, row.words or "The grant has ended.", method, size, now),
            record_id=secrets.token_hex(16),
            issuer=self._identity.node_id,
            key=self._identity.signing,
            issued=now,
            expires=None,
        )
        async with self._database.write() as tx:
            await tx.execute(
                update(held_grant)
                .where(held_grant.c.id == row.id)
                .values(state=HeldState.SHREDDED, receipt=receipt.token)
            )
            await self._log.append(tx, shredded_event(row, purpose, receipt))
        return receipt.token

    async def _send_receipt(self, row: Any, token: str) -> bool:
        """Send it; what is not taken is sent again by the next sweep. False when the home did not answer."""
        try:
            await self._client.post(row.home, f"{PREFIX}/receipts", {"token": token})
        except AccordError as error:
            return not isinstance(error, Unavailable)
        async with self._database.write() as tx:
            await tx.execute(
                update(held_grant).where(held_grant.c.id == row.id).values(receipt_taken=self._clock.now())
            )
        return True

    async def tell_unreadable(self, row: Any, error: AccordError) -> None:
        """Tell of a damaged record, once while this process runs."""
        if row.id in self._told_damaged:
            return
        self._told_damaged.add(row.id)
        logger.error("held grant unreadable", grant=row.id, code=error.code, error=error.message)
        await self._log.record(
            Event(
                EventKind.INTEGRITY_FAILED,
                "job:sweep",
                outcome=Outcome.FAILED,
                study=row.study,
                reason=error.message,
                detail={"grant": row.id, "home": row.home, "code": error.code, "where": "record"},
            )
        )


async def each(grant_id: str, duty: Awaitable[None]) -> None:
    """Do what is due for one grant; what goes wrong there stops no other and is tried again by the next sweep."""
    try:
        await duty
    except AccordError as error:
        logger.error("held grant not swept", grant=grant_id, code=error.code, error=error.message)


async def _remove(store: FileBlobs, name: str) -> int | None:
    """Overwrite and remove; how many bytes it had, or None when it was not there."""
    try:
        size = await asyncio.to_thread(store.size, name)
    except NotFound:
        return None
    await asyncio.to_thread(store.delete, name)
    return size
