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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial

import structlog
from sqlalchemy import delete, insert, select

from consent.errors import AccordError, Conflict, Unavailable
from consent.vocabulary import EventKind, Grade
from node.arrival import ATTRIBUTES_SUFFIX, placement
from node.audit.log import Event, Log
from node.clock import Clock
from node.database import Database
from node.index import Index, Placement
from node.ingest import Ingest
from node.vault.blobs import BlobStore
from node.vault.key_tables import vault_regrade, vault_study_key
from node.vault.keys import KeyRing
from node.vault.pack import StoredObject
from node.vault.reseal import contents, generation_of, grades_in, reseal
from node.vault.vault import INSTANCE, Vault

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


class Regrading:
    """Changes the grade of studies of this node, one after the other."""

    def __init__(
        self,
        *,
        vault: Vault,
        blobs: BlobStore,
        keys: KeyRing,
        index: Index,
        ingest: Ingest,
        log: Log,
        database: Database,
        clock: Clock,
    ) -> None:
        self._vault = vault
        self._blobs = blobs
        self._keys = keys
        self._index = index
        self._ingest = ingest
        self._log = log
        self._database = database
        self._clock = clock
        self._turn = asyncio.Lock()

    async def regrade(self, study: str, grade: Grade, actor: str, *, reason: str = "") -> Regraded:
        """Seal a study anew under `grade`; when this returns the old key is gone and the deed is on record.

        Raises NotFound, Conflict (it has that grade, or is being regraded), Unavailable (a grade is locked, disk full,
        database), Corrupt (an object is not what arrived). The study keeps its grade then, or gets the new one by
        `recover` when only the database failed.
        """
        async with self._turn:
            await self._ingest.flushed()  # what was acknowledged a moment ago is a study of this node too
            before = (await self._index.study(study)).grade
            async with self._vault.alone(study) as blobs:
                await self._ingest.flushed()
                held = await asyncio.to_thread(grades_in, blobs, study)
                if held == {grade} and before == grade:
                    raise Conflict(f"This study has grade {grade.name.lower()} already.", code="same-grade")
                keys = {one: await self._keys.study_key(None, study, one) for one in held}
                note = await self._begin(blobs, study, grade, actor)
                keys[grade] = await self._keys.study_key(None, study, grade)
                failure = await _to_its_end(partial(self._reseal, blobs, note, keys))
                done = await asyncio.shield(self._settled(note, before, reason))
        if done.after != grade:
            raise failure or Unavailable("The study could not be sealed anew.")
        await self._purge()
        return done

    async def recover(self) -> int:
        """Finish, or take back, what was cut short; return how many studies.

        Before anything is read or taken in, and as a duty: a database that could not be written then may be now.
        """
        async with self._database.read() as tx:
            rows = (await tx.execute(select(vault_regrade))).all()
        if not rows or self._turn.locked():
            return 0
        async with self._turn:
            for row in rows:
                note = _Note(
                    row.study, Grade(row.grade), row.generation, row.made_key, row.actor, row.created
                )
                try:
                    before = (await self._index.study(row.study)).grade
                    async with self._vault.alone(row.study):
                        await self._ingest.flushed()
                        await self._settled(note, before, FINISHED_LATER)
                except AccordError as error:  # its pack may be damaged: named, and tried again
                    logger.warning("regrading not settled", study=row.study, error=error.message)
        await self._purge()
        return len(rows)

    def _reseal(self, blobs: BlobStore, note: _Note, keys: Mapping[Grade, bytes]) -> None:
        reseal(
            blobs,
            note.study,
            keys,
            note.grade,
            generation=note.generation,
            now=note.created,
            prepared=partial(self._keys.begin_exchange, note.study),
        )

    async def _settled(self, note: _Note, before: Grade, reason: str) -> Regraded:
        """Settle, and let readers go on; when that fails, they are told to wait until `recover` has done it."""
        self._keys.begin_exchange(note.study)
        done = await self._settle(self._blobs, note, before, reason)
        self._keys.end_exchange(note.study)
        return done

    async def _begin(self, blobs: BlobStore, study: str, grade: Grade, actor: str) -> _Note:
        generation = await asyncio.to_thread(generation_of, blobs, study) + 1
        async with self._database.write() as tx:
            known = select(vault_study_key.c.study).where(
                vault_study_key.c.study == study, vault_study_key.c.grade == grade
            )
            made = (await tx.execute(known)).first() is None
            note = _Note(study, grade, generation, made, actor, self._clock.now())
            await self._keys.study_key(tx, study, grade, create=True)
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
            await self._take_back(note)
            return Regraded(study, before, before, 0)
        objects = await asyncio.to_thread(contents, blobs, study)
        size = await asyncio.to_thread(blobs.size, f"{study}.pack")
        # What came after the new file was put in place, and before this, may be of another grade still: its key stays.
        held = {stored.grade for stored in objects} | {note.grade}
        self._vault.raise_grade(study, note.grade)
        async with self._database.write() as tx:
            await self._index.relocate(tx, study, _places(objects), size, max(held))
            await self._keys.shred_grades(tx, study, [grade for grade in Grade if grade not in held])
            await tx.execute(delete(vault_regrade).where(vault_regrade.c.study == study))
            detail = {"from": int(before), "to": int(note.grade), "objects": len(objects)}
            event = Event(EventKind.STUDY_REGRADED, note.actor, study=study, reason=reason, detail=detail)
            await self._log.append(tx, event)
        self._ingest.regraded(study, note.grade)
        return Regraded(study, before, note.grade, len(objects))

    async def _take_back(self, note: _Note) -> None:
        async with self._database.write() as tx:
            if note.made_key:
                await self._keys.shred_grades(tx, note.study, [note.grade])
            await tx.execute(delete(vault_regrade).where(vault_regrade.c.study == note.study))

    async def _purge(self) -> None:
        try:
            await self._keys.purge_journal()
        except Unavailable as error:
            # The old key is gone from the rows; its last page leaves the journal at the database's next checkpoint.
            logger.warning("journal not purged", error=error.message)


async def _to_its_end(work: Callable[[], None]) -> AccordError | None:
    """Run blocking `work` in a thread and wait for its end whatever happens; return how it failed.

    Were it left running, it could put its file in place after what it needs had been taken back.
    """
    running = asyncio.get_running_loop().run_in_executor(None, work)
    cancelled = False
    while not running.done():
        try:
            await asyncio.wait([running])
        except asyncio.CancelledError:
            cancelled = True
    failure = running.exception()
    if cancelled or (failure is not None and not isinstance(failure, AccordError)):
        logger.warning("regrading interrupted", kind=type(failure).__name__)
    return failure if isinstance(failure, AccordError) else None


def _places(objects: Sequence[StoredObject]) -> dict[str, tuple[Placement, Placement]]:
    """Data set and description of each instance."""
    by_id = {stored.object_id: stored for stored in objects}
    return {
        stored.object_id: (placement(stored), placement(by_id[stored.object_id + ATTRIBUTES_SUFFIX]))
        for stored in objects
        if stored.kind == INSTANCE and stored.object_id + ATTRIBUTES_SUFFIX in by_id
    }
