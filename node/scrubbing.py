"""The scrub: every byte of every copy read in its turn, held against its digest, healed from a good copy or named.

A pass goes through the packs in order, at a bounded pace, and goes on after a restart where it was. It needs no key for
the ciphertext: each record names the BLAKE3 of its body, and the index, whose rows are sealed, names it once more. A *deep*
pass has the database looked at first (`soundness`), opens every instance and holds it against the SHA-256 of what arrived, and
compares the rows of the index with what the packs say. Leaves the log to its own daily check (`ops.checks`).

Invariants: what is found is in the log, healed or not; a pack that changed while it was looked at is looked at again
before anything is said of it. Leaves healing to `vault.upkeep`, rows to `rebuilding`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import structlog
from sqlalchemy import BigInteger, Boolean, Column, Connection, Integer, String, Table, delete, insert, select

from consent.errors import AccordError, Conflict, Corrupt, Invalid, NotFound, Unavailable
from consent.vocabulary import EventKind, Outcome
from node.audit.log import Event, Log
from node.clock import Clock
from node.compaction import Compaction
from node.database import Database, UtcDateTime, metadata
from node.index import Index
from node.rebuilding import Rebuilding
from node.soundness import keep_sound
from node.vault.blobs import FileBlobs
from node.vault.pack import pack_name
from node.vault.reconcile import Pace
from node.vault.replicas import Replicas
from node.vault.upkeep import Healed, OnlyRoot, heal
from node.vault.vault import INSTANCE, Vault

ACTOR = "job:scrub"
MAX_NAMED_OBJECTS = 20
STUDY_BYTES = 1024 * 1024
"""A study counts at least so much against the pace of a pass: among thousands of small ones it is not the bytes that cost."""
SAVE_EVERY = 20
"""Packs after which the place that was reached is written down."""

logger = structlog.get_logger()

vault_scrub = Table(
    "vault_scrub",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("asked", String(8), nullable=False),  # "", "plain", "deep": what somebody asked for
    Column("deep", Boolean, nullable=False),
    Column("started", UtcDateTime, nullable=True),
    Column("finished", UtcDateTime, nullable=True),
    Column("deep_finished", UtcDateTime, nullable=True),
    Column("reached", String(80), nullable=False),
    Column("packs", Integer, nullable=False),
    Column("total", Integer, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("healed_bytes", BigInteger, nullable=False),
    Column("faults", Integer, nullable=False),
)


@dataclass(frozen=True)
class Progress:
    """How a pass is going, or how the last one went. `reached` is the last study looked at."""

    asked: str = ""
    deep: bool = False
    started: datetime | None = None
    finished: datetime | None = None
    deep_finished: datetime | None = None
    reached: str = ""
    packs: int = 0
    total: int = 0
    size_bytes: int = 0
    healed_bytes: int = 0
    faults: int = 0

    @property
    def running(self) -> bool:
        """Whether a pass has begun and not ended."""
        return self.started is not None and (self.finished is None or self.finished < self.started)


class Scrubbing:
    """Scrubs the archive of one node."""

    def __init__(
        self,
        *,
        blobs: FileBlobs | Replicas,
        vault: Vault,
        index: Index,
        rebuilding: Rebuilding,
        compaction: Compaction,
        log: Log,
        database: Database,
        clock: Clock,
        pace: Pace,
        every: timedelta,
        deep_every: timedelta,
    ) -> None:
        self._blobs = blobs
        self._vault = vault
        self._index = index
        self._rebuilding = rebuilding
        self._compaction = compaction
        self._log = log
        self._database = database
        self._clock = clock
        self._pace = pace
        self._every = every
        self._deep_every = deep_every

    async def progress(self) -> Progress:
        """How far the pass has come."""
        return await self._database.read_in_one(loaded)

    async def ask(self, *, deep: bool = False) -> None:
        """Have a pass begin soon, after the one under way."""
        await self._database.write_in_one(partial(request, deep=deep))

    async def run(self) -> None:
        """A job: go on with the pass under way, or begin one that is due or was asked for."""
        progress = await self.progress()
        if not progress.running:
            kind = progress.asked or self._due(progress)
            if not kind:
                return
            progress = replace(
                progress, asked="", deep=kind == "deep", started=self._clock.now(), reached="",
                packs=0, size_bytes=0, healed_bytes=0, faults=0,
            )  # fmt: skip
            await self._database.write_in_one(partial(saved, progress=progress))
        await self.go_on(progress)

    async def go_on(self, progress: Progress) -> Progress:
        """Do the rest of a pass; return how it went."""
        studies = sorted(await self._vault.studies())
        progress = replace(progress, total=len(studies))
        if progress.deep and not progress.reached:
            kept = await keep_sound(self._database, self._log, ACTOR)
            progress = replace(progress, faults=progress.faults + len(kept.left.names))
        for study, size in studies:
            if study <= progress.reached:
                continue
            if size < STUDY_BYTES:
                await asyncio.to_thread(self._pace, STUDY_BYTES - size)
            healed, faults = await self.study(study, deep=progress.deep)
            progress = replace(
                progress,
                reached=study,
                packs=progress.packs + 1,
                size_bytes=progress.size_bytes + size,
                healed_bytes=progress.healed_bytes + healed,
                faults=progress.faults + faults,
            )
            if progress.packs % SAVE_EVERY == 0:
                await self._save(progress)
        now = self._clock.now()
        progress = replace(
            progress, finished=now, deep_finished=now if progress.deep else progress.deep_finished
        )
        await self._save(progress)
        return progress

    async def study(self, study: str, *, deep: bool = False) -> tuple[int, int]:
        """Scrub one study; return how many bytes were healed and how many faults are left. Everything is on record."""
        try:
            return await self._scrubbed(study, deep)
        except Corrupt as error:
            words = error.message
        except (ValueError, TypeError, LookupError) as error:
            words = "A row of the index holds what its column cannot."
            logger.error("row not understood", study=study, error=type(error).__name__)
        await self._failed(study, words)
        await self._mend_rows(study)
        return 0, 1

    async def _scrubbed(self, study: str, deep: bool) -> tuple[int, int]:
        await self._tidy(study)
        healed, faults = await self._ciphertext(study)
        if deep and not faults:
            faults += await self._contents(study)
        if not faults:
            await self._compact(study)
        return healed, faults

    def _due(self, progress: Progress) -> str:
        now = self._clock.now()
        if progress.deep_finished is None or now - progress.deep_finished >= self._deep_every:
            # The first pass of a node is a plain one: a new archive has nothing to compare with yet.
            return "deep" if progress.finished is not None else "plain"
        return "plain" if progress.finished is None or now - progress.finished >= self._every else ""

    async def _ciphertext(self, study: str) -> tuple[int, int]:
        result = Healed()
        for _ in range(2):  # a pack that was compacted between the rows and the bytes is looked at again
            try:
                expected = await self._expected(study)
                result = await asyncio.to_thread(self._heal, pack_name(study), expected)
            except Corrupt as error:  # rows that do not open
                await self._failed(study, error.message)
                await self._mend_rows(study)
                return 0, 1
            except NotFound:
                if await self._index.has_study(study):
                    result = Healed(words="The pack is missing.")
                    continue
                return 0, 0  # destroyed meanwhile
            except Unavailable as error:
                if error.code == "stopping":
                    raise
                await self._failed(study, error.message)
                return 0, 1
            if not result.lost and not result.words:
                break
        for number, count in result.bytes_by_root.items():
            words = f"Damaged bytes on storage root {number} were replaced from a good copy."
            detail = {"root": number, "bytes": count}
            await self._log.record(
                Event(EventKind.REPLICA_HEALED, ACTOR, study=study, reason=words, detail=detail)
            )
        if result.lost or result.words:
            await self._report(study, result)
        return sum(result.bytes_by_root.values()), len(result.lost) or int(bool(result.words))

    def _heal(self, name: str, expected: dict[int, bytes]) -> Healed:
        if isinstance(self._blobs, Replicas):
            return self._blobs.heal(name, expected, self._pace)
        file = self._blobs.existing(name)
        try:
            return heal(name, {OnlyRoot(): file}, expected=expected, pace=self._pace)
        finally:
            file.close()

    async def _expected(self, study: str) -> dict[int, bytes]:
        rows = await self._index.instances(study)
        places = [place for row in rows for place in (row.data_set, row.description)]
        return {place.offset: place.blake3 for place in places}

    async def _contents(self, study: str) -> int:
        """Every instance against its SHA-256, and the rows against the pack; return how many faults there were."""
        faults = 0
        try:
            found = {
                stored.object_id: stored for stored in reversed((await self._vault.objects(study)).objects)
            }
            for row in await self._index.instances(study):
                stored = found.get(row.instance)
                if stored is None or stored.kind != INSTANCE:
                    continue
                await asyncio.to_thread(self._pace, stored.length)
                try:
                    await self._vault.require_digest(study, stored, row.sha256)
                except Corrupt as error:
                    faults += 1
                    await self._failed(study, error.message, objects=[row.instance])
            alike = await self._rows_alike(study)
        except (NotFound, Invalid):  # destroyed meanwhile
            return faults
        except Conflict:  # it is being written anew this moment
            return faults
        except Corrupt as error:
            await self._failed(study, error.message)
            return faults + 1
        except Unavailable as error:
            if error.code in ("stopping", "grade-locked"):
                return faults
            raise
        if not alike:
            await self._failed(study, "Rows of the index were altered; they were made anew from the pack.")
            faults += 1
        return faults

    async def _rows_alike(self, study: str) -> bool:
        """Whether the rows are what the pack says; else they are made anew. Raises Conflict and as `Rebuilding.one` does."""
        _, alike = await self._rebuilding.one(study, mend=False)
        # What came in between the reading of the pack and of the rows makes them differ too.
        return alike or await self._made_anew(study)

    async def _made_anew(self, study: str) -> bool:
        """Make the rows anew while nothing is taken in: a row that came meanwhile would be lost. Whether they were right."""
        async with self._vault.alone(study):
            await self._compaction.ingest.flushed()
            _, alike = await self._rebuilding.one(study, mend=True)
        return alike

    async def _tidy(self, study: str) -> None:
        """Remove what a crash left beside the pack: a file that was to take its place, of a healing above all."""
        try:
            async with self._vault.alone(study):
                await asyncio.to_thread(self._blobs.tidy, pack_name(study))
        except AccordError as error:
            if error.code != "busy-study":
                logger.warning("nothing removed beside the pack", study=study, error=error.message)

    async def _mend_rows(self, study: str) -> None:
        try:
            await self._made_anew(study)
        except AccordError as error:
            logger.warning("index rows not mended", study=study, error=error.message)

    async def _compact(self, study: str) -> None:
        try:
            await self._compaction.compact_if_worth(study, ACTOR)
        except AccordError as error:
            logger.warning("pack not compacted", study=study, error=error.message)

    async def _report(self, study: str, result: Healed) -> None:
        objects = sorted({piece.object_id for piece in result.lost if piece.object_id})
        offsets = [piece.start for piece in result.lost][:MAX_NAMED_OBJECTS]
        words = result.words or f"No copy has what was written at {len(result.lost)} places of the pack."
        await self._failed(study, words, objects=objects, offsets=offsets)

    async def _failed(
        self, study: str, words: str, objects: list[str] | None = None, offsets: list[int] | None = None
    ) -> None:
        detail: dict[str, Any] = {"where": "scrub"}
        if objects:
            detail["objects"] = objects[:MAX_NAMED_OBJECTS]
        if offsets:
            detail["offsets"] = offsets
        event = Event(
            EventKind.INTEGRITY_FAILED, ACTOR, Outcome.FAILED, study=study, reason=words, detail=detail
        )
        try:
            await self._log.record(event)
        except Corrupt:  # the log is what is damaged: other packs are looked at all the same
            logger.error("fault not on record", study=study, reason=words)

    async def _save(self, progress: Progress) -> None:
        """Remember it, with what somebody asked for meanwhile."""
        await self._database.write_in_one(
            lambda connection: saved(connection, replace(progress, asked=loaded(connection).asked))
        )


def loaded(connection: Connection) -> Progress:
    """How far the pass has come, in one transaction."""
    row = connection.execute(select(vault_scrub)).first()
    if row is None:
        return Progress()
    values = row._asdict()
    del values["id"]
    return Progress(**values)


def request(connection: Connection, *, deep: bool) -> None:
    """Have a pass begin soon, after the one under way, in one transaction: a running node goes on with its own meanwhile."""
    saved(connection, replace(loaded(connection), asked="deep" if deep else "plain"))


def saved(connection: Connection, progress: Progress) -> None:
    """Remember how far it has come."""
    connection.execute(delete(vault_scrub))
    connection.execute(insert(vault_scrub).values(id=1, **progress.__dict__))
