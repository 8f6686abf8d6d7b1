"""People, for hospital IT: who has an account. Words first, codes second."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from consent.errors import AccordError, Denied, Invalid
from consent.principals import PEOPLE, Principal
from consent.vocabulary import Action, Role
from node.access.resets import MAX_REASON_CHARACTERS
from node.web.decisions import permitted
from node.web.inputs import choice_of
from node.web.keys import REGISTRY, RESETS, SESSIONS
from node.web.kit import address_of, render
from node.web.problems import Problem, problem_of
from node.web.text import N_

ROLES = tuple(role for role in Role if role in PEOPLE and role is not Role.HUB_OPERATOR)


async def people_page(request: web.Request) -> web.Response:
    """GET /people"""
    await permitted(request, Action.ADMINISTER)
    return await _people(request)


async def add_person(request: web.Request) -> web.StreamResponse:
    """POST /people {login, name, role, department}: shows the one-time sign-in once."""
    person = await permitted(request, Action.ADMINISTER)
    form = await request.post()
    registry = request.app[REGISTRY]
    login = str(form.get("login", "")).strip().casefold()
    try:
        await registry.add_person(
            login,
            str(form.get("name", "")).strip(),
            choice_of(Role, str(form.get("role", "")), "role"),
            str(form.get("department", "")).strip() or None,
            by=person.actor,
        )
        secret = await registry.create_one_time(login, by=person.actor)
    except AccordError as error:
        return await _people(request, problem=problem_of(error), given=form)
    return await _people(request, made=(login, secret))


async def change_person(request: web.Request) -> web.StreamResponse:
    """POST /people/{login} {do: disable | enable | one-time | ask, reason}"""
    person = await permitted(request, Action.ADMINISTER)
    login, form = request.match_info["login"], await request.post()
    registry = request.app[REGISTRY]
    match form.get("do"):
        case "disable":
            _not_oneself(person, login)
            await registry.disable(login, by=person.actor)
            await request.app[SESSIONS].end_all(login)
        case "enable":
            await registry.enable(login, by=person.actor)
        case "one-time":
            if not await request.app[RESETS].alone(login):
                return await _people(request, asking=login)
            return await _people(
                request, made=(login, await registry.create_one_time(login, by=person.actor))
            )
        case "ask":
            try:
                reason = str(form.get("reason", ""))
                await request.app[RESETS].ask(person, login, reason, address=address_of(request))
            except AccordError as error:
                return await _people(request, asking=login, refused=problem_of(error))
            return await _people(request, asked=login)
        case _:
            raise Invalid(N_("This change is not offered."))
    raise web.HTTPSeeOther("/people")


async def _people(
    request: web.Request,
    *,
    problem: Problem | None = None,
    given: Any = None,
    made: tuple[str, str] | None = None,
    asking: str = "",
    asked: str = "",
    refused: Problem | None = None,
) -> web.Response:
    context = {
        "people": await request.app[REGISTRY].people(),
        "roles": ROLES,
        "problem": problem,
        "given": dict(given or {}),
        "made": made,
        "asking": asking,
        "asked": asked,
        "refused": refused,
        "longest": MAX_REASON_CHARACTERS,
    }
    wrong = problem or refused
    return render(request, "people.html", context, status=wrong.status if wrong else 200)


def _not_oneself(person: Principal, login: str) -> None:
    if person.id == login:
        raise Denied(N_("Nobody closes their own account."), mend=N_("Ask another administrator."))


ROUTES = [
    web.get("/people", people_page),
    web.post("/people", add_person),
    web.post("/people/{login}", change_person),
]
