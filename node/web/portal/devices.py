"""Devices, for hospital IT: which may send, what each does now, and every change to one. Pages that keep current.

The list and a device's page follow an event stream: numbers come as they change, the rest of the area is fetched again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any, Final
from urllib.parse import quote

from aiohttp import web

from consent.errors import AccordError
from consent.principals import Principal
from consent.vocabulary import Action, EventKind
from node.access.certificates import (
    EXPIRING,
    MAX_CERTIFICATE_CHARACTERS,
    MAX_OVERLAP,
    OVERLAP,
    read_certificate,
)
from node.access.devices import MAX_STATE_REASON_CHARACTERS, SENDING, TRANSITIONS, DeviceState, Service
from node.access.live import LiveDevice, refusal_words
from node.access.wiping import MAX_WIPE_CHARACTERS
from node.audit.event import Event
from node.tls import KeyPair
from node.web.api.devices import (
    LOOK_SECONDS,
    LOOKS_PER_STREAM,
    change_state,
    live_device,
    overlap_of,
    title_of,
)
from node.web.decisions import permitted
from node.web.inputs import choice_of, text_of
from node.web.keys import CLOCK, DEVICE_WATCH, IDENTITY, LOG, REGISTRY, SETTINGS
from node.web.kit import StreamEvent, address_of, body_limit, event_stream, render
from node.web.pages import parts
from node.web.problems import Problem, problem_of
from node.web.text import N_, _, format_bytes, format_moment, format_number

FORM_BYTES: Final = MAX_CERTIFICATE_CHARACTERS * 2
STATE_WORDS: Final = {
    DeviceState.ACTIVE: N_("In use"),
    DeviceState.MAINTENANCE: N_("In maintenance"),
    DeviceState.RETIRED: N_("Retired"),
}
SERVICE_WORDS: Final = {
    Service.STORE: N_("Send images"),
    Service.COMMIT: N_("Ask whether they are safe"),
    Service.QUERY: N_("Search"),
    Service.RETRIEVE: N_("Retrieve images"),
}
STATE_TONES: Final = {DeviceState.ACTIVE: "good", DeviceState.MAINTENANCE: "warn", DeviceState.RETIRED: ""}


async def devices_page(request: web.Request) -> web.Response:
    """GET /devices"""
    await permitted(request, Action.ADMINISTER)
    return await _devices(request)


@body_limit(FORM_BYTES)
async def add_device(request: web.Request) -> web.StreamResponse:
    """POST /devices {ae_title, address, channel: issue | certificate | plain, …}"""
    person = await permitted(request, Action.ADMINISTER)
    form = await request.post()
    channel = str(form.get("channel", ""))
    ae_title = str(form.get("ae_title", "")).strip()
    issued, certificate, reason = None, None, None
    try:
        if channel == "issue":
            issued = request.app[IDENTITY].issue_device_certificate(ae_title, request.app[CLOCK].now())
            certificate = issued.certificate.decode()
        elif channel == "certificate":
            certificate = str(form.get("certificate", ""))
        else:
            reason = str(form.get("reason", ""))
        services = [str(service) for service in form.getall("services", [])]
        await request.app[REGISTRY].add_device(
            ae_title,
            str(form.get("address", "")),
            certificate,
            reason,
            department=str(form.get("department", "")).strip()[:120] or None,
            services=services or SENDING,
            by=person.actor,
        )
    except AccordError as error:
        given = dict(form) | {"services": form.getall("services", [])}
        return await _devices(request, problem=problem_of(error), given=given)
    if issued is not None:
        await _record_issued(request, person, ae_title, issued)
        return await _devices(request, issued=(ae_title, (issued.certificate + issued.key).decode()))
    raise web.HTTPSeeOther("/devices")


async def events(request: web.Request) -> web.StreamResponse:
    """GET /devices/events: `values` for the numbers, `refresh` for everything else."""
    await permitted(request, Action.ADMINISTER)
    return await event_stream(request, _changes(request))


async def device_page(request: web.Request) -> web.Response:
    """GET /devices/{ae_title}"""
    await permitted(request, Action.ADMINISTER)
    return await _device(request)


@body_limit(MAX_WIPE_CHARACTERS * 4)
async def change_device(request: web.Request) -> web.StreamResponse:
    """POST /devices/{ae_title} {state, reason, wipe?}"""
    person = await permitted(request, Action.ADMINISTER)
    form = await request.post()
    try:
        state = choice_of(DeviceState, str(form.get("state", "")), "state")
        reason = text_of(form, "reason", limit=MAX_STATE_REASON_CHARACTERS)
        await change_state(request, person, state, reason, str(form.get("wipe", "")).strip() or None)
    except AccordError as error:
        return await _device(request, problem=problem_of(error), asked=str(form.get("state", "")))
    raise web.HTTPSeeOther(request.path)


@body_limit(FORM_BYTES)
async def renew_certificate(request: web.Request) -> web.StreamResponse:
    """POST /devices/{ae_title}/certificate {channel: issue | certificate, certificate, overlap_days}"""
    person = await permitted(request, Action.ADMINISTER)
    form, title = await request.post(), title_of(request)
    issued = None
    try:
        overlap = overlap_of(form.get("overlap_days", OVERLAP.days))
        if form.get("channel") == "issue":
            device = await request.app[REGISTRY].device(title)
            issued = request.app[IDENTITY].issue_device_certificate(
                title, request.app[CLOCK].now(), serves=device.port is not None
            )
            certificate = issued.certificate.decode()
        else:
            certificate = str(form.get("certificate", ""))
        await request.app[REGISTRY].renew_certificate(title, certificate, overlap=overlap, by=person.actor)
    except AccordError as error:
        return await _device(request, problem=problem_of(error), asked="certificate")
    if issued is not None:
        await _record_issued(request, person, title, issued)
        return await _device(request, issued=(title, (issued.certificate + issued.key).decode()))
    raise web.HTTPSeeOther(_address_of(title))


async def end_overlap(request: web.Request) -> web.StreamResponse:
    """POST /devices/{ae_title}/overlap: the former certificate is let in no more."""
    person = await permitted(request, Action.ADMINISTER)
    await request.app[REGISTRY].end_overlap(title_of(request), by=person.actor)
    raise web.HTTPSeeOther(_address_of(title_of(request)))


async def move_device(request: web.Request) -> web.StreamResponse:
    """POST /devices/{ae_title}/address {address}"""
    person = await permitted(request, Action.ADMINISTER)
    form = await request.post()
    try:
        await request.app[REGISTRY].move_device(
            title_of(request), str(form.get("address", "")), by=person.actor
        )
    except AccordError as error:
        return await _device(request, problem=problem_of(error), asked="address")
    raise web.HTTPSeeOther(_address_of(title_of(request)))


async def _record_issued(request: web.Request, person: Principal, ae_title: str, issued: KeyPair) -> None:
    """Put on record that a certificate of this node's authority is given out, before it is shown with its key."""
    detail = {"ae_title": ae_title, "fingerprint": read_certificate(issued.certificate.decode())[1]}
    await request.app[LOG].record(
        Event(EventKind.DEVICE_CERTIFICATE_ISSUED, person.actor, address=address_of(request), detail=detail)
    )


