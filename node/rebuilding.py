"""The index made anew from the packs alone, or held against them: study by study, each in one transaction.

What the packs say is the truth. A study whose pack cannot be read keeps the rows that it has and is named; so is one that
the index knows and the packs lack. The log keeps its entries: what was stored then stays on record then.

Invariants: after each transaction a study's rows are all old or all new; rows that were right are equal bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import structlog
from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError

from consent.errors import Corrupt, Invalid, NotFound, Sentence, Unavailable
from consent.vocabulary import EventKind, Outcome
from node.arrival import instance_pairs
from node.audit.log import Event, Log
from node.database import DAMAGED, RUNBOOK, Database
from node.descriptions import kept_metadata
from node.index import Entry, Index
from node.index.tables import INSTANCES, SERIES, STUDIES
from node.recovery import entry_in
from node.soundness import keep_sound
from node.vault.vault import Vault

INDEX_TABLES = tuple(table.name for table in (STUDIES, SERIES, INSTANCES))
"""What can be filled from the packs. Everything else in the database lies there alone."""
logger = structlog.get_logger()


@dataclass
class Rebuilt:
    """What was found: studies and instances looked at, studies whose rows differed, and what could not be made, with reasons.

    `damaged` are the parts of the database that SQLite cannot read as they were written, `lost` those of them that neither
    their tables nor the packs can make good. `strays` are rows that belong to no study.
    """

    studies: int = 0
    instances: int = 0
    differing: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)


class _Alike(Exception):
    """Ends a transaction that was only there to look."""


class Rebuilding:
    """Makes index rows from packs."""

    def __init__(self, vault: Vault, index: Index, log: Log, database: Database) -> None:
        self._vault = vault
        self._index = index
        self._log = log
        self._database = database

    async def everything(self, actor: str, *, mend: bool = True) -> Rebuilt:
        """Look at the database itself, then go through every pack; with `mend` what is damaged or differs is put right,
        without it only named.

        For a node that does not take anything in meanwhile: a table of the index that is damaged is emptied first.
        """
        kept = await keep_sound(self._database, self._log, actor, emptied=INDEX_TABLES, mend=mend)
        result = Rebuilt(damaged=list(kept.found.names), lost=list(kept.left.names))
        studies = sorted(await self._vault.studies())
        for study, _ in studies:
            try:
                count, alike = await self.one(study, mend=mend)
            except (Corrupt, Invalid, NotFound, Unavailable) as error:
                result.failed[study] = error.message
                continue
            result.studies += 1
            result.instances += count
            if not alike:
                result.differing.append(study)
        without, strays = await self._without_pack({study for study, _ in studies})
        for study in sorted(without):
            result.failed[study] = "The index knows this study, and there is no pack of it."
        if mend and strays:
            await self._remove(strays)
        result.strays = sorted(strays)
        await self._tell(result, actor, mend)
        return result

    async def one(self, study: str, *, mend: bool = True) -> tuple[int, bool]:
        """Hold one study's rows against its pack; return how many instances it has, and whether the rows were right.

        Raises Corrupt, NotFound (no pack, or its key is gone), Unavailable (a locked grade, the database).
        """
        if mend:
            await self._vault.settle(study)
        found = await self._vault.objects(study)
        entries: list[Entry] = []
        for description, data_set in instance_pairs(found.objects):
            entries.append(await entry_in(self._vault, self._index, study, description, data_set))
        alike = True
        try:
            async with self._database.write() as tx:
                metadata = kept_metadata(found.objects)
                alike = await self._index.put_anew(tx, study, entries, metadata, found.end)
                if alike or not mend:
                    raise _Alike
        except _Alike:
            return len(entries), alike
        except IntegrityError as error:
            # A search tree shows rows that its table lacks, or lacks what that has.
            raise Corrupt(
                Sentence("Rows of the index contradict one another."), mend=RUNBOOK, code=DAMAGED
            ) from error
        self._index.remember(entries)
        return len(entries), alike

    async def _without_pack(self, packed: set[str]) -> tuple[set[str], set[str]]:
        """Studies of the index that have no pack, and strays: names that some of its tables have and others do not, as when
        a byte of a name was damaged.
        """
        try:
            async with self._database.read() as tx:
                named = [
                    set((await tx.execute(select(table.c.study).distinct())).scalars())
                    for table in (STUDIES, SERIES, INSTANCES)
                ]
        except Corrupt:  # told of as damaged already
            return set(), set()
        whole = set.intersection(*named)
        return whole - packed, set.union(*named) - whole - packed

    async def _remove(self, strays: set[str]) -> None:
        async with self._database.write() as tx:
            for table in (STUDIES, SERIES, INSTANCES):
                for study in strays:
                    await tx.execute(delete(table).where(table.c.study == study))

    async def _tell(self, result: Rebuilt, actor: str, mend: bool) -> None:
        try:
            await self._record(result, actor, mend)
        except Corrupt as error:
            if not result.damaged:
                raise
            logger.error("not on record", error=error.message)  # who asked hears it all the same

    async def _record(self, result: Rebuilt, actor: str, mend: bool) -> None:
        faults = [(study, "Rows of the index were altered.") for study in result.differing]
        faults += [(study, "Rows of the index belong to no study.") for study in result.strays]
        for study, words in [*(faults if not mend else []), *result.failed.items()]:
            await self._log.record(
                Event(EventKind.INTEGRITY_FAILED, actor, Outcome.FAILED, study=study, reason=words)
            )
        if mend:
            detail = {
                "studies": result.studies,
                "instances": result.instances,
                "differing": len(result.differing),
                "failed": len(result.failed),
                "damaged": len(result.lost),
            }
            await self._log.record(Event(EventKind.INDEX_REBUILT, actor, detail=detail))
