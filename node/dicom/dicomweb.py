"""DICOMweb below /dicom-web: QIDO-RS here, WADO-RS in `wado`, STOW-RS in `stow`; ROUTES is the table of contents.

Every answer goes through the gateway, every instance through ingest; who asks is established by the web kit. Errors
become problem+json there. What it offers: docs/formats/dicomweb.md.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from consent.errors import Invalid
from consent.vocabulary import Purpose
from node.dicom import accept, renderings, stow, wado
from node.index import Level, Match, Query
from node.web.keys import GATEWAY
from node.web.kit import address_of, current_person, streaming

CONTROLS = frozenset({"limit", "offset", "includefield", "fuzzymatching", "emptyvaluematching"})
DEFAULT_LIMITS = {Level.STUDY: 500, Level.SERIES: 2_000, Level.INSTANCE: 10_000}
UID = r"{%s:[0-9.]{1,64}}"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def search(level: Level) -> Handler:
    """GET …/studies, …/series or …/instances with matching keys in the query: QIDO-RS (PS3.18 §10.6)."""

    async def handler(request: web.Request) -> web.Response:
        kind = accept.metadata(request.headers.get("Accept"))
        query = _query(request, level)
        page = await request.app[GATEWAY].search(
            current_person(request), level, query, Purpose.TREATMENT, address_of(request)
        )
        studies = f"{request.url.origin()}/dicom-web/studies/"
        answers = [_answer(match, level, studies) for match in page.matches]
        response = web.Response(
            body=json.dumps(answers, ensure_ascii=False, separators=(",", ":")).encode(),
            content_type=kind,
            headers={"Cache-Control": "no-store"},
        )
        for warning in _warnings(request, query, page.more):
            response.headers.add("Warning", f'299 accord "{warning}"')
        return response

    return handler


@streaming
async def store(request: web.Request) -> web.Response:
    """POST …/studies[/{study}]: STOW-RS."""
    kind = accept.metadata(request.headers.get("Accept"))
    status, answer = await stow.store(request, request.match_info.get("study", ""))
    return web.Response(status=status, body=json.dumps(answer).encode(), content_type=kind)


def _query(request: web.Request, level: Level) -> Query:
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
    )


def _whole(request: web.Request, name: str, default: int) -> int:
    text = request.query.get(name)
    if text is None:
        return default
    if not text.isdecimal() or len(text) > 9:
        raise Invalid(f"{name} is a whole number from 0.")
    return int(text)


def _answer(match: Match, level: Level, studies: str) -> dict[str, Any]:
    """One answer with the attributes that a service adds to those of the index (PS3.18 §10.6.3.3)."""
    values = match.values
    url = studies + str(values["StudyInstanceUID"])
    if level is not Level.STUDY:
        url += f"/series/{values['SeriesInstanceUID']}"
    if level is Level.INSTANCE:
        url += f"/instances/{values['SOPInstanceUID']}"
    return {
        "00080005": {"vr": "CS", "Value": ["ISO_IR 192"]},
        "00080056": {"vr": "CS", "Value": ["ONLINE"]},
        "00081190": {"vr": "UR", "Value": [url]},
        **match.to_dicom_json(),
    }


def _warnings(request: web.Request, query: Query, more: bool) -> list[str]:
    """PS3.18 §8.3.4.4 and §10.6.3: what was not done as asked."""
    warnings = []
    if query.ignored:
        names = ", ".join(name for name in query.ignored if name.isalnum())
        warnings.append(f"The following keys are not searched by: {names}")
    if request.query.get("fuzzymatching", "false").lower() == "true":
        warnings.append(
            "The fuzzymatching parameter is not supported. Only literal matching has been performed."
        )
    if more:
        warnings.append("There are additional results that can be requested")
    return warnings


STUDIES = "/dicom-web/studies"
STUDY = f"{STUDIES}/{UID % 'study'}"
SERIES = f"{STUDY}/series/{UID % 'series'}"
INSTANCE = f"{SERIES}/instances/{UID % 'instance'}"
FRAMES = INSTANCE + r"/frames/{frames:[0-9,]{1,8000}}"

ROUTES: list[web.RouteDef] = [
    web.get(STUDIES, search(Level.STUDY)),
    web.get("/dicom-web/series", search(Level.SERIES)),
    web.get("/dicom-web/instances", search(Level.INSTANCE)),
    web.get(f"{STUDY}/series", search(Level.SERIES)),
    web.get(f"{STUDY}/instances", search(Level.INSTANCE)),
    web.get(f"{SERIES}/instances", search(Level.INSTANCE)),
    web.get(f"{STUDY}/metadata", wado.metadata),
    web.get(f"{SERIES}/metadata", wado.metadata),
    web.get(f"{INSTANCE}/metadata", wado.metadata),
    web.get(FRAMES, wado.frames),
    *(web.get(f"{what}/rendered", renderings.rendered) for what in (STUDY, SERIES, INSTANCE, FRAMES)),
    *(web.get(f"{what}/thumbnail", renderings.thumbnail) for what in (STUDY, SERIES, INSTANCE, FRAMES)),
    *(web.get(f"{what}/bulkdata", wado.every_bulk_data) for what in (STUDY, SERIES, INSTANCE)),
    *(web.get(f"{what}/pixeldata", wado.every_bulk_data) for what in (STUDY, SERIES, INSTANCE)),
    web.get(INSTANCE + r"/bulkdata/{path:[0-9A-F]{8}(?:/[0-9]{1,6}/[0-9A-F]{8}){0,32}}", wado.bulk_data),
    web.get(STUDY, wado.retrieve),
    web.get(SERIES, wado.retrieve),
    web.get(INSTANCE, wado.retrieve),
    web.post(STUDIES, store),
    web.post(STUDY, store),
]
