"""Signing in and out, and the first password. Sessions are `node.access.sessions`'."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from consent.errors import AccordError
from consent.principals import Principal
from node.web.keys import REGISTRY, SESSIONS
from node.web.kit import address_of, current_person, local_path, public, render, session_of
from node.web.kit import with_one_time_password as any_password
from node.web.people import COOKIE, FIRST_PASSWORD_PATH, SIGN_IN_PATH, give_cookie, take_cookie
from node.web.problems import problem_of
from node.web.text import _

MAX_FIELD_CHARS: Final = 512


@public
async def sign_in_page(request: web.Request) -> web.Response:
    """GET /sign-in"""
    target = local_path(request.query.get("next"))
    if session_of(request) is not None:
        raise web.HTTPSeeOther(target)
    return render(
        request,
        "sign_in.html",
        {"next": target, "login": "", "error": None, "ended": "next" in request.query},
    )


@public
async def sign_in(request: web.Request) -> web.StreamResponse:
    """POST /sign-in: a wrong pair shows the page again with what to do."""
    form = await request.post()
    login, password = str(form.get("login", "")), str(form.get("password", ""))
    target = local_path(str(form.get("next", "/")))
    try:
        session = await request.app[SESSIONS].sign_in(
            login[:MAX_FIELD_CHARS], password[: MAX_FIELD_CHARS + 1], address_of(request)
        )
    except AccordError as error:
        problem = problem_of(error)
        context = {"next": target, "login": login[:64], "error": problem, "ended": False}
        return render(request, "sign_in.html", context, status=problem.status)
    response = web.HTTPSeeOther(FIRST_PASSWORD_PATH if session.must_change_password else target)
    give_cookie(response, session.cookie)
    raise response


@any_password
async def sign_out(request: web.Request) -> web.StreamResponse:
    """POST /sign-out"""
    await request.app[SESSIONS].sign_out(request.cookies.get(COOKIE, ""))
    response = web.HTTPSeeOther(SIGN_IN_PATH)
    take_cookie(response)
    raise response


@any_password
async def first_password_page(request: web.Request) -> web.Response:
    """GET /first-password: for a session that has yet to choose; everybody else changes theirs on /account."""
    _choosing(request)
    return render(request, "first_password.html", {"error": None})


@any_password
async def choose_password(request: web.Request) -> web.StreamResponse:
    """POST /first-password: setting it ends every session, so sign in anew with it at once."""
    person = _choosing(request)
    form = await request.post()
    chosen, again = str(form.get("password", "")), str(form.get("again", ""))
    if chosen != again:
        return render(request, "first_password.html", {"error": _("The two are not the same.")}, status=400)
    try:
        await request.app[REGISTRY].set_password(person.id, chosen)
    except AccordError as error:
        words = f"{_(error.message)} {_(error.mend)}"
        return render(request, "first_password.html", {"error": words}, status=problem_of(error).status)
    session = await request.app[SESSIONS].sign_in(person.id, chosen, address_of(request))
    response = web.HTTPSeeOther("/")
    give_cookie(response, session.cookie)
    raise response


def _choosing(request: web.Request) -> Principal:
    """The person, if the session proved itself with a one-time password; else /account asks for the present one."""
    person, session = current_person(request), session_of(request)
    if session is None or not session.must_change_password:
        raise web.HTTPSeeOther("/account")
    return person


ROUTES = [
    web.get(SIGN_IN_PATH, sign_in_page),
    web.post(SIGN_IN_PATH, sign_in),
    web.post("/sign-out", sign_out),
    web.get(FIRST_PASSWORD_PATH, first_password_page),
    web.post(FIRST_PASSWORD_PATH, choose_password),
]
