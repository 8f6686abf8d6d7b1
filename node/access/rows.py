"""The seal of rows: who has the database in hand, but not this node's keys, makes and changes nothing that decides.

Every row of a sealed table carries `mac`, HMAC-SHA256 over the table's name and the row's columns, its primary key
among them. Format: docs/formats/access-rows.md. A table's `info[UNSEALED]` names the columns that decide nothing, or
that something else proves.

Invariants: a row is sealed in the statement that writes it; it is checked before it is believed, also before
it is sealed again with a change. A deleted row, and an older row put back whole, are not noticed here.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from typing import Any, Final, TypeVar

import structlog
from sqlalchemy import Column, Connection, LargeBinary, Table

from consent.errors import AccordError, Corrupt
from consent.signed import canonical_json
from consent.vocabulary import EventKind, Outcome
from node.audit.log import Event, Log
from node.database import Database, Tx, microseconds

T = TypeVar("T")

UNSEALED: Final = "unsealed"
KEY_BYTES: Final = 32
MAX_TOLD: Final = 1024
"""An altered row is met again and again; so many are remembered as told."""

_THING: Final = {
    "person": "An account",
    "session": "A session",
    "care": "A treatment relationship",
    "token": "A token",
    "device": "A device",
    "record": "A record",
}


class RowAltered(Corrupt):
    """A row that this node did not write as it is. `row` is its primary key, for the log, not for people."""

    code = "row-altered"

    def __init__(self, table: str, row: str) -> None:
        super().__init__(
            f"{_THING.get(table, 'A row')} was changed outside this node.",
            mend="Restore the database from its backup; call the security officer.",
        )
        self.table = table
        self.row = row


def mac_column() -> Column[bytes]:
    """The column in which a sealed table keeps the seal of each row."""
    return Column("mac", LargeBinary, nullable=False)


def labelled(table: Table, prefix: str) -> list[Any]:
    """Every column of a table for a join, its name behind `prefix`."""
    return [column.label(prefix + column.name) for column in table.columns]


@dataclass(frozen=True)
class RowSeal:
    """Seals and checks rows under `key`, 32 bytes."""

    key: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.key) != KEY_BYTES:
            raise ValueError("the key of the rows has 32 bytes")

    def seal(self, table: Table, values: Mapping[str, Any]) -> bytes:
        """The MAC of a row with these values; a column that is not given is empty."""
        plain = {name: _plain(values.get(name)) for name in _sealed_columns(table)}
        return hmac.digest(self.key, table.name.encode() + b"|" + canonical_json(plain), sha256)

    def check(self, table: Table, row: Any, prefix: str = "") -> None:
        """Raise RowAltered unless the row is as this node wrote it. `prefix` is that of its labels in a join."""
        try:
            intact = hmac.compare_digest(
                self.seal(table, _values(table, row, prefix)), getattr(row, f"{prefix}mac")
            )
        except (TypeError, ValueError):  # a value of another type than the column's
            intact = False
        if not intact:
            raise RowAltered(table.name, str(getattr(row, prefix + next(iter(table.primary_key)).name)))


class Rows:
    """Transactions over sealed rows: whoever meets an altered one gets RowAltered, and the log an entry."""

    def __init__(self, database: Database, key: bytes, log: Log | None) -> None:
        self._seal = RowSeal(key)
        self._database = database
        self._log = log
        self._told: set[tuple[str, str]] = set()
        self._telling: set[asyncio.Task[None]] = set()

    def reading(self, tx: Tx | None = None) -> AbstractAsyncContextManager[Tx]:
        """The caller's transaction when there is one, else a snapshot of our own."""
        return self._within(tx, self._database.read)

    def writing(self, tx: Tx | None = None) -> AbstractAsyncContextManager[Tx]:
        """The caller's transaction when there is one, else one of our own that may write."""
        return self._within(tx, self._database.write)

    def new(self, table: Table, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values of a row, with its seal."""
        return {**values, "mac": self._seal.seal(table, values)}

    def changed(self, table: Table, row: Any, changes: Mapping[str, Any]) -> dict[str, Any]:
        """The changes to a row read in the same transaction, with its new seal. Raises RowAltered."""
        self._seal.check(table, row)
        return {**changes, "mac": self._seal.seal(table, {**_values(table, row), **changes})}

    def check(self, table: Table, row: Any, prefix: str = "") -> None:
        """Raise RowAltered unless the row is as this node wrote it."""
        self._seal.check(table, row, prefix)

    def intact(self, table: Table, row: Any) -> bool:
        """Whether the row is as this node wrote it."""
        try:
            self._seal.check(table, row)
        except RowAltered:
            return False
        return True

    async def read_in_one(self, reading: Callable[[Connection], T]) -> T:
        """As `Database.read_in_one`; `reading` checks the rows it returns."""
        try:
            return await self._database.read_in_one(reading)
        except RowAltered as altered:
            await self.tell(altered)
            raise

    async def look_up(self, reading: Callable[[Connection], T]) -> T:
        """As `Database.look_up`; `reading` checks the rows it returns."""
        try:
            return await self._database.look_up(reading)
        except RowAltered as altered:
            await self.tell(altered)
            raise

    @asynccontextmanager
    async def _within(self, tx: Tx | None, opened: Any) -> AsyncIterator[Tx]:
        try:
            if tx is not None:
                yield tx
            else:
                async with opened() as own:
                    yield own
        except RowAltered as altered:
            if tx is None:
                await self.tell(altered)
            else:
                # The caller's transaction is about to be rolled back, and the log waits for its turn behind it.
                task = asyncio.create_task(self.tell(altered))
                self._telling.add(task)
                task.add_done_callback(self._telling.discard)
            raise

    async def tell(self, altered: RowAltered) -> None:
        """Put an altered row on record, once while this process runs."""
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


def _sealed_columns(table: Table) -> list[str]:
    outside = {"mac", *table.info.get(UNSEALED, ())}
    return [column.name for column in table.columns if column.name not in outside]


def _values(table: Table, row: Any, prefix: str = "") -> dict[str, Any]:
    return {name: getattr(row, prefix + name) for name in _sealed_columns(table)}


def _plain(value: Any) -> Any:
    return microseconds(value) if isinstance(value, datetime) else value
