"""The C-STORE sub-operations of one retrieval (PS3.4 §C.4.2.2 and §C.4.3.2).

`Sending` takes data sets from the gateway one after the other and gives them to a `Receiver`: the peer itself in a C-GET,
a destination in a C-MOVE. As they are stored where the receiver takes that, else uncompressed. One that cannot be read,
brought into another form or that the receiver refuses counts as failed and the rest goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from consent.errors import AccordError, Denied, Invalid, NotFound, Unavailable
from node.index import InstanceRow
from node.openings import Opening

from .channel import OVER, Channel
from .messages import PENDING, Command, Context, Message, Suboperations, Verb, at_once
from .negotiation import LITTLE_ENDIAN
from .statuses import CANNOT_SEND, SOME_FAILED, SUCCESS

MAX_CONVERTED_BYTES = 512 * 1024 * 1024
"""Larger ones go as they are stored or not at all."""
LARGE_BYTES = 64 * 1024 * 1024
"""Of larger ones only one is brought into another form at a time: both forms are in memory."""
WARNING_CLASS = 0xB

logger = structlog.get_logger()


class Streaming(Protocol):
    """What of the gateway hands instances over (`node.gateway.Gateway`)."""

    def stream(
        self, opening: Opening, rows: Sequence[InstanceRow]
    ) -> AsyncGenerator[tuple[InstanceRow, AsyncIterator[bytes]], None]:
        """Each row with its data set in pieces. Raises Denied, Corrupt, Unavailable."""
        ...


class Transcoder(Protocol):
    """Brings an image into uncompressed little endian (`node.imaging.rendering.Renderer`)."""

    async def transcode(self, dataset: bytes, transfer_syntax: str, target: str) -> bytes:
        """Raises Invalid when it cannot be decoded, Unavailable when that takes too much."""
        ...


class Receiver(Protocol):
    """An association on which instances are sent."""

    def context(self, sop_class: str, transfer_syntax: str) -> Context | None:
        """The accepted context of this pair, if there is one."""
        ...

    async def store(
        self, context: Context, command: Command, pieces: AsyncIterator[bytes], size: int
    ) -> Command:
        """Send one instance; return the answer. Raises Unavailable when the association is over."""
        ...


@dataclass(frozen=True)
class Part:
    """What is to be sent of one study."""

    opening: Opening
    rows: tuple[InstanceRow, ...]


@dataclass
class Progress:
    """How a retrieval goes: sub-operations that remain, succeeded, ended with a warning, and the instances that failed."""

    remaining: int
    completed: int = 0
    warning: int = 0
    failed: list[str] = field(default_factory=list, repr=False)

    @property
    def counts(self) -> Suboperations:
        return Suboperations(self.remaining, self.completed, len(self.failed), self.warning)

    @property
    def status(self) -> int:
        """The final status when nothing was cancelled (PS3.4 Tables C.4-2 and C.4-3)."""
        if not self.failed and not self.warning:
            return SUCCESS
        return SOME_FAILED if self.completed or self.warning else CANNOT_SEND

    def ended(self, row: InstanceRow, status: int | None) -> None:
        """One sub-operation is over; without a status it was never answered."""
        self.remaining -= 1
        if status == SUCCESS:
            self.completed += 1
        elif status is not None and status >> 12 == WARNING_CLASS:
            self.warning += 1
        else:
            self.failed.append(row.sop_instance_uid)


class Nobody:
    """Where nothing is sent."""

    def context(self, sop_class: str, transfer_syntax: str) -> Context | None:
        return None

    async def store(
        self, context: Context, command: Command, pieces: AsyncIterator[bytes], size: int
    ) -> Command:
        raise Unavailable("There is nothing to send.", code="association-over")


class Back:
    """The peer of a C-GET, on its own association, in the classes that it provides."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        terms = channel.terms
        self._contexts = {
            (context.abstract_syntax, context.transfer_syntax): context
            for context in terms.contexts.values()
            if context.abstract_syntax in terms.peer_stores
        }

    def context(self, sop_class: str, transfer_syntax: str) -> Context | None:
        return self._contexts.get((sop_class, transfer_syntax))

    async def store(
        self, context: Context, command: Command, pieces: AsyncIterator[bytes], size: int
    ) -> Command:
        return await self._channel.request(context, command, pieces, size)


