"""Transactions over sealed rows: who has the database in hand, but not this node's keys, makes, changes, deletes and
puts back nothing that decides.

Every row of a sealed table bears a seal (`rowseal`), and a ledger knows which rows there are (`ledger`). Format:
docs/formats/access-rows.md.

Invariants: a row is sealed, and the ledger brought up to date, in the transaction that writes it; a row is checked
before it is believed, also before it is sealed again with a change. Who meets an altered row gets RowAltered, once
the log has an entry.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary

import structlog
from sqlalchemy import Connection, Select, Table, delete, insert, update
from sqlalchemy.exc import MultipleResultsFound

from consent.errors import AccordError
from consent.vocabulary import EventKind, Outcome
from node.access.ledger import Change, Ledger
from node.access.rowseal import (
    GROUP,
    UNREADABLE,
    UNSEALED,
    RowAltered,
    group_column,
    labelled,
    row_name,
    rows_of,
    seal_columns,
    sealed_values,
    this_row,
)
from node.audit.log import Event, Log
from node.database import Database, Tx, carried

__all__ = [
    "GROUP",
    "UNSEALED",
    "Reading",
    "RowAltered",
    "Rows",
    "labelled",
    "seal_columns",
]

T = TypeVar("T")

MAX_TOLD: Final = 1024
"""An altered row is met again and again; so many are remembered as told."""

_LEDGERS: WeakKeyDictionary[Database, dict[bytes, Ledger]] = WeakKeyDictionary()
"""What this process has seen of a database is common to all who read rows in it."""


def ledger_of(database: Database, key: bytes) -> Ledger:
    """The ledger of an open database."""
    ledgers = _LEDGERS.setdefault(database, {})
    if key not in ledgers:
        ledgers[key] = Ledger(key)
    return ledgers[key]


class Found(list[Any]):
    """Rows that were fetched."""

    def all(self) -> list[Any]:
        """Every row."""
        return self

    def first(self) -> Any:
        """The first row, or None."""
        return self[0] if self else None

    def one_or_none(self) -> Any:
        """The only row, or None."""
        if len(self) > 1:
            raise MultipleResultsFound
        return self.first()


@dataclass(frozen=True)
class Reading:
    """A connection on which rows are read and checked; `own` says that it is a snapshot of our own."""

    connection: Connection
    ledger: Ledger
    own: bool

    def execute(self, query: Select[Any], values: Mapping[str, Any] | None = None) -> Found:
        """Run a query and fetch what it finds. Raises RowAltered for a value of another type than its column's."""
        try:
            return Found(self.connection.execute(query, values).all())
        except UNREADABLE as error:
            raise RowAltered(str(query.get_final_froms()[0]), "unreadable") from error

    def rows(self, query: Select[Any]) -> list[Any]:
        """What a `select(table)` finds, not checked; one with a value of another type than its column's is never
        intact."""
        return rows_of(self.connection, query)

    def check(self, table: Table, row: Any, prefix: str = "") -> Any:
        """Return the row. Raises RowAltered unless it is the newest that this node wrote; None passes."""
        if row is not None:
            self.ledger.check(self.connection, table, row, prefix, remember=self.own)
        return row

    def complete(self, table: Table, group: Any) -> None:
        """Raise RowAltered unless all rows of a group are there that should be."""
        self.ledger.prove(self.connection, table, self.ledger.place(table, group), remember=self.own)

    def intact(self, table: Table, row: Any) -> bool:
        """Whether the row is the newest that this node wrote."""
        try:
            self.check(table, row)
        except RowAltered:
            return False
        return True


