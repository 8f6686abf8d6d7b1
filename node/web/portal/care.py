"""Treatment relationships: a list by person, and a form that takes the hospital's own Patient ID."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from consent.errors import AccordError, Denied
from consent.principals import CLINICAL
from consent.vocabulary import Role
from node.web.api.care import may_enter, record_care
from node.web.inputs import text_of
from node.web.keys import CARE, REGISTRY
from node.web.kit import render, require_role
from node.web.problems import Problem, problem_of
from node.web.text import N_

ENTER = (Role.ADMINISTRATOR, Role.CHIEF_PHYSICIAN)


async def care_page(request: web.Request) -> web.Response:
    """GET /care"""
    return await _page(request, None, {})


async def record(request: web.Request) -> web.StreamResponse:
    """POST /care {login, patient_id, until?}"""
    form = await request.post()
    try:
        await record_care(request, form)
    except Denied:
        raise
    except AccordError as error:
        return await _page(request, problem_of(error), form)
    raise web.HTTPSeeOther("/care")


async def end(request: web.Request) -> web.StreamResponse:
    """POST /care/end {login, patient}"""
    form = await request.post()
    login = text_of(form, "login", limit=64, needed=N_("It does not say whose relationship."))
    person = await may_enter(request, login)
    await request.app[CARE].end(login, text_of(form, "patient", limit=64), person.actor)
    raise web.HTTPSeeOther("/care")


async def _page(request: web.Request, problem: Problem | None, given: Any) -> web.Response:
    require_role(request, *ENTER)
    care = request.app[CARE]
    people = [
        person for person in await request.app[REGISTRY].people() if person.role in CLINICAL and person.active
    ]
    rows = [(person, sorted(await care.patients_of(person.login))) for person in people]
    context = {"people": people, "rows": rows, "problem": problem, "given": dict(given)}
    return render(request, "care.html", context, status=problem.status if problem else 200)


ROUTES = [web.get("/care", care_page), web.post("/care", record), web.post("/care/end", end)]
