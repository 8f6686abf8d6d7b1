"""The seal of one row: a MAC over its table's name and its columns, the primary key among them; and reading rows
whatever somebody has put into them.

Format: docs/formats/access-rows.md. A table's `info[UNSEALED]` names the columns that decide nothing, or that something
else proves; `info[GROUP]` names the column by whose value its rows lie in buckets, the primary key where it is not
given. Whether a row is also the newest of its kind, and none is missing, is `ledger`'s.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from typing import Any, Final

from sqlalchemy import Column, Connection, Integer, LargeBinary, Select, Table, select, type_coerce
from sqlalchemy.types import NullType

from consent.errors import Corrupt, Sentence
from consent.signed import canonical_json
from node.database import microseconds

UNSEALED: Final = "unsealed"
GROUP: Final = "group"
KEY_BYTES: Final = 32
UNREADABLE: Final = (TypeError, ValueError, OverflowError)
"""A value of another type than its column's."""


_WORDS: Final = {
    "person": Sentence("An account was changed outside this node."),
    "session": Sentence("A session was changed outside this node."),
    "care": Sentence("A treatment relationship was changed outside this node."),
    "token": Sentence("A token was changed outside this node."),
    "device": Sentence("A device was changed outside this node."),
    "record": Sentence("A record was changed outside this node."),
    "record_subject": Sentence("A record was deleted outside this node."),
}


class RowAltered(Corrupt):
    """A row that this node did not write as it is, or rows that it wrote and that are gone.

    `row` is the primary key, or where the rows lay, for the log, not for people.
    """

    code = "row-altered"

    def __init__(self, table: str, row: str) -> None:
        super().__init__(
            _WORDS.get(table, Sentence("The database was changed outside this node.")),
            mend=Sentence("Restore the database from its backup; call the security officer."),
        )
        self.table = table
        self.row = row


def seal_columns() -> tuple[Column[int], Column[bytes]]:
    """The columns in which a sealed table keeps where each row lies in the ledger, and its seal."""
    return Column("bucket", Integer, nullable=False, index=True), Column("mac", LargeBinary, nullable=False)


def labelled(table: Table, prefix: str) -> list[Any]:
    """Every column of a table for a join, its name behind `prefix`."""
    return [column.label(prefix + column.name) for column in table.columns]


def rows_of(on: Connection, query: Select[Any]) -> list[Any]:
    """What a `select(table)` finds. A row with a value of another type than its column's is given as it lies there:
    no seal fits it, and it hides no other."""
    try:
        return list(on.execute(query).all())
    except UNREADABLE:
        table: Any = query.get_final_froms()[0]
        raw = [type_coerce(column, NullType()).label(column.name) for column in table.columns]
        return [_typed(on, table, row) for row in on.execute(query.with_only_columns(*raw)).all()]


def _typed(on: Connection, table: Table, row: Any) -> Any:
    try:
        return on.execute(select(table).where(*this_row(table, row))).one()
    except UNREADABLE:
        return row


def this_row(table: Table, row: Any) -> list[Any]:
    """The conditions that find a row again."""
    return [column == getattr(row, column.name) for column in table.primary_key]


def row_name(table: Table, row: Any, prefix: str = "") -> str:
    """The primary key of a row, its first column."""
    return str(getattr(row, prefix + next(iter(table.primary_key)).name))


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
        if not self.intact(table, row, prefix):
            raise RowAltered(table.name, row_name(table, row, prefix))

    def intact(self, table: Table, row: Any, prefix: str = "") -> bool:
        """Whether the row is as this node wrote it."""
        try:
            sealed = self.seal(table, sealed_values(table, row, prefix))
            return hmac.compare_digest(sealed, getattr(row, f"{prefix}mac"))
        except (TypeError, ValueError):  # a value of another type than the column's
            return False


def sealed_values(table: Table, row: Any, prefix: str = "") -> dict[str, Any]:
    """What the seal of a row is made over."""
    return {name: getattr(row, prefix + name) for name in _sealed_columns(table)}


def group_column(table: Table) -> str:
    """The column by whose value the rows lie in buckets."""
    return str(table.info.get(GROUP) or next(iter(table.primary_key)).name)


def _sealed_columns(table: Table) -> list[str]:
    outside = {"mac", "bucket", *table.info.get(UNSEALED, ())}
    return [column.name for column in table.columns if column.name not in outside]


def _plain(value: Any) -> Any:
    return microseconds(value) if isinstance(value, datetime) else value
