"""Commitment reports that are owed: kept until they are delivered, also across a restart.

One row for each transaction. What it names is sealed; in clear stand the device, when it is due and how often it was
tried. Leaves what is reported, and to whom, to `commitment`.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import (
    Column,
    Index,
    Integer,
    LargeBinary,
    Row,
    String,
    Table,
    delete,
    func,
    insert,
    select,
    update,
)

from consent.errors import Corrupt, Unavailable
from node.database import Database, UtcDateTime, metadata
from node.index.sealing import RowSealer
from node.safety import Reference

from .commitment_forms import Asked

MAX_OWED = 1_000
"""Reports that may be owed to one device."""
MAX_OWED_BYTES = 64 * 1024 * 1024
"""Of what these name, sealed: fifty of the largest, or a thousand of common size."""

commitment_table = Table(
    "dicom_commitment",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("ae_title", String(16), nullable=False),
    Column("asked", UtcDateTime, nullable=False),
    Column("due", UtcDateTime, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("sealed", LargeBinary, nullable=False),
    Index("ix_dicom_commitment_due", "due"),
)


@dataclass(frozen=True)
class Owed:
    """That a report is owed, and to whom."""

    id: str
    ae_title: str


@dataclass(frozen=True)
class Promise(Owed):
    """A report that is owed."""

    asked_at: datetime
    attempts: int
    asked: Asked = field(repr=False)


@dataclass(frozen=True)
class Due:
    """What is due, and what cannot be made any more because its row was altered."""

    promises: tuple[Promise, ...]
    altered: tuple[Owed, ...] = ()


class Promises:
    """The reports that one node owes. `key` (32 bytes) seals what they name."""

    def __init__(self, database: Database, key: bytes) -> None:
        self._database = database
        self._sealer = RowSealer(key)

    async def owe(self, ae_title: str, asked: Asked, now: datetime, due: datetime) -> Promise:
        """Note that a report is owed from `due` on. Raises Unavailable when the device is owed too many, or too large ones."""
        promise = Promise(secrets.token_hex(16), ae_title, now, 0, asked)
        body = {"transaction": asked.transaction, "references": [list(one) for one in asked.references]}
        sealed = self._sealer.seal_json(commitment_table.name, promise.id, body)
        size = func.coalesce(func.sum(func.length(commitment_table.c.sealed)), 0)
        owed = select(func.count(), size).where(commitment_table.c.ae_title == ae_title)
        async with self._database.write() as tx:
            reports, size_bytes = (await tx.execute(owed)).one()
            if reports >= MAX_OWED or size_bytes + len(sealed) > MAX_OWED_BYTES:
                raise Unavailable(
                    "Too many commitment reports are owed to this device.", code="too-many-owed"
                )
            await tx.execute(
                insert(commitment_table).values(
                    id=promise.id,
                    ae_title=ae_title,
                    asked=now,
                    due=due,
                    attempts=0,
                    sealed=sealed,
                )
            )
        return promise

    async def due(self, now: datetime, limit: int) -> Due:
        """Reports that are due, the oldest first. Those that were altered stay due until `kept` takes them out."""
        query = select(commitment_table).where(commitment_table.c.due <= now)
        async with self._database.read() as tx:
            rows = (await tx.execute(query.order_by(commitment_table.c.due).limit(limit))).all()
        return await asyncio.to_thread(self._opened, rows)

    async def kept(self, owed: Owed) -> None:
        """A report was delivered, or given up."""
        async with self._database.write() as tx:
            await tx.execute(delete(commitment_table).where(commitment_table.c.id == owed.id))

    async def again(self, promise: Promise, due: datetime) -> None:
        """A report could not be delivered: try again at `due`."""
        mine = update(commitment_table).where(commitment_table.c.id == promise.id)
        async with self._database.write() as tx:
            await tx.execute(mine.values(due=due, attempts=promise.attempts + 1))

    async def wait_for(self, ae_title: str, now: datetime, until: datetime) -> None:
        """A device is away: whatever else is due to it is due at `until`, and holds up nobody's."""
        due = (commitment_table.c.ae_title == ae_title) & (commitment_table.c.due <= now)
        async with self._database.write() as tx:
            await tx.execute(update(commitment_table).where(due).values(due=until))

    def _opened(self, rows: Sequence[Row[Any]]) -> Due:
        promises: list[Promise] = []
        altered: list[Owed] = []
        for row in rows:
            try:
                promises.append(self._promise(row))
            except Corrupt:
                altered.append(Owed(row.id, row.ae_title))
        return Due(tuple(promises), tuple(altered))

    def _promise(self, row: Row[Any]) -> Promise:
        body = self._sealer.open_json(commitment_table.name, row.id, row.sealed)
        references = tuple(Reference(*one) for one in body["references"])
        asked = Asked(body["transaction"], references)
        return Promise(row.id, row.ae_title, row.asked, row.attempts, asked)
