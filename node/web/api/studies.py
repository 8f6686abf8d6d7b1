"""/api/v1/studies and /api/v1/openings: find studies, open one, fetch its frames."""

from __future__ import annotations

from dataclasses import asdict, is_dataclass
from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from consent.emergency import EmergencyClaim
from consent.errors import Invalid, Sentence
from consent.fields import Fields
from consent.obligations import Obligation
from consent.signed import Json
from consent.vocabulary import Action, Purpose
from node.index import Level, Match, Page, Query
from node.web.inputs import choice_of, number, whole_number
from node.web.keys import CLOCK, GATEWAY, OPENINGS
from node.web.kit import address_of, current_person, read_json, respond
from node.web.people import anonymous_id
from node.web.text import N_

if TYPE_CHECKING:
    from node.openings import Opening

MAX_STUDIES: Final = 1000
MAX_WINDOW: Final = 1e7
MAX_PICTURE_PIXELS: Final = 4096
FORMATS: Final = ("webp", "jpeg", "png")
CONTROLS: Final = frozenset({"limit", "offset", "purpose"})


async def list_studies(request: web.Request) -> web.Response:
    """GET /studies?PatientName=&PatientID=&… → what this person may find."""
    page = await find_studies(request, whole_number(request.query, "limit", 100))
    return respond([study_json(match) for match in page.matches])


async def open_study(request: web.Request) -> web.Response:
    """POST /openings {study, home?, purpose?, action?, emergency?: {reason}} → the opening and its series."""
    data = await read_json(request)
    fields = Fields(data, "opening")
    claim = None
    if data.get("emergency") is not None:
        reason = Fields(fields.mapping("emergency"), "emergency").text("reason", limit=500)
        claim = EmergencyClaim(reason, request.app[CLOCK].now())
    opening = await make_opening(
        request,
        fields.text("study", limit=64),
        home=fields.optional_text("home", limit=64) or "",
        action=choice_of(Action, data.get("action", Action.VIEW), "action"),
        purpose=choice_of(Purpose, data.get("purpose", Purpose.TREATMENT), "purpose"),
        emergency=claim,
    )
    return respond(await opening_json(request, opening), status=201)


async def show_opening(request: web.Request) -> web.Response:
    """GET /openings/{opening}"""
    opening = request.app[OPENINGS].get(request.match_info["opening"], current_person(request))
    return respond(await opening_json(request, opening))


async def frame(request: web.Request) -> web.Response:
    """GET …/frames/{sop_uid}/{n}?wc&ww&size&format → one picture, with the watermark burned in.

    The gateway decides again for every frame, so an ended grant ends here.
    """
    opening = request.app[OPENINGS].get(request.match_info["opening"], current_person(request))
    centre, width = number(request.query, "wc", MAX_WINDOW), number(request.query, "ww", MAX_WINDOW)
    if (centre is None) != (width is None) or (width is not None and width <= 0):
        raise Invalid(N_("A window needs a centre and a width above 0."))
    size = whole_number(request.query, "size", 0) or None
    if size is not None and not 16 <= size <= MAX_PICTURE_PIXELS:
        raise Invalid(Sentence("size is not from 16 to %(most)s.", most=MAX_PICTURE_PIXELS))
    form = request.query.get("format", "webp")
    if form not in FORMATS:
        raise Invalid(N_("This picture format is not offered."), mend="webp, jpeg, png")
    picture = await request.app[GATEWAY].frame(
        opening,
        request.match_info["sop_uid"],
        whole_number(request.match_info, "frame", 1),
        window=None if centre is None or width is None else (centre, width),
        size=size,
        fmt=form,
    )
    return web.Response(body=picture.content, content_type=picture.media_type)


async def find_studies(request: web.Request, limit: int) -> Page:
    """Search with the request's query: DICOM keywords, `offset` and `purpose`."""
    wanted = [(name, value) for name, value in request.query.items() if name not in CONTROLS and value]
    offset = whole_number(request.query, "offset", 0)
    query = Query.of(Level.STUDY, wanted, limit=min(limit, MAX_STUDIES), offset=offset)
    purpose = choice_of(Purpose, request.query.get("purpose") or Purpose.TREATMENT, "purpose")
    return await request.app[GATEWAY].search(
        current_person(request), Level.STUDY, query, purpose, address_of(request)
    )


async def make_opening(
    request: web.Request,
    study: str,
    *,
    home: str = "",
    action: Action = Action.VIEW,
    purpose: Purpose = Purpose.TREATMENT,
    emergency: EmergencyClaim | None = None,
) -> Opening:
    """Open through the gateway and remember the opening. Raises Denied with the reasons."""
    opening = await request.app[GATEWAY].open(
        current_person(request),
        study,
        action=action,
        purpose=purpose,
        emergency=emergency,
        address=address_of(request),
        home=home,
        session=anonymous_id(request),
    )
    return request.app[OPENINGS].put(opening)


def study_json(match: Match) -> Json:
    """One study of a search as the API gives it."""
    values = match.values
    return {
        "study": match.study,
        "patient": match.patient,
        "grade": int(match.grade),
        "study_instance_uid": values.get("StudyInstanceUID"),
        "patient_name": values.get("PatientName") or "",
        "patient_id": values.get("PatientID") or "",
        "birth_date": values.get("PatientBirthDate") or "",
        "sex": values.get("PatientSex") or "",
        "study_date": values.get("StudyDate") or "",
        "study_time": values.get("StudyTime") or "",
        "description": values.get("StudyDescription") or "",
        "accession_number": values.get("AccessionNumber") or "",
        "modalities": [one for one in str(values.get("ModalitiesInStudy") or "").split("\\") if one],
        "series": int(values.get("NumberOfStudyRelatedSeries") or 0),
        "instances": int(values.get("NumberOfStudyRelatedInstances") or 0),
    }


async def opening_json(request: web.Request, opening: Opening) -> Json:
    """An opening with its series and instances."""
    series = await request.app[GATEWAY].series(opening)
    return {
        "opening": opening.id,
        "study": opening.study,
        "home": opening.home,
        "purpose": opening.purpose.value,
        "expires": opening.expires.isoformat() if opening.expires else None,
        "reasons": list(opening.reasons),
        "obligations": [obligation_json(one) for one in opening.obligations],
        "series": [asdict(one) for one in series],
    }


def obligation_json(obligation: Obligation) -> Json:
    """What a permit owes, as {"kind": …} with its terms."""
    assert is_dataclass(obligation)
    terms = {name: _plain(value) for name, value in asdict(obligation).items()}
    return {"kind": type(obligation).__name__, **terms}


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    return value.value if isinstance(value, Enum) else value


FRAME_PATH: Final = r"/{opening}/{sop_uid:[0-9.]{1,64}}/{frame:\d{1,6}}"
ROUTES = [
    web.get("/api/v1/studies", list_studies),
    web.post("/api/v1/openings", open_study),
    web.get("/api/v1/openings/{opening}", show_opening),
    web.get(r"/api/v1/openings/{opening}/frames/{sop_uid:[0-9.]{1,64}}/{frame:\d{1,6}}", frame),
    web.get("/viewer/frames" + FRAME_PATH, frame),
]
