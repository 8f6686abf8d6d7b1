"""Our own C-STORE sender: files or data sets in memory, over plain DICOM or mutual TLS (PS3.7 §9.1.1).

Bytes go out as they lie: nothing is decoded or converted, so each instance needs its own SOP class and transfer
syntax accepted. One association carries up to 128 such pairs; more need another one. Each instance is
answered before the next is sent, and one that is refused does not stop the others. Serves `accord send`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from consent.errors import AccordError, Denied, Invalid, Unavailable
from node.imaging.part10 import MAX_META_BYTES, read_part10

from .association import (
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    VERIFICATION,
    Association,
    Event,
    State,
    Step,
    event_of,
)
from .messages import Assembler, Command, Context, Message, Verb, encode_request, framed
from .pdu import (
    HEAD_BYTES,
    MAX_CONTEXTS,
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
MAX_FILE_BYTES = 2 * 1024 * 1024 * 1024
MAX_HEAD_BYTES = MAX_META_BYTES + 132
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
# PS3.4 Table B.2-1 and PS3.7 Annex C, without the low bits that vary.
_STATUS_WORDS = {
    0x0111: "another instance with this UID is there already",
    0x0112: "no such instance",
    0x0122: "this kind of object is not taken there",
    0x0124: "not authorised",
    0x0211: "the operation is not known there",
    0xA7: "out of resources",
    0xA9: "the data set does not match its SOP class or UID",
    0xC: "it could not be understood",
}


@dataclass(frozen=True)
class Outgoing:
    """One instance to send: in memory as `data` (data set alone), or the file at `path` from `offset` on."""

    label: str
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    data: bytes | None = field(default=None, repr=False)
    path: Path | None = None
    offset: int = 0

    def read(self) -> bytes:
        """The data set. Blocks; raises OSError."""
        if self.data is not None:
            return self.data
        assert self.path is not None
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read()


@dataclass(frozen=True)
class Sent:
    """What became of one instance. `status` is the peer's, None when it was not asked."""

    label: str
    sop_instance_uid: str
    ok: bool
    status: int | None
    reason: str
    bytes: int = 0


@dataclass(frozen=True)
class Peer:
    """Whom to call, and as whom. With `tls` (`node.tls.dicom_client_context`) DICOM TLS."""

    host: str
    port: int
    called: str
    calling: str
    tls: ssl.SSLContext | None = None


