"""The fleet door and the tunnel: what passes, what does not, and that an idle site is held instead of sent away."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

import aiohttp
import pytest
from aiohttp import web

from learning import door as door_module
from learning.door import MAX_MESSAGE_BYTES, PASSED, PULL, FleetDoor, Tunnel
from learning.loopback import throwaway_certificate
from learning.service import same_key
from learning.superlink import public_pem
from node.tls import client_context, server_context
from node.web.kit import Listener, body_limit, make_app
from tests.learning.region import party


@dataclass
class Upstream:
    """Where the superlink would be: answers what `answers` holds, else nothing, and remembers."""

    port: int = 0
    seen: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    answers: list[bytes] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.Response:
        self.seen.append(request.path)
        self.headers.append(dict(request.headers))
        body = await request.read()
        return web.Response(body=self.answers.pop(0) if self.answers else body[:0])


@dataclass
class Way:
    """Tunnel → door → upstream, and a client of the tunnel."""

    upstream: Upstream
    door: FleetDoor
    base: str
    door_base: str
    client: aiohttp.ClientSession
    holding: bool = False
    hub_away: bool = False

    async def post(self, path: str, data: bytes = b"x", **headers: str) -> tuple[int, bytes]:
        async with self.client.post(self.base + path, data=data, headers=headers) as answer:
            return answer.status, await answer.read()


@asynccontextmanager
async def serving(handler: object, pair: object) -> AsyncIterator[int]:
    app = web.Application(client_max_size=MAX_MESSAGE_BYTES)
    app.router.add_route("*", "/{path:.*}", handler)  # type: ignore[arg-type]
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=server_context(pair))  # type: ignore[arg-type]
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@pytest.fixture
async def way() -> AsyncIterator[Way]:
    upstream = Upstream()
    link_root, link_pair = throwaway_certificate()
    hub_root, hub_pair = throwaway_certificate()
    near_root, near_pair = throwaway_certificate()
    built: Way
    async with serving(upstream.handle, link_pair) as port:
        upstream.port = port
        fleet = FleetDoor(holding=lambda: built.holding)
        fleet.open(port, link_root)

        @body_limit(MAX_MESSAGE_BYTES)
        async def pass_on(request: web.Request) -> web.Response:
            return await fleet.pass_on(request)

        app = make_app(routes=[web.route("*", "/v1/{call:.*}", pass_on)], services={}, people=False)
        async with Listener(app, "127.0.0.1", 0, server_context(hub_pair)) as listener:
            hub = f"https://127.0.0.1:{listener.port}"

            def target() -> tuple[str, object, str]:
                return ("https://127.0.0.1:1" if built.hub_away else hub), hub_context, "localhost"

            hub_context = client_context([hub_root.decode()])
            tunnel = Tunnel(hub=target)  # type: ignore[arg-type]
            base = f"https://127.0.0.1:{await tunnel.start(near_pair)}"
            connector = aiohttp.TCPConnector(ssl=client_context([near_root.decode()]))
            async with aiohttp.ClientSession(connector=connector) as client:
                built = Way(upstream, fleet, base, hub, client)
                yield built
            await tunnel.stop()
        await fleet.close()


@pytest.mark.requirement("R1", "V3")
async def test_a_supernodes_calls_pass_both_ways(way: Way) -> None:
    """Body, Flower's own headers and the answer go through; other headers do not."""
    way.upstream.answers.append(b"answer")
    status, body = await way.post(
        "/v1/fleet/push-messages", b"request", **{"flwr-signature": "s", "Cookie": "private"}
    )
    assert (status, body) == (200, b"answer")
    assert way.upstream.headers[0]["flwr-signature"] == "s"
    assert "Cookie" not in way.upstream.headers[0]


@pytest.mark.requirement("R1", "V3")
@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/start-run",
        "/v1/control/register-node",
        "/v1/runtime/acquire-task",
        "/v1/fleet/register-node",
        "/v1/fleet/unregister-node",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/%2e%2e/control/start-run",
        "/v1/fleet/pull-messages/",
        "/health",
    ],
)
async def test_control_and_runtime_calls_never_reach_the_superlink(way: Way, path: str) -> None:
    """At the tunnel and at the door itself: refused, and nothing arrives."""
    assert (await way.post(path))[0] == 403
    connector = aiohttp.TCPConnector(ssl=False)
    async with aiohttp.ClientSession(connector=connector) as client:
        async with client.post(way.door_base + path, data=b"x") as answer:
            assert answer.status in (403, 404)
        async with client.get(way.door_base + PULL) as answer:
            assert answer.status == 403
    assert way.upstream.seen == []


async def test_a_waiting_site_is_held_while_a_run_is_under_way(
    way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty answer is asked for again until there is a message; without a run it comes back at once."""
    monkeypatch.setattr(door_module, "LOOK_SECONDS", 0.02)
    started = monotonic()
    assert await way.post(PULL) == (200, b"")
    assert len(way.upstream.seen) == 1

    way.holding = True
    waiting = asyncio.create_task(way.post(PULL))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    way.upstream.answers += [b"", b"message"]
    assert await waiting == (200, b"message")
    assert len(way.upstream.seen) > 3

    monkeypatch.setattr(door_module, "HOLD_SECONDS", 0.1)
    assert await way.post(PULL) == (200, b"")
    assert monotonic() - started < 5


@pytest.mark.requirement("R4")
async def test_an_absent_hub_or_superlink_is_unavailable_and_not_an_error(way: Way) -> None:
    """503 tells a supernode to try again: hub away, superlink down, door shut."""
    way.hub_away = True
    assert (await way.post(PULL))[0] == 503
    way.hub_away = False
    way.door.shut()
    assert (await way.post(PULL))[0] == 503
    way.door.open(1, throwaway_certificate()[0])
    assert (await way.post(PULL))[0] == 503


async def test_a_message_past_the_bound_is_refused(way: Way) -> None:
    """Neither a request nor an answer may be longer than the named bound."""
    assert (await way.post("/v1/fleet/push-object", bytes(MAX_MESSAGE_BYTES + 1)))[0] == 413
    way.upstream.answers.append(bytes(MAX_MESSAGE_BYTES + 1))
    assert (await way.post("/v1/fleet/pull-object"))[0] == 503
    assert "/v1/fleet/register-node" not in PASSED


@pytest.mark.requirement("E1", "R1")
async def test_a_member_speaks_under_its_own_learning_key_only(tmp_path: Path) -> None:
    """What the header names must be the key that the roster pins; anything else is no match, never an error."""
    parties = [await party(name, tmp_path / name) for name in "ab"]
    keys = [base64.b64encode(public_pem(each.identity.learning_public).encode()).decode() for each in parties]
    pinned = parties[0].identity.learning_public
    assert same_key(keys[0], pinned)
    for claimed in (keys[1], "", "not base64 !", base64.b64encode(b"\xff\xfe").decode(), keys[0][:-8]):
        assert not same_key(claimed, pinned)
    assert not same_key(keys[0], "not a key")
    for each in parties:
        await each.database.close()
