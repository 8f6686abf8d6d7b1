"""The start page: what this person comes here for, and what waits for them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from aiohttp import web

from consent.principals import CLINICAL, Principal
from consent.vocabulary import Action, EventKind, Purpose, Role
from node.access.devices import DeviceState
from node.access.resets import APPROVERS
from node.audit.event import Entry
from node.index import Level, Query
from node.web.api.log import record_reading
from node.web.decisions import verdict_of
from node.web.keys import CLOCK, GATEWAY, INDEX, LOG, REGISTRY, RESETS
from node.web.kit import address_of, current_person, render
from node.web.pages import SITE, NavItem, parts

RECENT_STUDIES = 8
ALARMS = (
    EventKind.INTEGRITY_FAILED,
    EventKind.REPLICA_DEGRADED,
    EventKind.WITNESS_ALARMED,
    EventKind.EMERGENCY_OPENED,
    EventKind.SIGN_IN_RESET,
    EventKind.SIGN_IN_RESET_DISOWNED,
    EventKind.ACCESS_ROWS_ACCEPTED,
    EventKind.PEER_REFUSED,
    EventKind.ROSTER_REFUSED,
)
REFUSALS = (
    EventKind.ACCESS_REFUSED,
    EventKind.SIGN_IN_REFUSED,
    EventKind.ASSOCIATION_REFUSED,
    EventKind.INSTANCE_REFUSED,
    EventKind.INPUT_REFUSED,
    EventKind.PEER_REFUSED,
    EventKind.LEASE_REFUSED,
)
RECENT_ALARMS = 6


async def home(request: web.Request) -> web.Response:
    """GET /"""
    person = current_person(request)
    context: dict[str, Any] = {
        "tiles": [item for item in request.app[SITE].nav if _is_tile(item, person)],
        "parts": await parts(request, "home", person),
        "reset": (await request.app[REGISTRY].person(person.id)).reset,
        "resets": await _resets(request, person),
    }
    if person.role in CLINICAL:
        context |= await _for_clinicians(request, person)
    elif person.role is Role.ADMINISTRATOR:
        context |= await _for_administrators(request)
    if verdict_of(request, Action.READ_LOG).permitted:
        context |= await _for_readers_of_the_log(request)
    return render(request, "home.html", context)


async def _resets(request: web.Request, person: Principal) -> int:
    """How many requests for a one-time sign-in wait for somebody like this person."""
    if RESETS not in request.app or person.role not in APPROVERS:
        return 0
    return len(await request.app[RESETS].waiting())


def _is_tile(item: NavItem, person: Principal) -> bool:
    # A clinician's start page begins with the studies themselves.
    return bool(item.lead) and item.shown_to(person) and item.path != "/studies"


async def _for_clinicians(request: web.Request, person: Principal) -> dict[str, Any]:
    query = Query.of(Level.STUDY, limit=RECENT_STUDIES)
    page = await request.app[GATEWAY].search(
        person, Level.STUDY, query, Purpose.TREATMENT, address_of(request)
    )
    return {"recent": page.matches}


async def _for_administrators(request: web.Request) -> dict[str, Any]:
    registry = request.app[REGISTRY]
    devices, people = (await registry.survey()).devices, await registry.people()
    counts = await _counts_of_a_day(request)
    return {
        "totals": await request.app[INDEX].totals(),
        "devices": sum(device.state is DeviceState.ACTIVE for device in devices),
        "people": sum(person.active for person in people),
        "refused_devices": counts.get(EventKind.ASSOCIATION_REFUSED, 0),
    }


async def _for_readers_of_the_log(request: web.Request) -> dict[str, Any]:
    counts = await _counts_of_a_day(request)
    log = request.app[LOG]
    alarms: list[Entry] = []
    for kind in ALARMS:
        alarms += await log.search(kind=kind, limit=RECENT_ALARMS)
    alarms.sort(key=lambda entry: entry.index, reverse=True)
    shown = [entry.index for entry in alarms[:RECENT_ALARMS]]
    await record_reading(request, {"alarms": shown, "entries": len(shown)})
    return {
        "entries": await log.size(),
        "refused": sum(counts.get(kind, 0) for kind in REFUSALS),
        "emergencies": counts.get(EventKind.EMERGENCY_OPENED, 0),
        "failures": counts.get(EventKind.INTEGRITY_FAILED, 0) + counts.get(EventKind.WITNESS_ALARMED, 0),
        "alarms": alarms[:RECENT_ALARMS],
    }


async def _counts_of_a_day(request: web.Request) -> dict[EventKind, int]:
    now = request.app[CLOCK].now()
    return await request.app[LOG].counts(now - timedelta(days=1), now + timedelta(seconds=1))


ROUTES = [web.get("/", home)]
