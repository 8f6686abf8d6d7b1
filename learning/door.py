"""The way of Flower's messages between a site and the hub: through the members' own mutually authenticated channel.

At the hub `FleetDoor` stands on the peer listener before the superlink, which binds loopback only. It passes the
calls that a supernode needs and nothing else: Flower's control and runtime interfaces share that port and know
no authentication. At a site `Tunnel` is what the supernode takes for the superlink: it forwards over this
node's peer TLS. No new port, no new certificate; who is suspended is cut off here too.

While a run is under way the door holds an empty answer to `pull-messages` and asks again for the site (long
poll), because a supernode that gets nothing sleeps three seconds. Every request and answer is bounded.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import monotonic

import aiohttp
from aiohttp import web

from consent.errors import Denied, Unavailable
from node.ports import HOST
from node.tls import KeyPair, client_context, server_context

FLEET = "/v1/fleet/"
PULL = FLEET + "pull-messages"
PASSED = frozenset(
    FLEET + call
    for call in (
        "activate-node",
        "deactivate-node",
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "get-run",
        "get-fab",
        "push-object",
        "pull-object",
        "confirm-message-received",
    )
)
"""What a supernode calls. Registering is the hub's own business, so not even that passes."""

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
HOLD_SECONDS = 12.0
LOOK_SECONDS = 0.15
ANSWER_SECONDS = 28.0
_PASSED_HEADERS = ("flwr-", "x-flwr-", "content-type", "accept")
_TIMEOUT = aiohttp.ClientTimeout(total=ANSWER_SECONDS, connect=5.0)


@dataclass(frozen=True)
class Answer:
    """What the other side said."""

    status: int
    body: bytes
    headers: Mapping[str, str]


class Forwarder:
    """Sends requests on to one place over one TLS context, bounded in size and time."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def post(
        self, url: str, body: bytes, headers: Mapping[str, str], context: ssl.SSLContext, name: str | None
    ) -> Answer:
        """POST and read the whole answer. Raises Unavailable."""
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=_TIMEOUT, trust_env=False, auto_decompress=False)
        try:
            async with self._session.post(
                url, data=body, headers=headers, ssl=context, server_hostname=name, allow_redirects=False
            ) as response:
                content = await response.content.read(MAX_MESSAGE_BYTES + 1)
                while len(content) <= MAX_MESSAGE_BYTES and (more := await response.content.read(1 << 20)):
                    content += more
                if len(content) > MAX_MESSAGE_BYTES:
                    raise Unavailable("An answer of the learning service is too long.")
                return Answer(response.status, content, _kept(response.headers))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unavailable(
                "The learning service cannot be reached now.",
                mend="It is tried again by itself.",
                code="learning-away",
            ) from error

    async def close(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()
            self._session = None


class FleetDoor:
    """The hub's side. `open` points it at a superlink, `shut` makes it refuse until the next one is up.

    `holding` says whether a run is under way.
    """

    def __init__(self, *, holding: Callable[[], bool]) -> None:
        self._holding = holding
        self._forwarder = Forwarder()
        self._target: tuple[str, ssl.SSLContext] | None = None

    def open(self, port: int, root_certificate: bytes) -> None:
        """Pass calls on to the superlink at `port`, known by its authority."""
        self._target = (f"https://{HOST}:{port}", client_context([root_certificate.decode()]))

    def shut(self) -> None:
        """Refuse until the next `open`."""
        self._target = None

    async def close(self) -> None:
        """End for good."""
        self.shut()
        await self._forwarder.close()

    async def pass_on(self, request: web.Request) -> web.Response:
        """Answer one call of a site. Raises Denied for what a supernode has no business with."""
        if request.path not in PASSED or request.method != "POST":
            raise Denied("Only a learning site's own calls pass here.", code="fleet-only")
        body, headers = await request.read(), _kept(request.headers)
        until = monotonic() + HOLD_SECONDS
        while True:
            if self._target is None:
                raise Unavailable("No training is offered now.", code="learning-idle")
            base, context = self._target
            answer = await self._forwarder.post(base + request.path, body, headers, context, None)
            idle = request.path == PULL and answer.status == 200 and not answer.body
            if not idle or not self._holding() or monotonic() > until:
                return web.Response(status=answer.status, body=answer.body, headers=answer.headers)
            await asyncio.sleep(LOOK_SECONDS)


class Tunnel:
    """A site's side: listens on 127.0.0.1 with a throwaway certificate and forwards to the hub's peer listener."""

    def __init__(self, *, hub: Callable[[], tuple[str, ssl.SSLContext, str]]) -> None:
        """`hub` gives the hub's base URL, the TLS context that shows this member, and the name to check."""
        self._hub = hub
        self._forwarder = Forwarder()
        self._runner: web.AppRunner | None = None

    async def start(self, pair: KeyPair) -> int:
        """Listen; return the port."""
        app = web.Application(client_max_size=MAX_MESSAGE_BYTES)
        app.router.add_route("*", "/{path:.*}", self._pass_on)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, HOST, 0, ssl_context=server_context(pair))
        await site.start()
        port: int = self._runner.addresses[0][1]
        return port

    async def stop(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        await self._forwarder.close()

    async def _pass_on(self, request: web.Request) -> web.Response:
        if request.path not in PASSED:
            return web.Response(status=403)
        try:
            base, context, name = self._hub()
            body = await request.read()
            answer = await self._forwarder.post(
                base + request.path, body, _kept(request.headers), context, name
            )
        except Unavailable:
            return web.Response(status=503)
        return web.Response(status=answer.status, body=answer.body, headers=answer.headers)


def _kept(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower().startswith(_PASSED_HEADERS)}


FLEET_DOOR: web.AppKey[FleetDoor] = web.AppKey("fleet_door")
