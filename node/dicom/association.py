"""The association of the DICOM upper layer: its state table (PS3.8 §9.2).

Sans-I/O: `Association.step` takes an event and says what to send, indicate, time and close; `listener` and
`sender` do it. The table is the standard's Table 9-10, cell by cell; an empty cell is an event that the own side
must not cause, and raises Conflict.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, IntEnum

from consent.errors import Conflict

from .pdu import (
    Abort,
    AbortReason,
    AssociateAc,
    AssociateRj,
    AssociateRq,
    Pdu,
    ReleaseRp,
    ReleaseRq,
    encode,
)


class State(IntEnum):
    """PS3.8 Tables 9-1 to 9-5."""

    STA1_IDLE = 1
    STA2_AWAITING_ASSOCIATE_RQ = 2
    STA3_AWAITING_LOCAL_ANSWER = 3
    STA4_AWAITING_TRANSPORT = 4
    STA5_AWAITING_ASSOCIATE_ANSWER = 5
    STA6_ESTABLISHED = 6
    STA7_AWAITING_RELEASE_RP = 7
    STA8_AWAITING_LOCAL_RELEASE = 8
    STA9_COLLISION_REQUESTOR_LOCAL = 9
    STA10_COLLISION_ACCEPTOR_PEER = 10
    STA11_COLLISION_REQUESTOR_PEER = 11
    STA12_COLLISION_ACCEPTOR_LOCAL = 12
    STA13_AWAITING_CLOSE = 13


class Event(IntEnum):
    """PS3.8 Table 9-10, rows."""

    EVT1_ASSOCIATE_REQUEST = 1
    EVT2_TRANSPORT_CONFIRMED = 2
    EVT3_ASSOCIATE_AC = 3
    EVT4_ASSOCIATE_RJ = 4
    EVT5_TRANSPORT_INDICATED = 5
    EVT6_ASSOCIATE_RQ = 6
    EVT7_ACCEPT = 7
    EVT8_REJECT = 8
    EVT9_DATA_REQUEST = 9
    EVT10_DATA = 10
    EVT11_RELEASE_REQUEST = 11
    EVT12_RELEASE_RQ = 12
    EVT13_RELEASE_RP = 13
    EVT14_RELEASE_RESPONSE = 14
    EVT15_ABORT_REQUEST = 15
    EVT16_ABORT = 16
    EVT17_TRANSPORT_CLOSED = 17
    EVT18_ARTIM_EXPIRED = 18
    EVT19_INVALID_PDU = 19


class Say(Enum):
    """What an action tells the service user."""

    ASSOCIATE_INDICATION = "associate indication"
    ACCEPTED = "associate confirmation, accepted"
    REJECTED = "associate confirmation, rejected"
    DATA = "data indication"
    RELEASE_INDICATION = "release indication"
    RELEASED = "release confirmation"
    ABORTED = "abort indication"


class Artim(Enum):
    """What an action does to the ARTIM timer."""

    START = "start"
    STOP = "stop"


@dataclass(frozen=True)
class Step:
    """What to do now: bytes to write, what to indicate, the timer, whether to connect or close."""

    state: State
    send: bytes = b""
    say: Say | None = None
    artim: Artim | None = None
    connect: bool = False
    close: bool = False


class _Write(Enum):
    """Which PDU an action writes."""

    GIVEN = "the one that the caller made"
    RELEASE_RQ = "A-RELEASE-RQ"
    RELEASE_RP = "A-RELEASE-RP"
    USER_ABORT = "A-ABORT of the service user"
    PROVIDER_ABORT = "A-ABORT of the service provider"


@dataclass(frozen=True)
class _Action:
    step: Step
    write: _Write | None = None


_S = State
# PS3.8 Tables 9-6 to 9-9. AE-6 and AR-8 branch; see `Association.step`.
ACTIONS: dict[str, _Action] = {
    "AE-1": _Action(Step(_S.STA4_AWAITING_TRANSPORT, connect=True)),
    "AE-2": _Action(Step(_S.STA5_AWAITING_ASSOCIATE_ANSWER), _Write.GIVEN),
    "AE-3": _Action(Step(_S.STA6_ESTABLISHED, say=Say.ACCEPTED)),
    "AE-4": _Action(Step(_S.STA1_IDLE, say=Say.REJECTED, close=True)),
    "AE-5": _Action(Step(_S.STA2_AWAITING_ASSOCIATE_RQ, artim=Artim.START)),
    "AE-6": _Action(Step(_S.STA3_AWAITING_LOCAL_ANSWER, say=Say.ASSOCIATE_INDICATION, artim=Artim.STOP)),
    "AE-7": _Action(Step(_S.STA6_ESTABLISHED), _Write.GIVEN),
    "AE-8": _Action(Step(_S.STA13_AWAITING_CLOSE, artim=Artim.START), _Write.GIVEN),
    "DT-1": _Action(Step(_S.STA6_ESTABLISHED), _Write.GIVEN),
    "DT-2": _Action(Step(_S.STA6_ESTABLISHED, say=Say.DATA)),
    "AR-1": _Action(Step(_S.STA7_AWAITING_RELEASE_RP), _Write.RELEASE_RQ),
    "AR-2": _Action(Step(_S.STA8_AWAITING_LOCAL_RELEASE, say=Say.RELEASE_INDICATION)),
    "AR-3": _Action(Step(_S.STA1_IDLE, say=Say.RELEASED, close=True)),
    "AR-4": _Action(Step(_S.STA13_AWAITING_CLOSE, artim=Artim.START), _Write.RELEASE_RP),
    "AR-5": _Action(Step(_S.STA1_IDLE, artim=Artim.STOP)),
    "AR-6": _Action(Step(_S.STA7_AWAITING_RELEASE_RP, say=Say.DATA)),
    "AR-7": _Action(Step(_S.STA8_AWAITING_LOCAL_RELEASE), _Write.GIVEN),
    "AR-8": _Action(Step(_S.STA10_COLLISION_ACCEPTOR_PEER, say=Say.RELEASE_INDICATION)),
    "AR-9": _Action(Step(_S.STA11_COLLISION_REQUESTOR_PEER), _Write.RELEASE_RP),
    "AR-10": _Action(Step(_S.STA12_COLLISION_ACCEPTOR_LOCAL, say=Say.RELEASED)),
    "AA-1": _Action(Step(_S.STA13_AWAITING_CLOSE, artim=Artim.START), _Write.USER_ABORT),
    "AA-2": _Action(Step(_S.STA1_IDLE, artim=Artim.STOP, close=True)),
    "AA-3": _Action(Step(_S.STA1_IDLE, say=Say.ABORTED, close=True)),
    "AA-4": _Action(Step(_S.STA1_IDLE, say=Say.ABORTED)),
    "AA-5": _Action(Step(_S.STA1_IDLE, artim=Artim.STOP)),
    "AA-6": _Action(Step(_S.STA13_AWAITING_CLOSE)),
    "AA-7": _Action(Step(_S.STA13_AWAITING_CLOSE), _Write.PROVIDER_ABORT),
    "AA-8": _Action(Step(_S.STA13_AWAITING_CLOSE, say=Say.ABORTED, artim=Artim.START), _Write.PROVIDER_ABORT),
}

# PS3.8 Table 9-10: a row for each event, a column for each state from Sta1 to Sta13.
_TABLE_9_10 = """
 1  AE-1 .    .    .    .    .    .    .    .    .     .    .    .
 2  .    .    .    AE-2 .    .    .    .    .    .     .    .    .
 3  .    AA-1 AA-8 .    AE-3 AA-8 AA-8 AA-8 AA-8 AA-8  AA-8 AA-8 AA-6
 4  .    AA-1 AA-8 .    AE-4 AA-8 AA-8 AA-8 AA-8 AA-8  AA-8 AA-8 AA-6
 5  AE-5 .    .    .    .    .    .    .    .    .     .    .    .
 6  .    AE-6 AA-8 .    AA-8 AA-8 AA-8 AA-8 AA-8 AA-8  AA-8 AA-8 AA-7
 7  .    .    AE-7 .    .    .    .    .    .    .     .    .    .
 8  .    .    AE-8 .    .    .    .    .    .    .     .    .    .
 9  .    .    .    .    .    DT-1 .    AR-7 .    .     .    .    .
