"""The index of studies: written in the flusher's transaction, read by pseudonym.

Holds writing and look-ups; searching is `search`, what stands where in clear is docs/formats/index.md. Study
and series rows carry their totals, so neither an answer nor the next instance counts anything. Rows say what
a pack holds; the pack is the truth, and a lost index is rebuilt from it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, insert, select, update
from sqlalchemy.exc import DBAPIError

from consent.errors import Corrupt, NotFound, Sentence
from consent.vocabulary import Grade
from node.database import Database, Tx
from node.imaging.attributes import Attributes
from node.index.names import NameTable
from node.index.pseudonyms import Pseudonyms
from node.index.query import Query
from node.index.reads import Reads
from node.index.rows import Entry, InstanceRow, Match, MetadataPlace, Placement, SeriesRow, StudyRow
from node.index.sealing import RowSealer, altered
from node.index.search import EVERYTHING, Page, Search, Test, Visible
from node.index.tables import INSTANCES, NO_NUMBER, SERIES, STUDIES

MAX_NAMED = 500
"""Rows that one statement names."""
OPENED_IN_PLACE = 200
"""More instances than that, as a study has them, are opened in a thread: others must not wait."""

STUDY_ATTRIBUTES = {
    "StudyInstanceUID": "study_instance_uid",
    "StudyTime": "study_time",
    "AccessionNumber": "accession_number",
    "PatientName": "patient_name",
    "PatientID": "patient_id",
    "PatientBirthDate": "birth_date",
    "PatientSex": "sex",
    "ReferringPhysicianName": "referring_physician",
    "StudyDescription": "study_description",
    "StudyID": "study_id",
    "InstitutionalDepartmentName": "department",
    "ProcedureCodeSequence": "procedure_codes",
}
SERIES_ATTRIBUTES = {
    "SeriesInstanceUID": "series_instance_uid",
    "SeriesDescription": "series_description",
    "BodyPartExamined": "body_part",
    "SeriesDate": "series_date",
    "SeriesTime": "series_time",
    "RequestAttributesSequence": "request_attributes",
}

_STUDY = select(STUDIES).where(STUDIES.c.study == bindparam("study"))
_SERIES = (
    select(SERIES).where(SERIES.c.study == bindparam("study")).order_by(SERIES.c.number, SERIES.c.series)
)
_INSTANCES = (
    select(INSTANCES)
    .where(INSTANCES.c.study == bindparam("study"))
    .order_by(INSTANCES.c.series, INSTANCES.c.number, INSTANCES.c.instance)
)
_INSTANCE = select(INSTANCES).where(INSTANCES.c.instance == bindparam("instance"))
_INDEXED_TO = (
    update(STUDIES)
    .where(STUDIES.c.study == bindparam("in_study"), STUDIES.c.indexed_to < bindparam("end"))
    .values(indexed_to=bindparam("end"))
)
_HOLDER = select(INSTANCES.c.study, INSTANCES.c.fingerprint).where(
    INSTANCES.c.instance == bindparam("instance")
)


def _taken(connection: Connection, instances: Sequence[str]) -> frozenset[str]:
    query = select(INSTANCES.c.instance).where(INSTANCES.c.instance.in_(instances))
    return frozenset(connection.execute(query).scalars())


@dataclass(frozen=True)
class Totals:
    """How much the archive holds."""

    studies: int
    instances: int
    size_bytes: int


class Index:
    """The studies of one node. Call `load` once before searching; `close` at the end."""

    def __init__(self, database: Database, index_key: bytes) -> None:
        self.pseudonyms = Pseudonyms(index_key)
        self._sealer = RowSealer(index_key)
        self._reads = Reads(database)
        self._names = NameTable()
        self._search = Search(self._reads, self.pseudonyms, self._sealer, self._names)

    async def load(self) -> None:
        """Read the sealed names into memory."""
        rows = await self._reads.rows(select(STUDIES.c.study, STUDIES.c.sealed_name, STUDIES.c.study_date))
        self._names.load((row.study, self._name(row.study, row.sealed_name), row.study_date) for row in rows)

    def close(self) -> None:
        """Close the read connections."""
        self._reads.close()

    async def add(self, tx: Tx, entries: Sequence[Entry], indexed_to: Mapping[str, int]) -> tuple[Entry, ...]:
        """`added` in the caller's transaction."""
        return await tx.run_sync(self.added, entries, indexed_to)

    def added(
        self, connection: Connection, entries: Sequence[Entry], indexed_to: Mapping[str, int]
    ) -> tuple[Entry, ...]:
        """Write the rows of new instances; return those that were not there before.

        `indexed_to` says for each study how many bytes of its pack are now indexed. What a study row already
        says of patient and study stays; its grade can only rise. Call `remember` with the result once the transaction has
        ended well.
        """
        taken = _taken(connection, [entry.instance for entry in entries])
        fresh = tuple({entry.instance: entry for entry in entries if entry.instance not in taken}.values())
        if fresh:
            connection.execute(insert(INSTANCES), [self._instance_values(entry) for entry in fresh])
            new_series = self._add_series(connection, fresh)
            self._add_studies(connection, fresh, new_series)
        if indexed_to:
            connection.execute(
                _INDEXED_TO, [{"in_study": study, "end": end} for study, end in indexed_to.items()]
            )
        return fresh

    def remember(self, added: Iterable[Entry]) -> None:
        """Let names be found that were committed."""
        for entry in {entry.study: entry for entry in added}.values():
            self._names.add(entry.study, entry.attributes.patient_name, entry.attributes.study_date)

    async def set_indexed_to(self, tx: Tx, study: str, end: int) -> None:
        """Note that every object in the first `end` bytes of the study's pack is indexed."""
        await tx.execute(_INDEXED_TO, {"in_study": study, "end": end})

    async def set_metadata(self, tx: Tx, study: str, series: str, place: MetadataPlace) -> None:
        """`described` in the caller's transaction."""
        await tx.run_sync(self.described, study, series, place)

    def described(self, connection: Connection, study: str, series: str, place: MetadataPlace) -> None:
        """Note where the pre-made metadata of a series lies."""
        text = json.dumps(
            {"object_id": place.object_id, "count": place.count, **place.placement.to_json()},
        )
        which = update(SERIES).where(SERIES.c.study == study, SERIES.c.series == series)
        connection.execute(which.values(metadata=text))

    async def relocate(
        self,
        tx: Tx,
        study: str,
        places: Mapping[str, tuple[Placement, Placement]],
        end: int,
        grade: Grade,
        metadata: Mapping[str, MetadataPlace] = MappingProxyType({}),
    ) -> None:
        """Say where data set and description of each instance lie in a pack of `end` bytes, written anew, and its grade.

        Pre-made metadata is forgotten but for what `metadata` names, by series. When there are instances that have no row
        yet, recovery looks at the whole pack again. Raises Corrupt when an instance of the study is not among them.
        """
        rows = (await tx.execute(_INSTANCES, {"study": study})).all()
        changed = await asyncio.to_thread(
            lambda: [{"of": row.instance, "anew": self._relocated(row, places)} for row in rows]
        )
        if changed:
            which = update(INSTANCES).where(INSTANCES.c.instance == bindparam("of"))
            await tx.execute(which.values(sealed=bindparam("anew")), changed)
        await tx.execute(update(SERIES).where(SERIES.c.study == study).values(metadata=None))
        for series, place in metadata.items():
            await self.set_metadata(tx, study, series, place)
        which = update(STUDIES).where(STUDIES.c.study == study)
        known = {row.instance for row in rows}
        await tx.execute(which.values(grade=int(grade), indexed_to=end if places.keys() <= known else 0))

    async def put_anew(
        self,
        tx: Tx,
        study: str,
        entries: Sequence[Entry],
        metadata: Mapping[str, MetadataPlace],
        end: int,
    ) -> bool:
        """Make the study's rows what its pack of `end` bytes says; return whether they were that already, bit for bit.

        `metadata` names what was pre-made, by series. Old rows are not opened: they may have been altered.
        """
        before = await self._dumped(tx, study)
        for table in (INSTANCES, SERIES, STUDIES):
            await tx.execute(delete(table).where(table.c.study == study))
        for start in range(0, len(entries), MAX_NAMED):
            names = [entry.instance for entry in entries[start : start + MAX_NAMED]]
            await tx.execute(delete(INSTANCES).where(INSTANCES.c.instance.in_(names)))
        for start in range(0, len(entries), MAX_NAMED):
            await self.add(tx, entries[start : start + MAX_NAMED], {study: end})
        for series, place in metadata.items():
            await self.set_metadata(tx, study, series, place)
        return before == await self._dumped(tx, study)

    async def _dumped(self, tx: Tx, study: str) -> list[tuple[Any, ...]] | None:
        """Every row of the study as it stands in the database; None when one holds what its column cannot."""
        rows: list[tuple[Any, ...]] = []
        for table in (STUDIES, SERIES, INSTANCES):
            which = select(table).where(table.c.study == study).order_by(*table.primary_key.columns)
            try:
                rows += [tuple(row) for row in (await tx.execute(which)).all()]
            except (DBAPIError, ValueError, TypeError):
                return None
        return rows

    def _relocated(self, row: Any, places: Mapping[str, tuple[Placement, Placement]]) -> bytes:
        sealed = self._sealer.open_json("index_instance", row.instance, row.sealed)
        try:
            data_set, description = places[row.instance]
        except KeyError as error:
            raise Corrupt(
                Sentence(
                    "The pack of study %(study)s lacks an instance that the index knows.", study=row.study
                ),
                mend="Restore the pack from a replica.",
                code="study-pack",
            ) from error
        sealed |= {"instance": data_set.to_json(), "attributes": description.to_json()}
        return self._sealer.seal_json("index_instance", row.instance, sealed)

    async def remove(self, tx: Tx, study: str) -> None:
        """Take a study out of the index (its keys are destroyed elsewhere)."""
        row = (await tx.execute(_STUDY, {"study": study})).first()
        for table in (INSTANCES, SERIES, STUDIES):
            await tx.execute(delete(table).where(table.c.study == study))
        if row is not None:
            self._names.remove(study, self._name(study, row.sealed_name))

    async def search(self, query: Query, visible: Visible = EVERYTHING, shows: Test | None = None) -> Page:
        """Answer a query with what `visible` lets through and `shows` too. Raises Invalid when it is too broad."""
        return await self._search.run(query, visible, shows)

    def stream(
        self, query: Query, visible: Visible = EVERYTHING, shows: Test | None = None
    ) -> AsyncGenerator[Match, None]:
        """The same answer by answer, without end or beginning of a page. Close it when done."""
        return self._search.stream(query, visible, shows)

    async def study(self, study: str) -> StudyRow:
        """The study with this pseudonym. Raises NotFound."""
        rows = await self._reads.point(_STUDY, {"study": study})
        if not rows:
            raise no_such_study()
        row = rows[0]
        values = self._sealer.open_json("index_study", study, row.sealed)
        # The column is in clear and decides whose study it is: it must be the patient of the sealed values.
        if not self.pseudonyms.fits(row.patient, str(values.get("PatientID") or "")):
            raise altered("index_study")
        return StudyRow(
            study=study,
            patient=row.patient,
            grade=Grade(row.grade),
            modalities=tuple(row.modalities.strip("/").split("/")) if row.modalities else (),
            series_count=row.series_count,
            instance_count=row.instance_count,
            size_bytes=row.size_bytes,
            received=row.received,
            changed=row.changed,
            values={**values, "StudyDate": row.study_date},
        )

    async def series(self, study: str) -> tuple[SeriesRow, ...]:
        """The series of a study, by number."""
        rows = await self._reads.point(_SERIES, {"study": study})
        return tuple(
            SeriesRow(
                study=study,
                series=row.series,
                number=None if row.number == NO_NUMBER else row.number,
                modality=row.modality,
                instance_count=row.instance_count,
                metadata=_metadata_place(row.metadata),
                values=self._sealer.open_json("index_series", f"{study}/{row.series}", row.sealed),
            )
            for row in rows
        )

    async def instances(self, study: str) -> tuple[InstanceRow, ...]:
        """The instances of a study, by series and number."""
        rows = await self._reads.rows(_INSTANCES, {"study": study})
        if len(rows) <= OPENED_IN_PLACE:
            return tuple(map(self._instance, rows))
        return await asyncio.to_thread(lambda: tuple(map(self._instance, rows)))

    async def instance(self, study: str, instance: str) -> InstanceRow:
        """One instance of a study. Raises NotFound."""
        rows = await self._reads.point(_INSTANCE, {"instance": instance})
        if not rows or rows[0].study != study:
            raise NotFound("There is no such instance in this study.")
        return self._instance(rows[0])

    async def holder(self, instance: str) -> tuple[str, bytes] | None:
        """The study that holds an instance, and its fingerprint; None when it is not here."""
        found = await self._reads.values(_HOLDER, {"instance": instance})
        return (found[0][0], found[0][1]) if found else None

    async def has_study(self, study: str) -> bool:
        """Whether the study is here."""
        return bool(await self._reads.point(_STUDY, {"study": study}))

    async def patient_of(self, study: str) -> str:
        """The patient's pseudonym. Raises NotFound."""
        return (await self.study(study)).patient

    async def studies_of(self, patient: str) -> tuple[str, ...]:
        """The studies of a patient, newest first."""
        found = select(STUDIES.c.study).where(STUDIES.c.patient == patient)
        rows = await self._reads.rows(found.order_by(STUDIES.c.study_date.desc(), STUDIES.c.study))
        return tuple(row.study for row in rows)

    async def indexed_to(self) -> dict[str, int]:
        """For every study the number of bytes of its pack that are indexed."""
        rows = await self._reads.rows(select(STUDIES.c.study, STUDIES.c.indexed_to))
        return {row.study: row.indexed_to for row in rows}

    async def totals(self) -> Totals:
        """How many studies, instances and bytes there are."""
        rows = await self._reads.rows(
            select(
                func.count(STUDIES.c.study),
                func.coalesce(func.sum(STUDIES.c.instance_count), 0),
                func.coalesce(func.sum(STUDIES.c.size_bytes), 0),
            )
        )
        return Totals(*(int(value) for value in rows[0]))

    def fingerprint(self, sha256: bytes) -> bytes:
        """What stands in clear for a data set's digest."""
        return self.pseudonyms.blind("fingerprint", sha256.hex())

    def _add_series(self, connection: Connection, fresh: Sequence[Entry]) -> dict[str, int]:
        """Upsert series; return how many new ones each study got."""
        groups = _grouped(fresh)
        studies = {study for study, _ in groups}
        rows = connection.execute(select(SERIES.c.study, SERIES.c.series).where(SERIES.c.study.in_(studies)))
        there = {(row.study, row.series) for row in rows}
        new = [key for key in groups if key not in there]
        if new:
            connection.execute(insert(SERIES), [self._series_values(groups[key][0]) for key in new])
        connection.execute(
            update(SERIES)
            .where(SERIES.c.study == bindparam("in_study"), SERIES.c.series == bindparam("in_series"))
            .values(instance_count=SERIES.c.instance_count + bindparam("more")),
            [
                {"in_study": study, "in_series": series, "more": len(entries)}
                for (study, series), entries in groups.items()
            ],
        )
        counts: dict[str, int] = dict.fromkeys(studies, 0)
        for study, _ in new:
            counts[study] += 1
        return counts

    def _add_studies(
        self, connection: Connection, fresh: Sequence[Entry], new_series: Mapping[str, int]
    ) -> None:
        by_study: dict[str, list[Entry]] = {}
        for entry in fresh:
            by_study.setdefault(entry.study, []).append(entry)
        rows = connection.execute(
            select(STUDIES.c.study, STUDIES.c.modalities, STUDIES.c.grade).where(
                STUDIES.c.study.in_(by_study)
            )
        )
        there = {row.study: row for row in rows}
        new = [self._study_values(entries[0]) for study, entries in by_study.items() if study not in there]
        if new:
            connection.execute(insert(STUDIES), new)
        connection.execute(
            update(STUDIES)
            .where(STUDIES.c.study == bindparam("in_study"))
            .values(
                series_count=STUDIES.c.series_count + bindparam("more_series"),
                instance_count=STUDIES.c.instance_count + bindparam("more"),
                size_bytes=STUDIES.c.size_bytes + bindparam("more_bytes"),
                modalities=bindparam("all_modalities"),
                grade=bindparam("highest"),
                changed=bindparam("latest"),
            ),
            [
                {
                    "in_study": study,
                    "more_series": new_series[study],
                    "more": len(entries),
                    "more_bytes": sum(entry.size_bytes for entry in entries),
                    "all_modalities": _with_modalities(
                        there[study].modalities if study in there else "", entries
                    ),
                    "highest": max(
                        int(max(entry.grade for entry in entries)),
                        there[study].grade if study in there else 0,
                    ),
                    "latest": max(entry.received for entry in entries),
                }
                for study, entries in by_study.items()
            ],
        )

    def _study_values(self, entry: Entry) -> dict[str, Any]:
        attributes = entry.attributes
        accession, name = attributes.accession_number, attributes.patient_name
        return {
            "study": entry.study,
            "patient": entry.patient,
            "grade": int(entry.grade),
            "study_date": attributes.study_date,
            "accession": self.pseudonyms.blind("accession", accession) if accession else None,
            "modalities": "",
            "series_count": 0,
            "instance_count": 0,
            "size_bytes": 0,
            "indexed_to": 0,
            "received": entry.received,
            "changed": entry.received,
            "sealed": self._sealer.seal_json(
                "index_study", entry.study, _picked(attributes, STUDY_ATTRIBUTES)
            ),
            "sealed_name": self._sealer.seal(
                "index_study", "sealed_name", entry.study, name.encode("utf-8", "surrogatepass")
            ),
        }

    def _series_values(self, entry: Entry) -> dict[str, Any]:
        values = _picked(entry.attributes, SERIES_ATTRIBUTES)
        return {
            "study": entry.study,
            "series": entry.series,
            "number": _stored(entry.attributes.series_number),
            "modality": entry.attributes.modality,
            "instance_count": 0,
            "metadata": None,
            "sealed": self._sealer.seal_json("index_series", f"{entry.study}/{entry.series}", values),
        }

    def _instance_values(self, entry: Entry) -> dict[str, Any]:
        attributes = entry.attributes
        sealed = {
            "uid": attributes.sop_instance_uid,
            "sop_class": attributes.sop_class_uid,
            "transfer_syntax": attributes.transfer_syntax_uid,
            "rows": attributes.rows,
            "columns": attributes.columns,
            "frames": attributes.frames,
            "sha256": entry.sha256.hex(),
            "pixel": pixel_place(attributes),
            "instance": entry.data_set.to_json(),
            "attributes": entry.description.to_json(),
        }
        return {
            "instance": entry.instance,
            "study": entry.study,
            "series": entry.series,
            "number": _stored(attributes.instance_number),
            "size_bytes": entry.size_bytes,
            "fingerprint": self.fingerprint(entry.sha256),
            "sealed": self._sealer.seal_json("index_instance", entry.instance, sealed),
        }

    def _instance(self, row: Any) -> InstanceRow:
        sealed = self._sealer.open_json("index_instance", row.instance, row.sealed)
        return InstanceRow(
            instance=row.instance,
            study=row.study,
            series=row.series,
            number=None if row.number == NO_NUMBER else row.number,
            size_bytes=row.size_bytes,
            sop_instance_uid=sealed["uid"],
            sop_class_uid=sealed["sop_class"],
            transfer_syntax_uid=sealed["transfer_syntax"],
            rows=sealed["rows"],
            columns=sealed["columns"],
            frames=sealed["frames"],
            sha256=bytes.fromhex(sealed["sha256"]),
            pixel=sealed["pixel"],
            data_set=Placement.from_json(sealed["instance"]),
            description=Placement.from_json(sealed["attributes"]),
        )

    def _name(self, study: str, sealed: bytes) -> str:
        return self._sealer.open("index_study", "sealed_name", study, sealed).decode("utf-8", "surrogatepass")


