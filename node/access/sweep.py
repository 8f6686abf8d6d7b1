"""The sweep over the sealed rows: finds what is gone or was put back before anybody asks for it, and all of it at once.

The log knows how far the rows had come: entries that record a change carry the count that the change made. A database
whose rows, states and counts were all put back to an earlier moment stands behind its own log; then no row is
believed until somebody has looked into it and accepted what is there. Format: docs/formats/access-rows.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

from sqlalchemy import Connection, Table, func, select

from consent.errors import Corrupt
from consent.vocabulary import EventKind
from node.access.care import care_table
from node.access.devices import device_table
from node.access.ledger import BUCKETS, TOTAL, Place, State, row_state
from node.access.people import person_table
from node.access.rows import RowAltered, Rows
from node.access.rowseal import row_name, rows_of
from node.access.sessions import session_table
from node.access.tokens import token_table
from node.audit.log import Event, Log
from node.database import Database, carried
from node.records import record, record_subject

SEALED_TABLES: Final[tuple[Table, ...]] = (
    person_table,
    session_table,
    care_table,
    token_table,
    device_table,
    record,
    record_subject,
)
"""Every table whose rows the ledger knows."""
MAX_SWEPT_ROWS: Final = 50_000
"""Compared in one run; larger tables take several."""
MAX_SINCE_ENTRIES: Final = 5_000
"""After so many entries of other kinds the count is put into the log again, so that a start need not look far back."""
PAGE: Final = 1_000


@dataclass(frozen=True)
class Swept:
    """What a sweep found: how many rows it compared, the count of changes, and what does not fit."""

    rows: int
    changes: int
    faults: tuple[RowAltered, ...] = ()
    put_back: bool = False


@dataclass
class _Walk:
    """Where the sweep stands: in the log, and in the buckets."""

    entry: int = -1
    logged: int = 0
    base: int = -1
    next_place: int = 0
    found_base: bool = False


class RowSweep:
    """Sweeps the rows of every sealed table. `rows` reads them."""

    def __init__(self, database: Database, log: Log, rows: Rows) -> None:
        self._database = database
        self._log = log
        self._rows = rows
        self._ledger = rows.ledger
        self._tables = {table.name: table for table in SEALED_TABLES}
        self._walk = _Walk()

    async def run(self) -> None:
        """A job: sweep, and put the count into the log when it moved unseen. Raises Corrupt when something is wrong."""
        swept = await self.sweep()
        if swept.put_back or swept.faults:
            raise Corrupt(
                "Access rows were deleted or put back outside this node.",
                mend="Run `accord access verify`, find out who had the database, then `accord access accept`.",
                code="rows-altered",
            )
        if swept.changes > self._walk.logged or self._walk.entry - self._walk.base >= MAX_SINCE_ENTRIES:
            await self._note(swept.changes)

    async def sweep(self, max_rows: int = MAX_SWEPT_ROWS) -> Swept:
        """Compare states with log and rows; what does not fit is on record when this returns."""
        await self._follow()
        swept = await self._database.read_in_one(partial(self._look, max_rows=max_rows))
        self._ledger.put_back = swept.put_back
        for fault in swept.faults:
            await self._rows.tell(fault)
        return swept

    async def altered(self) -> tuple[RowAltered, ...]:
        """Every row whose own seal does not hold; each is on record when this returns. Reads all rows."""
        found = await self._database.read_in_one(
            lambda on: tuple(
                RowAltered(table.name, row_name(table, row))
                for table in self._tables.values()
                for row in rows_of(on, select(table))
                if not self._ledger.seal.intact(table, row)
            )
        )
        for fault in found:
            await self._rows.tell(fault)
        return found

    async def accept(self, by: str, reason: str) -> int:
        """Believe the rows that are there from now on, those that this node did not write apart; return how many.

        For after an inquiry: who deleted rows or put old ones back has then had their way, and the log says who
        accepted it and why.
        """
        await self._follow()
        async with self._database.write() as tx:
            states, count = await tx.run_sync(self._present)
            await tx.run_sync(partial(self._ledger.reset, states=states, at_least=self._walk.logged))
            detail = {"rows": count, "buckets": len(states)}
            await self._log.append(
                tx, Event(EventKind.ACCESS_ROWS_ACCEPTED, by, reason=reason, detail=detail)
            )
        self._ledger.put_back = False
        return count

    async def _follow(self) -> None:
        """Read the log on from where we stand, for the latest count that it knows."""
        walk = self._walk
        if not walk.found_base:
            for newest in await self._log.search(kind=EventKind.ACCESS_ROWS_SEALED, limit=1):
                walk.entry, walk.base = newest.index, newest.index
                walk.logged = newest.event.rows or 0
            walk.found_base = True
        while batch := await self._log.entries(walk.entry, PAGE):
            for entry in batch:
                walk.logged = max(walk.logged, entry.event.rows or 0)
                if entry.event.kind is EventKind.ACCESS_ROWS_SEALED:
                    walk.base = entry.index
            walk.entry = batch[-1].index

    async def _note(self, changes: int) -> None:
        async with self._database.write() as tx:
            carried(tx).rows = await tx.run_sync(self._total)
            await self._log.append(tx, Event(EventKind.ACCESS_ROWS_SEALED, "job:access-rows"))

    def _look(self, on: Connection, max_rows: int) -> Swept:
        faults: list[RowAltered] = []
        total, unknown = State(), False
        try:
            total = self._states(on)
        except RowAltered as altered:  # which bucket was put back, nobody can tell
            faults.append(altered)
            unknown = True
        rows = 0
        for place in self._next_places(on, max_rows):
            try:
                rows += len(self._ledger.prove(on, self._tables[place[0]], place, remember=True))
            except RowAltered as altered:
                faults.append(altered)
        return Swept(rows, total.changes, tuple(faults), unknown or total.changes < self._walk.logged)

    def _states(self, on: Connection) -> State:
        """The state over all, once it fits those of the buckets. Raises RowAltered."""
        began, total, digest = carried(on).began, State(), 0
        for row in on.execute(select(row_state)).all():
            place, state = (row.name, row.bucket), self._ledger.opened(row)
            self._ledger.not_older(place, state, began)
            if place == TOTAL:
                total = state
            else:
                digest += self._ledger.element_of_state(place, state)
        self._ledger.not_older(TOTAL, total, began)
        if digest % 2**256 != total.digest:
            raise RowAltered("access", "states")
        return total

    def _total(self, on: Connection) -> int:
        query = select(row_state).where(row_state.c.name == TOTAL[0], row_state.c.bucket == TOTAL[1])
        row = on.execute(query).one_or_none()
        return 0 if row is None else self._ledger.opened(row).changes

    def _next_places(self, on: Connection, max_rows: int) -> Iterator[Place]:
        """The buckets whose turn it is: those that hold rows, or should."""
        held: dict[Place, int] = {}
        for name, table in self._tables.items():
            counts = select(table.c.bucket, func.count()).group_by(table.c.bucket)
            held |= {(name, bucket): count for bucket, count in on.execute(counts).all()}
        for row in on.execute(select(row_state.c.name, row_state.c.bucket)).all():
            if (row.name, row.bucket) != TOTAL:
                held.setdefault((row.name, row.bucket), 0)
        places = sorted(place for place in held if place[0] in self._tables and 0 <= place[1] < BUCKETS)
        start = self._walk.next_place if self._walk.next_place < len(places) else 0
        left = max_rows
        for turn, place in enumerate(places[start:] + places[:start]):
            if left <= 0:
                self._walk.next_place = (start + turn) % len(places)
                return
            left -= held[place] + 1
            yield place

    def _present(self, on: Connection) -> tuple[dict[Place, State], int]:
        """The states of the rows that are there and that this node wrote, in the buckets where they belong."""
        places: dict[Place, list[bytes]] = {}
        count = 0
        for table in self._tables.values():
            for row in rows_of(on, select(table)):
                if (
                    self._ledger.seal.intact(table, row)
                    and self._ledger.place_of(table, row)[1] == row.bucket
                ):
                    places.setdefault((table.name, row.bucket), []).append(row.mac)
                    count += 1
        return {place: self._ledger.digest_of(place[0], macs) for place, macs in places.items()}, count
