"""Packs written anew without what nothing refers to: metadata that is not in force, repeated ids, void records.

    gate closed → a note, durable → new file beside the old one on every root → put in its place
    → one transaction: rows, log entry, note gone → gate open

Bodies stay as they are and so do their keys: until the rows are changed a reader finds an object by its id and digest.
A crash leaves the note; `recover` makes the rows say what lies there, whichever file that is.

Invariants: a pack that a living grant names is left alone; what came in since the last row is never lost sight of.
Leaves the new file to `vault.compacting`, rows to `index`, coming to an end to `rewriting`. Format: docs/formats/replicas.md, "Generations".
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial

from sqlalchemy import Column, String, Table, delete, insert, select

from consent.errors import Conflict, NotFound
from consent.vocabulary import EventKind
from node.audit.log import Event
from node.completion import to_its_end
from node.database import UtcDateTime, metadata
from node.descriptions import kept_metadata
from node.rewriting import Rewriting, places_of
from node.vault.blobs import BlobStore
from node.vault.compacting import Waste, rewrite, waste_of
from node.vault.key_tables import vault_regrade
from node.vault.pack import StoredObject, pack_name
from node.vault.vault import METADATA

QUIET = timedelta(hours=1)
"""A study that changed more lately is left alone: more may come."""
MIN_WASTE_BYTES = 1024 * 1024
MIN_WASTE_SHARE = 0.1

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


@dataclass(kw_only=True, eq=False)
class Compaction(Rewriting):
    """Writes packs of this node anew."""

    _named: Callable[[str], Awaitable[bool]] | None = field(default=None, init=False)

    def leave_alone(self, named: Callable[[str], Awaitable[bool]]) -> None:
        """Ask `named(study)` whether a living grant names the pack: then it stays as it is."""
        self._named = named

    async def waste(self, study: str) -> Waste:
        """How much of a study's pack nothing refers to. Raises Corrupt, NotFound."""
        keep = await self._in_force(study)
        return await asyncio.to_thread(
            self.blobs.proved, pack_name(study), lambda read, size: waste_of(read, size, study, keep)
        )

    async def compact_if_worth(self, study: str, actor: str) -> Compacted | None:
        """Compact a study that has been quiet and whose pack is wasteful; None when it was left alone."""
        row = await self.index.study(study)
        if self.clock.now() - row.changed < QUIET or await self._is_named(study):
            return None
        waste = await self.waste(study)
        if waste.waste < max(MIN_WASTE_BYTES, MIN_WASTE_SHARE * waste.size):
            return None
        return await self.compact(study, actor)

    async def compact(self, study: str, actor: str) -> Compacted | None:
        """Write a study's pack anew; None when a living grant names it.

        Raises NotFound, Conflict (it is being written anew), Corrupt (heal it first), Unavailable: it is as it was then.
        """
        if await self._is_named(study):
            return None
        return await to_its_end(self._compact(study, actor))

    async def recover(self) -> int:
        """Make the rows right for what was cut short; return how many studies.

        Before anything is read or taken in, and as a duty: a database that could not be written then may be now.
        """
        async with self.database.read() as tx:
            studies = (await tx.execute(select(vault_compaction.c.study))).scalars().all()
        for study in studies:
            await self._finished(study, partial(self._settled, study, "system", None))
        return len(studies)

    async def _compact(self, study: str, actor: str) -> Compacted:
        async with self.vault.alone(study) as blobs:
            await self.ingest.flushed()
            before = await asyncio.to_thread(blobs.size, pack_name(study))
            keep = await self._in_force(study)
            await self._begin(study)
            try:
                await asyncio.to_thread(self._rewrite, blobs, study, keep)
            finally:
                # Whether the new file is in place or the old one stands: the rows say where things lie.
                try:
                    after = await self._settled(study, actor, before)
                finally:
                    self.keys.end_exchange(study)
        return Compacted(study, before, after)

    async def _begin(self, study: str) -> None:
        """The note. Raises Conflict when a change of grade was cut short: it knows its own file by how often the pack was written."""
        async with self.database.write() as tx:
            regrading = select(vault_regrade.c.study).where(vault_regrade.c.study == study)
            if (await tx.execute(regrading)).first() is not None:
                raise Conflict("This study is being given another grade.", code="busy-study")
            await tx.execute(delete(vault_compaction).where(vault_compaction.c.study == study))
            await tx.execute(insert(vault_compaction).values(study=study, begun=self.clock.now()))

    async def _is_named(self, study: str) -> bool:
        return self._named is not None and await self._named(study)

    def _rewrite(self, blobs: BlobStore, study: str, keep: Callable[[StoredObject], bool]) -> None:
        rewrite(
            blobs,
            study,
            self.clock.now(),
            keep=keep,
            prepared=partial(self.keys.begin_exchange, study),
        )

    async def _in_force(self, study: str) -> Callable[[StoredObject], bool]:
        """Says of an object whether something refers to it."""
        places = {
            (one.metadata.object_id, one.metadata.placement.offset)
            for one in await self.index.series(study)
            if one.metadata is not None and one.metadata.count == one.instance_count
        }
        return lambda stored: stored.kind != METADATA or (stored.object_id, stored.offset) in places

    async def _settled(self, study: str, actor: str, before: int | None) -> int:
        """Make the rows say what lies there now, in one transaction; return the pack's length."""
        note = delete(vault_compaction).where(vault_compaction.c.study == study)
        try:
            grade = (await self.index.study(study)).grade
        except NotFound:  # destroyed meanwhile
            async with self.database.write() as tx:
                await tx.execute(note)
            return 0
        await self.vault.settle(study)  # perhaps some roots have the new file and some the old one
        await self._tidied(study)
        found = await self.vault.objects(study)
        async with self.database.write() as tx:
            await self.index.relocate(
                tx, study, places_of(found.objects), found.end, grade, kept_metadata(found.objects)
            )
            await tx.execute(note)
            if before is not None and found.end < before:
                detail: Mapping[str, int] = {"before": before, "after": found.end}
                await self.log.append(tx, Event(EventKind.PACK_COMPACTED, actor, study=study, detail=detail))
        return found.end
