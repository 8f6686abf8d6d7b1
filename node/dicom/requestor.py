"""The requestor's side of an association: associate, exchange messages one at a time, release (PS3.8 §7).

Leaves to `sender` what is sent. Whatever a peer does ends in Denied (it rejects us) or Unavailable (all else).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from consent.errors import AccordError, Denied, Unavailable

from .association import Association, Event, State, Step, event_of
from .messages import RESPONSE, Assembler, Command, Context, Message, Verb, encode_request, framed
from .pdu import (
    HEAD_BYTES,
    AssociateAc,
    AssociateRj,
    AssociateRq,
    Kind,
    Pdu,
    PduFault,
    Proposal,
    Result,
    check_head,
    decode,
    pdvs,
)

CONNECT_SECONDS = 15.0
ANSWER_SECONDS = 60.0
WRITE_BYTES = 256 * 1024

# PS3.8 Table 9-21, in words for the person who meets them.
_REJECTIONS = {
    (1, 2): "it does not speak DICOM's application context",
    (1, 3): "it does not know the calling AE title",
    (1, 7): "it has another AE title than the one called",
    (2, 2): "it speaks another version of the protocol",
    (3, 1): "it is too busy now",
    (3, 2): "too many associations are open there",
}


@dataclass(frozen=True)
class Peer:
    """Whom to call, and as whom. With `tls` (`node.tls.dicom_client_context`) DICOM TLS."""

    host: str
    port: int
    called: str
    calling: str
    tls: ssl.SSLContext | None = None


class Call:
    """The requestor's side of one association, open inside `async with`."""

    def __init__(self, peer: Peer, pairs: Sequence[tuple[str, str]]) -> None:
        self._peer = peer
        self._proposals = tuple(
            Proposal(2 * number + 1, abstract, (syntax,)) for number, (abstract, syntax) in enumerate(pairs)
        )
        self._association = Association(requestor=True)
        self._contexts: dict[tuple[str, str], Context] = {}
        self._max_length = 0
        self._message_id = 0

    async def __aenter__(self) -> Self:
        self._association.step(Event.EVT1_ASSOCIATE_REQUEST)
        peer = self._peer
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                self._reader, self._writer = await asyncio.open_connection(peer.host, peer.port, ssl=peer.tls)
        except (OSError, TimeoutError) as error:
            raise Unavailable(
                f"{peer.host} port {peer.port} cannot be reached: {_words(error)}.",
                mend="Check address, port, certificates and that the node runs.",
                code="peer-unreachable",
            ) from error
        connection = self._writer.get_extra_info("socket")
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await self._associate()
        except BaseException:
            self._writer.transport.abort()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None and self._association.state is State.STA6_ESTABLISHED:
                await self._release()
            elif self._association.state is State.STA6_ESTABLISHED:
                self._carry_out(self._association.step(Event.EVT15_ABORT_REQUEST))
        finally:
            self._writer.close()
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._writer.wait_closed()

    def context(self, sop_class: str, transfer_syntax: str) -> Context | None:
        """The accepted context for this pair, if there is one."""
        return self._contexts.get((sop_class, transfer_syntax))

    @property
    def contexts(self) -> tuple[Context, ...]:
        """What the peer accepted."""
        return tuple(self._contexts.values())

    async def exchange(
        self, verb: Verb, context: Context, *, sop_instance: str = "", data: bytes | None = None
    ) -> Command:
        """Write one request, with `data` as its data set, and wait for its response.

        Raises Unavailable when the peer breaks off, breaks the protocol or does not answer in time.
        """
        self._message_id = self._message_id % 0xFFFF + 1
        command = Command(verb, self._message_id, context.abstract_syntax, sop_instance, data is not None)
        self._association.step(Event.EVT9_DATA_REQUEST)
        limit = self._max_length
        parts = list(framed(context.id, encode_request(command), command=True, max_length=limit))
        if data is not None:
            parts += framed(context.id, data, command=False, max_length=limit)
        try:
            async with asyncio.timeout(ANSWER_SECONDS + len(data or b"") / 1e6):
                await self._write(parts)
                response = await self._response(context)
        except (OSError, TimeoutError) as error:
            raise _broken(_words(error)) from error
        if response.message_id != command.message_id or response.verb != command.verb | RESPONSE:
            raise _broken("it answered another message than the one sent")
        return response

    async def _associate(self) -> None:
        peer = self._peer
        request = AssociateRq(peer.called, peer.calling, self._proposals)
        self._carry_out(self._association.step(Event.EVT2_TRANSPORT_CONFIRMED, request))
        answer = await self._next()
        self._carry_out(self._association.step(event_of(answer)))
        if isinstance(answer, AssociateRj):
            words = _REJECTIONS.get((answer.source, answer.reason), "it gave no reason")
            raise Denied(
                f"{peer.called} rejected the association: {words}.",
                mend="Check both AE titles and that this device is registered there.",
                code="association-rejected",
            )
        if not isinstance(answer, AssociateAc):
            raise _broken("it aborted the association")
        proposed = {proposal.id: proposal for proposal in self._proposals}
        self._max_length = answer.max_length
        for context_id, result, syntax in answer.answers:
            if result == Result.ACCEPTANCE and context_id in proposed:
                abstract = proposed[context_id].abstract_syntax
                self._contexts[(abstract, syntax)] = Context(context_id, abstract, syntax)

    async def _write(self, parts: list[bytes | bytearray | memoryview]) -> None:
        """Write in large pieces: one small write for each head would cost a packet each."""
        piece: list[bytes | bytearray | memoryview] = []
        size = 0
        for part in parts:
            piece.append(part)
            size += len(part)
            if size >= WRITE_BYTES:
                self._writer.write(b"".join(piece))
                await self._writer.drain()
                piece, size = [], 0
        if piece:
            self._writer.write(b"".join(piece))
        await self._writer.drain()

    async def _response(self, context: Context) -> Command:
        assembler = Assembler({context.id: context}, max_data_bytes=0)
        while True:
            kind, body = await self._read()
            if kind != Kind.DATA:
                self._carry_out(self._association.step(event_of(decode(kind, body))))
                raise _broken("it ended the association")
            self._association.step(Event.EVT10_DATA)
            message: Message | None = None
            for pdv in pdvs(body, 0, len(body)):
                message = assembler.take(pdv, memoryview(body)) or message
            if message is not None:
                return message.command

    async def _release(self) -> None:
        self._carry_out(self._association.step(Event.EVT11_RELEASE_REQUEST))
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                while self._association.state is State.STA7_AWAITING_RELEASE_RP:
                    self._carry_out(self._association.step(event_of(await self._next())))
        except (AccordError, OSError, TimeoutError):
            return  # everything was answered; how the peer says goodbye changes nothing

    async def _next(self) -> Pdu:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return decode(*await self._read())
        except (OSError, TimeoutError) as error:
            raise _broken(_words(error)) from error

    async def _read(self) -> tuple[int, bytes]:
        try:
            head = await self._reader.readexactly(HEAD_BYTES)
            kind, length = head[0], int.from_bytes(head[2:], "big")
            check_head(kind, length)
            return kind, await self._reader.readexactly(length)
        except asyncio.IncompleteReadError as error:
            raise _broken("it closed the connection") from error
        except PduFault as fault:
            self._carry_out(self._association.step(Event.EVT19_INVALID_PDU, fault=fault.reason))
            raise _broken("it sent something that is not DICOM") from fault

    def _carry_out(self, step: Step) -> None:
        if step.send:
            self._writer.write(step.send)


def _broken(why: str) -> Unavailable:
    return Unavailable(
        f"The association broke off: {why}.",
        mend="What was answered is stored; send the rest again.",
        code="association-broken",
    )


def _words(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({error.verify_message})"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed ({(error.reason or 'unknown').replace('_', ' ').lower()})"
    if isinstance(error, TimeoutError):
        return "it did not answer in time"
    return getattr(error, "strerror", None) or "the connection was cut"
