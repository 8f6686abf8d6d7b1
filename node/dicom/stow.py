"""STOW-RS (PS3.18 §10.5): instances by POST, read as they come and given to ingest one by one.

The body is never whole in memory: at most MAX_IN_FLIGHT_BYTES of parts wait for the disk while the next are
read, and all requests together hold at most MEMORY_BYTES. Who may bring nothing in is refused before the body is
read. Every instance succeeds or fails for itself; the answer says which and why.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import structlog
from aiohttp import web

from consent.errors import AccordError, Conflict, Corrupt, Denied, Invalid, Unavailable
from consent.vocabulary import Action
from node.arrival import Arrival, Receipt, Source
from node.dicom.accept import DICOM
from node.dicom.gate import Memory
from node.dicom.multipart import MAX_PART_BYTES, MultipartParser, parameters
from node.imaging.part10 import Part10, read_part10
from node.ingest import Ingest
from node.web.decisions import permitted
from node.web.keys import INGEST
from node.web.people import address_of

MAX_IN_FLIGHT_BYTES = 64 * 1024 * 1024
MAX_IN_FLIGHT = 32
MEMORY_BYTES = MAX_PART_BYTES + 2 * MAX_IN_FLIGHT_BYTES
"""Of bodies, over all requests; the largest part always fits while nobody else sends."""
STALL_SECONDS = 60.0
ROOM_SECONDS = 60.0
"""How long a request waits for others to give memory back."""
MAX_REQUEST_BYTES = 256 * 1024**3
"""A study of the largest kind there is; more comes in several requests."""

FAILURE_REASONS = {
    Denied: 0x0124,  # not authorized
    Conflict: 0x0111,  # duplicate SOP instance, other contents
    Unavailable: 0xA700,  # out of resources
    Invalid: 0xC000,  # cannot understand
    Corrupt: 0x0110,  # processing failure
}
"""PS3.18 Table I.2-2 by error family."""
FAILURE_OF_CODE = {"uid-mismatch": 0xA900, "study-mismatch": 0xA901, "transfer-syntax": 0x0122}

logger = structlog.get_logger()

_MEMORY = Memory(MEMORY_BYTES)


@dataclass
class _Outcome:
    """What became of the parts of one request."""

    stored: list[tuple[Part10, Receipt]] = field(default_factory=list)
    failed: list[tuple[Part10 | None, AccordError]] = field(default_factory=list)


class _Room:
    """What one request holds: its share of the memory of all, and bounds on what waits for the disk."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._bytes = 0
        self._count = 0
        self._read = 0
        self._held = 0
        self._changed = asyncio.Condition()

    async def read(self, size: int) -> None:
        """Reserve `size` bytes of body that are being read. Raises Unavailable when others will not make room."""
        while not self._memory.reserve(self, size):
            free = asyncio.Event()
            if not self._memory.wait(self, free.set, busy=self._count > 0):
                raise _no_room()
            try:
                async with asyncio.timeout(ROOM_SECONDS):
                    await free.wait()
            except TimeoutError:
                raise _no_room() from None
            finally:
                self._memory.leave(self)
        self._read += size
        self._held += size

    def keep(self, size: int) -> None:
        """Give back what was reserved for reading beyond the `size` bytes that still wait for their part."""
        surplus = max(0, self._read - size)
        self._read -= surplus
        self._free(surplus)

    async def take(self, size: int) -> None:
        """Pass a part on from reading to the disk: wait until `size` more bytes fit there; one part always does."""
        async with self._changed:
            await self._changed.wait_for(
                lambda: (
                    self._count == 0
                    or (self._bytes + size <= MAX_IN_FLIGHT_BYTES and self._count < MAX_IN_FLIGHT)
                )
            )
            self._bytes += size
            self._count += 1
            self._read -= size

    async def give_back(self, size: int) -> None:
        """Say that a part is done."""
        self._free(size)
        async with self._changed:
            self._bytes -= size
            self._count -= 1
            self._changed.notify_all()

    def close(self) -> None:
        """Give everything back: also for parts whose task was cancelled before it began."""
        self._free(self._held)

    def _free(self, size: int) -> None:
        self._held -= size
        self._memory.release(self, size)


def _no_room() -> Unavailable:
    return Unavailable(
        "Other requests fill the memory for studies that come in.",
        mend="Send it again in a moment, or fewer studies at once.",
        code="no-room",
    )


async def store(request: web.Request, study_uid: str) -> tuple[int, dict[str, Any]]:
    """Take in the instances of a request; return the status and the DICOM JSON of the answer.

    Raises Denied for whom the rules let bring nothing in, Invalid when the body is not what STOW-RS takes,
    Unavailable when nothing could be stored for now.
    """
    source = Source(await permitted(request, Action.INGEST), "stow", address_of(request))
    ingest = request.app[INGEST]
    outcome, room = _Outcome(), _Room(_MEMORY)
    broken: Exception | None = None
    try:
        async with asyncio.TaskGroup() as group:
            try:
                async for data in _bodies(request, room):
                    await room.take(len(data))
                    group.create_task(_store_one(ingest, data, source, study_uid, outcome, room))
            except (Invalid, Unavailable, TimeoutError) as error:
                broken = error  # the parts that came whole are finished first
    finally:
        room.close()
    if broken is not None:
        if isinstance(broken, Invalid):
            await ingest.refused(broken, source)
        raise broken
    if not outcome.stored and not outcome.failed:
        raise Invalid("There is no instance in this request.", mend="Send at least one DICOM file.")
    await _require_stored(ingest, outcome)
    status = 200 if not outcome.failed else 202 if outcome.stored else 409
    return status, _answer(outcome, str(request.url.origin()))


