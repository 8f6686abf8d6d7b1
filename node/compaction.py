"""Packs written anew without what nothing refers to: metadata that is not in force, repeated ids, void records.

    gate closed → a note, durable → new file beside the old one on every root → put in its place
    → one transaction: rows, log entry, note gone → gate open

Bodies stay as they are and so do their keys: until the rows are changed a reader finds an object by its id and digest.
A crash leaves the note; `recover` makes the rows say what lies there, whichever file that is.

Invariants: a pack that a living grant names is left alone; what came in since the last row is never lost sight of.
Leaves the new file to `vault.compacting`, rows to `index`. Format: docs/formats/replicas.md, "Generations".
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

import structlog
from sqlalchemy import Column, String, Table, delete, insert, select

from consent.errors import AccordError, NotFound
from consent.vocabulary import EventKind
from node.arrival import placement
from node.audit.log import Event, Log
from node.clock import Clock
from node.database import Database, UtcDateTime, metadata
from node.descriptions import kept_metadata
from node.index import Index
from node.ingest import Ingest
from node.recovery import instance_pairs
from node.vault.blobs import BlobStore
from node.vault.compacting import Waste, rewrite, waste_of
from node.vault.keys import KeyRing
from node.vault.pack import StoredObject, pack_name
from node.vault.vault import METADATA, Vault

QUIET = timedelta(hours=1)
"""A study that changed more lately is left alone: more may come."""
MIN_WASTE_BYTES = 1024 * 1024
MIN_WASTE_SHARE = 0.1

logger = structlog.get_logger()

vault_compaction = Table(
    "vault_compaction",
    metadata,
    Column("study", String(80), primary_key=True),
    Column("begun", UtcDateTime, nullable=False),
)


@dataclass(frozen=True)
class Compacted:
    """A pack that was written anew, and its length before and after, in bytes."""

    study: str
    before: int
    after: int


async def _nobody(_study: str) -> bool:
    return False


class Compaction:
    """Writes packs of this node anew."""

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
        self._named: Callable[[str], Awaitable[bool]] = _nobody

    def leave_alone(self, named: Callable[[str], Awaitable[bool]]) -> None:
        """Ask `named(study)` whether a living grant names the pack: then it stays as it is."""
        self._named = named

    async def waste(self, study: str) -> Waste:
        """How much of a study's pack nothing refers to. Raises Corrupt, NotFound."""
        keep = await self._in_force(study)
        return await asyncio.to_thread(
            self._blobs.proved, pack_name(study), lambda read, size: waste_of(read, size, study, keep)
        )

    async def compact_if_worth(self, study: str, actor: str) -> Compacted | None:
        """Compact a study that has been quiet and whose pack is wasteful; None when it was left alone."""
        row = await self._index.study(study)
        if self._clock.now() - row.changed < QUIET or await self._named(study):
            return None
        waste = await self.waste(study)
        if waste.waste < max(MIN_WASTE_BYTES, MIN_WASTE_SHARE * waste.size):
            return None
        return await self.compact(study, actor)

    async def compact(self, study: str, actor: str) -> Compacted | None:
        """Write a study's pack anew; None when a living grant names it.

        Raises NotFound, Conflict (it is being written anew), Corrupt (heal it first), Unavailable: it is as it was then.
        """
        if await self._named(study):
            return None
        async with self._vault.alone(study) as blobs:
            await self._ingest.flushed()
            before = await asyncio.to_thread(blobs.size, pack_name(study))
            keep = await self._in_force(study)
            async with self._database.write() as tx:
                await tx.execute(delete(vault_compaction).where(vault_compaction.c.study == study))
                await tx.execute(insert(vault_compaction).values(study=study, begun=self._clock.now()))
            work = partial(self._rewrite, blobs, study, keep)
            try:
                await _to_its_end(asyncio.ensure_future(asyncio.to_thread(work)))
            finally:
                # Whether the new file is in place or the old one stands: the rows say where things lie.
                try:
                    after = await asyncio.shield(self._settled(study, actor, before))
                finally:
                    self._keys.end_exchange(study)
        return Compacted(study, before, after)

    async def recover(self) -> int:
        """Make the rows right for what was cut short; return how many studies.

        Before anything is read or taken in, and as a duty: a database that could not be written then may be now.
        """
        async with self._database.read() as tx:
            studies = (await tx.execute(select(vault_compaction.c.study))).scalars().all()
        for study in studies:
            try:
                async with self._vault.alone(study):
                    await self._ingest.flushed()
                    await self._settled(study, "system", None)
            except AccordError as error:  # its pack may be damaged: named, and tried again at the next start
                logger.warning("compaction not settled", study=study, error=error.message)
        return len(studies)

    def _rewrite(self, blobs: BlobStore, study: str, keep: Callable[[StoredObject], bool]) -> None:
        rewrite(
            blobs,
            study,
            self._clock.now(),
            keep=keep,
            prepared=partial(self._keys.begin_exchange, study),
        )

    async def _in_force(self, study: str) -> Callable[[StoredObject], bool]:
        """Says of an object whether something refers to it."""
        places = {
            (one.metadata.object_id, one.metadata.placement.offset)
            for one in await self._index.series(study)
            if one.metadata is not None and one.metadata.count == one.instance_count
        }
        return lambda stored: stored.kind != METADATA or (stored.object_id, stored.offset) in places

    async def _settled(self, study: str, actor: str, before: int | None) -> int:
        """Make the rows say what lies there now, in one transaction; return the pack's length."""
        await self._vault.settle(study)  # perhaps some roots have the new file and some the old one
        found = await self._vault.objects(study)
        places = {
            data_set.object_id: (placement(data_set), placement(description))
            for description, data_set in instance_pairs(found.objects)
        }
        try:
            grade = (await self._index.study(study)).grade
        except NotFound:  # destroyed meanwhile
            grade = None
        async with self._database.write() as tx:
            if grade is not None:
                await self._index.relocate(tx, study, places, found.end, grade, kept_metadata(found.objects))
            await tx.execute(delete(vault_compaction).where(vault_compaction.c.study == study))
            if before is not None and found.end < before:
                detail: Mapping[str, int] = {"before": before, "after": found.end}
                await self._log.append(tx, Event(EventKind.PACK_COMPACTED, actor, study=study, detail=detail))
        return found.end


async def _to_its_end(work: asyncio.Future[None]) -> None:
    """Wait for a thread's end whatever happens: left running, it could put its file in place after the rows were settled."""
    try:
        await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        raise
