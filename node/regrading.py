"""A study gets another grade: its objects are sealed anew under a new key of that grade, and the old key is destroyed.

    gate closed → new key and a note, durable → pack written anew beside the old one → put in its place
    → one transaction: rows, old key destroyed, log entry, note gone → gate open

Until the new file is in place the study is what it was; from then on it is the new one. A crash leaves the note: `recover`
finishes or takes back what it names, before the doors open. Whoever reads meanwhile waits a moment or reads where the bytes lie
now. Copies that other hospitals hold open no more: their keys are gone; they are fetched again under a new grant.

Invariants: at no moment are there objects without a key; after the last transaction nothing opens the old file.
Leaves deciding who may do it to the doors, re-encryption to `vault.reseal`, rows to `index`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial

import structlog
from sqlalchemy import ColumnElement, delete, insert, select, true

from consent.errors import AccordError, Conflict, Unavailable
from consent.vocabulary import EventKind, Grade
from node.audit.log import Event
from node.completion import to_its_end
from node.rewriting import Rewriting, places_of
from node.vault.blobs import BlobStore
from node.vault.key_tables import vault_regrade, vault_study_key
from node.vault.pack import pack_name
from node.vault.reseal import contents, generation_of, grades_in, reseal

FINISHED_LATER = "Finished after a restart."
logger = structlog.get_logger()


@dataclass(frozen=True)
class Regraded:
    """What was done: from which grade (the highest of the study) to which, and how many objects were sealed anew."""

    study: str
    before: Grade
    after: Grade
    objects: int


@dataclass(frozen=True)
class _Note:
    """What is under way: the grade, which file of the pack is the new one, whether its key was made for it."""

    study: str
    grade: Grade
    generation: int
    made_key: bool
    actor: str
    created: datetime


@dataclass(kw_only=True, eq=False)
class Regrading(Rewriting):
    """Changes the grade of studies of this node, one after the other."""

    _turn: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)

    async def regrade(self, study: str, grade: Grade, actor: str, *, reason: str = "") -> Regraded:
        """Seal a study anew under `grade`; when this returns the old key is gone and the deed is on record.

        Raises NotFound, Conflict (it has that grade, or is being regraded), Unavailable (a grade is locked, disk full,
        database), Corrupt (an object is not what arrived). The study keeps its grade then, or gets the new one by
        `recover` when only the database failed.
        """
        async with self._turn:
            await self._finish(vault_regrade.c.study == study)  # perhaps an earlier try was cut short
            return await to_its_end(self._regrade(study, grade, actor, reason))

    async def recover(self) -> int:
        """Finish, or take back, what was cut short; return how many studies.

        Before anything is read or taken in, and as a duty: a database that could not be written then may be now.
        """
        if self._turn.locked():
            return 0
        async with self._turn:
            return await self._finish(true())

    async def _finish(self, which: ColumnElement[bool]) -> int:
        """Settle what `which` notes name; return how many there were. Those that could not be settled stay."""
        async with self.database.read() as tx:
            rows = (await tx.execute(select(vault_regrade).where(which))).all()
        for row in rows:
            note = _Note(row.study, Grade(row.grade), row.generation, row.made_key, row.actor, row.created)
            await self._finished(row.study, partial(self._settled_later, note))
        if rows:
            await self._purge()
        return len(rows)

    async def _regrade(self, study: str, grade: Grade, actor: str, reason: str) -> Regraded:
        await self.ingest.flushed()  # what was acknowledged a moment ago is a study of this node too
        before = (await self.index.study(study)).grade
        failure: AccordError | None = None
        async with self.vault.alone(study) as blobs:
            await self.ingest.flushed()
            held = await asyncio.to_thread(grades_in, blobs, study)
            if held == {grade} and before == grade:
                raise Conflict(f"This study has grade {grade.name.lower()} already.", code="same-grade")
            keys = {one: await self.keys.study_key(None, study, one) for one in held}
            note = await self._begin(blobs, study, grade, actor)
            try:
                keys[grade] = await self.keys.study_key(None, study, grade)
                await asyncio.to_thread(self._reseal, blobs, note, keys)
            except AccordError as error:
                failure = error
            finally:
                done = await self._settled(note, before, reason)
        if done.after != grade:
            raise failure or Unavailable("The study could not be sealed anew.")
        await self._purge()
        return done

    def _reseal(self, blobs: BlobStore, note: _Note, keys: Mapping[Grade, bytes]) -> None:
        reseal(
            blobs,
            note.study,
            keys,
            note.grade,
            generation=note.generation,
            now=note.created,
            prepared=partial(self.keys.begin_exchange, note.study),
        )

    async def _settled(self, note: _Note, before: Grade, reason: str) -> Regraded:
        """Settle, and let readers go on; when that fails, they are told to wait until `recover` has done it."""
        self.keys.begin_exchange(note.study)
        done = await self._settle(self.blobs, note, before, reason)
        self.keys.end_exchange(note.study)
        return done

    async def _settled_later(self, note: _Note) -> None:
        before = (await self.index.study(note.study)).grade
        await self._settled(note, before, FINISHED_LATER)

    async def _begin(self, blobs: BlobStore, study: str, grade: Grade, actor: str) -> _Note:
        generation = await asyncio.to_thread(generation_of, blobs, study) + 1
        async with self.database.write() as tx:
            known = select(vault_study_key.c.study).where(
                vault_study_key.c.study == study, vault_study_key.c.grade == grade
            )
            made = (await tx.execute(known)).first() is None
            noted = select(vault_regrade.c.study).where(vault_regrade.c.study == study)
            if (await tx.execute(noted)).first() is not None:
                raise Conflict(
                    "An earlier change of this study's grade could not be finished yet.",
                    mend="Try again in a moment; if it lasts, look at the disk and at the system's log.",
                    code="busy-study",
                )
            note = _Note(study, grade, generation, made, actor, self.clock.now())
            await self.keys.study_key(tx, study, grade, create=True)
            await tx.execute(
                insert(vault_regrade).values(
                    study=study,
                    grade=int(grade),
                    generation=generation,
                    made_key=made,
                    actor=actor,
                    created=note.created,
                )
            )
        return note

    async def _settle(self, blobs: BlobStore, note: _Note, before: Grade, reason: str) -> Regraded:
        """Make the database say what lies there: the new file, or still the old one."""
        study = note.study
        if await asyncio.to_thread(generation_of, blobs, study) != note.generation:
            await self._tidied(study)
            await self._take_back(note)
            return Regraded(study, before, before, 0)
        # Before the old key goes, every root in sync has the new file: a copy of the old one opens for nobody then.
        await self.vault.settle(study)
        await self._tidied(study)
        objects = await asyncio.to_thread(contents, blobs, study)
        size = await asyncio.to_thread(blobs.size, pack_name(study))
        # What came after the new file was put in place, and before this, may be of another grade still: its key stays.
        held = {stored.grade for stored in objects} | {note.grade}
        self.vault.raise_grade(study, note.grade)
        async with self.database.write() as tx:
            await self.index.relocate(tx, study, places_of(objects), size, max(held))
            await self.keys.shred_grades(tx, study, [grade for grade in Grade if grade not in held])
            await tx.execute(delete(vault_regrade).where(vault_regrade.c.study == study))
            detail = {"from": int(before), "to": int(note.grade), "objects": len(objects)}
            event = Event(EventKind.STUDY_REGRADED, note.actor, study=study, reason=reason, detail=detail)
            await self.log.append(tx, event)
        self.ingest.regraded(study, note.grade)
        return Regraded(study, before, note.grade, len(objects))

    async def _take_back(self, note: _Note) -> None:
        async with self.database.write() as tx:
            if note.made_key:
                await self.keys.shred_grades(tx, note.study, [note.grade])
            await tx.execute(delete(vault_regrade).where(vault_regrade.c.study == note.study))

    async def _purge(self) -> None:
        try:
            await self.keys.purge_journal()
        except Unavailable as error:
            # The old key is gone from the rows; its last page leaves the journal at the database's next checkpoint.
            logger.warning("journal not purged", error=error.message)
