"""Finding a study and looking at what it holds. Opening, refusing and recording are the gateway's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from consent.decision import Permit
from consent.errors import Denied
from consent.principals import CLINICAL
from consent.vocabulary import Action, EventKind
from node.audit.event import Entry, Event
from node.web.api.studies import find_studies
from node.web.decisions import verdict_of
from node.web.inputs import whole_number
from node.web.keys import CLOCK, CONSENTS, GATEWAY, INDEX, LOG, MEMBERS, OPENINGS, RENDERER
from node.web.kit import address_of, current_person, render
from node.web.pages import parts
from node.web.people import anonymous_id
from node.web.problems import problem_of

if TYPE_CHECKING:
    from node.openings import Opening

PAGE_STUDIES: Final = 25
ACCESS_ENTRIES: Final = 100
ACCESSES: Final = frozenset(
    {
        EventKind.STUDY_OPENED,
        EventKind.STUDY_VIEWED,
        EventKind.STUDY_DOWNLOADED,
        EventKind.ACCESS_REFUSED,
        EventKind.EMERGENCY_OPENED,
        EventKind.GRANT_ISSUED,
        EventKind.GRANT_REVOKED,
        EventKind.PACK_RELEASED,
        EventKind.LEASE_RELEASED,
        EventKind.LEASE_REFUSED,
        EventKind.COPY_SHREDDED,
        EventKind.SHRED_RECEIPT_RECEIVED,
        EventKind.CONSENT_RECORDED,
        EventKind.CONSENT_WITHDRAWN,
    }
)


async def search_page(request: web.Request) -> web.Response:
    """GET /studies?PatientName=…: empty form values are left out, so an empty search lists one's own patients."""
    offset = whole_number(request.query, "offset", 0)
    page = await find_studies(request, PAGE_STUDIES)
    terms = {name: value for name, value in request.query.items() if value and name != "offset"}
    context = {"matches": page.matches, "more": page.more, "terms": terms, "offset": offset}
    return render(request, "studies.html", {**context, "page_size": PAGE_STUDIES})


async def study_page(request: web.Request) -> web.Response:
    """GET /studies/{study}?home=: opens the study; a refusal becomes a page with the reasons and a way on."""
    person = current_person(request)
    study, home = request.match_info["study"], request.query.get("home", "")
    try:
        opening = await opening_of(request, study, home)
        series = await request.app[GATEWAY].series(opening)
    except Denied as error:
        return refused(request, error, study, home)
    context: dict[str, Any] = {"opening": opening, "series": series, "row": None, "consents": None}
    context["home_name"] = home_name(request, home)
    context["may_grade"] = not home and isinstance(verdict_of(request, Action.REGRADE), Permit)
    if not home:
        context["row"] = row = await request.app[INDEX].study(study)
        if isinstance(await request.app[CONSENTS].verdict(person, row.patient), Permit):
            context["consents"] = await request.app[CONSENTS].of_patient(row.patient)
            context["now"] = request.app[CLOCK].now()
    context["parts"] = await parts(request, "study", opening)
    return render(request, "study.html", context)


async def access_page(request: web.Request) -> web.Response:
    """GET /studies/{study}/access: who saw what of this patient, for those who treat the patient."""
    person = current_person(request)
    row = await request.app[INDEX].study(request.match_info["study"])
    await request.app[CONSENTS].check(person, row.patient, address=address_of(request))
    log = request.app[LOG]
    found = await log.search(patient=row.patient, limit=ACCESS_ENTRIES)
    entries: list[Entry] = [entry for entry in found if entry.event.kind in ACCESSES]
    await log.record(
        Event(
            EventKind.LOG_READ,
            person.actor,
            patient=row.patient,
            study=row.study,
            address=address_of(request),
            detail={"asked": {"patient": row.patient}, "entries": len(entries)},
        )
    )
    return render(request, "access.html", {"row": row, "entries": entries})


async def opening_of(request: web.Request, study: str, home: str) -> Opening:
    """The opening that the query names, else this person's that still stands, else a new one.

    Pages and pictures of one visit share an opening, so the log tells visits and not clicks. Raises Denied.
    """
    person = current_person(request)
    openings = request.app[OPENINGS]
    if named := request.query.get("opening"):
        opening = openings.get(named, person)
    else:
        opening = openings.put(
            await request.app[GATEWAY].visit(
                person,
                study,
                action=Action.VIEW,
                address=address_of(request),
                home=home,
                session=anonymous_id(request),
            )
        )
    request.app[RENDERER].wake()  # its pictures are asked for next
    return opening


def home_name(request: web.Request, home: str) -> str:
    """What people call the hospital with this node id."""
    known = request.app.get(MEMBERS)
    return known().get(home, home) if known is not None else home


def refused(request: web.Request, error: Denied, study: str, home: str) -> web.Response:
    """The page for a study that may not be opened: why, what to do, and the door for emergencies."""
    problem = problem_of(error)
    may_declare = current_person(request).role in CLINICAL and not home
    context = {"problem": problem, "study": study, "home": home, "may_declare": may_declare}
    return render(request, "refused.html", context, status=problem.status)


ROUTES = [
    web.get("/studies", search_page),
    web.get("/studies/{study}", study_page),
    web.get("/studies/{study}/access", access_page),
]
