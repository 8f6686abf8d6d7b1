"""Server-sent events: alive while nothing happens, resumed where they broke, bounded for slow watchers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from consent.vocabulary import Role
from node.web.events import QUEUE_EVENTS, Feed, StreamEvent, event_stream, last_event_id
from node.web.kit import make_app
from node.web.listener import Listener
from tests.support.node import small_node
from tests.support.portal import portal


def app_for(feed: Feed, heartbeat_seconds: float = 15) -> web.Application:
    async def watch(request: web.Request) -> web.StreamResponse:
        return await event_stream(
            request, feed.watch(last_event_id(request)), heartbeat_seconds=heartbeat_seconds
        )

    return make_app(routes=[web.get("/events", watch)], services={}, people=False)


async def read_until(answer: aiohttp.ClientResponse, end: bytes) -> bytes:
    data = b""
    while end not in data:
        data += await asyncio.wait_for(answer.content.readany(), 3)
    return data


@pytest.mark.requirement("F6")
async def test_events_come_as_they_happen_and_the_stream_ends_with_the_feed() -> None:
    """Named, numbered events; the end of the feed ends the answer."""
    feed = Feed()
    async with (
        Listener(app_for(feed), "127.0.0.1", 0) as listener,
        aiohttp.ClientSession() as client,
        client.get(f"http://127.0.0.1:{listener.port}/events") as answer,
    ):
        assert answer.headers["Content-Type"] == "text/event-stream"
        assert answer.headers["Cache-Control"] == "no-store"
        await read_until(answer, b"retry: ")
        feed.publish("round", {"round": 1, "name": "第一"})
        first = await read_until(answer, b"\n\n")
        feed.close()
        rest = await asyncio.wait_for(answer.read(), 3)

    assert first.decode() == 'id: 1\nevent: round\ndata: {"round": 1, "name": "第一"}\n\n'
    assert rest == b""


async def test_heartbeat_keeps_a_quiet_stream_open() -> None:
    """A comment line goes out when nothing happens."""
    async with (
        Listener(app_for(Feed(), 0.05), "127.0.0.1", 0) as listener,
        aiohttp.ClientSession() as client,
        client.get(f"http://127.0.0.1:{listener.port}/events") as answer,
    ):
        data = await read_until(answer, b": heartbeat\n\n: heartbeat\n\n")

    assert b"data:" not in data


async def test_watcher_that_comes_back_gets_what_it_missed() -> None:
    """Last-Event-ID, from a bounded memory."""
    feed = Feed(history=3)
    for number in range(1, 6):
        feed.publish("n", {"n": number})
    feed.close()
    async with Listener(app_for(feed), "127.0.0.1", 0) as listener, aiohttp.ClientSession() as client:
        url = f"http://127.0.0.1:{listener.port}/events"
        async with client.get(url, headers={"Last-Event-ID": "4"}) as answer:
            missed = await answer.text()
        async with client.get(url) as answer:
            remembered = await answer.text()

    assert "id: 5" in missed and "id: 4" not in missed
    assert "id: 3" in remembered and "id: 2" not in remembered


async def test_watcher_that_falls_behind_is_ended_and_others_go_on() -> None:
    """No queue grows past its bound; the publisher never waits."""
    feed = Feed(history=10)
    slow, quick = feed.watch(), feed.watch()
    started = [asyncio.ensure_future(anext(slow)), asyncio.ensure_future(anext(quick))]
    await asyncio.sleep(0)
    feed.publish("n", {"n": 0})
    await asyncio.gather(*started)
    got = 0
    for number in range(1, QUEUE_EVENTS + 50):
        feed.publish("n", {"n": number})
        await anext(quick)
    async for _event in slow:
        got += 1

    assert got < QUEUE_EVENTS
    feed.publish("n", {"n": -1})
    assert (await anext(quick)).data == {"n": -1}


async def test_streams_end_when_the_node_stops() -> None:
    """Stopping does not wait for a browser that watches."""
    feed = Feed()
    listener = await Listener(app_for(feed), "127.0.0.1", 0).start()
    async with (
        aiohttp.ClientSession() as client,
        client.get(f"http://127.0.0.1:{listener.port}/events") as answer,
    ):
        await read_until(answer, b"retry: ")
        await asyncio.wait_for(listener.stop(), 3)
        assert await asyncio.wait_for(answer.read(), 3) == b""


async def test_source_is_closed_when_the_browser_leaves() -> None:
    """Whatever the iterator holds is given back."""
    closed = asyncio.Event()

    async def source() -> AsyncIterator[StreamEvent]:
        try:
            yield StreamEvent({"n": 1})
            await asyncio.sleep(3600)
        finally:
            closed.set()

    async def watch(request: web.Request) -> web.StreamResponse:
        return await event_stream(request, source(), heartbeat_seconds=0.05)

    app = make_app(routes=[web.get("/events", watch)], services={}, people=False)
    async with Listener(app, "127.0.0.1", 0) as listener, aiohttp.ClientSession() as client:
        answer = await client.get(f"http://127.0.0.1:{listener.port}/events")
        await read_until(answer, b"data:")
        answer.close()
        await asyncio.wait_for(closed.wait(), 3)


def test_event_cannot_smuggle_lines() -> None:
    """Ids and names are one line whatever they hold."""
    encoded = StreamEvent({"a": "x\ny"}, "n\nid: 9", "1\ndata: z").encode()

    assert encoded.count(b"\n") == 4


@pytest.mark.requirement("U1", "F6")
async def test_stream_ends_with_the_session_it_was_opened_in(tmp_path: Path) -> None:
    """It goes on while its person is signed in, and not after: a page left open shows a stranger nothing more."""

    async def watch(request: web.Request) -> web.StreamResponse:
        return await event_stream(request, Feed().watch(), heartbeat_seconds=0.05)

    async with small_node(tmp_path) as node, portal(node, routes=[web.get("/watch", watch)]) as site:
        await site.person("it", Role.ADMINISTRATOR)
        async with site.client("it") as client, client.get("/watch") as answer:
            for _ in range(3):
                await read_until(answer, b": heartbeat")
            await site.sessions.end_all("it")
            async with asyncio.timeout(5):
                await answer.read()
