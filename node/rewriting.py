"""A study's pack written anew while its node runs: what compaction and a change of grade have in common.

    a note, durable → new file beside the old one on every root → put in its place → one transaction: rows, log entry, note gone

Holds the parts, and settling what a crash or a full disk left. Leaves to `compaction` and `regrading` which objects the new file has, under
which keys, and their notes.

Invariants: while a pack is written anew nobody appends to it; what has begun comes to its end, also when its caller is cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

import structlog

from consent.errors import AccordError
from node.arrival import instance_pairs, placement
from node.audit.log import Log
from node.clock import Clock
from node.database import Database
from node.index import Index, Placement
from node.ingest import Ingest
from node.vault.blobs import BlobStore
from node.vault.keys import KeyRing
from node.vault.pack import StoredObject, pack_name
from node.vault.vault import Vault

logger = structlog.get_logger()


@dataclass(kw_only=True, eq=False)
class Rewriting:
    """The parts of one node that it takes to write a pack anew."""

    vault: Vault
    blobs: BlobStore
    keys: KeyRing
    index: Index
    ingest: Ingest
    log: Log
    database: Database
    clock: Clock

    async def _tidied(self, study: str) -> None:
        """Before a note goes: the file that stands is durable by its name too, and none is left beside it. Raises Unavailable."""
        await asyncio.to_thread(self.blobs.tidy, pack_name(study))

    async def _finished(self, study: str, settle: Callable[[], Awaitable[object]]) -> None:
        """Settle what was cut short. A study of which that fails is named, and comes again."""
        try:
            async with self.vault.alone(study):
                await self.ingest.flushed()
                await settle()
        except AccordError as error:  # its pack may be damaged
            if error.code != "busy-study":  # that one is being written anew, or settled, this moment
                logger.warning("pack written anew not settled", study=study, error=error.message)


def places_of(objects: Iterable[StoredObject]) -> dict[str, tuple[Placement, Placement]]:
    """Where data set and description of each instance lie, as the index is told."""
    return {
        data_set.object_id: (placement(data_set), placement(description))
        for description, data_set in instance_pairs(objects)
    }
