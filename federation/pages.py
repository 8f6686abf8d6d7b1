"""The portal's pages of the exchange: ask, answer, what is given, what is shared with me, and the region.

Every page is rendered here at the node from `templates/`; forms carry the session's CSRF token (the kit checks it).
Leaves every rule to the services.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from aiohttp import web

from consent.decision import Deny
from consent.errors import AccordError, Denied, Invalid, NotFound, Unavailable
from consent.principals import CLINICAL, Principal
from consent.vocabulary import Purpose, Right, Role
from federation.fields import RECORD_ID
from federation.holdings import LIVING, HeldState
from federation.incoming import IncomingRequest
from federation.keys import ASKING, FETCHING, GRANTS, HOLDINGS, INCOMING, MEMBERS, WITNESSING
from federation.notices import GrantState
from federation.protocol import MAX_HOURS, MAX_PERSON, MAX_REASON, Particulars, RequestState
from federation.roster import HOSPITAL, Member
from node.audit.note import cosigned_by
from node.web.inputs import choice_of, choices_of, text_of, whole_number
from node.web.keys import CLOCK, INDEX, LOG
from node.web.kit import address_of, current_person, render, require_role
from node.web.pages import NavItem, Part
from node.web.problems import problem_of
from node.web.text import N_

CLINICIANS = tuple(sorted(CLINICAL))
OVERSEERS = (Role.ADMINISTRATOR, Role.SECURITY_OFFICER, Role.HUB_OPERATOR)
PRESETS = (
    ("4", N_("4 hours")),
    ("24", N_("24 hours")),
    ("72", N_("3 days")),
    ("168", N_("1 week")),
)
OFFERED_PURPOSES = (Purpose.TREATMENT, Purpose.EMERGENCY)
REQUEST_WORDS = {
    RequestState.UNSENT: (N_("Waiting to be sent"), "warn"),
    RequestState.WAITING: (N_("Waiting for an answer"), "info"),
    RequestState.GRANTED: (N_("Granted"), "good"),
    RequestState.DECLINED: (N_("Declined"), "bad"),
    RequestState.EXPIRED: (N_("Expired"), ""),
    RequestState.UNMATCHED: (N_("Waiting for an answer"), "info"),
}
HELD_WORDS = {
    HeldState.GRANTED: (N_("On its way"), "info"),
    HeldState.HELD: (N_("Ready"), "good"),
    HeldState.ENDED: (N_("Ended"), ""),
    HeldState.SHREDDED: (N_("Ended, copy destroyed"), ""),
}
GRANT_WORDS = {
    GrantState.ALIVE: (N_("In force"), "good"),
    GrantState.ENDED: (N_("Ended"), ""),
    GrantState.SHREDDED: (N_("Ended, destruction confirmed"), ""),
}

NAV = (
    NavItem(
        "/shared",
        N_("Shared with me"),
        CLINICIANS,
        "share",
        N_("Exchange"),
        N_("Studies that other hospitals let you see, and until when."),
    ),
    NavItem(
        "/requests",
        N_("My requests"),
        CLINICIANS,
        "network",
        N_("Exchange"),
        N_("Ask another hospital for a study and follow the answer."),
    ),
    NavItem(
        "/incoming",
        N_("Incoming requests"),
        CLINICIANS,
        "inbox",
        N_("Exchange"),
        N_("Answer other hospitals that ask for studies of your patients."),
    ),
    NavItem(
        "/grants", N_("Given access"), CLINICIANS, "key", N_("Exchange"), N_("See it, and take it back.")
    ),
    NavItem(
        "/region",
        N_("Region"),
        OVERSEERS,
        "hub",
        N_("Oversight"),
        N_("The members of the region and who vouches for this log."),
    ),
)


async def shared_page(request: web.Request) -> web.Response:
    """GET /shared: what is shared with me, with its end and a door to the viewer."""
    person = require_role(request, *CLINICIANS)
    held = await request.app[HOLDINGS].held(person)
    titles = {one.id: one.particulars for one in await request.app[ASKING].asked(person)}
    context = {
        "held": held,
        "titles": titles,
        "names": _names(request),
        "words": HELD_WORDS,
        "living": LIVING,
        "now": request.app[CLOCK].now(),
    }
    return render(request, "exchange/shared.html", context)


async def fetch_now(request: web.Request) -> web.StreamResponse:
    """POST /shared/{id}/fetch: bring the sealed copy now."""
    person = require_role(request, *CLINICIANS)
    (await request.app[HOLDINGS].one(_id(request))).require(person)
    await request.app[FETCHING].fetch(_id(request))
    raise web.HTTPSeeOther("/shared")


async def requests_page(request: web.Request) -> web.Response:
    """GET /requests: what I asked for."""
    person = require_role(request, *CLINICIANS)
    context = {
        "asked": await request.app[ASKING].asked(person),
        "names": _names(request),
        "words": REQUEST_WORDS,
    }
    return render(request, "exchange/requests.html", context)


async def ask_page(request: web.Request) -> web.Response:
    """GET /requests/new: the form."""
    require_role(request, *CLINICIANS)
    return _ask_form(request, {}, None)


async def ask(request: web.Request) -> web.StreamResponse:
    """POST /requests: what is missing is said beside the form, and what was typed stays."""
    person = require_role(request, *CLINICIANS)
    form = await request.post()
    try:
        await request.app[ASKING].ask(
            person,
            home=text_of(form, "home", limit=32, needed=N_("Choose the hospital to ask.")),
            particulars=_particulars(form, person),
            purpose=choice_of(Purpose, text_of(form, "purpose", limit=16), "purpose"),
            rights=choices_of(Right, _all(form, "rights"), "rights") or frozenset({Right.VIEW}),
            hours=min(whole_number({"hours": str(form.get("hours", ""))}, "hours", 24), MAX_HOURS),
            address=address_of(request),
        )
    except (Invalid, Denied, Unavailable) as error:
        return _ask_form(request, form, error)
    raise web.HTTPSeeOther("/requests")


async def incoming_page(request: web.Request) -> web.Response:
    """GET /incoming: what waits for my answer."""
    person = require_role(request, *CLINICIANS)
    waiting = await request.app[INCOMING].incoming(person)
    context = {
        "waiting": waiting,
        "names": _names(request),
        "studies": {one.id: await _study(request, one.study) for one in waiting},
    }
    return render(request, "exchange/incoming.html", context)


async def answer_page(request: web.Request) -> web.Response:
    """GET /incoming/{id}: one request, whether consent covers it, and the two answers."""
    return await _answer_form(request, None)


async def grant(request: web.Request) -> web.StreamResponse:
    """POST /incoming/{id}/grant: {hours, rights}."""
    person = require_role(request, *CLINICIANS)
    form = await request.post()
    hours = whole_number({"hours": str(form.get("hours", ""))}, "hours", 24)
    try:
        await request.app[GRANTS].issue(
            person,
            _id(request),
            rights=choices_of(Right, _all(form, "rights"), "rights"),
            lasts=timedelta(hours=min(max(hours, 1), MAX_HOURS)),
            address=address_of(request),
        )
    except (Denied, Invalid) as error:
        return await _answer_form(request, error)
    raise web.HTTPSeeOther("/grants")


async def decline(request: web.Request) -> web.StreamResponse:
    """POST /incoming/{id}/decline: {reason}."""
    person = require_role(request, *CLINICIANS)
    form = await request.post()
    reason = text_of(form, "reason", limit=MAX_REASON, needed=N_("Say why, so that they know what to do."))
    await request.app[INCOMING].decline(person, _id(request), reason, address_of(request))
    raise web.HTTPSeeOther("/incoming")


async def grants_page(request: web.Request) -> web.Response:
    """GET /grants: what other hospitals may see of my patients."""
    person = require_role(request, *CLINICIANS)
    found = await request.app[GRANTS].issued(person)
    context = {
        "grants": found,
        "names": _names(request),
        "studies": {one.id: await _study(request, one.study) for one in found},
        "words": GRANT_WORDS,
        "alive": GrantState.ALIVE,
    }
    return render(request, "exchange/grants.html", context)


async def revoke(request: web.Request) -> web.StreamResponse:
    """POST /grants/{id}/revoke: {reason}."""
    person = require_role(request, *CLINICIANS)
    form = await request.post()
    reason = text_of(form, "reason", limit=MAX_REASON)
    await request.app[GRANTS].revoke(person, _id(request), reason, address=address_of(request))
    raise web.HTTPSeeOther("/grants")


async def region_page(request: web.Request) -> web.Response:
    """GET /region: the roster in force, and who has cosigned this node's log."""
    require_role(request, *OVERSEERS)
    members = request.app[MEMBERS]
    context: dict[str, Any] = {"roster": None, "problem": None, "witnesses": (), "size": 0}
    try:
        context["roster"] = members.current()
        context["expires"] = members.expires
    except Unavailable as error:
        context["problem"] = problem_of(error)
    try:
        note = await request.app[WITNESSING].own_checkpoint()
        context["witnesses"] = cosigned_by(note, request.app[WITNESSING].verifiers())
    except AccordError as error:
        context["problem"] = problem_of(error)
    context["size"] = await request.app[LOG].size()
    context["origin"] = request.app[LOG].origin
    context["own"] = members.node_id
    return render(request, "exchange/region.html", context)


