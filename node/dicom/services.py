"""What the DICOM door does, and what it answers by error family (PS3.4 Annexes A, B, C and J).

C-ECHO and C-STORE are here, queries in `find`, retrieval in `retrieve`, storage commitment in `commitment`. C-STORE
answers 0000 only after `ingest.receive` has returned, and then the instance is durable. Leaves the rules, the vault and
the check that command and data set name the same instance to `ingest` and `gateway`; bytes and time to `connection`.
Every refusal is in the log: ingest's and the gateway's by them, the others by this.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

import structlog

from consent.errors import AccordError, Conflict, Corrupt, Denied, Invalid, NotFound, Unavailable
from node.audit.event import Event
from node.ingest import Arrival, Source
from node.refusals import refused, summary

from .channel import Channel
from .messages import CANCELLED, RESPONSE, Message, Verb, encode_response
from .negotiation import FIND, GET, MOVE, SERVICES, STORAGE_COMMITMENT, VERIFICATION
from .statuses import (
    CANNOT_COUNT,
    CANNOT_SEND,
    CANNOT_UNDERSTAND,
    DAMAGED,
    DATA_SET_DOES_NOT_MATCH,
    DUPLICATE_SOP_INSTANCE,
    INVALID_ARGUMENT,
    NO_SUCH_ACTION,
    NO_SUCH_SOP_INSTANCE,
    NOT_AUTHORIZED,
    OUT_OF_RESOURCES,
    PROCESSING_FAILURE,
    RESOURCE_LIMITATION,
    SOME_FAILED,
    SOP_CLASS_NOT_SUPPORTED,
    SUCCESS,
    UNKNOWN_DESTINATION,
    UNRECOGNIZED_OPERATION,
)

NO_REFUSALS = frozenset({SUCCESS, CANCELLED, SOME_FAILED})
"""Answers that end an operation otherwise than by refusing it."""

# PS3.4 Table B.2-1 and PS3.7 Annex C.
STATUS_OF_FAMILY: tuple[tuple[type[AccordError], int], ...] = (
    (Denied, NOT_AUTHORIZED),
    (NotFound, NO_SUCH_SOP_INSTANCE),
    (Conflict, DUPLICATE_SOP_INSTANCE),
    (Corrupt, DAMAGED),
    (Invalid, CANNOT_UNDERSTAND),
    (Unavailable, OUT_OF_RESOURCES),
)
STATUS_OF_CODE = {
    "uid-mismatch": DATA_SET_DOES_NOT_MATCH,
    "identifier": DATA_SET_DOES_NOT_MATCH,
    "sop-class": SOP_CLASS_NOT_SUPPORTED,
    "too-broad": OUT_OF_RESOURCES,
    "too-many-owed": RESOURCE_LIMITATION,
    "no-such-action": NO_SUCH_ACTION,
    "commitment": INVALID_ARGUMENT,
    "unknown-destination": UNKNOWN_DESTINATION,
    "too-many-instances": CANNOT_COUNT,
    "peer-unreachable": CANNOT_SEND,
    "association-rejected": CANNOT_SEND,
    "association-broken": CANNOT_SEND,
}
"""Codes that the standard has a status of its own for."""

_logger = structlog.get_logger()


class Ingest(Protocol):
    """The one way in (`node.ingest.Ingest`)."""

    async def receive(self, arrival: Arrival, source: Source) -> object:
        """Return when the instance is durable; raise an error family otherwise."""
        ...


class EventLog(Protocol):
    """Where deeds are written (`node.audit.log.Log`)."""

    async def record(self, event: Event) -> object:
        """Return when the event is durable."""
        ...


class Service(Protocol):
    """An operation that may answer several times: C-FIND, C-GET, C-MOVE, N-ACTION."""

    async def serve(self, message: Message, source: Source, channel: Channel) -> int:
        """Carry it out and send every answer; return the status of the last. Raises an error family before that."""
        ...


_SPOKEN: dict[int, frozenset[str]] = {
    Verb.C_FIND_RQ: frozenset(FIND),
    Verb.C_GET_RQ: frozenset(GET),
    Verb.C_MOVE_RQ: frozenset(MOVE),
    Verb.N_ACTION_RQ: frozenset({STORAGE_COMMITMENT}),
}
"""The SOP classes whose operation each is."""


class Services:
    """Carries out messages. `others` are the services of operations by verb; what is not among them is not known."""

    def __init__(
        self, ingest: Ingest, log: EventLog, others: Mapping[int, Service] = MappingProxyType({})
    ) -> None:
        self._ingest = ingest
        self._log = log
        self._others = others

    async def serve(self, message: Message, source: Source, channel: Channel) -> tuple[bytes, int]:
        """Carry out one message; return the response's command set (empty: none is due) and its status."""
        command = message.command
        if command.verb == Verb.C_CANCEL_RQ or command.verb & RESPONSE:
            return b"", SUCCESS  # no operation of this number is under way, and no answer is awaited
        outcome = await self._outcome(message, source, channel)
        if isinstance(outcome, int):
            return b"", outcome
        return encode_response(command, *outcome), outcome[0]

    async def _outcome(self, message: Message, source: Source, channel: Channel) -> tuple[int, str] | int:
        """Status and comment of the answer; the status alone when it was sent already."""
        syntax, verb = message.context.abstract_syntax, message.command.verb
        try:
            match verb:
                case Verb.C_ECHO_RQ if syntax == VERIFICATION:
                    return SUCCESS, ""
                case Verb.C_STORE_RQ if syntax not in SERVICES and syntax != VERIFICATION:
                    await self._store(message, source)
                    return SUCCESS, ""
                case Verb.C_ECHO_RQ | Verb.C_STORE_RQ:
                    return SOP_CLASS_NOT_SUPPORTED, "Not a service of this presentation context"
                case _ if verb in self._others and syntax in _SPOKEN[verb]:
                    if message.dropped:
                        return OUT_OF_RESOURCES, message.dropped
                    return await self._others[verb].serve(message, source, channel)
                case _:
                    return UNRECOGNIZED_OPERATION, "Not an operation of this presentation context"
        except AccordError as error:
            return status_of(error), error.message
        except Exception:  # the association lives on, and the sender must not believe that it was stored
            _logger.exception("dicom_service_failed", verb=message.command.verb)
            return PROCESSING_FAILURE, "The node failed; its log says why"

    async def _store(self, message: Message, source: Source) -> None:
        command, context = message.command, message.context
        fault: AccordError | None = None
        if message.dropped:
            fault = Unavailable(message.dropped, code="too-large")
        elif not command.has_data:
            fault = Invalid("A C-STORE without a data set.")
        elif command.sop_class_uid != context.abstract_syntax:
            fault = Invalid("SOP Class differs from the presentation context.", code="sop-class")
        if fault is not None:
            await self._refused(fault, source)
            raise fault
        arrival = Arrival(
            sop_class_uid=command.sop_class_uid,
            sop_instance_uid=command.sop_instance_uid,
            transfer_syntax_uid=context.transfer_syntax,
            data=message.data,
            sha256=message.sha256,
        )
        await self._ingest.receive(arrival, source)

    async def _refused(self, error: AccordError, source: Source) -> None:
        for event in refused(error, source):
            await self._log.record(event)

    async def end(self, source: Source) -> None:
        """An association is over: put on record how many more instances were refused."""
        for event in summary(source):
            await self._log.record(event)


def status_of(error: AccordError) -> int:
    """The status that says what kind of error it was (PS3.4 Tables B.2-1, C.4-1, C.4-2 and C.4-3)."""
    if error.code in STATUS_OF_CODE:
        return STATUS_OF_CODE[error.code]
    for family, status in STATUS_OF_FAMILY:
        if isinstance(error, family):
            return status
    return PROCESSING_FAILURE
