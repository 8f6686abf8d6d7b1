"""The listener with real sockets: slow, greedy and silent clients lose, good ones are served."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry

from consent.errors import Unavailable
from node.web.kit import HttpMetrics, Limits, Listener, make_app, public
from tests.support.tls import self_signed

QUICK = Limits(
    header_deadline_seconds=0.3,
    keepalive_seconds=0.6,
    handshake_seconds=0.3,
    connections_total=6,
    connections_per_peer=4,
)


@public
async def hello(_request: web.Request) -> web.Response:
    return web.Response(text="hello")


@contextlib.asynccontextmanager
async def listening(
    limits: Limits = QUICK, ssl_context: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[Listener, HttpMetrics]]:
    metrics = HttpMetrics(CollectorRegistry())
    app = make_app(routes=[web.get("/hello", hello)], services={}, people=False, metrics=metrics)
    async with Listener(app, "127.0.0.1", 0, ssl_context, limits, metrics) as listener:
        yield listener, metrics


async def served(listener: Listener, context: ssl.SSLContext | None = None) -> bool:
    url = f"{'https' if context else 'http'}://127.0.0.1:{listener.port}/hello"
    async with aiohttp.ClientSession() as client, client.get(url, ssl=context or False) as answer:
        return answer.status == 200 and await answer.text() == "hello"


@pytest.mark.requirement("F4", "V3")
async def test_request_with_slow_headers_is_cut_at_the_deadline() -> None:
    """A client that drips its headers is answered 408 and cut, however steadily it drips."""
    async with listening() as (listener, _metrics):
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        started = time.monotonic()
        writer.write(b"GET /hello HTTP/1.1\r\n")
        answer = asyncio.create_task(reader.read(64))
        while not answer.done():
            writer.write(b"X-More: 1\r\n")
            await asyncio.sleep(0.05)
        writer.close()

        assert answer.result().startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() - started < 2
        assert await served(listener)


@pytest.mark.requirement("F4")
async def test_half_a_second_request_on_a_kept_connection_is_cut_too() -> None:
    """The deadline starts again with the first byte of every request."""
    async with listening(Limits(header_deadline_seconds=0.3, keepalive_seconds=30)) as (listener, _metrics):
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        writer.write(b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"hello")
        writer.write(b"GET /hello HT")
        answer = await asyncio.wait_for(reader.read(), 3)
        writer.close()

        assert answer.startswith(b"HTTP/1.1 408 ")


@pytest.mark.requirement("F4")
async def test_silent_and_idle_connections_are_closed() -> None:
    """A connection that says nothing ends at the header deadline, one that fell idle at the keep-alive time."""
    async with listening() as (listener, _metrics):
        silent, silent_writer = await asyncio.open_connection("127.0.0.1", listener.port)
        idle, idle_writer = await asyncio.open_connection("127.0.0.1", listener.port)
        idle_writer.write(b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n")
        await idle.readuntil(b"hello")
        await asyncio.wait_for(silent.read(), 3)
        rest = await asyncio.wait_for(idle.read(), 3)
        silent_writer.close()
        idle_writer.close()

        assert rest == b""


@pytest.mark.requirement("F4", "V3")
async def test_connections_past_the_cap_of_one_peer_are_refused_and_counted() -> None:
    """The cap closes the fifth connection; when one leaves, a good client gets in."""
    limits = Limits(header_deadline_seconds=30, connections_per_peer=4)
    async with listening(limits) as (listener, metrics):
        held = [await asyncio.open_connection("127.0.0.1", listener.port) for _turn in range(4)]
        await asyncio.sleep(0.1)
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 3) == b""
        writer.close()
        assert metrics.refused_connections.labels("per-peer")._value.get() == 1
        assert listener.connections == 4

        held[0][1].close()
        await asyncio.sleep(0.1)
        assert await served(listener)
        for _reader, other in held[1:]:
            other.close()


@pytest.mark.requirement("F4")
async def test_flood_of_half_open_requests_leaves_good_clients_served() -> None:
    """After a flood the listener holds nothing, and a good client is answered."""
    async with listening() as (listener, _metrics):
        flood = []
        for _turn in range(60):
            reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
            with contextlib.suppress(ConnectionError):
                writer.write(b"GET /hello HTTP/1.1\r\nX: ")
                await writer.drain()
            flood.append((reader, writer))
        await asyncio.sleep(0.7)

        assert listener.connections == 0
        assert await served(listener)
        for _reader, writer in flood:
            writer.close()


@pytest.mark.requirement("F4", "T1")
async def test_stalled_tls_handshake_is_cut_and_tls_clients_are_served(tmp_path: Path) -> None:
    """A peer that connects and never greets is counted as a failed handshake."""
    server, client = self_signed(tmp_path)
    async with listening(QUICK, server) as (listener, metrics):
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        writer.write(b"\x16\x03")
        with contextlib.suppress(ConnectionError):
            await asyncio.wait_for(reader.read(), 3)
        writer.close()
        await asyncio.sleep(0.1)

        assert metrics.refused_connections.labels("handshake")._value.get() == 1
        assert await served(listener, client)


@pytest.mark.requirement("F6")
async def test_taken_port_is_named_with_a_way_out() -> None:
    """The error says which port and what to do."""
    async with listening() as (listener, _metrics):
        second = Listener(make_app(routes=[], services={}, people=False), "127.0.0.1", listener.port)
        with pytest.raises(Unavailable, match=str(listener.port)) as caught:
            await second.start()

        assert caught.value.code == "port-in-use"
        assert caught.value.mend


async def test_stop_ends_open_connections_and_frees_the_port() -> None:
    """After stop, nothing answers any more."""
    async with listening() as (listener, _metrics):
        port = listener.port
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await listener.stop()
        with contextlib.suppress(ConnectionError):
            await asyncio.wait_for(reader.read(), 3)
        writer.close()
        with pytest.raises(ConnectionError):
            await asyncio.open_connection("127.0.0.1", port)


@pytest.mark.requirement("F4")
async def test_an_unreadable_request_is_answered_without_echo_or_names_of_our_parts() -> None:
    """What the HTTP parser refuses gets a 400 that repeats nothing and does not name the server's software."""
    async with listening() as (listener, _metrics):
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        writer.write(b"GET /ZQXMARK HTTP/9.9\r\nBad Header\r\n\r\n")
        answer = await reader.read(4096)
        writer.close()

        assert answer.startswith(b"HTTP/1.")
        assert b" 400 " in answer.split(b"\r\n")[0]
        assert b"ZQXMARK" not in answer
        assert b"Python" not in answer
        assert b"aiohttp" not in answer
        assert await served(listener)
