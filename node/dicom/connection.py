"""One DICOM connection: bytes in, PDUs parsed where they lie, messages handled in order, answers out.

The kernel (or TLS) writes into one receive buffer per connection and nothing is copied but data set fragments, once.
A connection has one task: it admits the device, then serves its messages one after another while the next ones
arrive, or several at once where the peer negotiated that. Reading pauses while too many messages wait or the node's memory for data sets is full.
Leaves states to `association`, fragments to `messages`, work to `services`, bounds and counters to `gate`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, cast

import structlog

from consent.errors import AccordError, Denied, Unavailable
from consent.principals import Principal
from consent.vocabulary import EventKind
from node.access.admission import DeviceRefused, Knock
from node.audit.event import Detail
from node.audit.event import Event as Deed
from node.ingest import Source

from .association import Artim, Association, Event, Say, State, Step, event_of
from .channel import OVER, Channel
from .gate import AssociationView, Gate
from .messages import Assembler, Message, Verb, framed
from .negotiation import negotiate
from .pdu import (
    APPLICATION_CONTEXT,
    HEAD_BYTES,
    MAX_ASSOCIATE_BYTES,
    PROTOCOL_VERSION,
    AssociateAc,
    AssociateRj,
    AssociateRq,
    Buffer,
    Kind,
    Pdu,
    PduFault,
    check_head,
    decode,
    pdvs,
)
from .services import NO_REFUSALS, EventLog
from .statuses import (
    APPLICATION_CONTEXT_NOT_SUPPORTED,
    CALLED_AE_NOT_RECOGNIZED,
    CALLING_AE_NOT_RECOGNIZED,
    LOCAL_LIMIT_EXCEEDED,
    PROTOCOL_VERSION_NOT_SUPPORTED,
    SUCCESS,
    TEMPORARY_CONGESTION,
)

RECEIVE_BYTES = 1024 * 1024
_QUICKACK: int | None = getattr(socket, "TCP_QUICKACK", None)

Spawn = Callable[[Coroutine[Any, Any, object]], None]
_logger = structlog.get_logger()


class Connection(asyncio.BufferedProtocol):
    """The acceptor's side of one association over one transport."""

    def __init__(self, gate: Gate, log: EventLog, spawn: Spawn, address: str, *, tls: bool) -> None:
        self._gate, self._log, self._spawn = gate, log, spawn
        self._address, self._tls = address, tls
        self._loop = asyncio.get_running_loop()
        self._association = Association(requestor=False)
        self._buffer = bytearray(RECEIVE_BYTES)
        self._view = memoryview(self._buffer)
        self._read_to = self._written_to = 0
        self._assembler: Assembler | None = None
        self._channel: Channel | None = None
        self._operations = 1
        self._messages: asyncio.Queue[tuple[Message, int] | None] = asyncio.Queue()
        self._unserved = 0
        self._reserved = 0
        self._paused = self._deaf = self._ended = False
        self._drained = asyncio.Event()
        self._drained.set()
        self._artim: asyncio.TimerHandle | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._heard = self._loop.time()
        self._max_length = 0
        self._device = ""
        self.closed = asyncio.Event()

    # The transport calls these.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._socket = transport.get_extra_info("socket")
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._carry_out(self._association.step(Event.EVT5_TRANSPORT_INDICATED))

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._read_to == self._written_to:
            self._read_to = self._written_to = 0
        elif RECEIVE_BYTES - self._read_to < HEAD_BYTES + MAX_ASSOCIATE_BYTES:
            left = self._written_to - self._read_to
            self._view[:left] = bytes(self._view[self._read_to : self._written_to])
            self._read_to, self._written_to = 0, left
        return self._view[self._written_to :]

    def buffer_updated(self, nbytes: int) -> None:
        self._written_to += nbytes
        self._heard = self._loop.time()
        self._parse()
        if _QUICKACK is not None and not self._transport.is_closing():
            # A sender with Nagle on holds its last piece back until this acknowledgement, else 40 ms late.
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._association.state is not State.STA1_IDLE:
            self._carry_out(self._association.step(Event.EVT17_TRANSPORT_CLOSED))
        self._stop_timer("_artim")
        self._stop_timer("_idle")
        self._end_of_messages()
        self._gate.memory.leave(self)
        self._drained.set()
        self.closed.set()

    def pause_writing(self) -> None:
        self._drained.clear()

    def resume_writing(self) -> None:
        self._drained.set()

    # The listener calls this.

    def finish(self) -> None:
        """Serve what has arrived whole, then end the association; without one, close at once."""
        if self._assembler is None or self._association.state is not State.STA6_ESTABLISHED:
            self._transport.abort()
        else:
            self._deaf = True
            self._end_of_messages()

    # From bytes to events.

    def _parse(self) -> None:
        """Take every whole PDU that lies in the buffer, until reading has to pause."""
        try:
            while not (self._paused or self._deaf) and self._written_to - self._read_to >= HEAD_BYTES:
                start = self._read_to
                kind = self._buffer[start]
                length = int.from_bytes(self._view[start + 2 : start + HEAD_BYTES], "big")
                check_head(kind, length)
                end = start + HEAD_BYTES + length
                if end > self._written_to:
                    return
                if kind != Kind.DATA:
                    self._read_to = end
                    self._take(decode(kind, bytes(self._view[start + HEAD_BYTES : end])))
                elif self._take_data(start + HEAD_BYTES, end):
                    self._read_to = end
        except PduFault as fault:
            self._refused("bad-pdu", fault.message, kind=EventKind.INPUT_REFUSED)
            self._carry_out(self._association.step(Event.EVT19_INVALID_PDU, fault=fault.reason))
            self._deaf = True
        if self._deaf:
            self._read_to = self._written_to

    def _take(self, pdu: Pdu) -> None:
        if isinstance(pdu, AssociateRq) and self._association.state is State.STA2_AWAITING_ASSOCIATE_RQ:
            self._take_request(pdu)
        else:
            self._carry_out_for_peer(self._association.step(event_of(pdu)))

    def _take_request(self, request: AssociateRq) -> None:
        unacceptable: AssociateRj | None = None
        if not request.protocol_version & PROTOCOL_VERSION:
            unacceptable = PROTOCOL_VERSION_NOT_SUPPORTED
        elif request.application_context != APPLICATION_CONTEXT:
            unacceptable = APPLICATION_CONTEXT_NOT_SUPPORTED
        self._carry_out(self._association.step(Event.EVT6_ASSOCIATE_RQ, unacceptable=unacceptable))
        if unacceptable is None:
            self._spawn(self._run(request))
        else:
            self._refused("not-dicom-3", "It asked for another protocol than DICOM 3.0.", request=request)

    def _take_data(self, start: int, end: int) -> bool:
        """Take a P-DATA-TF; False when it must wait in the buffer until there is room."""
        if self._association.state is State.STA6_ESTABLISHED and not self._has_room(end - start):
            return False
        step = self._association.step(Event.EVT10_DATA)
        if step.say is not Say.DATA or self._assembler is None:
            self._carry_out_for_peer(step)
            return True
        for pdv in pdvs(self._buffer, start, end):
            message = self._assembler.take(pdv, self._view)
            if message is not None:
                self._arrived(message)
        if self._assembler.dropping:
            self._free_reserved()
        return True

    def _arrived(self, message: Message) -> None:
        """A request waits for its turn; a response or a cancel is for an operation that is under way."""
        assert self._channel is not None
        if self._channel.take(message):
            self._free_reserved()
            return
        self._unserved += 1
        self._messages.put_nowait((message, self._reserved))
        self._reserved = 0

    def _has_room(self, size: int) -> bool:
        """Whether `size` more bytes may be taken; when not, pause, or drop the data set if waiting is in vain."""
        assert self._assembler is not None
        # More may wait than may be under way at once: what ends an operation comes behind the requests.
        if self._unserved >= max(self._gate.limits.queued_messages, self._operations + 1):
            self._pause()
            return False
        memory = self._gate.memory
        if self._assembler.dropping:
            return True
        if memory.reserve(self, size):
            self._reserved += size
            return True
        if memory.wait(self, self._resume, busy=self._unserved > 0):
            self._pause()
            return False
        self._assembler.drop("The node is out of memory for instances.")
        return True

    def _pause(self) -> None:
        self._paused = True
        self._transport.pause_reading()

    def _resume(self) -> None:
        self._loop.call_soon(self._continue)

    def _continue(self) -> None:
        if not self._paused or self.closed.is_set():
            return
        self._paused = False
        self._heard = self._loop.time()
        self._parse()
        if not self._paused:
            self._transport.resume_reading()

    def _free_reserved(self) -> None:
        size, self._reserved = self._reserved, 0
        if size:
            self._gate.memory.release(self, size)

    # From steps to deeds.

    def _carry_out_for_peer(self, step: Step) -> None:
        """Carry out what the peer's PDU led to; an abort by us is written down."""
        if step.send and step.state is State.STA13_AWAITING_CLOSE:
            self._refused(
                "unexpected-pdu",
                "It sent a PDU that the association's state does not allow.",
                kind=EventKind.INPUT_REFUSED,
            )
        self._carry_out(step)

    def _carry_out(self, step: Step) -> None:
        if step.send and not self._transport.is_closing():
            self._transport.write(step.send)
        if step.artim is not None:
            self._stop_timer("_artim")
        if step.artim is Artim.START:
            self._artim = self._loop.call_later(self._gate.limits.artim_seconds, self._artim_expired)
        if step.say in (Say.RELEASE_INDICATION, Say.ABORTED):
            self._end_of_messages()
        if step.close:
            self._transport.close()

    def _end_of_messages(self) -> None:
        """No further message will come: what arrived of one is not kept."""
        if self._ended:
            return
        self._ended = True
        if self._assembler is not None and not self._assembler.between_messages:
            self._refused(
                "cut-short",
                "The association ended in the middle of an instance; it was not kept.",
                kind=EventKind.INPUT_REFUSED,
            )
            self._assembler.drop("The association ended.")
        if self._channel is not None:
            self._channel.no_more()
        self._free_reserved()
        self._messages.put_nowait(None)

    def _artim_expired(self) -> None:
        if self._association.state is State.STA2_AWAITING_ASSOCIATE_RQ:
            self._refused("no-request", "It connected and asked for no association.")
        self._carry_out(self._association.step(Event.EVT18_ARTIM_EXPIRED))
        self._transport.abort()

    def _watch_idleness(self) -> None:
        limit = self._gate.limits.idle_seconds
        if self._unserved or self._paused:
            self._heard = self._loop.time()
        silent = self._loop.time() - self._heard
        if silent < limit:
            self._idle = self._loop.call_later(limit - silent, self._watch_idleness)
        elif self._association.state is State.STA6_ESTABLISHED:
            self._refused("idle", "It was silent for too long.", kind=EventKind.INPUT_REFUSED)
            self._carry_out(self._association.step(Event.EVT15_ABORT_REQUEST))
            self._end_of_messages()

    def _stop_timer(self, name: str) -> None:
        timer = getattr(self, name)
        if timer is not None:
            timer.cancel()
            setattr(self, name, None)

    def _refused(
        self,
        code: str,
        words: str,
        *,
        kind: EventKind = EventKind.ASSOCIATION_REFUSED,
        request: AssociateRq | None = None,
        more: Mapping[str, Detail] | None = None,
    ) -> None:
        told = dict(more or {})
        if request is not None:
            told |= {"calling": request.calling, "called": request.called}
        if self._device:
            told["device"] = self._device
        event = self._gate.refusal(code, words, self._address, kind=kind, tls=self._tls, more=told)
        if event is not None:
            self._spawn(self._log.record(event))

    # The task of the association.

    async def _run(self, request: AssociateRq) -> None:
        try:
            code = self._gate.association_refusal(self._address)
            if code:
                self._refused(code, "Too many associations are open.", request=request)
                self._reject(LOCAL_LIMIT_EXCEEDED)
                return
            with self._gate.associated(self._address, request.calling, self._tls) as view:
                principal = await self._admit(request)
                if principal is not None and self._association.state is State.STA3_AWAITING_LOCAL_ANSWER:
                    await self._accept(request, principal, view)
                    source = Source(principal, "dimse", self._address)
                    try:
                        await self._serve(source, view)
                    finally:
                        await self._gate.services.end(source)
        except Exception:
            _logger.exception("dicom_association_failed", address=self._address)
            self._transport.abort()
        finally:
            self._forget_unserved()

    async def _admit(self, request: AssociateRq) -> Principal | None:
        """Ask the device gate; on a no, reject in the standard's words and write it down."""
        try:
            return await self._gate.devices.admit_device(
                request.calling, request.called, self._address, self._certificate(), self._tls
            )
        except Denied as error:
            more = error.detail if isinstance(error, DeviceRefused) else None
            self._refused(error.code, error.message, request=request, more=more)
            wrong_called = request.called != self._gate.ae_title
            self._reject(CALLED_AE_NOT_RECOGNIZED if wrong_called else CALLING_AE_NOT_RECOGNIZED)
        except AccordError as error:
            self._refused(error.code, error.message, request=request)
            self._reject(TEMPORARY_CONGESTION)
        return None

    def _reject(self, answer: AssociateRj) -> None:
        if self._association.state is State.STA3_AWAITING_LOCAL_ANSWER:
            self._carry_out(self._association.step(Event.EVT8_REJECT, answer))

    def _certificate(self) -> bytes | None:
        tls = self._transport.get_extra_info("ssl_object")
        return tls.getpeercert(binary_form=True) if tls is not None else None

    async def _accept(self, request: AssociateRq, principal: Principal, view: AssociationView) -> None:
        limits = self._gate.limits
        terms = negotiate(request, private=self._gate.private_sop_classes, operations=limits.operations)
        accepting = Deed(
            EventKind.ASSOCIATION_ACCEPTED,
            principal.actor,
            address=self._address,
            detail={"tls": self._tls, "contexts": len(terms.contexts)},
        )
        try:
            await self._log.record(accepting)
        except AccordError as error:  # what cannot be put on record does not happen: a full disk, mostly
            _logger.warning("dicom_not_on_record", error=error.message)
            self._reject(TEMPORARY_CONGESTION)
            return
        if self._association.state is not State.STA3_AWAITING_LOCAL_ANSWER:
            return
        view.admitted, view.cut, view.device = True, self.cut_off, principal.id
        view.knock = Knock(principal.id, request.called, self._address, self._certificate(), self._tls)
        view.principal = principal
        self._device = principal.id
        self._gate.metrics.accepted.inc()
        self._max_length = request.max_length
        self._operations = terms.operations
        self._channel = Channel(
            terms, self._write, self.cut_off, max_length=request.max_length, calling=request.calling
        )
        self._assembler = Assembler(terms.contexts, limits.instance_bytes)
        answer = AssociateAc(
            request.called,
            request.calling,
            terms.answers,
            roles=terms.roles,
            extended=terms.extended,
            window=terms.window,
        )
        self._carry_out(self._association.step(Event.EVT7_ACCEPT, answer))
        self._watch_idleness()

    async def _serve(self, source: Source, view: AssociationView) -> None:
        """Serve messages in the order in which they came, until no more will come."""
        free = asyncio.Semaphore(self._operations)
        async with asyncio.TaskGroup() as operations:
            while (arrived := await self._messages.get()) is not None:
                if self._operations == 1:  # no task for each of many thousand instances
                    await self._serve_one(*arrived, source, view)
                    continue
                await free.acquire()
                task = operations.create_task(self._serve_one(*arrived, source, view))
                task.add_done_callback(lambda _: free.release())
        if self._association.state is State.STA8_AWAITING_LOCAL_RELEASE:
            self._carry_out(self._association.step(Event.EVT14_RELEASE_RESPONSE))
        elif self._association.state is State.STA6_ESTABLISHED:
            self._carry_out(self._association.step(Event.EVT15_ABORT_REQUEST))
            self._transport.close()  # the node is stopping: it does not wait for the peer to close

    async def _serve_one(
        self, message: Message, reserved: int, source: Source, view: AssociationView
    ) -> None:
        if self._association.state is not State.STA1_IDLE:
            await self._answer(message, source, view)
        self._served(reserved)

    async def _answer(self, message: Message, source: Source, view: AssociationView) -> None:
        assert self._channel is not None
        response, status = await self._gate.services.serve(message, source, self._channel)
        self._channel.served(message)
        view.last_seen = self._gate.clock.now()
        storing = message.command.verb == Verb.C_STORE_RQ
        if status == SUCCESS:
            view.stored += storing
            self._gate.metrics.received_bytes.inc(len(message.data) if storing else 0)
        else:
            view.refused += status not in NO_REFUSALS
        self._gate.metrics.answers.labels(f"{status:04X}").inc()
        if response:
            parts = framed(message.context.id, response, command=True, max_length=self._max_length)
            with contextlib.suppress(Unavailable):  # the peer is gone: nobody hears the answer
                await self._channel.send([b"".join(parts)])

    async def _write(self, parts: Sequence[Buffer]) -> None:
        """Write in one piece; return when the transport takes more. Raises Unavailable when there is no association.

        A peer that asks and does not read what it asked for is cut off: it would hold what it was to be sent for ever.
        """
        if self._association.state not in (State.STA6_ESTABLISHED, State.STA8_AWAITING_LOCAL_RELEASE):
            raise Unavailable("The association is over.", code=OVER)
        self._association.step(Event.EVT9_DATA_REQUEST)
        self._transport.write(parts[0] if len(parts) == 1 else b"".join(parts))
        if self._drained.is_set():
            return
        try:
            async with asyncio.timeout(self._gate.limits.stall_seconds):
                await self._drained.wait()
        except TimeoutError as error:
            self._refused("stalled", "It did not read what it asked for.", kind=EventKind.INPUT_REFUSED)
            self.cut_off()
            raise Unavailable("The peer does not read.", code=OVER) from error

    def cut_off(self) -> None:
        """End the association at once."""
        if self._association.state in (State.STA6_ESTABLISHED, State.STA8_AWAITING_LOCAL_RELEASE):
            self._carry_out(self._association.step(Event.EVT15_ABORT_REQUEST))
        self._end_of_messages()
        self._transport.abort()

    def _served(self, reserved: int) -> None:
        self._unserved -= 1
        if reserved:
            self._gate.memory.release(self, reserved)
        if self._paused:
            self._gate.memory.leave(self)
            self._resume()

    def _forget_unserved(self) -> None:
        while not self._messages.empty():
            arrived = self._messages.get_nowait()
            if arrived is not None:
                self._served(arrived[1])
