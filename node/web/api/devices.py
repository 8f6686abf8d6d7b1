"""/api/v1/devices: the registered devices with what they do now, for hospital IT and its programs.

The live numbers are `node.dicom.watch`'s; every change goes through the registry and is on record. A change is looked at
at once, so that a device that was put out of use is out before the answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any, Final

from aiohttp import web

from consent.errors import Invalid, NotFound
from consent.principals import Principal
from consent.signed import Json
from consent.vocabulary import Action
from node.access.certificates import MAX_CERTIFICATE_CHARACTERS, MAX_OVERLAP, OVERLAP
from node.access.devices import SENDING, DeviceState
from node.access.live import LiveDevice
from node.access.wiping import MAX_WIPE_CHARACTERS
from node.web.decisions import permitted
from node.web.inputs import choice_of
from node.web.keys import DEVICE_WATCH, REGISTRY
from node.web.kit import StreamEvent, body_limit, event_stream, read_json, respond
from node.web.text import N_, _

LOOK_SECONDS: Final = 1.5
LOOKS_PER_STREAM: Final = 400
"""After so many looks (ten minutes) a stream ends and the browser comes again, with its session checked anew."""


async def devices(request: web.Request) -> web.Response:
    """GET → every device with its live state, and the AE titles of those whose rows were altered."""
    await permitted(request, Action.ADMINISTER)
    found = await request.app[DEVICE_WATCH].live()
    altered = (await request.app[REGISTRY].survey()).altered
    return respond({"devices": [device_json(one) for one in found], "altered": list(altered)})


async def device(request: web.Request) -> web.Response:
    """GET /{ae_title} → one device with its open associations."""
    await permitted(request, Action.ADMINISTER)
    return respond(device_json(await live_device(request, title_of(request))))


async def events(request: web.Request) -> web.StreamResponse:
    """GET /events: `devices` with the devices of GET at each change."""
    await permitted(request, Action.ADMINISTER)
    return await event_stream(request, _changes(request))


@body_limit(MAX_CERTIFICATE_CHARACTERS * 2)
async def add(request: web.Request) -> web.Response:
    """POST {ae_title, address, certificate | plain_reason, department?, services?, purpose?, port?} → 201."""
    person = await permitted(request, Action.ADMINISTER)
    data = await read_json(request)
    services = data.get("services", sorted(SENDING))
    port = data.get("port")
    if not isinstance(services, list) or not (port is None or type(port) is int):
        raise Invalid(N_("services is a list of words, port a number."))
    made = await request.app[REGISTRY].add_device(
        str(data.get("ae_title", "")),
        str(data.get("address", "")),
        _text_or_none(data, "certificate"),
        _text_or_none(data, "plain_reason"),
        department=(_text_or_none(data, "department") or "")[:120] or None,
        services=[str(service) for service in services],
        purpose=str(data.get("purpose", "TREAT")),
        port=port,
        by=person.actor,
    )
    return respond(device_json(await live_device(request, made.ae_title)), status=201)


@body_limit(MAX_WIPE_CHARACTERS * 4)
async def set_state(request: web.Request) -> web.Response:
    """POST /{ae_title}/state {state, reason?, wipe_certificate?}"""
    person = await permitted(request, Action.ADMINISTER)
    data = await read_json(request)
    state = choice_of(DeviceState, data.get("state", ""), "state")
    await change_state(
        request, person, state, str(data.get("reason", "")), _text_or_none(data, "wipe_certificate")
    )
    return respond(device_json(await live_device(request, title_of(request))))


@body_limit(MAX_CERTIFICATE_CHARACTERS * 2)
async def renew(request: web.Request) -> web.Response:
    """POST /{ae_title}/certificate {certificate, overlap_days?}: both certificates are let in during the overlap."""
    person = await permitted(request, Action.ADMINISTER)
    data = await read_json(request)
    certificate = str(data.get("certificate", ""))
    overlap = overlap_of(data.get("overlap_days", OVERLAP.days))
    await request.app[REGISTRY].renew_certificate(
        title_of(request), certificate, overlap=overlap, by=person.actor
    )
    return respond(device_json(await live_device(request, title_of(request))))


async def change_state(
    request: web.Request, person: Principal, state: DeviceState, reason: str, wipe: str | None
) -> None:
    """Put the device of the path in or out of use, and end what it has open before anybody is answered."""
    await request.app[REGISTRY].set_device_state(
        title_of(request), state, by=person.actor, reason=reason, wipe=wipe
    )
    await request.app[DEVICE_WATCH].look()


async def live_device(request: web.Request, ae_title: str) -> LiveDevice:
    """One device as of now. Raises NotFound, or RowAltered when its row was changed outside this node."""
    found = await request.app[DEVICE_WATCH].live()
    known = next((one for one in found if one.device.ae_title == ae_title), None)
    if known is None:
        await request.app[REGISTRY].device(ae_title)
        raise NotFound(N_("There is no such device."), mend=N_("List them in the portal, or add it."))
    return known


def overlap_of(value: object) -> timedelta:
    """A number of days. Raises Invalid."""
    text = str(value).strip()
    if not text.isdecimal() or len(text) > 3:
        raise Invalid(
            N_("The overlap is a number of days."), mend=_("Use 0 to %(days)s.", days=MAX_OVERLAP.days)
        )
    return timedelta(days=int(text))


def device_json(one: LiveDevice) -> Json:
    """A device with its live state, in the person's language."""
    return one.to_json(_)


def title_of(request: web.Request) -> str:
    """The AE title in the path."""
    return request.match_info["ae_title"]


async def _changes(request: web.Request) -> AsyncIterator[StreamEvent]:
    before: Json | None = None
    for _number in range(LOOKS_PER_STREAM):
        now = {"devices": [device_json(one) for one in await request.app[DEVICE_WATCH].live()]}
        if now != before:
            yield StreamEvent(now, "devices")
            before = now
        await asyncio.sleep(LOOK_SECONDS)


def _text_or_none(data: Json, name: str) -> str | None:
    value: Any = data.get(name)
    return None if value is None else str(value)


ROUTES: Final[list[web.RouteDef]] = [
    web.get("/api/v1/devices", devices),
    web.post("/api/v1/devices", add),
    web.get("/api/v1/devices/events", events),
    web.get("/api/v1/devices/{ae_title}", device),
    web.post("/api/v1/devices/{ae_title}/state", set_state),
    web.post("/api/v1/devices/{ae_title}/certificate", renew),
]
