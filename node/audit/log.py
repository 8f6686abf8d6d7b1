"""The log: append-only, in the database, inside the transaction of the deed it records.

Holds appending, reading, searching and cursors. Hashing is `merkle`, sealing `event`, signed heads and proofs
`checkpoints` (here as `log.heads`), the sweep that finds an alteration `verification`.

Invariants: the state row (size, frontier) is read and written inside the appender's transaction, so the
indexes of a log are 0, 1, 2 … without a gap whichever process appends; an entry is never updated or deleted;
when `record` returns, the entry is durable.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import Connection, Select, func, insert, select, update

from consent.errors import Invalid
from consent.vocabulary import EventKind
from node.audit.checkpoints import Checkpoints
from node.audit.event import SALT_BYTES, Entry, Event, RecordSealer, read_record
from node.audit.merkle import Frontier, leaf_hash
from node.audit.note import Signer, Verifier, Vouched
from node.audit.tables import log_cursor, log_entry, log_hash, log_state
from node.audit.tiles import TILE_HEIGHT, Tile
from node.audit.verification import Verification, verify
from node.clock import Clock
from node.database import Database, Tx, carried

__all__ = ["Entry", "Event", "Log", "Verification"]

MAX_BATCH = 1000
MAX_PAGE = 1000

_COLUMNS = ("kind", "actor", "patient", "study")


class Log:
    """One node's log. `key` is the audit key (32 bytes), `signer` the log key under the log's origin."""

    def __init__(self, database: Database, *, key: bytes, origin: str, signer: Signer, clock: Clock) -> None:
        self.database = database
        self.origin = origin
        self.signer = signer
        self.clock = clock
        self.sealer = RecordSealer(key, origin)
        self.heads = Checkpoints(self)
        self._waiting: list[tuple[Event, asyncio.Future[Entry]]] = []
        self._committer: asyncio.Task[None] | None = None

    async def append(self, tx: Tx, event: Event) -> Entry:
        """Append in the caller's transaction: the entry exists exactly if the deed does."""
        return (await self.append_many(tx, [event]))[0]

    async def append_many(self, tx: Tx, events: Sequence[Event]) -> tuple[Entry, ...]:
        """Append several, in order, in the caller's transaction."""
        return await tx.run_sync(self.appended, events)

    async def record(self, event: Event) -> Entry:
        """Append in a transaction of its own, shared with everybody who calls at the same time.

        When it returns, the entry is durable. Raises Unavailable when the database cannot write.
        """
        future: asyncio.Future[Entry] = asyncio.get_running_loop().create_future()
        self._waiting.append((event, future))
        if self._committer is None or self._committer.done():
            self._committer = asyncio.create_task(self._commit_waiting())
        return await future

    async def close(self) -> None:
        """Wait until everything given to `record` is durable or has failed."""
        if self._committer is not None:
            await asyncio.wait([self._committer])

    async def size(self, tx: Tx | None = None) -> int:
        """How many entries there are."""
        async with self.reading(tx) as connection:
            row = (await connection.execute(select(log_state.c.size))).first()
            return 0 if row is None else int(row.size)

    async def entries(self, after: int = -1, limit: int = 100) -> list[Entry]:
        """Up to `limit` entries whose index is greater than `after`, in order.

        Raises Corrupt when one of them does not open.
        """
        query = select(log_entry).where(log_entry.c.position > after).order_by(log_entry.c.position)
        return await self._fetch(query.limit(_page(limit)))

    async def entry(self, index: int) -> Entry | None:
        """The entry at `index`, or None."""
        found = await self._fetch(select(log_entry).where(log_entry.c.position == index))
        return found[0] if found else None

    async def search(
        self,
        *,
        patient: str | None = None,
        study: str | None = None,
        actor: str | None = None,
        kind: EventKind | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        before: int | None = None,
        limit: int = 100,
    ) -> list[Entry]:
        """Entries that match everything given, newest first; times are half-open; `before` pages on by index."""
        query = select(log_entry).order_by(log_entry.c.position.desc()).limit(_page(limit))
        wanted = {"patient": patient, "study": study, "actor": actor, "kind": str(kind) if kind else None}
        for column, value in wanted.items():
            if value is not None:
                query = query.where(log_entry.c[column] == self.sealer.blind(column, value))
        if since is not None:
            query = query.where(log_entry.c.at >= since)
        if until is not None:
            query = query.where(log_entry.c.at < until)
        if before is not None:
            query = query.where(log_entry.c.position < before)
        return await self._fetch(query)

    async def cursor(self, name: str, tx: Tx | None = None) -> int:
        """The index that the reader `name` has dealt with last; -1 before its first."""
        async with self.reading(tx) as connection:
            row = (await connection.execute(select(log_cursor).where(log_cursor.c.name == name))).first()
            return -1 if row is None else int(row.position)

    async def advance(self, tx: Tx, name: str, index: int) -> None:
        """Remember, in the transaction of what the reader did about it, that `name` has dealt with `index`."""
        moved = await tx.execute(update(log_cursor).where(log_cursor.c.name == name).values(position=index))
        if moved.rowcount == 0:
            await tx.execute(insert(log_cursor).values(name=name, position=index))

    async def counts(self, since: datetime, until: datetime) -> dict[EventKind, int]:
        """How many entries of each kind there are in [since, until); kinds without any are left out."""
        query = select(log_entry.c.kind, func.count()).group_by(log_entry.c.kind)
        async with self.database.read() as tx:
            rows = (await tx.execute(query.where(log_entry.c.at >= since, log_entry.c.at < until))).all()
        blinds = {self.sealer.blind("kind", str(kind)): kind for kind in EventKind}
        return {blinds[kind]: count for kind, count in rows if kind in blinds}

    async def follow(self, after: int = -1, *, poll_seconds: float = 0.5) -> AsyncIterator[Entry]:
        """Every entry after `after`, and then each new one as it comes, for ever."""
        while True:
            batch = await self.entries(after, MAX_PAGE)
            for entry in batch:
                yield entry
                after = entry.index
            if not batch:
                await asyncio.sleep(poll_seconds)

    async def checkpoint(self) -> str:
        """The latest checkpoint as a signed note; see `Checkpoints.make`."""
        return await self.heads.make()

    async def add_cosignatures(
        self, size: int, lines: str, witnesses: Iterable[Verifier]
    ) -> tuple[Vouched, ...]:
        """Keep what a witness returned; see `Checkpoints.add_cosignatures`."""
        return await self.heads.add_cosignatures(size, lines, witnesses)

    async def prove_inclusion(self, index: int, size: int) -> list[bytes]:
        """The inclusion proof of RFC 6962 §2.1.1."""
        return await self.heads.prove_inclusion(index, size)

    async def prove_consistency(self, old: int, new: int) -> list[bytes]:
        """The consistency proof of RFC 6962 §2.1.2."""
        return await self.heads.prove_consistency(old, new)

    async def proof_file(self, index: int, *, quorum: int = 0, disclose: bool = True) -> str:
        """Portable evidence; see `Checkpoints.proof_file` and `evidence.verify_proof_file`."""
        return await self.heads.proof_file(index, quorum=quorum, disclose=disclose)

    async def tile(self, tile: Tile) -> bytes:
        """The bytes of a tile (C2SP tlog-tiles)."""
        return await self.heads.tile(tile)

    async def verify(self, witnesses: Iterable[Verifier] = ()) -> Verification:
        """Recompute everything and name what was altered; see `verification.verify`."""
        return await verify(self, witnesses)

    async def frontier(self, tx: Tx) -> Frontier:
        """The tree's right edge, locked until the transaction ends; makes the state row when there is none."""
        return await tx.run_sync(self._frontier)

    def blinded(self, event: Event) -> dict[str, bytes | None]:
        """The searched columns of an entry."""
        values = {
            "kind": str(event.kind),
            "actor": event.actor,
            "patient": event.patient,
            "study": event.study,
        }
        return {column: self.sealer.blind(column, values[column]) for column in _COLUMNS}

    @asynccontextmanager
    async def reading(self, tx: Tx | None) -> AsyncIterator[Tx]:
        """The caller's transaction when there is one, else a snapshot of our own."""
        if tx is not None:
            yield tx
            return
        async with self.database.read() as connection:
            yield connection

    async def _fetch(self, query: Select[Any]) -> list[Entry]:
        async with self.database.read() as tx:
            rows = (await tx.execute(query)).all()
        return [self._opened(row) for row in rows]

    def _opened(self, row: Any) -> Entry:
        at, event = read_record(self.sealer.open(row.position, row.sealed))
        return Entry(row.position, at, event, row.leaf)

    def appended(self, connection: Connection, events: Sequence[Event]) -> tuple[Entry, ...]:
        """`append_many` for a transaction that runs in one go."""
        if not events:
            return ()
        frontier = self._frontier(connection)
        entries: list[Entry] = []
        rows: list[dict[str, Any]] = []
        hashes: list[dict[str, Any]] = []
        now = self.clock.now()
        transaction = carried(connection)
        if transaction.rows is not None:
            events = [replace(events[0], rows=transaction.rows), *events[1:]]
            transaction.rows = None
        for event in events:
            index = frontier.size
            record = event.to_record(now, os.urandom(SALT_BYTES))
            leaf = leaf_hash(record)
            entries.append(Entry(index, now, event, leaf))
            rows.append(
                {"position": index, "at": now, "leaf": leaf, "sealed": self.sealer.seal(index, record)}
                | self.blinded(event)
            )
            for (height, position), value in frontier.append(leaf):
                if height % TILE_HEIGHT == 0:
                    hashes.append({"level": height // TILE_HEIGHT, "position": position, "hash": value})
        connection.execute(insert(log_entry), rows)
        if hashes:
            connection.execute(insert(log_hash), hashes)
        connection.execute(update(log_state).values(size=frontier.size, frontier=frontier.to_bytes()))
        return tuple(entries)

    def _frontier(self, connection: Connection) -> Frontier:
        row = connection.execute(select(log_state).with_for_update()).first()
        if row is None:
            connection.execute(insert(log_state).values(id=1, origin=self.origin, size=0, frontier=b""))
            return Frontier()
        if row.origin != self.origin:
            raise Invalid(
                f"This database holds the log of {row.origin!r}, not of {self.origin!r}.",
                mend="Start the node with the folder it was initialised in.",
            )
        return Frontier.from_bytes(row.size, row.frontier)

    async def _commit_waiting(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
            try:
                events = [event for event, _ in batch]
                entries = await self.database.write_in_one(partial(self.appended, events=events))
            except BaseException as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                if not isinstance(error, Exception):
                    raise
            else:
                for (_, future), entry in zip(batch, entries, strict=True):
                    if not future.done():
                        future.set_result(entry)


def _page(limit: int) -> int:
    if limit < 1:
        raise Invalid("Ask for at least one entry.")
    return min(limit, MAX_PAGE)
