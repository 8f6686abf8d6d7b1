"""Reading the log as it grows: the entries of some kinds after a reader's cursor, with what cannot be read named.

A reader takes `news`, does in a transaction what follows from them, and calls `settle` in that same transaction: what
follows from an entry happens once, also when two processes read under one name or one is killed. Kinds that a reader
does not ask for are passed over without being opened. An entry that does not open is named and passed over, because
an altered row must not stop those who would report it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import select

from consent.errors import AccordError, Conflict
from consent.vocabulary import EventKind
from node.audit.event import Entry, read_record
from node.audit.log import Log
from node.audit.tables import log_entry
from node.database import Tx

MAX_NEWS = 500
"""Entries opened at once."""
MAX_WINDOW = 20_000
"""Entries passed over or opened at once: a reader far behind comes up in steps."""
IDLE_ENTRIES = 1000
"""A cursor is moved over so many entries of other kinds before that alone is worth a transaction."""


@dataclass(frozen=True)
class News:
    """What came after `since`. `upto` is the index dealt with when these are; `unreadable` are indexes in between.

    `more` says that there are later entries already.
    """

    reader: str
    since: int
    upto: int
    entries: tuple[Entry, ...] = ()
    unreadable: tuple[int, ...] = ()
    more: bool = False

    @property
    def worth_settling(self) -> bool:
        """Whether there is something to deal with, or the cursor has fallen far behind."""
        return bool(self.entries or self.unreadable) or self.upto - self.since >= IDLE_ENTRIES


async def news(log: Log, reader: str, kinds: Collection[EventKind], *, limit: int = MAX_NEWS) -> News:
    """Up to `limit` entries of `kinds` that `reader` has not dealt with, in order."""
    limit = min(limit, MAX_NEWS)
    blinds = [log.sealer.blind("kind", str(kind)) for kind in kinds]
    async with log.database.read() as tx:
        since, last = await log.cursor(reader, tx), await log.size(tx) - 1
        window = min(last, since + MAX_WINDOW)
        if window <= since:
            return News(reader, since, since)
        new = log_entry.c.position.between(since + 1, window)
        query = select(log_entry).where(new, log_entry.c.kind.in_(blinds)).order_by(log_entry.c.position)
        rows = (await tx.execute(query.limit(limit))).all()
    entries: list[Entry] = []
    unreadable: list[int] = []
    for row in rows:
        try:
            at, event = read_record(log.sealer.open(row.position, row.sealed))
            entries.append(Entry(row.position, at, event, row.leaf))
        except AccordError:
            unreadable.append(row.position)
    upto = rows[-1].position if len(rows) == limit else window
    return News(reader, since, upto, tuple(entries), tuple(unreadable), more=upto < last)


async def settle(log: Log, tx: Tx, read: News) -> None:
    """Move the reader's cursor, in the transaction of what it did. Raises Conflict when somebody else was faster."""
    if await log.cursor(read.reader, tx) != read.since:
        raise Conflict("Another process has dealt with these entries.", code="stale-news")
    await log.advance(tx, read.reader, read.upto)