def no_such_study() -> NotFound:
    """The error for a study that is not here."""
    return NotFound("There is no such study here.", mend="Search for it again; it may have been destroyed.")


def pixel_place(attributes: Attributes) -> dict[str, Any] | None:
    """Where the pixels lie in the data set; None without pixels, or where they are deflated with it."""
    if attributes.pixel_offset is None or attributes.deflated:
        return None
    return {
        "offset": attributes.pixel_offset,
        "length": attributes.pixel_length,
        "encapsulated": attributes.encapsulated,
        "samples": attributes.samples,
        "bits_allocated": attributes.bits_allocated,
    }


def _picked(attributes: Attributes, names: Mapping[str, str]) -> dict[str, Any]:
    return {keyword: getattr(attributes, name) for keyword, name in names.items()}


def _grouped(entries: Sequence[Entry]) -> dict[tuple[str, str], list[Entry]]:
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        groups.setdefault((entry.study, entry.series), []).append(entry)
    return groups


def _with_modalities(stored: str, entries: Sequence[Entry]) -> str:
    known = {value for value in stored.split("/") if value}
    known |= {entry.attributes.modality.replace("/", "") for entry in entries}
    return "/" + "/".join(sorted(known - {""})) + "/" if known - {""} else ""


def _stored(number: int | None) -> int:
    return NO_NUMBER if number is None else max(-NO_NUMBER, min(int(number), NO_NUMBER - 1))


def _metadata_place(text: str | None) -> MetadataPlace | None:
    if text is None:
        return None
    data = json.loads(text)
    return MetadataPlace(data["object_id"], data["count"], Placement.from_json(data))
