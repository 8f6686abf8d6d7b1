"""The shelf of copies held of another node's studies: rows from their attributes objects, keys by lease.

Holds what such a shelf needs of the federation. See `node.shelves`, of whose two shelves this is one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Protocol

from consent.decision import Facts, Resource
from consent.emergency import EmergencyClaim
from consent.errors import Corrupt, NotFound
from consent.policy import Parameters
from consent.principals import Principal
from consent.vocabulary import Grade, Purpose, ResourceKind
from node.arrival import entry_of, instance_pairs
from node.index import Entry, InstanceRow, Pseudonyms
from node.index.index import pixel_place
from node.openings import Contents, SeriesView, Visit
from node.shelves import PackReader, instance_view, stored_instance
from node.vault.blobs import BlobStore

LAST_NUMBER = 2**31


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
        pairs = instance_pairs(await self._reader.objects(study))
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
                tuple(instance_view(row) for row in found),
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
