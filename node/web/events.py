"""Server-sent events: a stream that stays alive, resumes where it broke, and cannot fill memory.

`event_stream` writes any async iterator of `StreamEvent` to the browser with a heartbeat. `Feed` hands the same
events to many watchers: each has a bounded queue; one that falls behind is ended and comes back with
Last-Event-ID, served from a bounded memory of past events. Only who may watch is left to the handler.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final

from aiohttp import web

HEARTBEAT_SECONDS: Final = 15.0
RETRY_MILLISECONDS: Final = 2000
QUEUE_EVENTS: Final = 128
HISTORY_EVENTS: Final = 512
MAX_LAST_ID_CHARS: Final = 64

CLOSING: web.AppKey[asyncio.Event] = web.AppKey("closing")
"""Set when the application shuts down; every stream then ends."""

STILL_THERE: web.AppKey[Callable[[web.Request], Awaitable[bool]]] = web.AppKey("still there")
"""Whether who opened a stream is still signed in; asked with each heartbeat where people sign in."""


@dataclass(frozen=True)
class StreamEvent:
    """One event: `data` is plain JSON, `name` what the browser listens for, `id` where to resume."""

    data: Mapping[str, Any]
    name: str = "message"
    id: str = ""

    def encode(self) -> bytes:
        """The lines of the event (WHATWG HTML §9.2)."""
        lines = [f"id: {_one_line(self.id)}"] if self.id else []
        if self.name != "message":
            lines.append(f"event: {_one_line(self.name)}")
        lines.append("data: " + json.dumps(self.data, ensure_ascii=False))
        return ("\n".join(lines) + "\n\n").encode()


class Feed:
    """Events in order, numbered from 1, for any number of watchers. Use from one event loop."""

    def __init__(self, history: int = HISTORY_EVENTS) -> None:
        self._past: deque[StreamEvent] = deque(maxlen=history)
        self._watchers: set[asyncio.Queue[StreamEvent | None]] = set()
        self._last = 0
        self.closed = False

    def publish(self, name: str, data: Mapping[str, Any]) -> StreamEvent:
        """Give the event the next number and hand it to every watcher without waiting for any."""
        self._last += 1
        event = StreamEvent(data, name, str(self._last))
        self._past.append(event)
        for queue in list(self._watchers):
            try:
                queue.put_nowait(event)
            except asyncio.QueueFull:
                self._end(queue)
        return event

    def close(self) -> None:
        """End every watcher after what it was given; later ones get the past and end."""
        self.closed = True
        for queue in list(self._watchers):
            self._end(queue)

    async def watch(self, last_event_id: str = "") -> AsyncIterator[StreamEvent]:
        """Every remembered event after `last_event_id`, then the new ones as they come."""
        after = int(last_event_id) if last_event_id.isdecimal() else 0
        queue: asyncio.Queue[StreamEvent | None] = asyncio.Queue(QUEUE_EVENTS)
        past = [event for event in self._past if int(event.id) > after]
        if not self.closed:
            self._watchers.add(queue)
        try:
            for event in past:
                yield event
            while not self.closed or not queue.empty():
                event_or_end = await queue.get()
                if event_or_end is None:
                    return
                yield event_or_end
        finally:
            self._watchers.discard(queue)

    def _end(self, queue: asyncio.Queue[StreamEvent | None]) -> None:
        self._watchers.discard(queue)
        if queue.full():
            queue.get_nowait()
        queue.put_nowait(None)


def last_event_id(request: web.Request) -> str:
    """Where the browser left off; empty on its first visit. At most 64 printable characters."""
    value = request.headers.get("Last-Event-ID", "") or request.query.get("after", "")
    return value if value.isprintable() and len(value) <= MAX_LAST_ID_CHARS else ""


async def event_stream(
    request: web.Request,
    events: AsyncIterator[StreamEvent],
    *,
    heartbeat_seconds: float = HEARTBEAT_SECONDS,
) -> web.StreamResponse:
    """Send `events` until they end, the browser leaves, its person is signed out or the node stops.

    The iterator is asked for the next event only when the last one was written, so a slow browser slows its own
    source (a `Feed` ends it) and nothing piles up here.
    """
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"})
    await response.prepare(request)
    closing = asyncio.ensure_future(request.app[CLOSING].wait())
    still_there, asked = request.app.get(STILL_THERE), monotonic()
    coming: asyncio.Future[StreamEvent] | None = None
    try:
        await response.write(f"retry: {RETRY_MILLISECONDS}\n\n".encode())
        while not closing.done():
            coming = coming or asyncio.ensure_future(_next(events))
            await asyncio.wait(
                (coming, closing), timeout=heartbeat_seconds, return_when=asyncio.FIRST_COMPLETED
            )
            if closing.done():
                break
            if still_there is not None and monotonic() - asked >= heartbeat_seconds:
                if not await still_there(request):
                    break
                asked = monotonic()
            if not coming.done():
                await response.write(b": heartbeat\n\n")
                continue
            try:
                event = coming.result()
            except StopAsyncIteration:
                break
            coming = None
            await response.write(event.encode())
        await response.write_eof()
    except ConnectionError:
        pass
    finally:
        closing.cancel()
        if coming is not None and not coming.done():
            coming.cancel()
            with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration):
                await coming
        await _close(events)
    return response


async def _next(events: AsyncIterator[StreamEvent]) -> StreamEvent:
    return await anext(events)


async def _close(events: AsyncIterator[StreamEvent]) -> None:
    close = getattr(events, "aclose", None)
    if close is not None:
        await close()


def _one_line(text: str) -> str:
    return text.replace("\r", " ").replace("\n", " ")
