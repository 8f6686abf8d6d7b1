"""Where a study's objects come from: the archive of this node, or the copy held of another node's study (`copies`).

A shelf knows whose a study is, which facts bear on it, what it holds and with which keys it opens. It decides
nothing and logs nothing: the gateway does both, and is the only one to have a shelf.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Protocol

from consent.decision import Facts, Resource
from consent.emergency import EmergencyClaim
from consent.errors import Corrupt, NotFound
from consent.policy import Parameters
from consent.principals import Principal
from consent.vocabulary import ResourceKind
from node.facts import FactFinder
from node.index import Index, InstanceRow, Placement, SeriesRow, StudyRow
from node.index.sealing import altered
from node.openings import Contents, InstanceView, SeriesView, Visit
from node.vault.keys import KeyRing, object_key
from node.vault.pack import StoredObject
from node.vault.vault import INSTANCE

MAX_KEPT_INSTANCES = 20_000
"""Rows of instances whose contents are kept in memory: about 25 MiB."""


class PackReader(Protocol):
    """The vault's reading side; see `node.vault.reader`."""

    async def read(
        self, study: str, stored: StoredObject, key: bytes, expected: bytes | None = None
    ) -> bytes: ...

    async def read_several(
        self, study: str, wanted: Sequence[tuple[StoredObject, bytes, bytes | None]]
    ) -> list[bytes | Corrupt | NotFound]: ...

    async def read_range(
        self, study: str, stored: StoredObject, key: bytes, offset: int, length: int
    ) -> bytes: ...

    async def objects(self, study: str) -> list[StoredObject]: ...


class Shelf(Protocol):
    """One of the two; see `Archive` and `Copies`."""

    async def resource(self, study: str) -> Resource:
        """What `decide` is asked about. Raises NotFound."""
        ...

    async def facts(
        self,
        who: Principal,
        resource: Resource,
        now: datetime,
        parameters: Parameters,
        claim: EmergencyClaim | None,
    ) -> Facts:
        """What `decide` must know."""
        ...

    async def contents(self, visit: Visit) -> Contents:
        """Series and instances."""
        ...

    async def read(self, visit: Visit, row: InstanceRow) -> bytes:
        """A data set, its tags and its first digest verified. Raises Corrupt, NotFound, Denied, Unavailable."""
        ...

    async def read_several(
        self, visit: Visit, rows: Sequence[InstanceRow]
    ) -> list[bytes | Corrupt | NotFound]:
        """Data sets as by `read`, in order; the first failure is the last answer."""
        ...

    async def read_range(self, visit: Visit, row: InstanceRow, offset: int, length: int) -> bytes:
        """Part of a data set, its tags verified."""
        ...

    async def present(self, visit: Visit, row: InstanceRow) -> InstanceRow:
        """The row as it is now: where its bytes lie may have changed since it was read. Raises NotFound."""
        ...