async def _store_one(
    ingest: Ingest, data: bytes, source: Source, study_uid: str, outcome: _Outcome, room: _Room
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
        await room.give_back(len(data))


def _arrival(head: Part10, data: bytes, study_uid: str) -> Arrival:
    content = memoryview(data)[head.dataset_offset :]
    whole = Arrival.of(head.sop_class_uid, head.sop_instance_uid, head.transfer_syntax_uid, content)
    return Arrival(
        whole.sop_class_uid,
        whole.sop_instance_uid,
        whole.transfer_syntax_uid,
        content,
        whole.sha256,
        study_instance_uid=study_uid,
    )


async def _require_stored(ingest: Ingest, outcome: _Outcome) -> None:
    """Let who stores find at once what was stored; an answer of "busy" only when nothing could be."""
    if not outcome.stored and all(isinstance(error, Unavailable) for _, error in outcome.failed):
        raise outcome.failed[0][1]
    try:
        await ingest.flushed()
    except Unavailable as error:
        logger.warning("stored and not yet in the index", error=error.message)


async def _bodies(request: web.Request, room: _Room) -> AsyncIterator[bytes]:
    """The DICOM files of the request, each as soon as it is whole."""
    media_type, found = parameters(request.headers.get("Content-Type") or "application/octet-stream")
    if media_type == DICOM:
        body = bytearray()
        async for chunk in _chunks(request):
            await room.read(len(chunk))
            body += chunk
            if len(body) > MAX_PART_BYTES:
                raise Invalid("This instance is too large to be sent this way.", code="too-large")
        yield bytes(body)
        return
    if media_type != "multipart/related" or found.get("type", DICOM).lower() != DICOM:
        raise Invalid(
            "STOW-RS takes DICOM files.",
            mend=f'Send Content-Type: multipart/related; type="{DICOM}".',
            code="unsupported-media-type",
        )
    parser = MultipartParser(found.get("boundary", ""))
    async for chunk in _chunks(request):
        await room.read(len(chunk))
        for part in parser.feed(chunk):
            if not part.headers.get("content-type", DICOM).lower().startswith(DICOM):
                raise Invalid("A part is not a DICOM file.", code="unsupported-media-type")
            yield part.body
        room.keep(parser.held_bytes)
    parser.finish()


async def _chunks(request: web.Request) -> AsyncIterator[bytes]:
    """The body as it comes; a sender that stalls is cut off."""
    total = 0
    while True:
        async with asyncio.timeout(STALL_SECONDS):
            chunk = await request.content.readany()
        if not chunk:
            return
        total += len(chunk)
        if total > MAX_REQUEST_BYTES:
            raise Invalid("This request is too large.", mend="Send the study in parts.", code="too-large")
        yield chunk


def _answer(outcome: _Outcome, origin: str) -> dict[str, Any]:
    """The Store Instances Response Module (PS3.18 §10.5.3.2)."""
    answer: dict[str, Any] = {}
    studies = {receipt.study_instance_uid for _, receipt in outcome.stored}
    if len(studies) == 1:
        answer["00081190"] = _uri(f"{origin}/dicom-web/studies/{studies.pop()}")
    if outcome.failed:
        answer["00081198"] = {
            "vr": "SQ",
            "Value": [
                {**_named(head), "00081197": {"vr": "US", "Value": [_reason(error)]}}
                for head, error in outcome.failed
            ],
        }
    if outcome.stored:
        answer["00081199"] = {
            "vr": "SQ",
            "Value": [
                {
                    **_named(head),
                    "00081190": _uri(
                        f"{origin}/dicom-web/studies/{receipt.study_instance_uid}/series/"
                        f"{receipt.series_instance_uid}/instances/{head.sop_instance_uid}"
                    ),
                }
                for head, receipt in outcome.stored
            ],
        }
    return answer


def _named(head: Part10 | None) -> dict[str, Any]:
    if head is None:
        return {}
    return {
        "00081150": {"vr": "UI", "Value": [head.sop_class_uid]},
        "00081155": {"vr": "UI", "Value": [head.sop_instance_uid]},
    }


def _uri(value: str) -> dict[str, Any]:
    return {"vr": "UR", "Value": [value]}


def _reason(error: AccordError) -> int:
    if error.code in FAILURE_OF_CODE:
        return FAILURE_OF_CODE[error.code]
    return next((code for family, code in FAILURE_REASONS.items() if isinstance(error, family)), 0x0110)
