"""The association's state table, cell by cell."""

from __future__ import annotations

import pytest
from pynetdicom.fsm import TRANSITION_TABLE

from consent.errors import Conflict
from node.dicom.association import (
    ACTIONS,
    TABLE,
    Artim,
    Association,
    Event,
    Say,
    State,
    event_of,
)
from node.dicom.pdu import (
    Abort,
    AbortReason,
    AssociateAc,
    AssociateRj,
    AssociateRq,
    Pdu,
    ReleaseRp,
    ReleaseRq,
    decode,
)

FROM_PEER = [
    Event.EVT3_ASSOCIATE_AC,
    Event.EVT4_ASSOCIATE_RJ,
    Event.EVT6_ASSOCIATE_RQ,
    Event.EVT10_DATA,
    Event.EVT12_RELEASE_RQ,
    Event.EVT13_RELEASE_RP,
    Event.EVT16_ABORT,
    Event.EVT17_TRANSPORT_CLOSED,
    Event.EVT19_INVALID_PDU,
]
LINKED = [state for state in State if state not in (State.STA1_IDLE, State.STA4_AWAITING_TRANSPORT)]


def _at(state: State, *, requestor: bool = False) -> Association:
    association = Association(requestor=requestor)
    association.state = state
    return association


def test_table_is_the_standards_as_pynetdicom_has_it() -> None:
    """All 123 filled cells of PS3.8 Table 9-10, against an independent transcription."""
    theirs = {(int(event[3:]), int(state[3:])): action for (event, state), action in TRANSITION_TABLE.items()}
    assert {(int(event), int(state)): action for (event, state), action in TABLE.items()} == theirs


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", Event)
def test_every_cell_steps_or_refuses(event: Event, state: State) -> None:
    """A filled cell leads to its action's state; an empty one is the own side's error and changes nothing."""
    association = _at(state)
    if (event, state) in TABLE:
        step = association.step(event, Abort())
        assert association.state is step.state is ACTIONS[TABLE[event, state]].step.state
    else:
        with pytest.raises(Conflict):
            association.step(event)
        assert association.state is state


@pytest.mark.parametrize("state", LINKED)
@pytest.mark.parametrize("event", FROM_PEER)
def test_nothing_that_a_peer_does_is_unforeseen(event: Event, state: State) -> None:
    """Whatever arrives, in any state with a connection, has a cell."""
    assert (event, state) in TABLE


@pytest.mark.parametrize("state", [s for s in LINKED if s is not State.STA13_AWAITING_CLOSE])
def test_unexpected_pdus_abort_with_a_reason(state: State) -> None:
    """An A-ASSOCIATE-AC that nobody waits for ends the association, and says why."""
    if state is State.STA5_AWAITING_ASSOCIATE_ANSWER:
        return
    step = _at(state).step(Event.EVT3_ASSOCIATE_AC)
    abort = decode(7, step.send[6:])
    assert isinstance(abort, Abort)
    if state is State.STA2_AWAITING_ASSOCIATE_RQ:
        assert abort.source == 0
    else:
        assert (abort.source, abort.reason, step.say) == (2, AbortReason.UNEXPECTED_PDU, Say.ABORTED)
    assert (step.state, step.artim) == (State.STA13_AWAITING_CLOSE, Artim.START)


def test_invalid_pdu_aborts_with_its_own_reason() -> None:
    """The reason of the fault is what the peer is told."""
    step = _at(State.STA6_ESTABLISHED).step(Event.EVT19_INVALID_PDU, fault=AbortReason.UNRECOGNIZED_PDU)
    assert decode(7, step.send[6:]) == Abort(2, AbortReason.UNRECOGNIZED_PDU)


def test_acceptors_walk() -> None:
    """Connection, request, acceptance, data, release, close."""
    association = Association(requestor=False)
    assert association.step(Event.EVT5_TRANSPORT_INDICATED).artim is Artim.START
    step = association.step(Event.EVT6_ASSOCIATE_RQ)
    assert (step.say, step.artim) == (Say.ASSOCIATE_INDICATION, Artim.STOP)
    answer = AssociateAc("NODE", "CT1", ())
    assert decode(2, association.step(Event.EVT7_ACCEPT, answer).send[6:]) == answer
    assert association.step(Event.EVT10_DATA).say is Say.DATA
    assert association.step(Event.EVT12_RELEASE_RQ).say is Say.RELEASE_INDICATION
    assert association.step(Event.EVT14_RELEASE_RESPONSE).send[0] == 6
    assert association.step(Event.EVT17_TRANSPORT_CLOSED).artim is Artim.STOP
    assert association.state is State.STA1_IDLE


def test_requestors_walk() -> None:
    """Connection, request, acceptance, data, release, close."""
    association = Association(requestor=True)
    assert association.step(Event.EVT1_ASSOCIATE_REQUEST).connect
    request = AssociateRq("NODE", "CT1", ())
    assert association.step(Event.EVT2_TRANSPORT_CONFIRMED, request).send[0] == 1
    assert association.step(Event.EVT3_ASSOCIATE_AC).say is Say.ACCEPTED
    association.step(Event.EVT9_DATA_REQUEST)
    assert association.step(Event.EVT11_RELEASE_REQUEST).send[0] == 5
    step = association.step(Event.EVT13_RELEASE_RP)
    assert (step.say, step.close, step.state) == (Say.RELEASED, True, State.STA1_IDLE)


def test_unacceptable_request_is_rejected_at_once() -> None:
    """AE-6 refuses without asking the service user when the protocol itself does not fit."""
    association = _at(State.STA2_AWAITING_ASSOCIATE_RQ)
    step = association.step(Event.EVT6_ASSOCIATE_RQ, unacceptable=AssociateRj(1, 2, 2))
    assert decode(3, step.send[6:]) == AssociateRj(1, 2, 2)
    assert (step.state, step.say) == (State.STA13_AWAITING_CLOSE, None)


@pytest.mark.parametrize("requestor", [True, False])
def test_release_collision_ends_for_both(requestor: bool) -> None:
    """Both sides ask at once: the requestor answers first (PS3.8 §7.2.2.7)."""
    association = _at(State.STA7_AWAITING_RELEASE_RP, requestor=requestor)
    association.step(Event.EVT12_RELEASE_RQ)
    if requestor:
        assert association.state is State.STA9_COLLISION_REQUESTOR_LOCAL
        association.step(Event.EVT14_RELEASE_RESPONSE)
        assert association.step(Event.EVT13_RELEASE_RP).say is Say.RELEASED
    else:
        assert association.state is State.STA10_COLLISION_ACCEPTOR_PEER
        association.step(Event.EVT13_RELEASE_RP)
        association.step(Event.EVT14_RELEASE_RESPONSE)
        assert association.state is State.STA13_AWAITING_CLOSE


@pytest.mark.parametrize(
    ("pdu", "event"),
    [
        (AssociateRq("A", "B", ()), Event.EVT6_ASSOCIATE_RQ),
        (AssociateAc("A", "B", ()), Event.EVT3_ASSOCIATE_AC),
        (AssociateRj(1, 1, 1), Event.EVT4_ASSOCIATE_RJ),
        (ReleaseRq(), Event.EVT12_RELEASE_RQ),
        (ReleaseRp(), Event.EVT13_RELEASE_RP),
        (Abort(), Event.EVT16_ABORT),
    ],
)
def test_pdus_are_events(pdu: Pdu, event: Event) -> None:
    """Each PDU has its row."""
    assert event_of(pdu) is event
