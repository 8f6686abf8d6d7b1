"""One's own account: who the node takes this person for, tokens for programs, a new password."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from consent.errors import AccordError, Denied, Invalid, NotFound
from node.access.tokens import SCOPES
from node.web.inputs import number, text_of
from node.web.keys import CLOCK, REGISTRY, SESSIONS
from node.web.kit import address_of, current_person, render
from node.web.people import give_cookie
from node.web.problems import Problem, problem_of
from node.web.text import N_

DEFAULT_DAYS = 30.0
MAX_DAYS = 3660.0


async def account_page(request: web.Request) -> web.Response:
    """GET /account"""
    return await _page(request)


async def create_token(request: web.Request) -> web.StreamResponse:
    """POST /account/tokens {scope…, days}: the token is shown this once."""
    person = current_person(request)
    form = await request.post()
    scopes = [str(scope) for scope in form.getall("scope", [])][:10]
    try:
        days = number({"days": str(form.get("days", ""))}, "days", MAX_DAYS) or DEFAULT_DAYS
        token = await request.app[REGISTRY].create_token(person.id, scopes, days, by=person.actor)
    except AccordError as error:
        return await _page(request, problem=problem_of(error))
    return await _page(request, token=token)


async def revoke_token(request: web.Request) -> web.StreamResponse:
    """POST /account/tokens/{token}/revoke: one's own only."""
    person = current_person(request)
    registry = request.app[REGISTRY]
    token_id = request.match_info["token"]
    if token_id not in {token.id for token in await registry.tokens_of(person.id)}:
        raise NotFound(N_("You have no such token."))
    await registry.revoke_token(token_id, by=person.actor)
    raise web.HTTPSeeOther("/account")


async def change_password(request: web.Request) -> web.StreamResponse:
    """POST /account/password {old, password, again}: every other session and every token ends."""
    person = current_person(request)
    form = await request.post()
    old, chosen = text_of(form, "old", limit=512), str(form.get("password", ""))
    try:
        if chosen != str(form.get("again", "")):
            raise Invalid(N_("The two new passwords are not the same."))
        await request.app[SESSIONS].sign_in(person.id, old, address_of(request))
        tokens = await request.app[REGISTRY].set_password(person.id, chosen)
    except Denied as error:
        words = Denied(N_("The present password is wrong."), mend=error.mend)
        return await _page(request, problem=problem_of(words))
    except AccordError as error:
        return await _page(request, problem=problem_of(error))
    session = await request.app[SESSIONS].sign_in(person.id, chosen, address_of(request))
    response = web.HTTPSeeOther("/account?changed=1" + ("&tokens=1" if tokens else ""))
    give_cookie(response, session.cookie)
    raise response


async def answer_reset(request: web.Request) -> web.StreamResponse:
    """POST /account/reset {asked: yes | no}: whether one had asked for the last one-time sign-in."""
    person, form = current_person(request), await request.post()
    asked = {"yes": True, "no": False}.get(str(form.get("asked", "")))
    if asked is None:
        raise Invalid(N_("Say whether you asked for it."))
    await request.app[REGISTRY].answer_reset(person.id, asked=asked, address=address_of(request))
    raise web.HTTPSeeOther("/account")


async def _page(request: web.Request, *, token: str = "", problem: Problem | None = None) -> web.Response:
    person = current_person(request)
    registry = request.app[REGISTRY]
    context: dict[str, Any] = {
        "account": await registry.person(person.id),
        "tokens": await registry.tokens_of(person.id),
        "scopes": sorted(SCOPES),
        "token": token,
        "problem": problem,
        "now": request.app[CLOCK].now(),
        "changed": "changed" in request.query,
        "tokens_ended": "tokens" in request.query,
    }
    return render(request, "account.html", context, status=problem.status if problem else 200)


ROUTES = [
    web.get("/account", account_page),
    web.post("/account/tokens", create_token),
    web.post("/account/tokens/{token}/revoke", revoke_token),
    web.post("/account/password", change_password),
    web.post("/account/reset", answer_reset),
]