10  .    AA-1 AA-8 .    AA-8 DT-2 AR-6 AA-8 AA-8 AA-8  AA-8 AA-8 AA-6
11  .    .    .    .    .    AR-1 .    .    .    .     .    .    .
12  .    AA-1 AA-8 .    AA-8 AR-2 AR-8 AA-8 AA-8 AA-8  AA-8 AA-8 AA-6
13  .    AA-1 AA-8 .    AA-8 AA-8 AR-3 AA-8 AA-8 AR-10 AR-3 AA-8 AA-6
14  .    .    .    .    .    .    .    AR-4 AR-9 .     .    AR-4 .
15  .    .    AA-1 AA-2 AA-1 AA-1 AA-1 AA-1 AA-1 AA-1  AA-1 AA-1 .
16  .    AA-2 AA-3 .    AA-3 AA-3 AA-3 AA-3 AA-3 AA-3  AA-3 AA-3 AA-2
17  .    AA-5 AA-4 AA-4 AA-4 AA-4 AA-4 AA-4 AA-4 AA-4  AA-4 AA-4 AR-5
18  .    AA-2 .    .    .    .    .    .    .    .     .    .    AA-2
19  .    AA-1 AA-8 .    AA-8 AA-8 AA-8 AA-8 AA-8 AA-8  AA-8 AA-8 AA-7
"""

TABLE: dict[tuple[Event, State], str] = {
    (Event(int(row.split()[0])), State(column)): action
    for row in _TABLE_9_10.strip().splitlines()
    for column, action in enumerate(row.split()[1:], start=1)
    if action != "."
}


class Association:
    """One association's state. `requestor` decides who waits for whom when both sides release at once."""

    def __init__(self, *, requestor: bool) -> None:
        self.state = State.STA1_IDLE
        self._requestor = requestor

    def step(
        self,
        event: Event,
        pdu: Pdu | None = None,
        *,
        unacceptable: AssociateRj | None = None,
        fault: AbortReason = AbortReason.UNEXPECTED_PDU,
    ) -> Step:
        """Take `event`; return what to do. `pdu` is what an own request or answer sends.

        `unacceptable` makes AE-6 refuse without asking the service user; `fault` is the reason of a provider's
        abort. Raises Conflict when the own side asks for something that the state does not allow.
        """
        name = TABLE.get((event, self.state))
        if name is None:
            raise Conflict(f"{event.name} cannot happen in {self.state.name}.", code="association-state")
        action = ACTIONS[name]
        step = action.step
        send = self._written(action.write, pdu, fault)
        if name == "AE-6" and unacceptable is not None:
            step, send = ACTIONS["AE-8"].step, encode(unacceptable)
        elif name == "AR-8" and self._requestor:
            step = replace(step, state=State.STA9_COLLISION_REQUESTOR_LOCAL)
        self.state = step.state
        return replace(step, send=send) if send else step

    def _written(self, write: _Write | None, pdu: Pdu | None, fault: AbortReason) -> bytes:
        match write:
            case None:
                return b""
            case _Write.GIVEN:
                return encode(pdu) if pdu is not None else b""
            case _Write.RELEASE_RQ:
                return encode(ReleaseRq())
            case _Write.RELEASE_RP:
                return encode(ReleaseRp())
            case _Write.USER_ABORT:
                return encode(Abort(source=0))
            case _Write.PROVIDER_ABORT:
                return encode(Abort(source=2, reason=fault))


def event_of(pdu: Pdu) -> Event:
    """The event that the arrival of `pdu` is."""
    match pdu:
        case AssociateRq():
            return Event.EVT6_ASSOCIATE_RQ
        case AssociateAc():
            return Event.EVT3_ASSOCIATE_AC
        case AssociateRj():
            return Event.EVT4_ASSOCIATE_RJ
        case ReleaseRq():
            return Event.EVT12_RELEASE_RQ
        case ReleaseRp():
            return Event.EVT13_RELEASE_RP
        case Abort():
            return Event.EVT16_ABORT
