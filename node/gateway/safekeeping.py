"""Storage commitment: whether instances are safe here, said to a device that may ask (PS3.4 Annex J).

An instance is safe when its sealed data set lies whole in its study's pack and the index names that place; both are
looked at when it is asked. Shows nothing of an instance but that.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence

from consent.decision import Facts, Request, Resource, decide
from consent.errors import AccordError, Denied, NotFound, Sentences
from consent.principals import Principal
from consent.verdict import Deny
from consent.vocabulary import Action, EventKind, Grade, ResourceKind, Role
from node import deeds
from node.audit.log import Event, Log
from node.clock import Clock
from node.gateway.reading import Reading
from node.index import Index, InstanceRow
from node.policies import Policies
from node.safety import Fate, Reference

ANY_STUDY = "*"
LOOKED_UP_AT_ONCE = 100


class Safekeeping:
    """Answers for the archive of one node."""

    def __init__(
        self, *, node_id: str, policies: Policies, reading: Reading, index: Index, log: Log, clock: Clock
    ) -> None:
        self._node_id = node_id
        self._policies = policies
        self._reading = reading
        self._index = index
        self._log = log
        self._clock = clock

    async def may_commit(self, who: Principal, address: str | None) -> None:
        """Raise Denied, once that is on record, when this device may not ask."""
        thing = Resource(ResourceKind.STUDY, ANY_STUDY, None, self._node_id, Grade.ORDINARY, who.department)
        request = Request(who, Action.COMMIT, thing, who.purpose, self._clock.now())
        verdict = decide(self._policies.current, request, Facts(device_registered=who.role is Role.DEVICE))
        if isinstance(verdict, Deny):
            event = deeds.refused(who, Action.COMMIT, who.purpose, address, verdict, None, None)
            await self._log.record(event)
            raise Denied(Sentences(verdict.reasons), reasons=verdict.reasons)

    async def fates(
        self, who: Principal, references: Sequence[Reference], address: str | None
    ) -> tuple[Fate, ...]:
        """What became of each, in order; that this was said is on record. Raises Denied."""
        await self.may_commit(who, address)
        rows: dict[str, InstanceRow] = {}
        by_study: defaultdict[str, list[InstanceRow]] = defaultdict(list)
        for number, one in enumerate(references):
            if number % LOOKED_UP_AT_ONCE == 0:
                await asyncio.sleep(0)  # look-ups are answered in place: let others have their turn
            row = await self._row(one.sop_instance_uid)
            if row is not None:
                rows[one.sop_instance_uid] = row
                by_study[row.study].append(row)
        whole: set[str] = set()
        for study, wanted in by_study.items():
            whole |= await self._whole(study, wanted)
        fates = tuple(_fate(one, rows.get(one.sop_instance_uid), whole) for one in references)
        safe = sum(fate is Fate.SAFE for fate in fates)
        await self._log.record(
            Event(
                EventKind.STORAGE_COMMITTED,
                who.actor,
                address=address,
                detail={"instances": len(fates), "safe": safe},
            )
        )
        return fates

    async def _row(self, sop_instance_uid: str) -> InstanceRow | None:
        instance = self._index.pseudonyms.instance(sop_instance_uid)
        holder = await self._index.holder(instance)
        if holder is None:
            return None
        try:
            return await self._index.instance(holder[0], instance)
        except NotFound:
            return None

    async def _whole(self, study: str, rows: Sequence[InstanceRow]) -> set[str]:
        """The instances among `rows` whose objects lie in the pack as the index says."""
        try:
            packed = {one.object_id: one.blake3 for one in await self._reading.packs.objects(study)}
        except AccordError:
            return set()
        return {row.instance for row in rows if packed.get(row.instance) == row.data_set.blake3}


def _fate(one: Reference, row: InstanceRow | None, whole: set[str]) -> Fate:
    if row is None:
        return Fate.NOT_HERE
    if row.sop_class_uid != one.sop_class_uid:
        return Fate.OTHER_CLASS
    return Fate.SAFE if row.instance in whole else Fate.UNREADABLE
