"""Attributes that a search asks for and the index does not have, out of the sealed metadata of what it found.

Metadata is a view: only studies that the asker may view now are looked into, the others keep what the index says. Values
come from the first instance of a study or series, and from the instance itself at that level. Bounded by
MAX_DESCRIBED answers. Puts nothing on record but broken bytes: the search does, study by study.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from consent.errors import AccordError
from consent.principals import Principal
from consent.vocabulary import Purpose
from node.gateway.metadata import Metadata
from node.gateway.visits import Visits
from node.imaging.elements import vr_of
from node.index import Index, Level, Match
from node.openings import Visit

MAX_DESCRIBED = 200
ALL = "all"

_SOP_INSTANCE_UID = re.compile(rb'"00080018":\{"vr":"UI","Value":\["([0-9.]+)"\]\}')

Fields = Mapping[str, Any]
"""DICOM JSON by tag."""

_OF_STUDY = (
    "00080201",
    "00081030",
    "00081060",
    "00101010",
    "00101020",
    "00101030",
    "001021B0",
    "00104000",
    "00321032",
)
_OF_SERIES = ("00080070", "00080080", "00081010", "00081050", "00081070", "00081090", "00181030", "00185100", "00200060",
              "00400244", "00400245", "00400275")  # fmt: skip
COMMON = {Level.STUDY: _OF_STUDY, Level.SERIES: (*_OF_STUDY, *_OF_SERIES), Level.INSTANCE: ()}
"""What `all` means besides the index's own attributes; of an instance everything that is no bulk data."""


class FieldReader:
    """Reads attributes of found studies, series and instances."""

    def __init__(self, visits: Visits, metadata: Metadata, index: Index) -> None:
        self._visits = visits
        self._metadata = metadata
        self._index = index

    async def fields(
        self,
        who: Principal,
        level: Level,
        matches: Sequence[Match],
        wanted: Collection[str],
        purpose: Purpose,
        address: str | None,
    ) -> list[Fields]:
        """For each match the attributes `wanted` (eight hexadecimal digits, or ALL); empty ones where there is no value."""
        found: list[Fields] = []
        visits: dict[str, Visit | None] = {}
        described: dict[tuple[str, str | None], Mapping[str, bytes]] = {}
        for match in matches:
            if match.study not in visits:
                visits.clear()  # answers of one study come together
                described.clear()
                visits[match.study] = await self._visit(who, match.study, purpose, address)
            visit = visits[match.study]
            if visit is None:
                found.append({})
                continue
            key = (match.study, match.series)
            if key not in described:
                first = level is not Level.INSTANCE
                described[key] = _by_uid(
                    await self._metadata.lines_of(visit, match.series, first=first), level
                )
            uid = match.values["SOPInstanceUID"] if level is Level.INSTANCE else ""
            model: Fields = json.loads(described[key].get(uid, b"{}"))
            found.append(_picked(model, level, wanted))
        return found

    async def _visit(self, who: Principal, study: str, purpose: Purpose, address: str | None) -> Visit | None:
        """A visit for this search alone, if the asker may view the study now."""
        try:
            return await self._visits.glance(who, study, purpose, address)
        except AccordError:
            return None


def _by_uid(lines: Sequence[bytes], level: Level) -> Mapping[str, bytes]:
    """The described instances by SOP Instance UID; above that level the first one, by no name."""
    if level is not Level.INSTANCE:
        return {"": lines[0]} if lines else {}
    named = ((_SOP_INSTANCE_UID.search(line), line) for line in lines)
    return {found[1].decode(): line for found, line in named if found is not None}


def _picked(model: Fields, level: Level, wanted: Collection[str]) -> Fields:
    tags = [tag for tag in wanted if tag != ALL]
    if ALL in wanted:
        tags += COMMON[level]
        if level is Level.INSTANCE:
            tags += [tag for tag, element in model.items() if "BulkDataURI" not in element]
    return {tag: _element(model, tag) for tag in sorted(set(tags))}


def _element(model: Fields, tag: str) -> Any:
    element = model.get(tag)
    if element is None or "BulkDataURI" in element:
        return {"vr": vr_of(int(tag, 16)).partition(" ")[0]}
    return element
