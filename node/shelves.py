"""Where a study's objects come from: the archive of this node, or the copy held of another node's study.

A shelf knows whose a study is, which facts bear on it, what it holds and with which keys it opens. It decides
nothing and logs nothing: the gateway does both, and is the only one to have a shelf.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Protocol

from consent.decision import Facts, Resource
from consent.emergency import EmergencyClaim
from consent.errors import Corrupt, NotFound
from consent.policy import Parameters
from consent.principals import Principal
from consent.vocabulary import Grade, Purpose, ResourceKind
from node.arrival import ATTRIBUTES_SUFFIX, entry_of
from node.facts import FactFinder
from node.index import Entry, Index, InstanceRow, Placement, Pseudonyms, SeriesRow, StudyRow
from node.index.index import pixel_place
from node.index.sealing import altered
from node.openings import Contents, InstanceView, SeriesView, Visit
from node.vault.blobs import BlobStore
from node.vault.keys import KeyRing, object_key
from node.vault.pack import StoredObject
from node.vault.vault import INSTANCE

LAST_NUMBER = 2**31
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


class ObjectKeys(Protocol):
    """Keys of objects of another node's study, released to this one for a while."""

    async def keys(
        self,
        home: str,
        study: str,
        object_ids: Sequence[str],
        who: Principal,
        purpose: Purpose,
        opening_id: str,
    ) -> Mapping[str, bytes]:
        """The 32-byte keys by object id. Raises Denied when they are not released (any more), Unavailable."""
        ...

    def close_opening(self, opening_id: str) -> None:
        """Forget the keys of an opening."""
        ...


class HeldCopies(Protocol):
    """The copies that this node holds of other nodes' studies."""

    def blobs(self, home: str) -> BlobStore:
        """Where the packs of that home lie."""
        ...

    async def facts(self, home: str, study: str) -> Facts:
        """Grants, consents and membership as they are known now."""
        ...

    async def ended(self, home: str, study: str, who: Principal) -> str:
        """With which words the last grant for this person ended; "" when there was none."""
        ...


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


class Copies:
    """The copies held of one home's studies: rows from their attributes objects, keys by lease."""

    def __init__(self, home: str, reader: PackReader, copies: HeldCopies, keys: ObjectKeys) -> None:
        self._home = home
        self._reader = reader
        self._copies = copies
        self._keys = keys

    async def resource(self, study: str) -> Resource:
        facts = await self._copies.facts(self._home, study)
        patients = {grant.body.patient for grant in facts.grants if grant.body.study == study}
        if len(patients) != 1:
            raise NotFound(
                "No copy of this study is held here.",
                mend="Ask the home hospital for it; its grant may have ended.",
            )
        grade = max((stored.grade for stored in await self._reader.objects(study)), default=Grade.ORDINARY)
        return Resource(ResourceKind.STUDY, study, patients.pop(), self._home, grade)

    async def facts(
        self,
        who: Principal,
        resource: Resource,
        now: datetime,
        parameters: Parameters,
        claim: EmergencyClaim | None,
    ) -> Facts:
        return await self._copies.facts(self._home, resource.id)

    async def contents(self, visit: Visit) -> Contents:
        study = visit.resource.id
        objects = {stored.object_id: stored for stored in await self._reader.objects(study)}
        pairs = [
            (objects[stored.object_id + ATTRIBUTES_SUFFIX], stored)
            for stored in objects.values()
            if stored.kind == INSTANCE and stored.object_id + ATTRIBUTES_SUFFIX in objects
        ]
        keys = await self._leased(visit, [description.object_id for description, _ in pairs])
        entries: list[Entry] = []
        for description, data_set in pairs:
            document = await self._reader.read(study, description, keys[description.object_id])
            entry = entry_of(document, _NO_NAMES, description, data_set)
            entries.append(replace(entry, instance=data_set.object_id))
        return _contents(entries)

    async def read(self, visit: Visit, row: InstanceRow) -> bytes:
        stored = stored_instance(row)
        keys = await self._leased(visit, [stored.object_id])
        return await self._reader.read(visit.resource.id, stored, keys[stored.object_id], row.sha256)

    async def read_several(
        self, visit: Visit, rows: Sequence[InstanceRow]
    ) -> list[bytes | Corrupt | NotFound]:
        objects = [stored_instance(row) for row in rows]
        keys = await self._leased(visit, [stored.object_id for stored in objects])
        wanted = [
            (stored, keys[stored.object_id], row.sha256) for stored, row in zip(objects, rows, strict=True)
        ]
        return await self._reader.read_several(visit.resource.id, wanted)

    async def present(self, visit: Visit, row: InstanceRow) -> InstanceRow:
        return row  # a copy's pack lies as it came

    async def read_range(self, visit: Visit, row: InstanceRow, offset: int, length: int) -> bytes:
        stored = stored_instance(row)
        keys = await self._leased(visit, [stored.object_id])
        return await self._reader.read_range(
            visit.resource.id, stored, keys[stored.object_id], offset, length
        )

    async def _leased(self, visit: Visit, object_ids: Sequence[str]) -> Mapping[str, bytes]:
        opening = visit.opening
        return await self._keys.keys(
            self._home, visit.resource.id, object_ids, opening.who, opening.purpose, opening.id
        )


# Pseudonyms of another home's study are the pack's own; ours would name nothing.
_NO_NAMES = Pseudonyms(bytes(32))


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
        instances=tuple(_instance_view(row) for row in instances),
    )


def _instance_view(row: InstanceRow) -> InstanceView:
    return InstanceView(row.sop_instance_uid, row.number, row.frames, row.rows, row.columns)


def _contents(entries: Sequence[Entry]) -> Contents:
    """The contents of a copy, put in the order that the index would give."""
    by_series: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        by_series[entry.attributes.series_instance_uid].append(entry)
    views = []
    rows: dict[str, InstanceRow] = {}
    for uid, members in sorted(
        by_series.items(), key=lambda item: (_ordinal(item[1][0].attributes.series_number), item[0])
    ):
        members.sort(
            key=lambda entry: (_ordinal(entry.attributes.instance_number), entry.attributes.sop_instance_uid)
        )
        found = [_row(entry) for entry in members]
        rows |= {row.sop_instance_uid: row for row in found}
        head = members[0].attributes
        views.append(
            SeriesView(
                uid,
                head.series_number,
                head.modality,
                head.series_description,
                tuple(_instance_view(row) for row in found),
            )
        )
    if not entries:
        raise Corrupt("The copy of this study holds no instance.", code="empty-copy")
    first = entries[0].attributes
    return Contents(first.study_instance_uid, first.patient_id, tuple(views), rows)


def _row(entry: Entry) -> InstanceRow:
    attributes = entry.attributes
    return InstanceRow(
        instance=entry.instance,
        study=entry.study,
        series=entry.series,
        number=attributes.instance_number,
        size_bytes=entry.size_bytes,
        sop_instance_uid=attributes.sop_instance_uid,
        sop_class_uid=attributes.sop_class_uid,
        transfer_syntax_uid=attributes.transfer_syntax_uid,
        rows=attributes.rows,
        columns=attributes.columns,
        frames=attributes.frames,
        sha256=entry.sha256,
        pixel=pixel_place(attributes),
        data_set=entry.data_set,
        description=entry.description,
    )


def _ordinal(number: int | None) -> int:
    return LAST_NUMBER if number is None else number
