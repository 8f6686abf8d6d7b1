"""After a crash: what the packs hold and the index lacks is indexed and logged, before the doors open.

Costs one listing of the packs and, for the few that grew after their last row was written, a look at what lies
behind it; what a power cut left of an unfinished group is mended first. A pack that was damaged is named in the log
and does not keep the others from being recovered.
"""

from __future__ import annotations

import structlog

from consent.errors import Corrupt, Invalid, NotFound, Unavailable
from consent.vocabulary import EventKind, Outcome
from node.arrival import entry_of, instance_pairs
from node.audit.log import Event, Log
from node.database import Database
from node.descriptions import kept_metadata
from node.flusher import stored_event
from node.index import Entry, Index
from node.vault.pack import StoredObject
from node.vault.vault import Vault

logger = structlog.get_logger()

ACTOR = "system"
BATCH = 500
"""Instances that one transaction indexes: a statement names each of them, and databases bound how many it may."""


async def recover(
    vault: Vault, index: Index, log: Log, database: Database, locked: set[str], *, again: bool = False
) -> int:
    """Index and log what is missing; return how many instances that were.

    Studies whose keys are locked are put into `locked`; `again` looks at these only, and takes out what was recovered.
    """
    indexed = await index.indexed_to()
    found = 0
    for study, size in await vault.studies():
        if size <= indexed.get(study, 0) or (again and study not in locked):
            continue
        try:
            found += await _recover_study(vault, index, log, database, study, indexed.get(study, 0))
        except (Corrupt, Invalid, NotFound) as error:
            await _report(log, study, error.message)
        except Unavailable as error:
            if error.code != "grade-locked":
                raise
            locked.add(study)
            continue
        locked.discard(study)
    return found


async def _recover_study(
    vault: Vault, index: Index, log: Log, database: Database, study: str, start: int
) -> int:
    try:
        await vault.settle(study)
    except Unavailable as error:
        if error.code == "grade-locked":
            raise
        logger.warning("pack not mended", study=study, error=error.message)  # nothing is taken in either
    survey = await vault.objects(study, start)
    pairs = instance_pairs(survey.objects)
    found = 0
    for first in range(0, len(pairs), BATCH):
        entries = [
            await entry_in(vault, index, study, description, data_set)
            for description, data_set in pairs[first : first + BATCH]
        ]
        async with database.write() as tx:
            fresh = await index.add(tx, entries, {})
            if fresh:
                await log.append(tx, stored_event(study, fresh, ACTOR, "recovery"))
        index.remember(fresh)
        found += len(fresh)
    async with database.write() as tx:
        for series, place in kept_metadata(survey.objects).items():
            await index.set_metadata(tx, study, series, place)
        await index.set_indexed_to(tx, study, survey.end)
    return found


async def entry_in(
    vault: Vault, index: Index, study: str, description: StoredObject, data_set: StoredObject
) -> Entry:
    """What the index is told of one instance of a pack. Raises Corrupt, NotFound (no key), Unavailable (a locked grade)."""
    document = await vault.attributes(study, description)
    entry = entry_of(document, index.pseudonyms, description, data_set)
    if (entry.study, entry.instance) != (study, data_set.object_id):
        raise Corrupt(
            f"The pack of study {study} describes an instance of another one.", code="attributes-object"
        )
    return entry


async def _report(log: Log, study: str, reason: str) -> None:
    await log.record(Event(EventKind.INTEGRITY_FAILED, ACTOR, Outcome.FAILED, study=study, reason=reason))
