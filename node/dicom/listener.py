"""The DICOM door: listening sockets, plain and mutual TLS, in front of one gate.

Accepts, applies the caps before a TLS handshake costs anything, bounds the handshake, and hands the socket to a
`Connection`. Owns every task that its connections start, and ends them.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Coroutine
from typing import Any, Self

import structlog

from consent.errors import Unavailable
from consent.vocabulary import EventKind

from .connection import Connection
from .gate import Gate
from .services import EventLog

BACKLOG = 128
ACCEPT_PAUSE_SECONDS = 0.2

_logger = structlog.get_logger()


class Listener:
    """One listening port. With `tls` (which must ask for client certificates) DICOM TLS, without it plain DICOM.

    A node has two of them around one `gate`, so that bounds hold over both. Use as `async with`.
    """

    def __init__(
        self, gate: Gate, log: EventLog, host: str, port: int, *, tls: ssl.SSLContext | None = None
    ) -> None:
        if tls is not None and tls.verify_mode is not ssl.CERT_REQUIRED:
            raise ValueError("DICOM TLS is mutual: the context must require client certificates")
        self._gate, self._log, self._host, self._port, self._tls = gate, log, host, port, tls
        self._listening: socket.socket | None = None
        self._connections: set[Connection] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._greeting: set[asyncio.Task[Any]] = set()
        self._accepting: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        """The port that is listened on; chosen by the system when 0 was asked for."""
        return int(self._listening.getsockname()[1]) if self._listening is not None else self._port

    async def start(self) -> Self:
        """Begin to accept. Raises Unavailable when the port cannot be had."""
        self._listening = _bind(self._host, self._port)
        self._accepting = asyncio.create_task(self._accept_forever(), name=f"dicom-accept-{self.port}")
        return self

    async def stop(self) -> None:
        """Accept no more, answer what has arrived whole, end every association and task."""
        if self._accepting is not None:
            self._accepting.cancel()
            await asyncio.gather(self._accepting, return_exceptions=True)
            self._accepting = None
        if self._listening is not None:
            self._listening.close()
        for connection in list(self._connections):
            connection.finish()
        for task in list(self._greeting):
            task.cancel()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=self._gate.limits.stop_seconds)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def _spawn(self, work: Coroutine[Any, Any, object], name: str = "dicom") -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _logger.error("dicom_task_failed", task=task.get_name(), error=repr(error))

    async def _accept_forever(self) -> None:
        loop = asyncio.get_running_loop()
        listening = self._listening
        assert listening is not None
        while True:
            try:
                connection, name = await loop.sock_accept(listening)
            except OSError as error:  # out of descriptors, or the peer left while it waited
                _logger.warning("dicom_accept_failed", error=str(error))
                await asyncio.sleep(ACCEPT_PAUSE_SECONDS)
                continue
            address = str(name[0])
            code = self._gate.connection_refusal(address)
            if code:
                connection.close()
                self._refused(code, "Too many connections are open.", address)
            else:
                # Counted now: in a flood many are accepted before the first task runs.
                counted = contextlib.ExitStack()
                counted.enter_context(self._gate.connected(address))
                self._spawn(self._greet(connection, address, counted), "dicom-greet")

    async def _greet(self, connection: socket.socket, address: str, counted: contextlib.ExitStack) -> None:
        """Shake hands; keep the connection in the count until it is closed."""
        made: Connection | None = None

        def make() -> Connection:
            nonlocal made
            made = Connection(self._gate, self._log, self._spawn, address, tls=self._tls is not None)
            return made

        with counted:
            try:
                await self._hand_over(connection, make)
            except asyncio.CancelledError:
                connection.close()
                raise
            except (OSError, TimeoutError) as error:
                connection.close()
                self._refused(
                    "tls-handshake", f"The TLS handshake failed: {_handshake_words(error)}.", address
                )
                return
            assert made is not None
            self._connections.add(made)
            try:
                await made.closed.wait()
            finally:
                self._connections.discard(made)

    async def _hand_over(self, connection: socket.socket, make: Callable[[], Connection]) -> None:
        loop = asyncio.get_running_loop()
        connection.setblocking(False)
        seconds = self._gate.limits.handshake_seconds if self._tls is not None else None
        task = asyncio.current_task()
        assert task is not None
        self._greeting.add(task)
        try:
            await loop.connect_accepted_socket(
                make,
                connection,
                ssl=self._tls,
                ssl_handshake_timeout=seconds,
                ssl_shutdown_timeout=seconds,
            )
        finally:
            self._greeting.discard(task)

    def _refused(self, code: str, words: str, address: str) -> None:
        event = self._gate.refusal(
            code, words, address, kind=EventKind.ASSOCIATION_REFUSED, tls=self._tls is not None
        )
        if event is not None:
            self._spawn(self._log.record(event))


def _handshake_words(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the client certificate is not trusted ({error.verify_message})"
    if isinstance(error, ssl.SSLError):
        return (error.reason or "unknown").replace("_", " ").lower()
    return "it was broken off or took too long"


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(BACKLOG)
    except OSError as error:
        with contextlib.suppress(OSError):
            listening.close()
        raise Unavailable(
            f"DICOM cannot listen on {host} port {port}: {error.strerror}.",
            mend="End the other program that uses the port, or set another one in node.toml.",
            code="port-in-use",
        ) from error
    listening.setblocking(False)
    return listening
