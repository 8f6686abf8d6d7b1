"""Where a node's packs lie and who looks after them: one folder, or replicas on several roots, built from the settings.

Holds the choice of the blob store, vault, index and the one way in over it, the parts that keep it whole, and their duties.
Part of `ops.compose`; commands that need no more of a node build this alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

from consent.errors import Conflict
from node.compaction import Compaction
from node.config import Settings
from node.index import Index
from node.ingest import Ingest
from node.jobs import Job
from node.rebuilding import Rebuilding
from node.regrading import Regrading
from node.replication import Replication
from node.scrubbing import Scrubbing
from node.vault.blobs import FileBlobs
from node.vault.quorum import Quorum
from node.vault.replicas import Replicas
from node.vault.roots import DatabaseLedger
from node.vault.throttle import Throttle
from node.vault.vault import Vault
from ops.foundation import Foundation

MIB = 1024 * 1024
WATCH_SECONDS = 1.0
SCRUB_SECONDS = 30.0
"""How soon a pass begins that is due or was asked for."""
COMPACTION_SECONDS = 60.0
UNLOCKED_SECONDS = 30.0
"""How soon studies are indexed that a crash left behind and whose keys were locked at the start."""
REGRADING_SECONDS = 60.0


@dataclass(frozen=True)
class Upkeep:
    """What keeps the packs, and the index over them, whole."""

    replication: Replication
    compaction: Compaction
    rebuilding: Rebuilding
    scrubbing: Scrubbing
    pace: Throttle

    async def close(self) -> None:
        """End what runs in threads."""
        self.pace.stop()
        await self.replication.close()


@dataclass(frozen=True)
class LocalArchive:
    """Vault, index and the one way in: what `accord import` needs of a node."""

    blobs: FileBlobs | Replicas
    vault: Vault
    index: Index
    ingest: Ingest
    regrading: Regrading
    upkeep: Upkeep

    @asynccontextmanager
    async def running(self) -> AsyncIterator[LocalArchive]:
        """Recover what a crash left unindexed, then take instances until the block ends."""
        await self.index.load()
        await self.upkeep.replication.tell()
        await self.upkeep.compaction.recover()
        await self.regrading.recover()
        await self.ingest.recover()
        try:
            async with self.ingest:
                yield self
        finally:
            await self.close()

    async def close(self) -> None:
        """End what runs in threads, and close every file."""
        await self.upkeep.close()
        self.index.close()
        await self.vault.close()
        if isinstance(self.blobs, Replicas):
            await asyncio.to_thread(self.blobs.close)


async def build_archive(foundation: Foundation) -> LocalArchive:
    """Build vault, index and ingest."""
    base = foundation
    blobs = await build_blobs(base)
    vault = Vault(blobs, base.keys, base.clock)
    index = Index(base.database, await base.keys.secret("index"))
    ingest = Ingest(
        node_id=base.identity.node_id,
        policies=base.policies,
        vault=vault,
        index=index,
        log=base.log,
        database=base.database,
        clock=base.clock,
    )
    regrading = Regrading(
        vault=vault,
        blobs=blobs,
        keys=base.keys,
        index=index,
        ingest=ingest,
        log=base.log,
        database=base.database,
        clock=base.clock,
    )
    upkeep = build_upkeep(base, blobs, vault, index, ingest)
    return LocalArchive(blobs, vault, index, ingest, regrading, upkeep)


async def build_blobs(base: Foundation) -> FileBlobs | Replicas:
    """The store that the settings name, found and begun. Raises Conflict when the roots do not fit the settings."""
    roots = base.settings.storage_roots
    if len(roots) == 1:
        return FileBlobs(roots[0])
    _require_all_packs(base.settings)
    ledger = DatabaseLedger(base.database)
    replicas = Replicas(
        Quorum(
            roots,
            node=base.identity.node_id,
            clock=base.clock,
            ledger=ledger,
            membership=await ledger.load(),
            quorum=base.settings.storage.quorum,
        )
    )
    await asyncio.to_thread(replicas.start)
    return replicas


def _require_all_packs(settings: Settings) -> None:
    """Refuse to begin on other folders while the studies of this node lie where they lay before."""
    before = settings.path(settings.storage.packs)
    if before not in settings.storage_roots and before.is_dir() and any(before.glob("??/*.pack")):
        raise Conflict(
            f"{before} holds studies and is not among storage.roots.",
            mend="Name it first in storage.roots; the others are filled from it.",
            code="packs-left-out",
        )


def build_upkeep(
    base: Foundation, blobs: FileBlobs | Replicas, vault: Vault, index: Index, ingest: Ingest
) -> Upkeep:
    """Build what looks after the packs."""
    settings = base.settings.storage
    pace = Throttle(settings.scrub_mib_per_second * MIB)
    compaction = Compaction(
        vault=vault,
        blobs=blobs,
        keys=base.keys,
        index=index,
        ingest=ingest,
        log=base.log,
        database=base.database,
        clock=base.clock,
    )
    rebuilding = Rebuilding(vault, index, base.log, base.database)
    scrubbing = Scrubbing(
        blobs=blobs,
        vault=vault,
        index=index,
        rebuilding=rebuilding,
        compaction=compaction,
        log=base.log,
        database=base.database,
        clock=base.clock,
        pace=pace,
        every=timedelta(days=settings.scrub_days),
        deep_every=timedelta(days=settings.deep_scrub_days),
    )
    refill = Throttle(settings.refill_mib_per_second * MIB)
    replication = Replication(blobs, log=base.log, pace=refill)
    replication.examine_with(scrubbing.study)
    return Upkeep(replication, compaction, rebuilding, scrubbing, pace)


def duties(archive: LocalArchive) -> list[Job]:
    """What is done for the packs while a node runs, and what could not be done at its start: keys were locked, or the
    database could not be written.
    """
    upkeep = archive.upkeep

    async def compaction() -> None:
        await upkeep.compaction.recover()

    async def unlocked() -> None:
        await archive.ingest.recover_unlocked()

    async def regrading() -> None:
        await archive.regrading.recover()

    return [
        Job("storage", WATCH_SECONDS, upkeep.replication.watch),
        Job("suspects", WATCH_SECONDS, upkeep.replication.examine),
        Job("scrub", SCRUB_SECONDS, upkeep.scrubbing.run, delay_seconds=SCRUB_SECONDS),
        Job("compaction", COMPACTION_SECONDS, compaction, delay_seconds=COMPACTION_SECONDS),
        Job("unlocked", UNLOCKED_SECONDS, unlocked, delay_seconds=UNLOCKED_SECONDS),
        Job("regrading", REGRADING_SECONDS, regrading, delay_seconds=REGRADING_SECONDS),
    ]
