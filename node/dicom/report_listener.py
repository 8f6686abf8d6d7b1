"""A short-lived listener for storage commitment reports that come on an association of their own (PS3.4 §J.3.3).

Many archives report only so: they call whoever asked at an address and port that they have been told. It takes N-EVENT-REPORT
of the transactions that are waited for, from the peer that was asked, and nothing else. The peer is known by both AE titles
and, over TLS, by its certificate; the transaction's UID is new and random each time. Serves `accord send --listen-port`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator
from typing import Self

from consent.errors import Invalid, Unavailable

from .association import Association, Event, State, Step, event_of
from .commitment_forms import INSTANCE, MAX_ASKED_BYTES, Report, read_report
from .messages import Assembler, Context, Message, Verb, encode_response, framed
from .negotiation import LITTLE_ENDIAN, STORAGE_COMMITMENT
from .pdu import (
    APPLICATION_CONTEXT,
    HEAD_BYTES,
    Answer,
    AssociateAc,
    AssociateRj,
    AssociateRq,
    Kind,
    PduFault,
    Result,
    Roles,
    check_head,
    decode,
    pdvs,
)
from .requestor import Peer
from .statuses import (
    APPLICATION_CONTEXT_NOT_SUPPORTED,
    CALLED_AE_NOT_RECOGNIZED,
    CALLING_AE_NOT_RECOGNIZED,
    INVALID_ARGUMENT,
    NO_SUCH_SOP_INSTANCE,
    UNRECOGNIZED_OPERATION,
)

MAX_CONNECTIONS = 4
"""At once: one peer is expected, and perhaps some that are none. Of those the one that has been silent longest gives way."""
REQUEST_SECONDS = 10.0
"""From the connection to a whole A-ASSOCIATE-RQ, the handshake before it likewise."""
IDLE_SECONDS = 30.0
CLOSE_SECONDS = 1.0
"""How long a peer has to close after the last word (ARTIM), and TLS to say goodbye."""
LINGER_SECONDS = 2.0
"""How long a peer has to release after its report."""


class ReportListener:
    """Listens inside `async with`, where this machine is reached by `peer`. With `tls` (which must ask for a certificate) DICOM TLS."""

    def __init__(self, peer: Peer, port: int, *, tls: ssl.SSLContext | None = None) -> None:
        if (tls is None) != (peer.tls is None):
            raise ValueError("a report comes as it was asked for: both over TLS or neither")
        if tls is not None and tls.verify_mode is not ssl.CERT_REQUIRED:
            raise ValueError("DICOM TLS is mutual: the context must require client certificates")
        self.peer = peer
        self._port, self._tls = port, tls
        self._expected: dict[str, asyncio.Future[Report]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._callers: list[_Reporting] = []
        self.turned_away = ""
        """Why the last caller that was not the peer was turned away; "" when there was none."""

    async def __aenter__(self) -> Self:
        host = await asyncio.to_thread(_own_address, self.peer)
        seconds = REQUEST_SECONDS if self._tls is not None else None
        try:
            self._server = await asyncio.start_server(
                self._connected, host, self._port, ssl=self._tls, ssl_handshake_timeout=seconds
            )
        except OSError as error:
            raise Unavailable(
                f"Nobody can listen on {host} port {self._port}: {error.strerror}.",
                mend="End the other program that uses the port, or name the one that the archive knows.",
                code="port-in-use",
            ) from error
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.close()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=LINGER_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await self._server.wait_closed()

    @property
    def port(self) -> int:
        """The port that is listened on; chosen by the system when 0 was asked for."""
        return int(self._server.sockets[0].getsockname()[1])

    @contextlib.contextmanager
    def expecting(self, transaction: str) -> Iterator[asyncio.Future[Report]]:
        """The report of one transaction, while somebody waits for it."""
        report: asyncio.Future[Report] = asyncio.get_running_loop().create_future()
        self._expected[transaction] = report
        try:
            yield report
        finally:
            del self._expected[transaction]
            report.cancel()

    def take(self, message: Message) -> int:
        """Take one message of the peer; return the status to answer it with."""
        command = message.command
        if command.verb != Verb.N_EVENT_REPORT_RQ:
            return UNRECOGNIZED_OPERATION
        if command.sop_instance_uid != INSTANCE:
            return NO_SUCH_SOP_INSTANCE
        try:
            if message.dropped:
                return INVALID_ARGUMENT
            report = read_report(message.data, message.context.transfer_syntax)
        except Invalid:
            return INVALID_ARGUMENT
        expected = self._expected.get(report.transaction)
        if expected is None:
            return INVALID_ARGUMENT
        if not expected.done():
            expected.set_result(report)
        return 0

    def refusal(self, request: AssociateRq, certificate: bytes | None) -> AssociateRj | None:
        """How to turn a caller away that is not the peer; None for the peer."""
        if request.application_context != APPLICATION_CONTEXT:
            return APPLICATION_CONTEXT_NOT_SUPPORTED
        if request.called != self.peer.calling:
            self.turned_away = f'it called "{request.called}"'
            return CALLED_AE_NOT_RECOGNIZED
        if request.calling != self.peer.called:
            self.turned_away = f'it called itself "{request.calling}"'
            return CALLING_AE_NOT_RECOGNIZED
        if doubt := self.peer.doubt(certificate):
            self.turned_away = f"it {doubt}"
            return CALLING_AE_NOT_RECOGNIZED
        return None

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._callers) >= MAX_CONNECTIONS:
            silent = next((one for one in self._callers if not one.admitted), None)
            if silent is None:
                writer.transport.abort()
                return
            self._callers.remove(silent)
            silent.turn_out()
        caller = _Reporting(self, reader, writer)
        self._callers.append(caller)
        task = asyncio.create_task(self._heard(caller), name="dicom-report")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _heard(self, caller: _Reporting) -> None:
        try:
            await caller.run()
        finally:
            if caller in self._callers:
                self._callers.remove(caller)


class _Reporting:
    """The acceptor's side of one association on which a report may come."""

    def __init__(
        self, listener: ReportListener, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._listener, self._reader, self._writer = listener, reader, writer
        self._association = Association(requestor=False)
        self._assembler = Assembler({}, 0)
        self._max_length = 0

    @property
    def admitted(self) -> bool:
        """Whether this was taken for the peer."""
        return self._association.state is State.STA6_ESTABLISHED

    def turn_out(self) -> None:
        """End the connection now: it is another's turn."""
        self._writer.transport.abort()

    async def run(self) -> None:
        """From the connection to its end, whatever the peer does."""
        try:
            self._carry_out(self._association.step(Event.EVT5_TRANSPORT_INDICATED))
            async with asyncio.timeout(REQUEST_SECONDS):
                kind, body = await self._read()
            await self._serve(kind, body)
            await self._left()
        except PduFault as fault:
            self._carry_out(self._association.step(Event.EVT19_INVALID_PDU, fault=fault.reason))
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass  # it is gone, or silent
        finally:
            self._writer.close()
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await self._writer.wait_closed()

    async def _serve(self, kind: int, body: bytes) -> None:
        while True:
            if kind != Kind.DATA:
                pdu = decode(kind, body)
                step = self._association.step(event_of(pdu))
                self._carry_out(step)
                if isinstance(pdu, AssociateRq) and step.state is State.STA3_AWAITING_LOCAL_ANSWER:
                    self._answer(pdu)
                elif step.state is State.STA8_AWAITING_LOCAL_RELEASE:
                    self._carry_out(self._association.step(Event.EVT14_RELEASE_RESPONSE))
            elif self._association.state is State.STA6_ESTABLISHED:
                self._association.step(Event.EVT10_DATA)
                self._take(body)
            else:
                self._carry_out(self._association.step(Event.EVT10_DATA))
            await self._writer.drain()
            if self._association.state is not State.STA6_ESTABLISHED:
                return
            async with asyncio.timeout(IDLE_SECONDS):
                kind, body = await self._read()

    async def _left(self) -> None:
        """Sta13: the peer closes once it has read the last word; who hangs up first may take that word away from it."""
        if self._association.state is State.STA13_AWAITING_CLOSE:
            async with asyncio.timeout(CLOSE_SECONDS):
                while await self._reader.read(HEAD_BYTES):
                    pass

    def _answer(self, request: AssociateRq) -> None:
        """Accept the peer in the one service that is taken, as its user; turn away anybody else."""
        tls = self._writer.get_extra_info("ssl_object")
        certificate = tls.getpeercert(binary_form=True) if tls is not None else None
        refusal = self._listener.refusal(request, certificate)
        if refusal is not None:
            self._carry_out(self._association.step(Event.EVT8_REJECT, refusal))
            return
        contexts, answers = {}, []
        for proposal in request.contexts:
            plain = [one for one in proposal.transfer_syntaxes if one in LITTLE_ENDIAN]
            if proposal.abstract_syntax != STORAGE_COMMITMENT:
                answers.append(
                    Answer(proposal.id, Result.ABSTRACT_SYNTAX, next(iter(proposal.transfer_syntaxes), ""))
                )
            elif not plain:
                answers.append(
                    Answer(proposal.id, Result.TRANSFER_SYNTAXES, next(iter(proposal.transfer_syntaxes), ""))
                )
            else:
                answers.append(Answer(proposal.id, Result.ACCEPTANCE, plain[0]))
                contexts[proposal.id] = Context(proposal.id, STORAGE_COMMITMENT, plain[0])
        # Who calls is the provider here: the requestor as SCP (PS3.4 §J.3.3.1).
        roles = tuple(
            Roles(one.sop_class, scu=False, scp=one.scp)
            for one in request.roles
            if one.sop_class == STORAGE_COMMITMENT
        )
        self._max_length = request.max_length
        self._assembler = Assembler(contexts, MAX_ASKED_BYTES)
        accepted = AssociateAc(request.called, request.calling, tuple(answers), roles=roles)
        self._carry_out(self._association.step(Event.EVT7_ACCEPT, accepted))

    def _take(self, body: bytes) -> None:
        for pdv in pdvs(body, 0, len(body)):
            message = self._assembler.take(pdv, memoryview(body))
            if message is None:
                continue
            response = encode_response(message.command, self._listener.take(message))
            self._association.step(Event.EVT9_DATA_REQUEST)
            parts = framed(message.context.id, response, command=True, max_length=self._max_length)
            self._writer.write(b"".join(parts))

    async def _read(self) -> tuple[int, bytes]:
        head = await self._reader.readexactly(HEAD_BYTES)
        kind, length = head[0], int.from_bytes(head[2:], "big")
        check_head(kind, length)
        return kind, await self._reader.readexactly(length)

    def _carry_out(self, step: Step) -> None:
        if step.send:
            self._writer.write(step.send)


def _own_address(peer: Peer) -> str:
    """The address by which this machine reaches the peer, and so by which the peer reaches it. No packet is sent."""
    try:
        family, _, _, _, address = socket.getaddrinfo(peer.host, peer.port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    except OSError as error:
        raise Unavailable(
            f"{peer.host} port {peer.port} cannot be reached: {error.strerror}.",
            mend="Check address and port.",
            code="peer-unreachable",
        ) from error
