"""Findings: what needs a person's eye, one for each thing and not one for each time it happened.

A finding is a kind, how grave it is, what it is about, when it was first and last seen, how often, and where it stands:
open, acknowledged by somebody with words, resolved. Log entries (`sightings`) and conditions (`checks`) become
findings; a repeat is counted. Opening, acknowledging and resolving are log entries, so the table proves nothing: it
is a view of the log that can be counted in. Holds no patient; a study by its pseudonym at most.

Invariants: one living finding for each kind and subject; no more than MAX_LIVING of a kind, the rest is counted in one
of its own; what follows from a log entry happens once.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any, Final

from sqlalchemy import Executable, delete, func, insert, select, update

from consent.errors import Conflict, Invalid, NotFound, Sentence
from consent.vocabulary import EventKind
from node.audit.event import Detail, Event
from node.audit.log import Log
from node.clock import Clock
from node.database import Database, Tx
from ops.findingtables import (
    GRAVEST_FIRST,
    LIVING,
    MAX_SUBJECT_CHARACTERS,
    OVERFLOW,
    TRANSITIONS,
    Finding,
    FindingKind,
    FindingState,
    Mended,
    Severity,
    Sighting,
    finding_of,
    finding_table,
    living_name,
    told_values,
)

MAX_LIVING: Final = 200
"""Living findings of one kind."""
MIN_WORDS_CHARACTERS: Final = 3
MAX_WORDS_CHARACTERS: Final = 1000
MAX_PAGE: Final = 500
KEPT: Final = timedelta(days=400)
"""How long a resolved finding stays in the table; the log keeps it longer."""
MAX_KEPT: Final = 20_000
MAX_ASKED: Final = 500
"""Names looked up in one question."""
JOB: Final = "job:findings"
CONDITION_OVER: Final = "The condition is over."
IT_HAS_WORKED: Final = "It has worked since."


@dataclass
class _Batch:
    """What is taken in together: the rows that are known, how many live of each kind, and what is still to be
    written, repeats of one thing added up."""

    known: dict[str, Any]
    living: Counter[FindingKind]
    pending: dict[str, Sighting] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)

    def add(self, one: Sighting) -> None:
        """Add a sighting to what is pending; to the overflow of its kind when too many live."""
        if not self._has(one.living) and self.living[one.kind] >= MAX_LIVING:
            one = Sighting(
                one.kind, one.severity, OVERFLOW, "overflow", one.at, count=one.count, entry=one.entry
            )
        if not self._has(one.living):
            self.living[one.kind] += 1
        before = self.pending.get(one.living)
        count, entry = (one.count, one.entry) if before is None else (before.count + one.count, before.entry)
        self.pending[one.living] = replace(one, count=count, entry=entry)

    def _has(self, living: str) -> bool:
        return living in self.known or living in self.pending


class Findings:
    """The findings of one node."""

    def __init__(self, database: Database, log: Log, clock: Clock) -> None:
        self._database = database
        self._log = log
        self._clock = clock

    async def take(self, tx: Tx, seen: Sequence[Sighting | Mended]) -> None:
        """Open or count findings, and close those that are over, in the caller's transaction and in this order."""
        batch = await self._batch(tx, seen)
        for one in seen:
            if isinstance(one, Sighting):
                batch.add(one)
                continue
            for living in one.living:
                if (sighting := batch.pending.pop(living, None)) is not None:
                    batch.known[living] = await self._put(tx, batch, sighting)
                if (row := batch.known.pop(living, None)) is not None:
                    batch.living[FindingKind(row.kind)] -= 1
                    batch.events.append(await self._close(tx, row, JOB, IT_HAS_WORKED))
        for sighting in batch.pending.values():
            await self._put(tx, batch, sighting)
        await self._log.append_many(tx, batch.events)

    async def observe(self, kinds: Sequence[FindingKind], seen: Sequence[Sighting]) -> None:
        """What a look at conditions found: what is seen is opened or goes on, the rest of `kinds` is over.

        A condition that lasts is not counted again.
        """
        async with self._database.write() as tx:
            query = select(finding_table).where(
                finding_table.c.kind.in_(kinds), finding_table.c.living.is_not(None)
            )
            known = {row.living: row for row in (await tx.execute(query)).all()}
            for one in seen:
                row = known.pop(one.living, None)
                if row is None:
                    await self._log.append(tx, (await self._open(tx, one))[1])
                else:
                    await self._change(
                        tx, row.id, last_seen=one.at, severity=one.severity, **told_values(one)
                    )
            for row in known.values():
                await self._log.append(tx, await self._close(tx, row, JOB, CONDITION_OVER))

    async def listed(
        self,
        *,
        states: Sequence[FindingState] = LIVING,
        severity: Severity | None = None,
        kind: FindingKind | None = None,
        subject: str | None = None,
        limit: int = 100,
    ) -> list[Finding]:
        """Findings in these states, the gravest first and the latest first among them."""
        query = select(finding_table).where(finding_table.c.state.in_(states))
        for column, value in (("severity", severity), ("kind", kind), ("subject", subject)):
            if value is not None:
                query = query.where(finding_table.c[column] == value)
        rows = await self._rows(query.order_by(*GRAVEST_FIRST).limit(max(1, min(limit, MAX_PAGE))))
        return [finding_of(row) for row in rows]

    async def one(self, finding: str) -> Finding:
        """Raises NotFound."""
        rows = await self._rows(select(finding_table).where(finding_table.c.id == finding))
        if not rows:
            raise NotFound("There is no such finding.", mend="List the findings.")
        return finding_of(rows[0])

    async def counts(self) -> dict[tuple[Severity, FindingState], int]:
        """How many living findings there are, by severity and state."""
        table = finding_table.c
        query = select(table.severity, table.state, func.count()).where(table.living.is_not(None))
        rows = await self._rows(query.group_by(table.severity, table.state))
        return {(Severity(row[0]), FindingState(row[1])): int(row[2]) for row in rows}

    async def pulse(self) -> tuple[int, int, datetime | None, int]:
        """Four numbers that differ when anything about the findings has changed: for streams."""
        table = finding_table.c
        handled = func.count(table.acknowledged) + func.count(table.resolved)
        query = select(func.count(), func.sum(table.count), func.max(table.last_seen), handled)
        [row] = await self._rows(query)
        return int(row[0]), int(row[1] or 0), row[2], int(row[3])

    async def acknowledge(self, finding: str, words: str, *, by: str) -> Finding:
        """Somebody takes it on. Raises NotFound, Invalid without words, Conflict when it is not open."""
        await self._handle(finding, FindingState.ACKNOWLEDGED, words, by)
        return await self.one(finding)

    async def resolve(self, finding: str, words: str, *, by: str) -> Finding:
        """Somebody closes it. Raises NotFound, Invalid without words, Conflict when it is resolved."""
        await self._handle(finding, FindingState.RESOLVED, words, by)
        return await self.one(finding)

    async def prune(self) -> None:
        """Drop resolved findings that are old or too many; the log still has them."""
        table = finding_table.c
        old = table.resolved < self._clock.now() - KEPT
        newest = (
            select(table.id).where(table.living.is_(None)).order_by(table.resolved.desc()).limit(MAX_KEPT)
        )
        async with self._database.write() as tx:
            await tx.execute(delete(finding_table).where(table.living.is_(None), old))
            await tx.execute(delete(finding_table).where(table.living.is_(None), table.id.not_in(newest)))

    async def _batch(self, tx: Tx, seen: Sequence[Sighting | Mended]) -> _Batch:
        """What is known of everything that was seen, in a few questions instead of one for each."""
        names = {name for one in seen for name in ([one.living] if isinstance(one, Sighting) else one.living)}
        names |= {living_name(one.kind, OVERFLOW) for one in seen if isinstance(one, Sighting)}
        table, known = finding_table.c, {}
        for start in range(0, len(names), MAX_ASKED):
            some = sorted(names)[start : start + MAX_ASKED]
            for row in await tx.execute(select(finding_table).where(table.living.in_(some))):
                known[row.living] = row
        living = select(table.kind, func.count()).where(table.living.is_not(None)).group_by(table.kind)
        counts = Counter({FindingKind(kind): int(count) for kind, count in await tx.execute(living)})
        return _Batch(known, counts)

    async def _put(self, tx: Tx, batch: _Batch, one: Sighting) -> Any:
        """Write one sighting: into its finding, or into a new one. Returns the row."""
        known = batch.known.get(one.living)
        if known is not None:
            await self._change(
                tx, known.id, last_seen=one.at, count=known.count + one.count, **told_values(one)
            )
            return known
        row, event = await self._open(tx, one)
        batch.events.append(event)
        return row

    async def _open(self, tx: Tx, one: Sighting) -> tuple[Any, Event]:
        """Write a new finding; return its row and what the log is to say."""
        values = {
            "id": secrets.token_hex(8),
            "kind": one.kind,
            "severity": one.severity,
            "subject": one.subject[:MAX_SUBJECT_CHARACTERS],
            "living": one.living,
            "state": FindingState.OPEN,
            "first_seen": one.at,
            "last_seen": one.at,
            "count": one.count,
            "entry": one.entry,
        }
        await tx.execute(insert(finding_table).values(values | told_values(one)))
        detail: dict[str, Detail] = {
            "finding": str(values["id"]),
            "kind": one.kind,
            "severity": one.severity,
            "subject": one.subject[:MAX_SUBJECT_CHARACTERS],
            "code": one.code,
            "values": dict(one.values),
            "entry": one.entry,
        }
        return SimpleNamespace(**values), Event(EventKind.FINDING_OPENED, JOB, detail=detail)

    async def _handle(self, finding: str, state: FindingState, words: str, by: str) -> None:
        words = words.strip()
        if not MIN_WORDS_CHARACTERS <= len(words) <= MAX_WORDS_CHARACTERS:
            raise Invalid(
                "Say in words what was done about it.",
                mend=Sentence(
                    "Write %(least)s to %(most)s characters.",
                    least=MIN_WORDS_CHARACTERS,
                    most=MAX_WORDS_CHARACTERS,
                ),
                code="finding-words",
            )
        async with self._database.write() as tx:
            query = select(finding_table).where(finding_table.c.id == finding).with_for_update()
            row = (await tx.execute(query)).one_or_none()
            if row is None:
                raise NotFound("There is no such finding.", mend="List the findings.")
            if state not in TRANSITIONS[FindingState(row.state)]:
                raise Conflict(
                    "Somebody has acknowledged this finding already."
                    if row.state == FindingState.ACKNOWLEDGED
                    else "This finding is resolved.",
                    mend="Load the page again: it has changed.",
                    code="finding-state",
                )
            resolving = state is FindingState.RESOLVED
            answer = self._close if resolving else self._acknowledge
            await self._log.append(tx, await answer(tx, row, by, words))

    async def _acknowledge(self, tx: Tx, row: Any, by: str, words: str) -> Event:
        now = self._clock.now()
        await self._change(
            tx,
            row.id,
            state=FindingState.ACKNOWLEDGED,
            acknowledged=now,
            acknowledged_by=by,
            acknowledged_words=words,
        )
        return _told_of(EventKind.FINDING_ACKNOWLEDGED, row, by, words)

    async def _close(self, tx: Tx, row: Any, by: str, words: str) -> Event:
        now = self._clock.now()
        state = FindingState.RESOLVED
        await self._change(
            tx, row.id, state=state, living=None, resolved=now, resolved_by=by, resolved_words=words
        )
        return _told_of(EventKind.FINDING_RESOLVED, row, by, words)

    async def _change(self, tx: Tx, finding: str, **changes: Any) -> None:
        await tx.execute(update(finding_table).where(finding_table.c.id == finding).values(changes))

    async def _rows(self, query: Executable) -> list[Any]:
        async with self._database.read() as tx:
            return list((await tx.execute(query)).all())


def _told_of(kind: EventKind, row: Any, by: str, words: str) -> Event:
    """What the log says of an answer to a finding."""
    detail = {"finding": row.id, "kind": row.kind, "subject": row.subject, "count": row.count}
    return Event(kind, by, reason=words, detail=detail)