async def sharing_box(request: web.Request, subject: Any) -> Part | None:
    """On a study's page: who outside may see it, and whether someone asks for it."""
    person = current_person(request)
    if subject.home or person.role not in CLINICAL or GRANTS not in request.app:
        return None
    given = [one for one in await request.app[GRANTS].issued(person) if one.study == subject.study]
    waiting = [one for one in await request.app[INCOMING].incoming(person) if one.study == subject.study]
    context = {"given": given, "waiting": waiting, "names": _names(request), "words": GRANT_WORDS}
    return Part("exchange/sharing_box.html", context)


async def home_box(request: web.Request, subject: Principal) -> Part | None:
    """On a clinician's start page: requests that wait, and studies that are shared."""
    if subject.role not in CLINICAL or INCOMING not in request.app:
        return None
    waiting = await request.app[INCOMING].incoming(subject)
    held = [one for one in await request.app[HOLDINGS].held(subject) if one.state in LIVING]
    if not waiting and not held:
        return None
    return Part("exchange/home_box.html", {"waiting": len(waiting), "held": len(held)})


BOXES = {"study": (sharing_box,), "home": (home_box,)}


def _ask_form(request: web.Request, given: Any, error: AccordError | None) -> web.Response:
    context = {
        "hospitals": _hospitals(request),
        "given": {name: str(given.get(name, "")) for name in _ASKED},
        "purposes": OFFERED_PURPOSES,
        "rights": tuple(Right),
        "presets": PRESETS,
        "error": problem_of(error) if error else None,
    }
    return render(request, "exchange/ask.html", context, status=problem_of(error).status if error else 200)


