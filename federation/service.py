"""The peer door: what members may ask of this node over mutual TLS. A table of routes and thin handlers.

Every handler gets the member that the doorway identified, reads a bounded body, and gives it to the service that
knows its meaning. Errors become problem documents by family, as everywhere. Format: docs/formats/peer-protocol.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from aiohttp import web

from consent.errors import Invalid
from federation.channel import Channel
from federation.doorway import JOIN_PATH, ROSTER_PATH, peer_of, peers_only
from federation.fields import RECORD_ID, PeerFields, read_object
from federation.keys import (
    AUTHORITY,
    DOORWAY,
    GRANTS,
    HOLDINGS,
    INCOMING,
    LEASES,
    MEMBERS,
    RELEASES,
    REPORTS,
    WITNESSING,
)
from federation.protocol import (
    MAX_BODY_BYTES,
    MAX_CHECKPOINT_BODY_BYTES,
    MAX_GRANTS_ASKED,
    MAX_RANGE_BYTES,
    PREFIX,
)
from federation.releases import RELEASE_CHUNK_BYTES
from node.web.kit import HttpMetrics, Limits, Listener, address_of, body_limit, make_app, read_json, respond

MAX_TOKEN = MAX_BODY_BYTES
_RANGE = re.compile(r"bytes=(\d{1,15})-(\d{1,15})")


async def roster(request: web.Request) -> web.Response:
    """GET roster: the signed roster in force here. Any member may serve it; the signatures carry the trust."""
    return respond({"tokens": list(request.app[MEMBERS].tokens)})


@body_limit(MAX_BODY_BYTES)
async def join(request: web.Request) -> web.Response:
    """POST join (hub only, without a client certificate): {descriptor, code} → {listed, tokens}."""
    read = await _body(request)
    admission = await request.app[AUTHORITY].admit(
        read.text("descriptor", limit=MAX_TOKEN), read.text("code", limit=64), address=address_of(request)
    )
    return respond({"listed": admission.listed, "tokens": list(admission.tokens)})


@body_limit(MAX_BODY_BYTES)
async def request_study(request: web.Request) -> web.Response:
    """POST requests: {token: study-request} → {state, grant, words}."""
    token = (await _body(request)).text("token", limit=MAX_TOKEN)
    return respond(await request.app[INCOMING].receive(peer_of(request), token, address_of(request)))


async def request_state(request: web.Request) -> web.Response:
    """GET requests/{id}: {state, grant, words}."""
    return respond(await request.app[INCOMING].state(peer_of(request), _id(request)))


@body_limit(2 * MAX_BODY_BYTES)
async def receive_grant(request: web.Request) -> web.Response:
    """POST grants: {request, grant, consent} → {grant: id}."""
    body = await read_json(request)
    return respond(
        {"grant": await request.app[HOLDINGS].receive(peer_of(request), body, address_of(request))}
    )


async def grant_ended(request: web.Request) -> web.Response:
    """POST grants/ended: {token: grant-ended}."""
    token = (await _body(request)).text("token", limit=MAX_TOKEN)
    await request.app[HOLDINGS].told_ended(peer_of(request), token)
    return respond({})


async def grant_states(request: web.Request) -> web.Response:
    """POST grants/states: {ids} → {id: {alive, words}}."""
    ids = (await _body(request)).matchings("ids", RECORD_ID, MAX_GRANTS_ASKED)
    return respond(await request.app[GRANTS].states(peer_of(request), ids))


async def pack_manifest(request: web.Request) -> web.Response:
    """GET packs/{grant}/manifest: {token: manifest}."""
    manifest = await request.app[RELEASES].manifest(peer_of(request), _id(request), address_of(request))
    return respond({"token": manifest.token})


async def pack_bytes(request: web.Request) -> web.StreamResponse:
    """GET packs/{grant}/bytes with a Range: sealed bytes, cut off when the grant ends."""
    release = await request.app[RELEASES].open(peer_of(request), _id(request))
    offset, end = _range(request, release.size)
    response = web.StreamResponse(status=206)
    response.content_type = "application/octet-stream"
    response.content_length = end - offset
    response.headers["Content-Range"] = f"bytes {offset}-{end - 1}/{release.size}"
    # What cannot be read at all is said with a status; what fails later can only be cut off.
    first = await release.read(offset, min(RELEASE_CHUNK_BYTES, end - offset))
    await response.prepare(request)
    await response.write(first)
    for at in range(offset + len(first), end, RELEASE_CHUNK_BYTES):
        await response.write(await release.read(at, min(RELEASE_CHUNK_BYTES, end - at)))
    await response.write_eof()
    return response


@body_limit(MAX_BODY_BYTES)
async def lease(request: web.Request) -> web.Response:
    """POST leases: {token: lease-request} → {token: lease}."""
    token = (await _body(request)).text("token", limit=MAX_TOKEN)
    released = await request.app[LEASES].release(peer_of(request), token, address_of(request))
    return respond({"token": released.token})


async def receipt(request: web.Request) -> web.Response:
    """POST receipts: {token: shred-receipt}."""
    token = (await _body(request)).text("token", limit=MAX_TOKEN)
    await request.app[GRANTS].receipt(peer_of(request), token, address_of(request))
    return respond({})


@body_limit(MAX_CHECKPOINT_BODY_BYTES)
async def add_checkpoint(request: web.Request) -> web.Response:
    """POST add-checkpoint: C2SP tlog-witness; text in, cosignature line out, its own status codes."""
    text = (await request.read()).decode("utf-8", "replace")
    status, media_type, body = await request.app[WITNESSING].add_checkpoint(peer_of(request), text)
    return web.Response(status=status, text=body, content_type=media_type)


async def checkpoint(request: web.Request) -> web.Response:
    """GET checkpoint: this node's latest signed tree head with its cosignatures."""
    return web.Response(text=await request.app[WITNESSING].own_checkpoint(), content_type="text/plain")


