"""What is durable in a pack becomes rows and a log entry: one transaction for all that came in a moment.

Holds the queue between the vault's answer and the database. A row that cannot be written now stays and is tried
again; the pack has the instance meanwhile. Leaves to `recovery` what a crash took out of the queue.

Invariants: index rows and log entry of an instance are committed together; the index never says that a pack is
indexed further than every object in it is.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import structlog
from sqlalchemy import Connection

from consent.errors import AccordError, Unavailable
from consent.vocabulary import EventKind
from node.audit.log import Event, Log
from node.database import Database
from node.index import Entry, Index
from node.index.rows import MetadataPlace
from node.vault.pack import padded

QUIET_SECONDS = 0.1
FLUSH_SECONDS = 1.0
"""Rows are written once none has come for QUIET_SECONDS, at the latest after FLUSH_SECONDS: a transaction costs about
the same for five rows and for a hundred, and in the middle of a study nobody has asked for it yet."""
FLUSH_ROWS = 500
RETRY_SECONDS = 1.0
MAX_WAITING_ROWS = 20_000
"""Durable instances that are not in the index yet; past this no more are taken until the database writes."""

logger = structlog.get_logger()


@dataclass(frozen=True)
class Origin:
    """Who brought an instance, by which door, from where, as the log will say it."""

    actor: str
    channel: str
    address: str | None


@dataclass(frozen=True)
class Stored:
    """An instance that is durable."""

    entry: Entry
    origin: Origin

    @property
    def study(self) -> str:
        return self.entry.study

    @property
    def end(self) -> int:
        return padded(self.entry.data_set.end)


@dataclass(frozen=True)
class Derived:
    """Pre-made metadata of a series that is durable."""

    study: str
    series: str
    place: MetadataPlace

    @property
    def end(self) -> int:
        return padded(self.place.placement.end)


@dataclass
class _Pack:
    """Appends to one pack whose rows are not committed yet, and the furthest end of those that are durable."""

    unflushed: int = 0
    end: int = 0


class Flusher:
    """Writes rows in the background. `committed` is called with the entries of each transaction that ended well."""

    def __init__(
        self, database: Database, index: Index, log: Log, committed: Callable[[Sequence[Entry]], None]
    ) -> None:
        self._database = database
        self._index = index
        self._log = log
        self._committed = committed
        self._rows: deque[Stored | Derived] = deque()
        self._packs: dict[str, _Pack] = {}
        self._turn = asyncio.Lock()
        self._wake = asyncio.Event()
        self._full = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Run in the background until `stop`."""
        self._task = asyncio.create_task(self._run(), name="ingest-flusher")

    async def stop(self) -> None:
        """Write the last rows and end. Raises Unavailable when they cannot be written: they are recovered at the next start."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        await self.flushed()

    def require_room(self) -> None:
        """Raise Unavailable when the database is far behind."""
        if len(self._rows) >= MAX_WAITING_ROWS:
            raise Unavailable(
                "The index cannot keep up; nothing was stored.",
                mend="Free disk space for the database, then send again.",
                code="index-behind",
            )

    def begin(self, study: str) -> None:
        """Say that an append to the study's pack begins: `put` or `abandon` follows."""
        self._packs.setdefault(study, _Pack()).unflushed += 1

    def abandon(self, study: str) -> None:
        """Say that an append failed and left nothing."""
        self._settle(study, 1)

    def put(self, row: Stored | Derived) -> None:
        """Hand over the row of an append that was begun and is durable now."""
        pack = self._packs[row.study]
        pack.end = max(pack.end, row.end)
        self._rows.append(row)
        self._wake.set()
        if len(self._rows) >= FLUSH_ROWS:
            self._full.set()

    def behind(self, study: str) -> bool:
        """Whether something of the study is not committed yet."""
        return study in self._packs

    async def flushed(self) -> None:
        """Return when every row handed over so far is committed. Raises Unavailable."""
        async with self._turn:
            left = len(self._rows)
            while left > 0:
                left -= await self._flush()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            await self._gather()
            self._wake.clear()
            self._full.clear()
            try:
                await self.flushed()
            except Exception as error:  # the duty ends with the node only: its rows would never be indexed
                words = error.message if isinstance(error, AccordError) else type(error).__name__
                logger.warning("index rows wait", rows=len(self._rows), error=words)
                await asyncio.sleep(RETRY_SECONDS)
                self._wake.set()

    async def _gather(self) -> None:
        """Return when it is time to write."""
        seen = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_SECONDS):
                while seen < len(self._rows):
                    seen = len(self._rows)
                    with suppress(TimeoutError):
                        async with asyncio.timeout(QUIET_SECONDS):
                            await self._full.wait()
                            return

    async def _flush(self) -> int:
        """Commit up to FLUSH_ROWS rows; they leave the queue only then."""
        batch = [self._rows[number] for number in range(min(FLUSH_ROWS, len(self._rows)))]
        stored = [row for row in batch if isinstance(row, Stored)]
        derived = [row for row in batch if isinstance(row, Derived)]
        per_study: dict[str, int] = {}
        for row in batch:
            per_study[row.study] = per_study.get(row.study, 0) + 1
        ends = {
            study: self._packs[study].end
            for study, count in per_study.items()
            if self._packs[study].unflushed == count
        }
        fresh = await self._database.write_in_one(partial(self._written, stored, derived, ends))
        self._index.remember(fresh)
        for _ in batch:
            self._rows.popleft()
        for study, count in per_study.items():
            self._settle(study, count)
        self._committed([row.entry for row in stored])
        return len(batch)

    def _written(
        self,
        stored: Sequence[Stored],
        derived: Sequence[Derived],
        ends: Mapping[str, int],
        connection: Connection,
    ) -> tuple[Entry, ...]:
        """The transaction; return what was not in the index before."""
        fresh = self._index.added(connection, [row.entry for row in stored], ends)
        for row in derived:
            self._index.described(connection, row.study, row.series, row.place)
        self._log.appended(connection, _events(stored, fresh))
        return fresh

    def _settle(self, study: str, count: int) -> None:
        pack = self._packs[study]
        pack.unflushed -= count
        if pack.unflushed == 0:
            del self._packs[study]


def _events(stored: Sequence[Stored], fresh: Sequence[Entry]) -> list[Event]:
    """One entry for each study and origin."""
    new = {entry.instance for entry in fresh}
    groups: dict[tuple[str, Origin], list[Entry]] = {}
    for row in stored:
        if row.entry.instance in new:
            groups.setdefault((row.study, row.origin), []).append(row.entry)
    return [
        stored_event(study, entries, origin.actor, origin.channel, origin.address)
        for (study, origin), entries in groups.items()
    ]


def stored_event(
    study: str, entries: Sequence[Entry], actor: str, channel: str, address: str | None = None
) -> Event:
    """The log entry of instances of one study that became durable."""
    return Event(
        EventKind.INSTANCES_STORED,
        actor,
        patient=entries[0].patient,
        study=study,
        address=address,
        detail={
            "channel": channel,
            "instances": len(entries),
            "series": len({entry.series for entry in entries}),
            "bytes": sum(entry.size_bytes for entry in entries),
        },
    )