_ASKED = ("home", "study_instance_uid", "accession_number", "patient_id", "purpose", "reason", "hours")


async def _answer_form(request: web.Request, error: AccordError | None) -> web.Response:
    person = require_role(request, *CLINICIANS)
    found = next(
        (one for one in await request.app[INCOMING].incoming(person) if one.id == _id(request)), None
    )
    if found is None:
        raise NotFound(
            N_("This request is not open, or not for a patient of yours."),
            mend=N_("Look at the list of open requests."),
            code="request",
        )
    verdict = await request.app[GRANTS].coverage(found)
    context = {
        "asked": found,
        "names": _names(request),
        "study": await _study(request, found.study),
        "covered": None if isinstance(verdict, Deny) else verdict.expires,
        "reasons": verdict.reasons if isinstance(verdict, Deny) else (),
        "presets": _presets(found),
        "error": problem_of(error) if error else None,
    }
    return render(request, "exchange/answer.html", context, status=problem_of(error).status if error else 200)


def _presets(asked: IncomingRequest) -> tuple[tuple[str, str], ...]:
    return tuple((hours, words) for hours, words in PRESETS if int(hours) <= asked.hours) or PRESETS[:1]


def _particulars(form: Any, person: Principal) -> Particulars:
    return Particulars(
        person_name=person.name[:MAX_PERSON],
        reason=text_of(form, "reason", limit=MAX_REASON, needed=N_("Say why you need the study.")),
        study_instance_uid=text_of(form, "study_instance_uid", limit=64),
        accession_number=text_of(form, "accession_number", limit=64),
        patient_id=text_of(form, "patient_id", limit=128),
    )


def _hospitals(request: web.Request) -> list[Member]:
    return [member for member in request.app[MEMBERS].others() if HOSPITAL in member.roles]


def _names(request: web.Request) -> dict[str, str]:
    try:
        return {member.id: member.name for member in request.app[MEMBERS].current().members}
    except Unavailable:
        return {}


async def _study(request: web.Request, study: str) -> Any:
    try:
        return await request.app[INDEX].study(study)
    except NotFound:
        return None


def _all(form: Any, name: str) -> list[str]:
    return [str(value)[:64] for value in form.getall(name, [])][:16]


def _id(request: web.Request) -> str:
    value = request.match_info["id"]
    if not RECORD_ID.fullmatch(value):
        raise Invalid(N_("This is not the id of a record."))
    return value


ROUTES: list[web.RouteDef] = [
    web.get("/shared", shared_page),
    web.post("/shared/{id}/fetch", fetch_now),
    web.get("/requests", requests_page),
    web.get("/requests/new", ask_page),
    web.post("/requests", ask),
    web.get("/incoming", incoming_page),
    web.get("/incoming/{id}", answer_page),
    web.post("/incoming/{id}/grant", grant),
    web.post("/incoming/{id}/decline", decline),
    web.get("/grants", grants_page),
    web.post("/grants/{id}/revoke", revoke),
    web.get("/region", region_page),
]
