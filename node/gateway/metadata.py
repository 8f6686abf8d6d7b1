"""The DICOM JSON of what was opened: made once its series was quiet and read here, or made at the first request and kept."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from consent.errors import AccordError, Invalid, NotFound
from node.descriptions import Descriptions, bulk_path, described, joined, split
from node.gateway.reading import Reading
from node.gateway.visits import Visits
from node.imaging.model_lines import ModelLines
from node.index import Index, InstanceRow, SeriesRow
from node.openings import Opening, Visit

MAX_HEAD_BYTES = 8 * 1024 * 1024
MAX_METADATA_INSTANCES = 20_000

logger = structlog.get_logger()


class Metadata:
    """Describes what an opening may show."""

    def __init__(self, visits: Visits, reading: Reading, index: Index, descriptions: Descriptions) -> None:
        self._visits = visits
        self._reading = reading
        self._index = index
        self._descriptions = descriptions

    async def metadata(self, opening: Opening, series_uid: str = "", sop_uid: str = "") -> bytes:
        """DICOM JSON of a study, a series or an instance as one array; BulkDataURIs begin behind `studies/`."""
        visit = await self._visits.still(opening)
        if opening.home or sop_uid:
            rows = await self._visits.rows(opening, series_uid, sop_uid)
            return joined((await self._lines(visit, rows)).values())
        wanted = self._index.pseudonyms.series(series_uid) if series_uid else None
        all_series = await self._index.series(opening.study)
        found = [one for one in all_series if wanted in (None, one.series)]
        if not found:
            raise NotFound("There is no such series in this study.")
        parts = []
        for one in found:
            place = one.metadata
            if place is not None and place.count == one.instance_count:
                parts.append(await self._reading.kept_metadata(visit, place))
            else:
                parts.append(await self._make(visit, one))
        return parts[0] if len(parts) == 1 else joined(part[1:-1] for part in parts if len(part) > 2)

    async def lines_of(self, visit: Visit, series: str | None, *, first: bool) -> list[bytes]:
        """The instances of a series by its pseudonym (of the study's first without one), each as one line of JSON.

        With `first`, of the first instance alone. Empty when there is no such series.
        """
        for one in await self._index.series(visit.resource.id):
            if series not in (None, one.series):
                continue
            place = one.metadata
            if place is not None and place.count == one.instance_count:
                lines = split(await self._reading.kept_metadata(visit, place))
                return lines[:1] if first else lines
            contents = await self._reading.contents(visit)
            rows = [row for row in contents.instances.values() if row.series == one.series]
            return list((await self._lines(visit, rows[:1] if first else rows)).values())
        return []

    async def _make(self, visit: Visit, series: SeriesRow) -> bytes:
        """Metadata of a series that was not made at ingest; kept for the next time."""
        rows = await self._visits.rows(visit.opening, series.series_instance_uid)
        lines = await self._lines(visit, rows)
        if len(lines) == series.instance_count:
            try:
                await self._descriptions.keep(visit.resource.id, series.series, visit.grade, lines)
            except AccordError as error:
                # It was made and is answered; it will be made again.
                logger.warning("metadata not kept", series=series.series, error=error.message)
        return joined(lines.values())

    async def _lines(self, visit: Visit, rows: Sequence[InstanceRow]) -> dict[str, bytes]:
        if len(rows) > MAX_METADATA_INSTANCES:
            raise Invalid("This study has too many instances for one answer.", mend="Ask for one series.")
        contents = await self._reading.contents(visit)
        study_uid = contents.study_instance_uid
        lines: dict[str, bytes] = {}
        writing = ModelLines()
        for row in rows:
            # Up to the pixels, or all of it where none are.
            size = min(row.pixel["offset"] if row.pixel else row.size_bytes, MAX_HEAD_BYTES)
            head = await self._reading.read_range(visit, row, 0, size)
            path = bulk_path(study_uid, contents.series_of[row.sop_instance_uid], row.sop_instance_uid)
            lines[row.instance] = await described(head, row.transfer_syntax_uid, path, writing)
        return lines
