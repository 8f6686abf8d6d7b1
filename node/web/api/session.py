"""/api/v1/session: sign in, see who this is, sign out."""

from __future__ import annotations

from aiohttp import web

from consent.fields import Fields
from consent.principals import Principal
from consent.signed import Json
from node.web.keys import SESSIONS
from node.web.kit import address_of, current_person, public, read_json, respond, session_of
from node.web.kit import with_one_time_password as any_password
from node.web.people import COOKIE, give_cookie, take_cookie


@public
async def start(request: web.Request) -> web.Response:
    """POST {login, password} → {csrf, person, expires, must_change_password} and the cookie."""
    fields = Fields(await read_json(request), "sign-in")
    session = await request.app[SESSIONS].sign_in(
        fields.text("login", limit=64), fields.text("password", limit=512), address_of(request)
    )
    response = respond(
        {
            "csrf": session.csrf,
            "person": person_json(session.principal),
            "expires": session.expires.isoformat(),
            "must_change_password": session.must_change_password,
        }
    )
    give_cookie(response, session.cookie)
    return response


@any_password
async def show(request: web.Request) -> web.Response:
    """GET → who this is; `csrf` and `expires` are null for a bearer token."""
    session = session_of(request)
    return respond(
        {
            "csrf": session.csrf if session else None,
            "person": person_json(current_person(request)),
            "expires": session.expires.isoformat() if session else None,
            "must_change_password": bool(session and session.must_change_password),
        }
    )


@any_password
async def end(request: web.Request) -> web.Response:
    """DELETE"""
    await request.app[SESSIONS].sign_out(request.cookies.get(COOKIE, ""))
    response = web.Response(status=204)
    take_cookie(response)
    return response


def person_json(principal: Principal) -> Json:
    """A person as the API gives it."""
    return {
        "login": principal.id,
        "role": principal.role.value,
        "name": principal.name,
        "node": principal.node,
        "department": principal.department,
    }


ROUTES = [
    web.post("/api/v1/session", start),
    web.get("/api/v1/session", show),
    web.delete("/api/v1/session", end),
]