@dataclass
class Sending:
    """One retrieval's sub-operations."""

    gateway: Streaming
    transcoder: Transcoder
    receiver: Receiver
    progress: Progress
    message: Message
    channel: Channel
    converting: asyncio.Semaphore
    """One turn over all retrievals of a node, for what is large."""
    gone: bool = False

    async def run(self, parts: Sequence[Part]) -> None:
        """Send everything that can be sent, until the peer cancels or the receiver is gone."""
        for part in parts:
            takes = [row for row in part.rows if self._context(row) is not None]
            for row in part.rows:
                if self._context(row) is None:
                    self.progress.ended(row, None)
            await self._study(Part(part.opening, tuple(takes)))

    @property
    def stopped(self) -> bool:
        """Whether nothing more is to be sent."""
        return self.gone or self.channel.cancelled(self.message)

    async def _study(self, part: Part) -> None:
        rows = part.rows
        done = 0
        while done < len(rows) and not self.stopped:
            try:
                async with aclosing(self.gateway.stream(part.opening, rows[done:])) as stream:
                    async for row, pieces in stream:
                        if self.stopped:
                            return
                        status = await self._deliver(row, pieces)
                        if self.gone:
                            break
                        done += 1
                        await self._ended(row, status)
            except (Denied, NotFound):  # it may not be taken any more
                break
            except AccordError as error:  # this one cannot be read; the others may be
                if error.code == OVER:
                    raise
                logger.warning("dicom_instance_not_read", error=error.code)
                await self._ended(rows[done], None)
                done += 1
        if not self.channel.cancelled(self.message):
            for row in rows[done:]:
                self.progress.ended(row, None)

    async def _ended(self, row: InstanceRow, status: int | None) -> None:
        self.progress.ended(row, status)
        await self.channel.respond(self.message, PENDING, suboperations=self.progress.counts)

    async def _deliver(self, row: InstanceRow, pieces: AsyncIterator[bytes]) -> int | None:
        """Send one instance; return the receiver's status, None when it got none or is gone."""
        context = self._context(row)
        assert context is not None
        converts = context.transfer_syntax != row.transfer_syntax_uid
        async with self.converting if converts and row.size_bytes > LARGE_BYTES else nullcontext():
            return await self._given(row, pieces, context, converts)

    async def _given(
        self, row: InstanceRow, pieces: AsyncIterator[bytes], context: Context, converts: bool
    ) -> int | None:
        size = row.size_bytes
        if converts:
            data = b"".join([piece async for piece in pieces])
            try:
                data = await self.transcoder.transcode(data, row.transfer_syntax_uid, context.transfer_syntax)
            except (Invalid, Unavailable) as error:
                logger.warning("dicom_instance_not_decoded", error=error.code)
                return None
            pieces, size = at_once(data), len(data)
        command = Command(
            Verb.C_STORE_RQ,
            0,
            row.sop_class_uid,
            row.sop_instance_uid,
            has_data=True,
            originator=self._originator,
        )
        try:
            return (await self.receiver.store(context, command, pieces, size)).status
        except Unavailable as error:
            self.gone = True
            if error.code == OVER and isinstance(self.receiver, Back):
                raise
            return None

    @property
    def _originator(self) -> tuple[str, int] | None:
        command = self.message.command
        moving = command.verb == Verb.C_MOVE_RQ
        return (self.channel.calling, command.message_id) if moving else None

    def _context(self, row: InstanceRow) -> Context | None:
        """Where an instance can go: as it is stored, else uncompressed if it is not too large to be brought into that."""
        stored = self.receiver.context(row.sop_class_uid, row.transfer_syntax_uid)
        if stored is not None or row.size_bytes > MAX_CONVERTED_BYTES:
            return stored
        plain = (self.receiver.context(row.sop_class_uid, syntax) for syntax in LITTLE_ENDIAN)
        return next((context for context in plain if context is not None), None)