class Archive:
    """The studies of this node: rows from the index, keys from the ring.

    The contents of studies that were read last are kept, and used while the study's row says what it said then.
    """

    def __init__(
        self, node_id: str, reader: PackReader, keys: KeyRing, index: Index, facts: FactFinder
    ) -> None:
        self._node_id = node_id
        self._reader = reader
        self._keys = keys
        self._index = index
        self._facts = facts
        self._kept: OrderedDict[str, tuple[StudyRow, Contents]] = OrderedDict()
        self._kept_instances = 0

    async def resource(self, study: str) -> Resource:
        row = await self._index.study(study)
        return Resource(ResourceKind.STUDY, study, row.patient, self._node_id, row.grade, row.department)

    async def facts(
        self,
        who: Principal,
        resource: Resource,
        now: datetime,
        parameters: Parameters,
        claim: EmergencyClaim | None,
    ) -> Facts:
        assert resource.patient is not None
        return await self._facts.about(who, resource.patient, now, parameters, claim)

    async def contents(self, visit: Visit) -> Contents:
        study = visit.resource.id
        row = await self._index.study(study)
        known = self._kept.get(study)
        if known is not None and known[0] == row:
            self._kept.move_to_end(study)
            return known[1]
        contents = await self._read_contents(row)
        self._keep(row, contents)
        return contents

    async def _read_contents(self, row: StudyRow) -> Contents:
        study = row.study
        series = await self._index.series(study)
        instances = await self._index.instances(study)
        # The grade in the study's row is in clear; those of the instances are sealed, and the highest of them is the study's.
        if max((one.data_set.grade for one in instances), default=row.grade) > row.grade:
            raise altered("index_study")
        by_series: dict[str, list[InstanceRow]] = defaultdict(list)
        for one in instances:
            by_series[one.series].append(one)
        views = tuple(_series_view(one, by_series[one.series]) for one in series)
        rows = {one.sop_instance_uid: one for one in instances}
        return Contents(row.study_instance_uid, str(row.values.get("PatientID") or ""), views, rows)

    def _keep(self, row: StudyRow, contents: Contents) -> None:
        self._forget(row.study)
        self._kept[row.study] = (row, contents)
        self._kept_instances += len(contents.instances)
        while self._kept_instances > MAX_KEPT_INSTANCES and len(self._kept) > 1:
            self._forget(next(iter(self._kept)))

    def _forget(self, study: str) -> None:
        _, contents = self._kept.pop(study, (None, None))
        self._kept_instances -= len(contents.instances) if contents is not None else 0

    async def read(self, visit: Visit, row: InstanceRow) -> bytes:
        stored = stored_instance(row)
        key = await self.key(visit.resource.id, stored)
        return await self._reader.read(visit.resource.id, stored, key, row.sha256)

    async def read_several(
        self, visit: Visit, rows: Sequence[InstanceRow]
    ) -> list[bytes | Corrupt | NotFound]:
        study = visit.resource.id
        objects = [stored_instance(row) for row in rows]
        wanted = [
            (stored, await self.key(study, stored), row.sha256)
            for stored, row in zip(objects, rows, strict=True)
        ]
        return await self._reader.read_several(study, wanted)

    async def read_range(self, visit: Visit, row: InstanceRow, offset: int, length: int) -> bytes:
        stored = stored_instance(row)
        key = await self.key(visit.resource.id, stored)
        return await self._reader.read_range(visit.resource.id, stored, key, offset, length)

    async def present(self, visit: Visit, row: InstanceRow) -> InstanceRow:
        self._forget(visit.resource.id)
        await self._keys.exchanged(visit.resource.id)
        return await self._index.instance(visit.resource.id, row.instance)

    async def key(self, study: str, stored: StoredObject) -> bytes:
        """The key of one object."""
        await self._keys.exchanged(study)
        return object_key(await self._keys.study_key(None, study, stored.grade), stored.object_id)


def stored_instance(row: InstanceRow) -> StoredObject:
    """How the vault knows the data set of a row."""
    return stored_object(row.instance, INSTANCE, row.data_set)


def stored_object(object_id: str, kind: str, place: Placement) -> StoredObject:
    """How the vault knows an object that the index placed."""
    return StoredObject(
        object_id=object_id,
        kind=kind,
        offset=place.offset,
        length=place.length,
        plain_length=place.plain_length,
        blake3=place.blake3,
        grade=place.grade,
        created=datetime.fromtimestamp(0, UTC),
    )


def _series_view(series: SeriesRow, instances: Sequence[InstanceRow]) -> SeriesView:
    return SeriesView(
        uid=series.series_instance_uid,
        number=series.number,
        modality=series.modality,
        description=str(series.values.get("SeriesDescription") or ""),
        instances=tuple(instance_view(row) for row in instances),
    )


def instance_view(row: InstanceRow) -> InstanceView:
    """An instance as an opening shows it."""
    return InstanceView(row.sop_instance_uid, row.number, row.frames, row.rows, row.columns)
