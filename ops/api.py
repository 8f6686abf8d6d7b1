"""The hub's doors for people: the dashboard, the members, invitations; as pages and as JSON.

Handlers read, call one service and answer. The hub shares sign-in, account, log and static files with a hospital's
portal; it has no page about a study or a patient, and none of its pages can show one.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Final

from aiohttp import web

from consent.errors import AccordError, Invalid
from consent.principals import Principal
from consent.signed import Signed
from consent.vocabulary import Action, Role
from federation.fields import NODE_ID, PeerFields
from federation.joining import INVITATION_HOURS, Invitation
from federation.keys import AUTHORITY, MEMBERS, REPORTS, WITNESSING
from learning.keys import RUNS
from node.web.api import log as log_api
from node.web.decisions import permitted
from node.web.inputs import text_of, whole_number
from node.web.keys import LOG
from node.web.kit import (
    N_,
    NavItem,
    StreamEvent,
    current_person,
    event_stream,
    read_json,
    render,
    respond,
)
from node.web.pages import SITE
from node.web.portal import account, log, sign_in
from node.web.problems import Problem, problem_of
from ops.overview import Overview, look

MAX_REASON: Final = 500
MAX_NOTE: Final = 120
MAX_HOURS: Final = 24 * 14
LOOK_SECONDS: Final = 3.0
LOOKS_PER_STREAM: Final = 200
"""After so many looks (ten minutes) a stream ends and the browser comes again, with its session checked anew."""


async def home(request: web.Request) -> web.Response:
    """GET /: the dashboard for the hub's operator, the way onward for everybody else."""
    person = current_person(request)
    if person.role is Role.HUB_OPERATOR:
        return await _dashboard(request)
    tiles = [item for item in request.app[SITE].nav if item.lead and item.shown_to(person)]
    return render(request, "hub/start.html", {"tiles": tiles})


async def hub(request: web.Request) -> web.Response:
    """GET /api/v1/hub: members, totals, roster, witnesses, alarms and runs. Counts of null: fewer than five."""
    await permitted(request, Action.ADMINISTER)
    return respond((await _look(request)).to_json())


async def events(request: web.Request) -> web.StreamResponse:
    """GET /api/v1/hub/events: `hub` with the whole of GET /api/v1/hub at each change, then `refresh`."""
    await permitted(request, Action.ADMINISTER)
    return await event_stream(request, _changes(request))


async def invite(request: web.Request) -> web.Response:
    """POST /api/v1/hub/invitations {note?, hours?} → 201 with the invitation to hand over."""
    await permitted(request, Action.ADMINISTER)
    fields = PeerFields(await read_json(request), "invitation")
    invitation = await _invite(
        request,
        fields.optional_text("note", limit=MAX_NOTE) or "",
        fields.integer("hours", low=1, high=MAX_HOURS) if fields.has("hours") else INVITATION_HOURS,
    )
    ends = invitation.expires.isoformat() if invitation.expires else None
    return respond({"invitation": invitation.token, "expires": ends}, status=201)


async def download_invitation(request: web.Request) -> web.Response:
    """POST /invitations {note, hours}: the file to hand over."""
    await permitted(request, Action.ADMINISTER)
    form = await request.post()
    note = text_of(form, "note", limit=MAX_NOTE)
    hours = whole_number({"hours": str(form.get("hours", ""))}, "hours", INVITATION_HOURS)
    if not 1 <= hours <= MAX_HOURS:
        raise Invalid(
            N_("An invitation lasts from one hour to two weeks."), mend=N_("Choose a number from 1 to 336.")
        )
    invitation = await _invite(request, note, hours)
    name = re.sub(r"[^a-z0-9]+", "-", note.lower()).strip("-") or "node"
    return web.Response(
        text=invitation.token + "\n",
        content_type="text/plain",
        headers={"Content-Disposition": f'attachment; filename="{name}.accord"'},
    )


async def suspend(request: web.Request) -> web.Response:
    """POST /api/v1/hub/members/{id}/suspend {reason}"""
    person, member, reason = await _change(request)
    await request.app[AUTHORITY].suspend(member, by=person.actor, reason=reason)
    return respond({"roster": request.app[MEMBERS].version})