class Rows:
    """Reads and writes the sealed rows of a database under `key`."""

    def __init__(self, database: Database, key: bytes, log: Log | None) -> None:
        self.ledger = ledger_of(database, key)
        self._database = database
        self._log = log
        self._told: set[tuple[str, str]] = set()

    async def read(self, work: Callable[[Reading], T], *, tx: Tx | None = None) -> T:
        """What `work` reads and checks: in the caller's transaction when there is one, else in a snapshot of our own."""
        if tx is not None:
            async with self.writing(tx):
                return await tx.run_sync(lambda connection: work(Reading(connection, self.ledger, False)))
        try:
            return await self._database.read_in_one(
                lambda connection: work(Reading(connection, self.ledger, True))
            )
        except RowAltered as altered:
            await self.tell(altered)
            raise

    async def look_up(self, work: Callable[[Reading], T]) -> T:
        """`read` of one row by key, where that costs less (`Database.look_up`)."""
        try:
            return await self._database.look_up(
                lambda connection: work(Reading(connection, self.ledger, True))
            )
        except RowAltered:  # or changed between two statements: a snapshot tells
            return await self.read(work)

    @asynccontextmanager
    async def writing(self, tx: Tx | None = None) -> AsyncIterator[Tx]:
        """The caller's transaction when there is one, else one of our own that may write."""
        try:
            if tx is not None:
                yield tx
            else:
                async with self._database.write() as own:
                    yield own
        except RowAltered as altered:
            if tx is None:
                await self.tell(altered)
            else:
                # The log waits for its turn behind this transaction, and its end for the entry.
                carried(tx).afterwards.append(partial(self.tell, altered))
            raise

    async def select(self, tx: Tx, query: Select[Any]) -> Found:
        """The rows that a `select(table)` finds in this transaction, not checked yet, as `Reading.rows`."""
        return Found(await tx.run_sync(rows_of, query))

    async def holds(self, tx: Tx, table: Table, row: Any) -> bool:
        """Whether a row read in this transaction is the newest that this node wrote."""
        return await tx.run_sync(lambda on: Reading(on, self.ledger, False).intact(table, row))

    async def insert(self, tx: Tx, table: Table, *rows: Mapping[str, Any]) -> None:
        """Put rows in."""
        sealed = [self._sealed(table, values) for values in rows]
        changes = [Change((table.name, values["bucket"]), added=values["mac"]) for values in sealed]
        if sealed:
            await tx.execute(insert(table), sealed)
            await tx.run_sync(self.ledger.record, changes)

    async def update(
        self, tx: Tx, table: Table, row: Any, changes: Mapping[str, Any], *, counted: bool = True
    ) -> None:
        """Change a row that was read in this transaction, and is checked here. Raises RowAltered.

        A change that is not `counted` need not be in the log: to put it back serves nobody.
        """
        await self.read(lambda reading: reading.check(table, row), tx=tx)
        values = {**sealed_values(table, row), **changes}
        await self._put(tx, table, row, self._sealed(table, values), changes, counted=counted)

    async def replace(self, tx: Tx, table: Table, row: Any, values: Mapping[str, Any]) -> None:
        """Write every column of a row anew, so that what it says now does not matter."""
        await self._put(tx, table, row, self._sealed(table, values), values)

    async def delete(self, tx: Tx, table: Table, *rows: Any, counted: bool = True) -> None:
        """Take rows out that were read in this transaction, altered ones too, of which the log hears."""
        changes = []
        for row in rows:
            place, removed = self.ledger.place_of(table, row), await self._counted(tx, table, row)
            await tx.execute(delete(table).where(*this_row(table, row)))
            if removed is not None:
                changes.append(Change(place, removed=removed))
        if changes:
            await tx.run_sync(partial(self.ledger.record, changes=changes, counted=counted))

    async def _counted(self, tx: Tx, table: Table, row: Any) -> bytes | None:
        """The seal that leaves the ledger with a row; None for one that this node did not write."""
        if self.ledger.seal.intact(table, row):
            return bytes(row.mac)
        carried(tx).afterwards.append(partial(self.tell, RowAltered(table.name, row_name(table, row))))
        return bytes(row.mac) if await tx.run_sync(self.ledger.counts, table, row) else None

    async def _put(
        self,
        tx: Tx,
        table: Table,
        row: Any,
        sealed: Mapping[str, Any],
        changes: Mapping[str, Any],
        *,
        counted: bool = True,
    ) -> None:
        written = {**changes, "mac": sealed["mac"], "bucket": sealed["bucket"]}
        removed = await self._counted(tx, table, row)
        await tx.execute(update(table).where(*this_row(table, row)).values(written))
        old, new = self.ledger.place_of(table, row), (table.name, sealed["bucket"])
        turn = (
            [Change(new, added=sealed["mac"], removed=removed)]
            if old == new
            else [Change(old, removed=removed), Change(new, added=sealed["mac"])]
        )
        await tx.run_sync(partial(self.ledger.record, changes=turn, counted=counted))

    def _sealed(self, table: Table, values: Mapping[str, Any]) -> dict[str, Any]:
        _, bucket = self.ledger.place(table, values[group_column(table)])
        return {**values, "bucket": bucket, "mac": self.ledger.seal.seal(table, values)}

    async def tell(self, altered: RowAltered) -> None:
        """Put on record that a row was altered, once for each row while this process runs."""
        told = (altered.table, altered.row)
        if self._log is None or told in self._told:
            return
        if len(self._told) >= MAX_TOLD:
            self._told.clear()
        self._told.add(told)
        event = Event(
            EventKind.INTEGRITY_FAILED,
            "system",
            outcome=Outcome.FAILED,
            reason=altered.message,
            detail={"table": altered.table, "row": altered.row},
        )
        try:
            await self._log.record(event)
        except AccordError as error:  # the refusal stands, whether or not it can be written down
            self._told.discard(told)
            structlog.get_logger().error("altered row not logged", table=altered.table, error=error.code)
