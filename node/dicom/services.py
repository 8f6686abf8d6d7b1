"""What the DICOM door does: C-ECHO and C-STORE (PS3.4 Annexes A and B), answered by error family.

C-STORE answers 0000 only after `ingest.receive` has returned, and then the instance is durable. Leaves the rules,
the vault and the check that command and data set name the same instance to `ingest`; bytes and time to
`connection`. Every refusal is in the log: ingest's by ingest, the others by this.
"""

from __future__ import annotations

from typing import Protocol

import structlog

from consent.errors import AccordError, Conflict, Corrupt, Denied, Invalid, NotFound, Unavailable
from consent.vocabulary import EventKind, Outcome
from node.audit.event import Event
from node.ingest import Arrival, Source

from .association import VERIFICATION
from .messages import RESPONSE, Message, Verb, encode_response

SUCCESS = 0x0000
SOP_CLASS_NOT_SUPPORTED = 0x0122
PROCESSING_FAILURE = 0x0110
DUPLICATE_SOP_INSTANCE = 0x0111
NO_SUCH_SOP_INSTANCE = 0x0112
NOT_AUTHORIZED = 0x0124
UNRECOGNIZED_OPERATION = 0x0211
OUT_OF_RESOURCES = 0xA700
DATA_SET_DOES_NOT_MATCH = 0xA900
CANNOT_UNDERSTAND = 0xC000
DAMAGED = 0xC001

# PS3.4 Table B.2-1 and PS3.7 Annex C.
STATUS_OF_FAMILY: tuple[tuple[type[AccordError], int], ...] = (
    (Denied, NOT_AUTHORIZED),
    (NotFound, NO_SUCH_SOP_INSTANCE),
    (Conflict, DUPLICATE_SOP_INSTANCE),
    (Corrupt, DAMAGED),
    (Invalid, CANNOT_UNDERSTAND),
    (Unavailable, OUT_OF_RESOURCES),
)
STATUS_OF_CODE = {"uid-mismatch": DATA_SET_DOES_NOT_MATCH, "sop-class": SOP_CLASS_NOT_SUPPORTED}
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


class Services:
    """Carries out messages."""

    def __init__(self, ingest: Ingest, log: EventLog) -> None:
        self._ingest = ingest
        self._log = log

    async def serve(self, message: Message, source: Source) -> tuple[bytes, int]:
        """Carry out one message; return the response's command set (empty: none is due) and its status."""
        command = message.command
        if command.verb == Verb.C_CANCEL_RQ or command.verb & RESPONSE:
            return b"", SUCCESS  # nothing here runs long enough to be cancelled, and no answer is awaited
        status, comment = await self._outcome(message, source)
        return encode_response(command, status, comment), status

    async def _outcome(self, message: Message, source: Source) -> tuple[int, str]:
        verifying = message.context.abstract_syntax == VERIFICATION
        try:
            match message.command.verb:
                case Verb.C_ECHO_RQ if verifying:
                    return SUCCESS, ""
                case Verb.C_STORE_RQ if not verifying:
                    await self._store(message, source)
                    return SUCCESS, ""
                case Verb.C_ECHO_RQ | Verb.C_STORE_RQ:
                    return SOP_CLASS_NOT_SUPPORTED, "Not a service of this presentation context"
                case _:
                    return UNRECOGNIZED_OPERATION, "Only C-ECHO and C-STORE are spoken here"
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
        await self._log.record(
            Event(
                EventKind.INSTANCE_REFUSED,
                source.principal.actor,
                Outcome.REFUSED,
                address=source.address,
                reason=error.message,
                detail={"channel": source.channel, "code": error.code},
            )
        )


def status_of(error: AccordError) -> int:
    """The C-STORE status that says what kind of error it was."""
    if error.code in STATUS_OF_CODE:
        return STATUS_OF_CODE[error.code]
    for family, status in STATUS_OF_FAMILY:
        if isinstance(error, family):
            return status
    return PROCESSING_FAILURE
