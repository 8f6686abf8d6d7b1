"""Keys, for hospital IT: every grade's key-encryption keys, their age and what is under them; rotation; the guarded grade.

The page keeps current while study keys are rewrapped. Holders of a guarded grade, whoever they are, find here where to give
their passphrase.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web

from consent.errors import AccordError, Invalid
from consent.vocabulary import Action, Grade
from node.rotation import Progress, max_ages
from node.web.api.keys import give_passphrase, grade_of, lock_grade, may_look, progress_of
from node.web.decisions import permitted
from node.web.keys import CLOCK, GRADE_LOCKS, KEY_DUTY, KEYS, POLICIES, ROTATION
from node.web.kit import StreamEvent, current_person, event_stream, render
from node.web.problems import Problem, problem_of
from node.web.text import N_, format_number


async def keys_page(request: web.Request) -> web.Response:
    """GET /keys"""
    return await _page(request)


async def events(request: web.Request) -> web.StreamResponse:
    """GET /keys/events: `values` for the numbers of a rewrapping, `refresh` when it begins or ends."""
    await permitted(request, Action.ADMINISTER)
    return await event_stream(request, _changes(request))


async def change(request: web.Request) -> web.StreamResponse:
    """POST /keys {do: rotate | rewrap | unlock | lock, grade, passphrase}"""
    form = await request.post()
    try:
        await _do(request, str(form.get("do", "")), form)
    except AccordError as error:
        if error.code == "role":
            raise
        return await _page(request, problem=problem_of(error))
    raise web.HTTPSeeOther("/keys")


async def _do(request: web.Request, what: str, form: Any) -> None:
    match what:
        case "rotate":
            person = await permitted(request, Action.ADMINISTER)
            await request.app[ROTATION].rotate(grade_of(form.get("grade")), person.actor)
            request.app[KEY_DUTY]()
        case "rewrap":
            await permitted(request, Action.ADMINISTER)
            request.app[KEY_DUTY]()
        case "unlock":
            await give_passphrase(request, grade_of(form.get("grade")), form.get("passphrase"))
        case "lock":
            await lock_grade(request, grade_of(form.get("grade")))
        case _:
            raise Invalid(N_("This change is not offered."))


async def _page(request: web.Request, problem: Problem | None = None) -> web.Response:
    runs = await may_look(request)
    states = request.app[GRADE_LOCKS].states()
    status = await request.app[KEYS].status() if runs else None
    ages = max_ages(request.app[POLICIES].parameters)
    context = {
        "runs": runs,
        "custody": status.custody if status else "",
        "grades": status.grades if status else (),
        "ages": {grade: ages[grade].days for grade in Grade},
        "ends": {one.grade: one.created + ages[one.grade] for one in (status.grades if status else ())},
        "now": request.app[CLOCK].now(),
        "progress": request.app[ROTATION].progress,
        "guarded": states,
        "me": current_person(request).id,
        "problem": problem,
    }
    return render(request, "keys.html", context, status=problem.status if problem else 200)


async def _changes(request: web.Request) -> AsyncIterator[StreamEvent]:
    before: Progress | None = None
    async for progress in progress_of(request):
        if before is not None and progress.running != before.running:
            yield StreamEvent({}, "refresh")
        elif progress.running:
            yield StreamEvent(
                {"moved": progress.moved, "moved words": format_number(progress.moved)}, "values"
            )
        before = progress


ROUTES = [
    web.get("/keys", keys_page),
    web.get("/keys/events", events),
    web.post("/keys", change),
]