def outgoing(path: Path) -> Outgoing:
    """Read the head of a DICOM file. Raises Invalid when it is none, Unavailable when it cannot be read."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(MAX_HEAD_BYTES)
    except OSError as error:
        raise Unavailable(f"{path.name} cannot be read: {error.strerror}.") from error
    if size > MAX_FILE_BYTES:
        raise Invalid(f"{path.name} is larger than {MAX_FILE_BYTES >> 30} GiB.", code="too-large")
    head = read_part10(start)
    return Outgoing(
        str(path),
        head.sop_class_uid,
        head.sop_instance_uid,
        head.transfer_syntax_uid,
        path=path,
        offset=head.dataset_offset,
    )


def files_under(paths: Iterable[Path]) -> Iterator[Path]:
    """The files named, and those below the folders named, in order."""
    for path in paths:
        if path.is_dir():
            yield from sorted(inner for inner in path.rglob("*") if inner.is_file())
        else:
            yield path


async def send(peer: Peer, instances: Sequence[Outgoing]) -> AsyncIterator[Sent]:
    """Send `instances`; yield what became of each.

    Raises Unavailable when the peer cannot be reached or breaks off, Denied when it rejects the association.
    """
    for group in _groups(instances):
        pairs = list(dict.fromkeys((one.sop_class_uid, one.transfer_syntax_uid) for one in group))
        async with _Call(peer, pairs) as call:
            for one in group:
                yield await call.store(one)


async def send_files(peer: Peer, paths: Iterable[Path]) -> AsyncIterator[Sent]:
    """Send every DICOM file among `paths` and below them; a file that is none is reported, not sent."""
    found: list[Outgoing] = []
    for path in files_under(paths):
        try:
            found.append(await asyncio.to_thread(outgoing, path))
        except AccordError as error:
            yield Sent(str(path), "", False, None, str(error))
    async for sent in send(peer, found):
        yield sent


async def echo(peer: Peer) -> None:
    """C-ECHO. Raises Unavailable or Denied when the peer does not answer with success."""
    syntaxes = (IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_LITTLE_ENDIAN)
    async with _Call(peer, [(VERIFICATION, syntax) for syntax in syntaxes]) as call:
        await call.echo()


def _groups(instances: Sequence[Outgoing]) -> Iterator[list[Outgoing]]:
    """Runs of instances that need no more presentation contexts than one association has."""
    group: list[Outgoing] = []
    pairs: set[tuple[str, str]] = set()
    for one in instances:
        pair = (one.sop_class_uid, one.transfer_syntax_uid)
        if pair not in pairs and len(pairs) == MAX_CONTEXTS:
            yield group
            group, pairs = [], set()
        pairs.add(pair)
        group.append(one)
    if group:
        yield group


class _Call:
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

    async def store(self, one: Outgoing) -> Sent:
        """Send one instance and wait for its answer."""
        context = self._contexts.get((one.sop_class_uid, one.transfer_syntax_uid))
        if context is None:
            reason = "The peer does not take this SOP class in this transfer syntax."
            return Sent(one.label, one.sop_instance_uid, False, None, reason)
        try:
            data = await asyncio.to_thread(one.read)
        except OSError as error:
            return Sent(one.label, one.sop_instance_uid, False, None, f"It cannot be read: {error.strerror}.")
        command = self._command(Verb.C_STORE_RQ, one.sop_class_uid, one.sop_instance_uid, has_data=True)
        answer = await self._exchange(command, context, data)
        ok = answer.status == 0 or answer.status >> 12 == 0xB  # 0xBxxx: stored, with a warning
        reason = "" if answer.status == 0 else _status_words(answer)
        return Sent(one.label, one.sop_instance_uid, ok, answer.status, reason, len(data))

    async def echo(self) -> None:
        """C-ECHO on this association."""
        if not self._contexts:
            raise Unavailable("The peer does not offer verification.")
        context = next(iter(self._contexts.values()))
        answer = await self._exchange(self._command(Verb.C_ECHO_RQ, VERIFICATION), context, b"")
        if answer.status != 0:
            raise Unavailable(f"The peer answered the echo with status {answer.status:04X}.")

    def _command(
        self, verb: Verb, sop_class: str, sop_instance: str = "", *, has_data: bool = False
    ) -> Command:
        self._message_id = self._message_id % 0xFFFF + 1
        return Command(verb, self._message_id, sop_class, sop_instance, has_data)

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

    async def _exchange(self, command: Command, context: Context, data: bytes) -> Command:
        """Write one request and read its response."""
        self._association.step(Event.EVT9_DATA_REQUEST)
        limit = self._max_length
        parts = list(framed(context.id, encode_request(command), command=True, max_length=limit))
        if command.has_data:
            parts += framed(context.id, data, command=False, max_length=limit)
        try:
            async with asyncio.timeout(ANSWER_SECONDS + len(data) / 1e6):
                await self._write(parts)
                response = await self._response(context)
        except (OSError, TimeoutError) as error:
            raise _broken(_words(error)) from error
        if response.message_id != command.message_id or response.verb != command.verb | 0x8000:
            raise _broken("it answered another message than the one sent")
        return response

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


def _status_words(answer: Command) -> str:
    status = answer.status
    words = (
        _STATUS_WORDS.get(status)
        or _STATUS_WORDS.get(status >> 8)
        or _STATUS_WORDS.get(status >> 12)
        or "refused"
    )
    comment = f": {answer.comment}" if answer.comment else ""
    return f"Status {status:04X}, {words}{comment}"


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
