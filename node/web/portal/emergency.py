"""Break-glass: declaring an emergency for one study, and the review by somebody else afterwards.

The claim is judged inside `consent.decision.decide` when the gateway opens; nothing here lets anybody in.
"""

from __future__ import annotations

from typing import Any, Final

from aiohttp import web

from consent.emergency import MAX_REASON_CHARACTERS, EmergencyClaim, review_due
from consent.errors import Conflict, Denied, Invalid, NotFound
from consent.principals import CLINICAL, Principal
from consent.vocabulary import Action, EventKind
from node import emergencies
from node.audit.event import Entry, Event
from node.web.api.log import record_reading
from node.web.api.studies import make_opening
from node.web.decisions import permitted
from node.web.inputs import text_of, whole_number
from node.web.keys import CLOCK, LOG, POLICIES
from node.web.kit import address_of, current_person, render, require_role
from node.web.portal.studies import refused
from node.web.text import N_

MAX_REVIEWED_SHOWN: Final = 200


async def declare_page(request: web.Request) -> web.Response:
    """GET /emergency/{study}"""
    require_role(request, *CLINICAL)
    parameters = request.app[POLICIES].parameters
    context = {
        "study": request.match_info["study"],
        "minutes": parameters.emergency_minutes,
        "review_hours": parameters.emergency_review_hours,
        "longest": MAX_REASON_CHARACTERS,
    }
    return render(request, "emergency.html", context)


async def declare(request: web.Request) -> web.StreamResponse:
    """POST /emergency/{study} {reason}: opens the viewer at once."""
    require_role(request, *CLINICAL)
    form = await request.post()
    reason = text_of(form, "reason", limit=MAX_REASON_CHARACTERS, needed=N_("An emergency needs a reason."))
    study = request.match_info["study"]
    try:
        claim = EmergencyClaim(reason, request.app[CLOCK].now())
        opening = await make_opening(request, study, emergency=claim)
    except Denied as error:
        return refused(request, error, study, "")
    raise web.HTTPSeeOther(f"/viewer/{study}?opening={opening.id}")


async def reviews_page(request: web.Request) -> web.Response:
    """GET /emergencies: what waits for a review, the oldest first, and what was reviewed."""
    person = await _may_review(request)
    waiting, reviewed = await _cases(request)
    await record_reading(request, {"emergencies": len(waiting) + len(reviewed)})
    parameters = request.app[POLICIES].parameters
    now = request.app[CLOCK].now()
    rows = [
        {
            "entry": entry,
            "due": review_due(entry.at, parameters),
            "overdue": review_due(entry.at, parameters) < now,
            "own": entry.event.actor == person.actor,
        }
        for entry in waiting
    ]
    return render(request, "emergencies.html", {"waiting": rows, "reviewed": reviewed[:MAX_REVIEWED_SHOWN]})


async def review(request: web.Request) -> web.StreamResponse:
    """POST /emergencies/{index} {verdict, words}"""
    await _may_review(request)
    form = await request.post()
    index = whole_number(request.match_info, "index", 0)
    waiting, reviewed = await _cases(request)
    entry = next((one for one in waiting if one.index == index), None)
    if entry is None:
        if any(case["entry"].index == index for case in reviewed):
            raise Conflict(N_("This emergency access has been reviewed already."))
        raise NotFound(N_("There is no such emergency access."), mend=N_("Choose one from the list."))
    claimant = entry.event.actor.removeprefix("person:").rpartition("@")[0]
    person = await _may_review(request, claimant)
    judged = str(form.get("verdict", ""))
    if judged not in ("justified", "unjustified"):
        raise Invalid(N_("The review says neither justified nor unjustified."), mend=N_("Choose one."))
    words = text_of(form, "words", limit=1000, needed=N_("A review needs a sentence."))
    await request.app[LOG].record(
        Event(
            EventKind.EMERGENCY_REVIEWED,
            person.actor,
            patient=entry.event.patient,
            study=entry.event.study,
            address=address_of(request),
            reason=words,
            detail={
                "opening": entry.event.detail.get("opening"),
                "entry": index,
                "verdict": judged,
                "opened_by": entry.event.actor,
            },
        )
    )
    raise web.HTTPSeeOther("/emergencies")


async def _may_review(request: web.Request, claimant: str = "") -> Principal:
    """The person, when the rules let them review an emergency access of `claimant`. Raises Denied, on record."""
    another = current_person(request).id != claimant
    return await permitted(
        request, Action.REVIEW_EMERGENCY, another=another, words=N_("You may not review this.")
    )


async def _cases(request: web.Request) -> tuple[list[Entry], list[dict[str, Any]]]:
    """Emergency accesses not reviewed yet (oldest first), and the reviewed ones (newest first)."""
    log, now = request.app[LOG], request.app[CLOCK].now()
    opened, by_opening = await emergencies.openings(log, now), await emergencies.reviews(log, now)
    waiting = [entry for entry in reversed(opened) if emergencies.opening_of(entry) not in by_opening]
    done = [
        {"entry": entry, "review": by_opening[emergencies.opening_of(entry)]}
        for entry in opened
        if emergencies.opening_of(entry) in by_opening
    ]
    return waiting, done


ROUTES = [
    web.get("/emergency/{study}", declare_page),
    web.post("/emergency/{study}", declare),
    web.get("/emergencies", reviews_page),
    web.post(r"/emergencies/{index:\d{1,12}}", review),
]