async def reinstate(request: web.Request) -> web.Response:
    """POST /api/v1/hub/members/{id}/reinstate {reason}"""
    person, member, reason = await _change(request)
    await request.app[AUTHORITY].reinstate(member, by=person.actor, reason=reason)
    return respond({"roster": request.app[MEMBERS].version})


async def change_member(request: web.Request) -> web.StreamResponse:
    """POST /members/{id} {do: suspend | reinstate, reason}"""
    person = await permitted(request, Action.ADMINISTER)
    form = await request.post()
    try:
        reason = text_of(form, "reason", limit=MAX_REASON, needed=N_("Give the reason in words."))
        match form.get("do"):
            case "suspend":
                await request.app[AUTHORITY].suspend(_member(request), by=person.actor, reason=reason)
            case "reinstate":
                await request.app[AUTHORITY].reinstate(_member(request), by=person.actor, reason=reason)
            case _:
                raise Invalid(N_("This change is not offered."))
    except AccordError as error:
        return await _dashboard(request, problem=problem_of(error))
    raise web.HTTPSeeOther("/")


async def _dashboard(request: web.Request, *, problem: Problem | None = None) -> web.Response:
    await permitted(request, Action.ADMINISTER)
    overview = await _look(request)
    context = {
        "region": overview,
        "problem": problem,
        "fault": problem_of(overview.fault) if overview.fault else None,
        "invitation_hours": INVITATION_HOURS,
        "learning": RUNS in request.app,
    }
    return render(request, "hub/dashboard.html", context, status=problem.status if problem else 200)


async def _look(request: web.Request) -> Overview:
    app = request.app
    return await look(
        members=app[MEMBERS],
        authority=app[AUTHORITY],
        reports=app[REPORTS],
        witnessing=app[WITNESSING],
        runs=app.get(RUNS),
        log=app[LOG],
    )


async def _changes(request: web.Request) -> AsyncIterator[StreamEvent]:
    """The overview whenever it differs from the last one."""
    before = ""
    for _look_number in range(LOOKS_PER_STREAM):
        value = (await _look(request)).to_json()
        now = json.dumps(value, sort_keys=True)
        if now != before:
            yield StreamEvent(value, "hub")
            if before:
                yield StreamEvent({}, "refresh")
            before = now
        await asyncio.sleep(LOOK_SECONDS)


async def _invite(request: web.Request, note: str, hours: float) -> Signed[Invitation]:
    members = request.app[MEMBERS]
    own = members.current().by_id[members.node_id]
    return await request.app[AUTHORITY].invite(own, note=note, hours=hours, by=current_person(request).actor)


async def _change(request: web.Request) -> tuple[Principal, str, str]:
    person = await permitted(request, Action.ADMINISTER)
    reason = PeerFields(await read_json(request), "change of a member").text("reason", limit=MAX_REASON)
    return person, _member(request), reason


def _member(request: web.Request) -> str:
    member = request.match_info["id"]
    if not NODE_ID.fullmatch(member):
        raise Invalid(N_("This is not the id of a member."))
    return member


NAV: Final[tuple[NavItem, ...]] = (
    NavItem("/", N_("Start"), icon="home"),
    NavItem(
        "/log",
        N_("Log"),
        (Role.SECURITY_OFFICER,),
        "log",
        N_("Oversight"),
        N_("Every deed on record; search, verify, prove."),
    ),
)

ROUTES: Final[list[web.RouteDef]] = [
    *sign_in.ROUTES,
    *account.ROUTES,
    *log.ROUTES,
    *log_api.ROUTES,
    web.get("/", home),
    web.post("/members/{id}", change_member),
    web.post("/invitations", download_invitation),
    web.get("/api/v1/hub", hub),
    web.get("/api/v1/hub/events", events),
    web.post("/api/v1/hub/invitations", invite),
    web.post("/api/v1/hub/members/{id}/suspend", suspend),
    web.post("/api/v1/hub/members/{id}/reinstate", reinstate),
]
