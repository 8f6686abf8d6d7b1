"""QIDO-RS (PS3.18 §10.6): searches for studies, series and instances, at every level and below every resource.

What may be found and what is read for it is the gateway's to say. Here are the parameters, the form of an answer and the
warnings about what was not done as asked.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from consent.errors import Invalid
from consent.vocabulary import Purpose
from node.dicom import accept
from node.dicom.body import FRESH
from node.dicom.wado import accept_of, studies_url
from node.gateway.fields import Fields
from node.imaging.dictionary import tag_of
from node.index import Level, Match, Query
from node.index.query import ATTRIBUTES, attribute_of, dicom_json
from node.web.keys import GATEWAY
from node.web.kit import address_of, current_person
from node.web.openapi import Parameter, described

CONTROLS = frozenset(
    {
        "accept",
        "limit",
        "offset",
        "includefield",
        "fuzzymatching",
        "emptyvaluematching",
        "multiplevaluematching",
    }
)
DEFAULT_LIMITS = {Level.STUDY: 500, Level.SERIES: 2_000, Level.INSTANCE: 10_000}
MAX_FIELDS = 64
WRITTEN_AT_ONCE = 100
ALL = "all"
FURTHER_ANSWERS = "There are additional results that can be requested"
_TAG = re.compile(r"[0-9A-Fa-f]{8}")

_searching = described(
    query=(
        Parameter("limit", "How many answers at most.", "integer"),
        Parameter("offset", "How many answers to pass over.", "integer"),
        Parameter("includefield", "Attributes to add, by keyword or tag, or `all`.", many=True),
        Parameter("fuzzymatching", "Match names by the beginnings of their words.", "boolean"),
        Parameter("emptyvaluematching", 'A value of `""` asks for what has none.', "boolean"),
        Parameter("accept", "What is accepted, instead of the header."),
        *(
            Parameter(one.keyword, f"Match {one.keyword} ({one.tag}).")
            for one in ATTRIBUTES.values()
            if one.vr != "SQ"
        ),
    ),
    answers={200: (accept.JSON, "application/json")},
)


@_searching
async def studies(request: web.Request) -> web.Response:
    """Search for studies."""
    return await _search(request, Level.STUDY)


@_searching
async def series(request: web.Request) -> web.Response:
    """Search for series, of one study or of all."""
    return await _search(request, Level.SERIES)


@_searching
async def instances(request: web.Request) -> web.Response:
    """Search for instances, of one series, of one study or of all."""
    return await _search(request, Level.INSTANCE)


async def _search(request: web.Request, level: Level) -> web.Response:
    kind = accept.metadata(accept_of(request))
    query = query_of(request, level)
    wanted, unknown = fields_of(request)
    page, fields = await request.app[GATEWAY].search_with_fields(
        current_person(request), level, query, wanted, Purpose.TREATMENT, address_of(request)
    )
    writer = _Answers(level, studies_url(request))
    extras = fields or [{}] * len(page.matches)
    answers: list[str] = []
    for match, extra in zip(page.matches, extras, strict=True):
        answers.append(writer.text(match, extra))
        if len(answers) % WRITTEN_AT_ONCE == 0:
            await asyncio.sleep(0)  # ten thousand answers take a second: others come in between
    body = f"[{','.join(answers)}]".encode("utf-8", "replace")
    response = web.Response(body=body, content_type=kind, headers=FRESH)
    for warning in _warnings(query, unknown, page.more):
        response.headers.add("Warning", f'299 accord "{warning}"')
    return response


def query_of(request: web.Request, level: Level) -> Query:
    """The search that a request asks for. Raises Invalid, naming what cannot be read."""
    keys = [(name, value) for name, value in request.query.items() if name not in CONTROLS]
    if study := request.match_info.get("study"):
        keys.append(("StudyInstanceUID", study))
    if series := request.match_info.get("series"):
        keys.append(("SeriesInstanceUID", series))
    return Query.of(
        level,
        keys,
        limit=_whole(request, "limit", DEFAULT_LIMITS[level]),
        offset=_whole(request, "offset", 0),
        empty=_switch(request, "emptyvaluematching"),
        fuzzy=_switch(request, "fuzzymatching"),
    )


def fields_of(request: web.Request) -> tuple[frozenset[str], tuple[str, ...]]:
    """Attributes that `includefield` asks for and the index has not, by tag (or ALL), and names that are none."""
    names = [
        name.strip()
        for value in request.query.getall("includefield", ())
        for name in value.split(",")
        if name
    ]
    if len(names) > MAX_FIELDS:
        raise Invalid(
            f"A search includes at most {MAX_FIELDS} fields.", mend="Retrieve the metadata instead."
        )
    wanted: set[str] = set()
    unknown: list[str] = []
    for name in names:
        outer = name.partition(".")[0]  # an attribute inside a sequence comes with the sequence
        if name.lower() == ALL:
            wanted.add(ALL)
        elif attribute_of(outer) is None:
            tag = outer.upper() if _TAG.fullmatch(outer) else f"{tag_of(outer) or 0:08X}"
            if int(tag, 16):
                wanted.add(tag)
            else:
                unknown.append(name[:64])
    return frozenset(wanted), tuple(unknown)


def _whole(request: web.Request, name: str, default: int) -> int:
    text = request.query.get(name)
    if text is None:
        return default
    if not text.isdecimal() or len(text) > 9:
        raise Invalid(f"{name} is a whole number from 0.")
    return int(text)


def _switch(request: web.Request, name: str) -> bool:
    text = request.query.get(name, "false").lower()
    if text not in ("true", "false"):
        raise Invalid(f"{name} is true or false.")
    return text == "true"


class _Answers:
    """Writes answers in DICOM JSON. What many of them share, a study's or a series' values, is put into words once."""

    def __init__(self, level: Level, studies: str) -> None:
        self._level = level
        self._studies = studies
        self._written: dict[tuple[str, object], tuple[str, str]] = {}

    def text(self, match: Match, extra: Fields) -> str:
        """One answer with the attributes that a service adds to those of the index (PS3.18 §10.6.3.3), in order of tags."""
        values = match.values
        members = [self._member(name, value) for name, value in values.items() if name in ATTRIBUTES]
        members += [
            *_OF_THE_SERVICE,
            (RETRIEVE_URL, _json(RETRIEVE_URL, {"vr": "UR", "Value": [self._url(values)]})),
        ]
        known = {tag for tag, _ in members}
        members += [(tag, _json(tag, element)) for tag, element in extra.items() if tag not in known]
        return "{" + ",".join(text for _, text in sorted(members)) + "}"

    def _member(self, name: str, value: object) -> tuple[str, str]:
        if isinstance(value, list):
            return self._made(name, value)
        key = (name, value)
        found = self._written.get(key)
        if found is None:
            found = self._written[key] = self._made(name, value)
        return found

    @staticmethod
    def _made(name: str, value: object) -> tuple[str, str]:
        ((tag, element),) = dicom_json({name: value}).items()
        if name == "ModalitiesInStudy":
            element.setdefault("Value", [])  # the study lists of viewers count its values
        return tag, _json(tag, element)

    def _url(self, values: Mapping[str, Any]) -> str:
        url = self._studies + str(values["StudyInstanceUID"])
        if self._level is not Level.STUDY:
            url += f"/series/{values['SeriesInstanceUID']}"
        if self._level is Level.INSTANCE:
            url += f"/instances/{values['SOPInstanceUID']}"
        return url


def _json(tag: str, element: Any) -> str:
    return f'"{tag}":{json.dumps(element, ensure_ascii=False, separators=(",", ":"))}'


RETRIEVE_URL = "00081190"
_OF_THE_SERVICE = (
    ("00080005", _json("00080005", {"vr": "CS", "Value": ["ISO_IR 192"]})),
    ("00080056", _json("00080056", {"vr": "CS", "Value": ["ONLINE"]})),
)


def _warnings(query: Query, unknown: tuple[str, ...], more: bool) -> list[str]:
    """PS3.18 §8.3.4.4 and §10.6.3: what was not done as asked."""
    warnings = []
    if query.ignored:
        warnings.append(f"The following keys are not searched by: {_words(query.ignored)}")
    if unknown:
        warnings.append(f"The following fields are not attributes: {_words(unknown)}")
    if query.fuzzy and not any(ATTRIBUTES[name].vr == "PN" for name in query.keys if name in ATTRIBUTES):
        warnings.append("Fuzzy matching is of names; only literal matching has been performed")
    if more:
        warnings.append(FURTHER_ANSWERS)
    return warnings


def _words(names: tuple[str, ...]) -> str:
    """Names that somebody else chose, for a header."""
    return ", ".join(name for name in names if name.isascii() and name.replace(".", "").isalnum())
