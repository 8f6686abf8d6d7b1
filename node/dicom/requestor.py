"""The requestor's side of an association: associate, exchange messages one at a time, release (PS3.8 §7).

Leaves to `sender`, `retrieve` and `commitment` what is said. A request of the peer that comes in between waits until
somebody asks for it (`incoming`). Whatever a peer does ends in Denied (it rejects us, or is not who it should be) or
Unavailable (all else).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Self

from consent.errors import AccordError, Denied, Invalid, Unavailable
from node.tls import names_in

from .association import Association, Event, State, Step, event_of
from .channel import ANSWER_SECONDS, SLOWEST_BYTES_PER_SECOND
from .messages import (
    RESPONSE,
    Assembler,
    Command,
    Context,
    Message,
    Verb,
    at_once,
    encode_request,
    encode_response,
    framed,
    framed_pieces,
)
from .pdu import (
    HEAD_BYTES,
    AssociateAc,
    AssociateRj,
    AssociateRq,
    Buffer,
    Kind,
    Pdu,
    PduFault,
    Proposal,
    Result,
    Roles,
    check_head,
    decode,
    pdvs,
)

CONNECT_SECONDS = 15.0
MAX_INCOMING_BYTES = 16 * 1024 * 1024
"""The longest data set that a peer may send to whoever called it: a commitment report."""
MAX_WAITING = 16
_QUICKACK: int | None = getattr(socket, "TCP_QUICKACK", None)
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
    """Whom to call, and as whom. With `tls` (`node.tls.dicom_client_context`) DICOM TLS.

    An authority vouches for many, each of which could answer in the place of another. So a peer over TLS is one of
    `fingerprints` (SHA-256 of DER, hex), or bears `name` (DNS name or IP address, RFC 9525 §6), or both; it proves that before
    a word of DICOM is said. Raises Invalid when it is to prove nothing, or without TLS could not.
    """

    host: str
    port: int
    called: str
    calling: str
    tls: ssl.SSLContext | None = None
    fingerprints: frozenset[str] = frozenset()
    name: str = ""

    def __post_init__(self) -> None:
        if (self.tls is None) is bool(self.fingerprints or self.name):
            raise Invalid(
                "Over TLS, and only there, it must be said which certificate the peer shows.",
                mend="Give the name that it bears, or its fingerprint.",
                code="peer-certificate",
            )

    def doubt(self, certificate: bytes | None) -> str:
        """Why whoever showed this certificate (DER) is not the peer, to follow its name; "" when it is."""
        if self.tls is None:
            return ""
        if certificate is None:
            return "showed no certificate"
        if self.fingerprints and sha256(certificate).hexdigest() not in self.fingerprints:
            return "showed another certificate than the registered one"
        if self.name and self.name.lower() not in names_in(certificate):
            return f"showed a certificate that does not bear the name {self.name}"
        return ""


class Call:
    """The requestor's side of one association, open inside `async with`."""

    def __init__(
        self, peer: Peer, pairs: Sequence[tuple[str, str | tuple[str, ...]]], *, roles: Sequence[Roles] = ()
    ) -> None:
        """`pairs` are a SOP class and one transfer syntax, or several of which the peer picks one, for each context."""
        self._peer = peer
        self._roles = tuple(roles)
        self._proposals = tuple(
            Proposal(2 * number + 1, abstract, (offered,) if isinstance(offered, str) else offered)
            for number, (abstract, offered) in enumerate(pairs)
        )
        self._association = Association(requestor=True)
        self._contexts: dict[tuple[str, str], Context] = {}
        self._assembler = Assembler({}, 0)
        self._waiting: deque[Message] = deque()
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
            self._require_known()
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
        command = Command(verb, 0, context.abstract_syntax, sop_instance, data is not None)
        return await self.request(command, context, data)

    async def request(self, command: Command, context: Context, data: bytes | None = None) -> Command:
        """The same for a command that says more; its message ID is chosen here."""
        pieces = None if data is None else at_once(data)
        return await self.store(context, command, pieces, len(data or b""))

    async def store(
        self, context: Context, command: Command, pieces: AsyncIterator[bytes] | None, size: int
    ) -> Command:
        """The same for a data set of `size` bytes that comes in pieces."""
        self._message_id = self._message_id % 0xFFFF + 1
        command = command.numbered(self._message_id)
        self._association.step(Event.EVT9_DATA_REQUEST)
        head = framed(context.id, encode_request(command), command=True, max_length=self._max_length)
        try:
            async with asyncio.timeout(ANSWER_SECONDS + size / SLOWEST_BYTES_PER_SECOND):
                await self._send(list(head), context, pieces, size)
                response = await self._response()
        except (OSError, TimeoutError) as error:
            raise _broken(_words(error)) from error
        if response.message_id != command.message_id or response.verb != command.verb | RESPONSE:
            raise _broken("it answered another message than the one sent")
        return response

    async def incoming(self, seconds: float) -> Message | None:
        """The next request of the peer; None when none comes in time. Raises Unavailable when it breaks off."""
        if self._waiting:
            return self._waiting.popleft()
        try:
            async with asyncio.timeout(seconds):
                return await self._message()
        except TimeoutError:
            return None

    async def respond(self, message: Message, status: int) -> None:
        """Answer a request of the peer."""
        self._association.step(Event.EVT9_DATA_REQUEST)
        parts = framed(
            message.context.id,
            encode_response(message.command, status),
            command=True,
            max_length=self._max_length,
        )
        await self._write(list(parts))

    def _require_known(self) -> None:
        """Raise Denied unless the peer has shown a certificate that it is known by."""
        tls = self._writer.get_extra_info("ssl_object")
        doubt = self._peer.doubt(tls.getpeercert(binary_form=True) if tls is not None else None)
        if doubt:
            raise Denied(
                f"{self._peer.called} {doubt}.",
                mend="Register its present certificate, if it has a new one. If not, somebody answers in its place: call the security officer.",
                code="peer-certificate",
            )

    async def _associate(self) -> None:
        peer = self._peer
        request = AssociateRq(peer.called, peer.calling, self._proposals, roles=self._roles)
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
        contexts = {context.id: context for context in self._contexts.values()}
        self._assembler = Assembler(contexts, MAX_INCOMING_BYTES)

    async def _send(
        self, head: list[Buffer], context: Context, pieces: AsyncIterator[bytes] | None, size: int
    ) -> None:
        if pieces is None:
            await self._write(head)
            return
        try:
            async for more in framed_pieces(context.id, pieces, size, self._max_length):
                await self._write([*head, *more])
                head = []
        except AccordError as error:
            # Half a data set may be out: no other message can follow it.
            raise _broken("what was to be sent could not be read to its end") from error

    async def _write(self, parts: list[Buffer]) -> None:
        """Write in large pieces: one small write for each head would cost a packet each."""
        piece: list[Buffer] = []
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

    async def _response(self) -> Command:
        """The next response; requests of the peer that come before it are kept."""
        while True:
            message = await self._message()
            if message.command.verb & RESPONSE:
                return message.command
            if len(self._waiting) >= MAX_WAITING:
                raise _broken("it asks and asks instead of answering")
            self._waiting.append(message)

    async def _message(self) -> Message:
        while True:
            kind, body = await self._read()
            if kind != Kind.DATA:
                self._carry_out(self._association.step(event_of(decode(kind, body))))
                raise _broken("it ended the association")
            self._association.step(Event.EVT10_DATA)
            message: Message | None = None
            try:
                for pdv in pdvs(body, 0, len(body)):
                    message = self._assembler.take(pdv, memoryview(body)) or message
            except PduFault as fault:
                self._carry_out(self._association.step(Event.EVT19_INVALID_PDU, fault=fault.reason))
                raise _broken("it sent something that is not DICOM") from fault
            if message is not None:
                return message

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
            self._acknowledge_at_once()
            head = await self._reader.readexactly(HEAD_BYTES)
            kind, length = head[0], int.from_bytes(head[2:], "big")
            check_head(kind, length)
            return kind, await self._reader.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise _broken("it closed the connection") from error
        except PduFault as fault:
            self._carry_out(self._association.step(Event.EVT19_INVALID_PDU, fault=fault.reason))
            raise _broken("it sent something that is not DICOM") from fault

    def _acknowledge_at_once(self) -> None:
        """A peer with Nagle on writes an answer in two pieces and holds the second back until the first is acknowledged:
        40 ms for each instance."""
        if _QUICKACK is not None and not self._writer.transport.is_closing():
            with contextlib.suppress(OSError):
                connection = self._writer.get_extra_info("socket")
                connection.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)

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
