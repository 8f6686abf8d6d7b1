"""Approvals: m of n different people, the proposer left out, and a state table with its bad turns."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from consent.approvals import (
    TRANSITIONS,
    Approval,
    Proposal,
    State,
    Turn,
    Voice,
    advance,
    approve,
    state_of,
)
from consent.errors import Conflict, Denied, Invalid
from consent.signed import Signed, sign, verify
from consent.vocabulary import Role
from tests.support.consents import ABROAD, HOME, NOW, key_of, keys_of, person

ENDS = NOW + timedelta(days=7)
OFFICERS = frozenset({Role.SECURITY_OFFICER, Role.CHIEF_PHYSICIAN})


def proposal(**changes: Any) -> Signed[Proposal]:
    body = Proposal("destruction", "st_1", "li", "retention is over", 2, OFFICERS, {"copies": 3})
    return sign(
        replace(body, **changes), record_id="p-1", issuer=HOME, key=key_of(HOME), issued=NOW, expires=ENDS
    )


PUT = proposal()


def voice(
    login: str,
    said: Voice = Voice.APPROVE,
    *,
    minute: int = 1,
    issuer: str = HOME,
    role: Role = Role.SECURITY_OFFICER,
    of: str = PUT.digest,
) -> Signed[Approval]:
    issued = NOW + timedelta(minutes=minute)
    body = Approval(of, login, role, said)
    return sign(
        body, record_id=f"a-{login}-{minute}", issuer=issuer, key=key_of(issuer), issued=issued, expires=None
    )


@pytest.mark.requirement("D1")
def test_two_different_people_approve() -> None:
    """One voice leaves it open; the second of somebody else decides."""
    assert state_of(PUT, (), NOW) is State.OPEN
    assert state_of(PUT, (voice("zhou"),), NOW) is State.OPEN
    assert state_of(PUT, (voice("zhou"), voice("chen")), NOW) is State.APPROVED


@pytest.mark.requirement("D1")
@pytest.mark.parametrize(
    "second",
    [
        voice("zhou", minute=2),
        voice("li"),
        voice("chen", issuer=ABROAD),
        voice("chen", role=Role.ADMINISTRATOR),
        voice("chen", of="00" * 32),
        voice("chen", minute=7 * 24 * 60),
    ],
    ids=["same person", "proposer", "other node", "other role", "other proposal", "after the end"],
)
def test_a_voice_that_does_not_count_changes_nothing(second: Signed[Approval]) -> None:
    """Neither one person twice, nor the proposer, nor somebody unfit or late makes a quorum."""
    assert state_of(PUT, (voice("zhou"), second), NOW) is State.OPEN


@pytest.mark.requirement("D1")
def test_one_refusal_ends_it() -> None:
    """A refusal before the quorum closes the proposal for good; one after it comes too late."""
    early = (voice("zhou", Voice.REFUSE, minute=1), voice("chen", minute=2), voice("sun", minute=3))
    late = (voice("zhou", minute=1), voice("chen", minute=2), voice("sun", Voice.REFUSE, minute=3))

    assert state_of(PUT, early, NOW) is State.REFUSED
    assert state_of(PUT, late, NOW) is State.APPROVED


@pytest.mark.requirement("D1")
def test_the_deadline_ends_what_was_not_done() -> None:
    """Open or approved, a proposal expires; what was carried out stays so."""
    both = (voice("zhou"), voice("chen"))

    assert state_of(PUT, (), ENDS) is State.EXPIRED
    assert state_of(PUT, both, ENDS) is State.EXPIRED
    assert state_of(PUT, both, ENDS, ended=Turn.EXECUTION) is State.CARRIED_OUT
    assert state_of(PUT, (), NOW, ended=Turn.WITHDRAWAL) is State.WITHDRAWN


@pytest.mark.requirement("D1")
@given(
    quorum=some.integers(1, 4),
    logins=some.lists(some.sampled_from(["li", "zhou", "chen", "sun", "wu"]), max_size=8),
)
def test_a_quorum_is_that_many_different_people(quorum: int, logins: list[str]) -> None:
    """Approved exactly when enough different people other than the proposer said yes."""
    put = proposal(quorum=quorum)
    voices = [voice(login, minute=minute, of=put.digest) for minute, login in enumerate(logins)]

    approved = state_of(put, voices, NOW) is State.APPROVED

    assert approved == (len(set(logins) - {"li"}) >= quorum)


@pytest.mark.parametrize(("state", "turn"), list(product(State, Turn)))
def test_the_state_table_refuses_every_other_turn(state: State, turn: Turn) -> None:
    """What is not in the table is a Conflict that names the state."""
    if (state, turn) in TRANSITIONS:
        assert advance(state, turn) is TRANSITIONS[state, turn]
        return
    with pytest.raises(Conflict, match=state.value):
        advance(state, turn)


@pytest.mark.requirement("D1")
def test_an_approver_is_told_why_not() -> None:
    """The proposer, the wrong role, another hospital's officer, a second answer and a closed proposal."""
    officer = person(Role.SECURITY_OFFICER, login="zhou")
    cases = [
        (person(Role.SECURITY_OFFICER), (), Denied, "own proposal"),
        (person(Role.CLINICIAN, login="wang"), (), Denied, "for: chief-physician, security-officer"),
        (person(Role.SECURITY_OFFICER, login="zhou", node=ABROAD), (), Denied, "for:"),
        (person(Role.SECURITY_OFFICER, login="zhou", active=False), (), Denied, "for:"),
        (officer, (voice("zhou"),), Conflict, "already answered"),
        (officer, (voice("chen", Voice.REFUSE),), Conflict, "refused"),
        (officer, (voice("chen"), voice("sun")), Conflict, "approved"),
    ]
    for who, given_voices, family, words in cases:
        with pytest.raises(family, match=words):
            approve(PUT, given_voices, who, Voice.APPROVE, NOW)

    assert approve(PUT, (), officer, Voice.APPROVE, NOW) == Approval(
        PUT.digest, "zhou", Role.SECURITY_OFFICER, Voice.APPROVE
    )


def test_proposals_and_approvals_travel_unchanged() -> None:
    """Signed, read and verified, both are the same."""
    said = voice("zhou")

    assert verify(PUT.token, Proposal, keys_of=keys_of, now=NOW).body == PUT.body
    assert verify(said.token, Approval, keys_of=keys_of, now=NOW).body == said.body


@pytest.mark.parametrize("change", [{"quorum": 0}, {"quorum": 17}, {"roles": frozenset()}])
def test_a_proposal_nobody_can_approve_is_invalid(change: dict[str, Any]) -> None:
    """A quorum of none, of absurdly many, or without roles is refused when made."""
    with pytest.raises(Invalid):
        proposal(**change)


@pytest.mark.parametrize("name", sorted(PUT.body.to_json()))
def test_a_proposal_with_a_bad_field_is_invalid(name: str) -> None:
    """Each field is checked and named."""
    for bad in (None, 7.5, True, "x" * 5000):
        with pytest.raises(Invalid, match=name):
            Proposal.from_json(PUT.body.to_json() | {name: bad})