async def report(request: web.Request) -> web.Response:
    """POST reports (hub only): {token: node-report}."""
    token = (await _body(request)).text("token", limit=MAX_TOKEN)
    await request.app[REPORTS].receive(peer_of(request), token)
    return respond({})


MEMBER_ROUTES: list[web.RouteDef] = [
    web.get(ROSTER_PATH, roster),
    web.post(f"{PREFIX}/add-checkpoint", add_checkpoint),
    web.get(f"{PREFIX}/checkpoint", checkpoint),
]
"""What every member answers, the hub included."""

HUB_ROUTES: list[web.RouteDef] = [
    *MEMBER_ROUTES,
    web.post(JOIN_PATH, join),
    web.post(f"{PREFIX}/reports", report),
]

PEER_ROUTES: list[web.RouteDef] = [
    *MEMBER_ROUTES,
    web.post(f"{PREFIX}/requests", request_study),
    web.get(f"{PREFIX}/requests/{{id}}", request_state),
    web.post(f"{PREFIX}/grants", receive_grant),
    web.post(f"{PREFIX}/grants/ended", grant_ended),
    web.post(f"{PREFIX}/grants/states", grant_states),
    web.get(f"{PREFIX}/packs/{{id}}/manifest", pack_manifest),
    web.get(f"{PREFIX}/packs/{{id}}/bytes", pack_bytes),
    web.post(f"{PREFIX}/leases", lease),
    web.post(f"{PREFIX}/receipts", receipt),
]
"""What a hospital answers."""


def make_peer_app(
    *,
    routes: Iterable[web.AbstractRouteDef],
    services: Mapping[web.AppKey[Any], Any],
    metrics: HttpMetrics | None = None,
) -> web.Application:
    """The application of the peer listener. `services` must hold the DOORWAY.

    Every route, also one that a floor above adds, is reached by identified members only (`peer_of(request)`).
    """
    app = make_app(routes=routes, services=services, metrics=metrics, people=False)
    # Before the last one, which reads the body: nobody unknown is listened to that long.
    app.middlewares.insert(len(app.middlewares) - 1, peers_only)
    return app


def peer_listener(
    app: web.Application,
    host: str,
    port: int,
    *,
    channel: Channel,
    limits: Limits | None = None,
    metrics: HttpMetrics | None = None,
) -> Listener:
    """The listener for `app`: TLS by the roster in force at each connection, refusals on record.

    A hub (an application with the AUTHORITY) also lets clients without a certificate in, as far as its door of joining.
    """
    strangers = AUTHORITY in app
    return Listener(
        app,
        host,
        port,
        lambda: channel.server_context(strangers=strangers),
        limits,
        metrics,
        app[DOORWAY].handshake_failed,
    )


async def _body(request: web.Request) -> PeerFields:
    return read_object(await read_json(request), "message")


def _id(request: web.Request) -> str:
    value = request.match_info["id"]
    if not RECORD_ID.fullmatch(value):
        raise Invalid("This is not the id of a record.")
    return value


def _range(request: web.Request, size: int) -> tuple[int, int]:
    """Offset and end of the one bounded range that must be asked for."""
    found = _RANGE.fullmatch(request.headers.get("Range", ""))
    if found is None:
        raise Invalid("Ask for one range of bytes: Range: bytes=FIRST-LAST.", code="bad-range")
    offset, end = int(found[1]), min(int(found[2]) + 1, size)
    if not offset < end or end - offset > MAX_RANGE_BYTES:
        raise Invalid(
            f"The range must lie within {size} bytes and cover at most {MAX_RANGE_BYTES}.", code="bad-range"
        )
    return offset, end