async def _devices(
    request: web.Request, *, problem: Problem | None = None, given: Any = None, issued: Any = None
) -> web.Response:
    settings = request.app[SETTINGS]
    found = await request.app[DEVICE_WATCH].live()
    in_service = [one for one in found if one.device.state is not DeviceState.RETIRED]
    context = {
        "rows": [_row(request, one) for one in sorted(found, key=_in_service_first)],
        "altered": (await request.app[REGISTRY].survey()).altered,
        "connected": sum(bool(one.associated) for one in found),
        "troubled": sum(one.troubled for one in in_service),
        "instances": sum(one.activity.instances for one in found),
        "expiring": sum(bool(_days_left(request, one)[1]) for one in in_service),
        "problem": problem,
        "given": dict(given or {}),
        "issued": issued,
        "ae_title": settings.node.ae_title,
        "dicom": settings.dicom,
        "services": tuple(Service),
        "service_words": SERVICE_WORDS,
        "sending": sorted(SENDING),
    }
    return render(request, "devices.html", context, status=problem.status if problem else 200)


async def _device(
    request: web.Request, *, problem: Problem | None = None, asked: str = "", issued: Any = None
) -> web.Response:
    one = await live_device(request, title_of(request))
    context = {
        "one": one,
        "device": one.device,
        "row": _row(request, one),
        "refused": refusal_words(one.activity.refusal, _) if one.activity.refusal else [],
        "changes": [state.value for state in DeviceState if state in TRANSITIONS[one.device.state]],
        "service_words": SERVICE_WORDS,
        "state_words": {state.value: words for state, words in STATE_WORDS.items()},
        "state_tones": {state.value: tone for state, tone in STATE_TONES.items()},
        "problem": problem,
        "asked": asked,
        "issued": issued,
        "now": request.app[CLOCK].now(),
        "overlap": OVERLAP.days,
        "max_overlap": MAX_OVERLAP.days,
        "parts": await parts(request, "device", one.device),
    }
    return render(request, "device.html", context, status=problem.status if problem else 200)


