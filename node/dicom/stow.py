"""STOW-RS (PS3.18 §10.5): instances by POST, read as they come and given to ingest one by one.

The body is never whole in memory: at most MAX_IN_FLIGHT_BYTES of parts wait for the disk while the next are
read, and all requests together hold at most MEMORY_BYTES. Who may bring nothing in is refused before the body is
read. Every instance succeeds or fails for itself; the answer says which and why.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from hashlib import sha256
from time import monotonic

import structlog
from aiohttp import web

from consent.errors import AccordError, Invalid, Unavailable
from consent.vocabulary import Action
from node.arrival import Arrival, Source
from node.dicom import stow_json, stow_room
from node.dicom.accept import DICOM, JSON
from node.dicom.multipart import MAX_PART_BYTES, MultipartParser, Part, parameters
from node.dicom.stow_answer import Outcome, answer_of
from node.dicom.stow_room import Room
from node.imaging.part10 import Part10, read_part10
from node.ingest import Ingest
from node.web.decisions import permitted
from node.web.keys import INGEST, RENDERER
from node.web.people import address_of

STALL_SECONDS = 60.0
SLOWEST_BYTES_PER_SECOND = 8 * 1024
"""Of a body, on average over the time that was spent waiting for it: held against once that is STALL_SECONDS."""
MAX_JSON_REQUEST_BYTES = 64 * 1024 * 1024
"""JSON names its bulk data before or after it, so the whole has to be there."""
MAX_REQUEST_BYTES = 256 * 1024**3
"""A study of the largest kind there is; more comes in several requests."""

Bytes = bytes | bytearray
"""A file as it came: one of a gigabyte is not copied to be made unchangeable."""

logger = structlog.get_logger()


async def store(request: web.Request, study_uid: str) -> tuple[int, bytes]:
    """Take in the instances of a request; return the status and the answer in DICOM JSON.

    Raises Denied for whom the rules let bring nothing in, Invalid when the body is not what STOW-RS takes,
    Unavailable when nothing could be stored, or the rest found no room in memory.
    """
    source = Source(await permitted(request, Action.INGEST), "stow", address_of(request))
    ingest = request.app[INGEST]
    outcome, room = Outcome(), Room(stow_room.MEMORY, stow_room.IN_FLIGHT)
    broken: Exception | None = None
    try:
        async with asyncio.TaskGroup() as group:
            try:
                async for data in _bodies(request, room):
                    if isinstance(data, Invalid):
                        await ingest.refused(data, source)
                        outcome.failed.append((None, data))
                        continue
                    await room.take(len(data))
                    group.create_task(_store_one(ingest, data, source, study_uid, outcome, room))
            except (Invalid, Unavailable) as error:
                broken = error  # the parts that came whole are finished first
        if isinstance(broken, Invalid):
            await ingest.refused(broken, source)
    finally:
        room.close()
        await ingest.summarise(source)
    if broken is not None:
        raise broken
    if not outcome.stored and not outcome.failed:
        raise Invalid("There is no instance in this request.", mend="Send at least one DICOM file.")
    await _require_stored(ingest, outcome)
    return outcome.status, await asyncio.to_thread(_written, outcome, str(request.url.origin()))


async def _store_one(
    ingest: Ingest, data: Bytes, source: Source, study_uid: str, outcome: Outcome, room: Room
) -> None:
    head: Part10 | None = None
    try:
        try:
            head = read_part10(data)
        except Invalid as error:
            await ingest.refused(error, source)
            raise
        arrival = await asyncio.to_thread(_arrival, head, data, study_uid)
        outcome.stored.append((head, await ingest.receive(arrival, source)))
    except AccordError as error:
        outcome.failed.append((head, error))
    finally:
        room.give_back(len(data))


def _arrival(head: Part10, data: Bytes, study_uid: str) -> Arrival:
    content = memoryview(data)[head.dataset_offset :]
    return Arrival(
        head.sop_class_uid,
        head.sop_instance_uid,
        head.transfer_syntax_uid,
        content,
        sha256(content).digest(),
        study_instance_uid=study_uid,
    )


def _written(outcome: Outcome, origin: str) -> bytes:
    return json.dumps(answer_of(outcome, origin)).encode()


async def _require_stored(ingest: Ingest, outcome: Outcome) -> None:
    """Let who stores find at once what was stored; an answer of "busy" only when nothing could be."""
    if not outcome.stored and all(isinstance(error, Unavailable) for _, error in outcome.failed):
        raise outcome.failed[0][1]
    try:
        await ingest.flushed()
    except Unavailable as error:
        logger.warning("stored and not yet in the index", error=error.message)


async def _bodies(request: web.Request, room: Room) -> AsyncGenerator[Bytes | Invalid, None]:
    """The DICOM files of the request, each as soon as it is whole, or why one could not be made."""
    media_type, found = parameters(request.headers.get("Content-Type") or "application/octet-stream")
    inner = found.get("type", DICOM).lower() if media_type == "multipart/related" else media_type
    boundary = found.get("boundary", "") if media_type == "multipart/related" else None
    if inner == DICOM:
        async with aclosing(_files(request, room, boundary)) as files:
            async for file in files:
                yield file
    elif inner == JSON:
        parts = await _parts(request, room, boundary)
        async with aclosing(stow_json.files_of(parts, request.app[RENDERER])) as made:
            async for one in made:
                if not isinstance(one, Invalid):
                    await room.read(len(one))
                yield one
    else:
        raise Invalid(
            "STOW-RS takes DICOM files, or DICOM JSON with its bulk data.",
            mend=f'Send Content-Type: multipart/related; type="{DICOM}".',
            code="unsupported-media-type",
        )


async def _files(request: web.Request, room: Room, boundary: str | None) -> AsyncGenerator[Bytes, None]:
    """The body as one file, or its parts as they are whole; only the one that is read waits in memory."""
    if boundary is None:
        yield await _whole(request, room, MAX_PART_BYTES)
        return
    parser = MultipartParser(boundary)
    async for chunk in _chunks(request):
        await room.read(len(chunk))
        for part in parser.feed(chunk):
            if not part.headers.get("content-type", DICOM).lower().startswith(DICOM):
                raise Invalid("A part is not a DICOM file.", code="unsupported-media-type")
            yield part.body
        room.keep(parser.held_bytes)
    parser.finish()


async def _parts(request: web.Request, room: Room, boundary: str | None) -> list[Part]:
    """All parts of a body that makes sense only as a whole, and is bounded as such."""
    if boundary is None:
        return [Part({"content-type": JSON}, await _whole(request, room, MAX_JSON_REQUEST_BYTES))]
    parts: list[Part] = []
    parser, size = MultipartParser(boundary), 0
    async for chunk in _chunks(request):
        await room.read(len(chunk))
        size += len(chunk)
        if size > MAX_JSON_REQUEST_BYTES:
            raise _too_large_for_json()
        parts += parser.feed(chunk)
    parser.finish()
    return parts


async def _whole(request: web.Request, room: Room, limit: int) -> bytearray:
    body = bytearray()
    async for chunk in _chunks(request):
        await room.read(len(chunk))
        body += chunk
        if len(body) > limit:
            raise _too_large_for_json() if limit < MAX_PART_BYTES else _too_large()
    return body


async def _chunks(request: web.Request) -> AsyncIterator[bytes]:
    """The body as it comes. Raises Unavailable when the sender stalls or trickles, Invalid when there is too much of it."""
    total, waited = 0, 0.0
    while True:
        began = monotonic()
        try:
            async with asyncio.timeout(STALL_SECONDS):
                chunk = await request.content.readany()
        except TimeoutError:
            raise _too_slow() from None
        if not chunk:
            return
        total += len(chunk)
        waited += monotonic() - began
        if waited > STALL_SECONDS and total < waited * SLOWEST_BYTES_PER_SECOND:
            raise _too_slow()
        if total > MAX_REQUEST_BYTES:
            raise Invalid("This request is too large.", mend="Send the study in parts.", code="too-large")
        yield chunk


def _too_slow() -> Unavailable:
    return Unavailable(
        "The request came too slowly; what came whole was stored.",
        mend="Look at the network between the sender and the node, then send the rest again.",
        code="too-slow",
    )


def _too_large() -> Invalid:
    return Invalid("This instance is too large to be sent this way.", code="too-large")


def _too_large_for_json() -> Invalid:
    return Invalid(
        f"Instances in DICOM JSON have at most {MAX_JSON_REQUEST_BYTES >> 20} MiB in one request.",
        mend="Send them as DICOM files, or in several requests.",
        code="too-large",
    )
