"""A listening socket for aiohttp applications that a slow or greedy client cannot exhaust.

aiohttp has no header deadline, no connection cap and an hour's keep-alive. Here connections are counted when they are
accepted, before TLS: past the caps they are closed at once. A request whose headers have not all come within
the deadline is answered 408 and cut; so is a TLS handshake that stalls. Holds no route and no rule about people.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self

import structlog
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from consent.errors import Sentence, Unavailable
from node.web.limits import Limits
from node.web.metrics import HttpMetrics
from node.web.problems import where

BACKLOG: Final = 512
ACCEPT_PAUSE_SECONDS: Final = 0.2
UNREADABLE: Final = "The request cannot be read."
TOO_LATE: Final = (
    b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\nServer: accord\r\n\r\n"
)

_log = structlog.get_logger("listener")

TlsContext = ssl.SSLContext | Callable[[], ssl.SSLContext]
"""One context for the listener's life, or what gives the present one: asked anew for each connection."""

HandshakeFailed = Callable[[str, Exception], None]
"""Called with the peer's address when its TLS handshake failed."""


class _Unlogged(logging.Handler):
    """Turns what aiohttp itself would log (with values from the request) into a line without them."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        at = where(error) if error is not None else ""
        _log.warning("connection", error=type(error).__name__, at=at)


_aiohttp_log = logging.getLogger("accord.aiohttp")
_aiohttp_log.propagate = False
_aiohttp_log.addHandler(_Unlogged())


class GuardedHandler(RequestHandler):
    """aiohttp's connection protocol with a deadline for request headers.

    The deadline runs from the first byte of a request (for the first request: from the connection) until its
    headers are complete. Between requests the keep-alive timer of aiohttp runs instead.
    """

    def __init__(
        self, server: Any, *, header_deadline: float, on_lost: Callable[[], None], **options: Any
    ) -> None:
        super().__init__(server, **options)
        self._header_deadline = header_deadline
        self._on_lost = on_lost
        self._header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._arm()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._waits_for_headers():
            self._arm()
        else:
            self._disarm()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._disarm()
        self._on_lost()
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What cannot be parsed never reaches the application: answer it without echoing it or naming our parts."""
        response = super().handle_error(request, status, exc, UNREADABLE)
        response.headers["Server"] = "accord"
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    def _waits_for_headers(self) -> bool:
        if self._request_in_progress or self._messages:
            return False
        return self._waiter is None or not self._waiter.done()

    def _arm(self) -> None:
        if self._header_timer is None:
            loop = asyncio.get_running_loop()
            self._header_timer = loop.call_later(self._header_deadline, self._cut)

    def _disarm(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _cut(self) -> None:
        self._header_timer = None
        if self.transport is not None and self._waits_for_headers():
            self.transport.write(TOO_LATE)
            self.force_close()


class Listener:
    """Serves `app` on one address. Use as `async with Listener(...)`, or `start()` and `stop()`."""

    def __init__(
        self,
        app: web.Application,
        host: str,
        port: int,
        ssl_context: TlsContext | None = None,
        limits: Limits | None = None,
        metrics: HttpMetrics | None = None,
        on_handshake_failed: HandshakeFailed | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self._host, self._port = host, port
        self._ssl = ssl_context
        self._metrics = metrics
        self._on_handshake_failed = on_handshake_failed
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=self.limits.shutdown_seconds)
        self._peers: Counter[str] = Counter()
        self._greetings: set[asyncio.Task[None]] = set()
        self._socket: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        """The port that is bound (useful when 0 was asked for)."""
        assert self._socket is not None
        return int(self._socket.getsockname()[1])

    @property
    def connections(self) -> int:
        """How many connections are open now, handshakes included."""
        return self._peers.total()

    async def start(self) -> Self:
        """Bind and serve. Raises Unavailable when the address is taken or may not be bound."""
        self._socket = _bind(self._host, self._port)
        try:
            await self._runner.setup()
        except BaseException:
            self._socket.close()
            raise
        self._accepting = asyncio.create_task(self._accept(self._socket))
        return self

    async def stop(self) -> None:
        """Take no more connections, let running requests end (bounded), close the rest."""
        if self._accepting is not None:
            self._accepting.cancel()
            await asyncio.gather(self._accepting, *self._greetings, return_exceptions=True)
            self._accepting = None
        if self._socket is not None:
            self._socket.close()
        await self._runner.cleanup()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, address = await loop.sock_accept(listening)
            except OSError as error:  # out of file descriptors: wait until some come back
                _log.warning("accept-failed", reason=error.strerror)
                await asyncio.sleep(ACCEPT_PAUSE_SECONDS)
                continue
            peer = str(address[0])
            refusal = self._refusal(peer)
            if refusal:
                self._count_refused(refusal)
                connection.close()
                continue
            greeting = asyncio.create_task(self._greet(connection, peer, self._admitted(peer)))
            self._greetings.add(greeting)
            greeting.add_done_callback(self._greetings.discard)

    def _refusal(self, peer: str) -> str:
        if self._peers.total() >= self.limits.connections_total:
            return "total"
        if self._peers[peer] >= self.limits.connections_per_peer:
            return "per-peer"
        return ""

    async def _greet(self, connection: socket.socket, peer: str, left: Callable[[], None]) -> None:
        """Do the TLS handshake and hand the connection to aiohttp."""
        loop = asyncio.get_running_loop()
        _prepare(connection, self.limits)
        handler = GuardedHandler(
            self._runner.server,
            loop=loop,
            header_deadline=self.limits.header_deadline_seconds,
            on_lost=left,
            keepalive_timeout=self.limits.keepalive_seconds,
            access_log=None,
            logger=_aiohttp_log,
            lingering_time=2.0,
        )
        secure: dict[str, Any] = {}
        if self._ssl is not None:
            seconds = self.limits.handshake_seconds
            context = self._ssl() if callable(self._ssl) else self._ssl
            secure = {"ssl": context, "ssl_handshake_timeout": seconds, "ssl_shutdown_timeout": 2.0}
        try:
            await loop.connect_accepted_socket(lambda: handler, connection, **secure)
        except (OSError, TimeoutError) as error:
            # The handshake failed, so aiohttp never saw the connection and will not report its end.
            connection.close()
            left()
            self._count_refused("handshake")
            if self._on_handshake_failed is not None:
                self._on_handshake_failed(peer, error)
        except asyncio.CancelledError:
            connection.close()
            left()
            raise

    def _admitted(self, peer: str) -> Callable[[], None]:
        """Count a connection of `peer`; the answer uncounts it, once however often it is called."""
        counted = True
        self._peers[peer] += 1
        self._show_connections()

        def left() -> None:
            nonlocal counted
            if not counted:
                return
            counted = False
            self._peers[peer] -= 1
            if not self._peers[peer]:
                del self._peers[peer]
            self._show_connections()

        return left

    def _show_connections(self) -> None:
        if self._metrics is not None:
            self._metrics.connections.set(self._peers.total())

    def _count_refused(self, reason: str) -> None:
        if self._metrics is not None:
            self._metrics.refused_connections.labels(reason).inc()


async def serve(
    app: web.Application,
    host: str,
    port: int,
    ssl_context: ssl.SSLContext | None = None,
    limits: Limits | None = None,
    metrics: HttpMetrics | None = None,
) -> Listener:
    """Start a `Listener`; its owner calls `stop()`."""
    return await Listener(app, host, port, ssl_context, limits, metrics).start()


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setblocking(False)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise Unavailable(
            Sentence(
                "Cannot listen on %(host)s port %(port)s: %(fault)s.",
                host=host,
                port=port,
                fault=error.strerror or str(error),
            ),
            mend="End the program that uses this port, or choose another port in node.toml.",
            code="port-in-use",
        ) from error
    return listening


def _prepare(connection: socket.socket, limits: Limits) -> None:
    connection.setblocking(False)
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A client that stops reading is dropped by the kernel once sent data has waited this long.
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            milliseconds = int(limits.stalled_write_seconds * 1000)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