def _row(request: web.Request, one: LiveDevice) -> dict[str, Any]:
    """What the list shows of a device."""
    words, tone = _standing(one)
    left, urgency = _days_left(request, one)
    latest = refusal_words(one.activity.refusal, _)[0][0] if one.troubled and one.activity.refusal else ""
    return {"one": one, "standing": words, "tone": tone, "days": left, "urgency": urgency, "latest": latest}


def _standing(one: LiveDevice) -> tuple[str, str]:
    """What a device does now: a word in English for translation, and a tone."""
    if one.device.state is not DeviceState.ACTIVE:
        return STATE_WORDS[one.device.state], STATE_TONES[one.device.state]
    if one.associated:
        return N_("Connected"), "good"
    if one.troubled:
        return N_("Refused"), "bad"
    return (N_("Idle"), "") if one.last_seen else (N_("Never seen"), "info")


def _days_left(request: web.Request, one: LiveDevice) -> tuple[int | None, str]:
    """Whole days until the device's certificate ends, and a tone; None without a certificate."""
    ends = one.device.certificate_ends
    if ends is None:
        return None, ""
    left = ends - request.app[CLOCK].now()
    return left.days, "bad" if left <= timedelta(0) else "warn" if left <= EXPIRING else ""


def _in_service_first(one: LiveDevice) -> tuple[bool, str]:
    return one.device.state is DeviceState.RETIRED, one.device.ae_title


async def _changes(request: web.Request) -> AsyncIterator[StreamEvent]:
    """The numbers that changed by name, or a word that more than numbers did."""
    shape: Any = None
    before: dict[str, str] = {}
    for _number in range(LOOKS_PER_STREAM):
        found = await request.app[DEVICE_WATCH].live()
        now, numbers = [_shape(one) for one in found], _numbers(found)
        if shape is not None and now != shape:
            yield StreamEvent({}, "refresh")
        elif changed := {name: text for name, text in numbers.items() if before.get(name) != text}:
            yield StreamEvent(changed, "values")
        shape, before = now, numbers
        await asyncio.sleep(LOOK_SECONDS)


def _shape(one: LiveDevice) -> tuple[Any, ...]:
    """What must be drawn anew when it changes."""
    refusal = one.activity.refusal
    return (one.device, one.associated, one.troubled, one.activity.refusals, refusal.at if refusal else None)


def _numbers(found: tuple[LiveDevice, ...]) -> dict[str, str]:
    """The texts that a page fills in by name."""
    numbers = {"instances": format_number(sum(one.activity.instances for one in found))}
    for one in found:
        title = one.device.ae_title
        numbers[f"seen {title}"] = format_moment(one.last_seen) or "–"
        numbers[f"instances {title}"] = format_number(one.activity.instances)
        numbers[f"bytes {title}"] = format_bytes(one.activity.size_bytes)
    return numbers


def _address_of(ae_title: str) -> str:
    return f"/devices/{quote(ae_title, safe='')}"


ROUTES: Final = [
    web.get("/devices", devices_page),
    web.post("/devices", add_device),
    web.get("/devices/events", events),
    web.get("/devices/{ae_title}", device_page),
    web.post("/devices/{ae_title}", change_device),
    web.post("/devices/{ae_title}/certificate", renew_certificate),
    web.post("/devices/{ae_title}/overlap", end_overlap),
    web.post("/devices/{ae_title}/address", move_device),
]
