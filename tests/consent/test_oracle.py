"""`decide` and the oracle agree on every combination of what they both judge."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import timedelta
from itertools import combinations, product

import pytest

from consent.decision import Facts, Permit, Request, Resource, Verdict, decide
from consent.directives import Directive, withdraw
from consent.emergency import EmergencyClaim
from consent.grants import Grant
from consent.obligations import Deidentify, ExpireAt, Notify, Obligation, ReviewWithin, Watermark
from consent.signed import Signed, sign
from consent.vocabulary import Action, Grade, Purpose, ResourceKind, Right, Role
from tests.consent.oracle import SERVICES, Situation, judge
from tests.support.consents import (
    ABROAD,
    ELSEWHERE,
    HOME,
    NOW,
    compiled,
    key_of,
    next_version,
    person,
    request,
    signed_directive,
    signed_grant,
    study,
)

CONSENT = signed_directive()
VIEW = frozenset({Right.VIEW})
NONE: frozenset[Right] = frozenset()
NAMES: dict[type[Obligation], str] = {
    Watermark: "watermark",
    Deidentify: "deidentify",
    ExpireAt: "expire",
    Notify: "notify",
    ReviewWithin: "review",
}
ACTIONS = (
    Action.INGEST,
    Action.SEARCH,
    Action.VIEW,
    Action.DOWNLOAD,
    Action.PRINT,
    Action.REQUEST,
    Action.FETCH,
    Action.GRANT,
    Action.RECORD_CONSENT,
    Action.COMMIT,
)
PEOPLE = (
    Role.CLINICIAN,
    Role.CHIEF_PHYSICIAN,
    Role.RESEARCHER,
    Role.ADMINISTRATOR,
    Role.SECURITY_OFFICER,
    Role.HUB_OPERATOR,
)
OFFICES = {(Role.ADMINISTRATOR, Action.INGEST)}
"""Combinations with a rule of their own, tested by name in test_decision.py."""

Grants = tuple[Signed[Grant], ...]


def narrower() -> tuple[Signed[Directive], ...]:
    return (CONSENT, next_version(CONSENT, recipients=(ELSEWHERE,)))


def withdrawn() -> tuple[Signed[Directive], ...]:
    body = withdraw(CONSENT, recorded_by="li", basis="phone call")
    last = sign(body, record_id="w", issuer=HOME, key=key_of(HOME), issued=NOW, expires=None)
    return (CONSENT, last)


GRANT_STATES: dict[str, Callable[[], tuple[Grants, tuple[Signed[Directive], ...], frozenset[Right]]]] = {
    "none": lambda: ((), (CONSENT,), NONE),
    "alive": lambda: ((signed_grant(CONSENT),), (CONSENT,), VIEW),
    "alive, all rights": lambda: (
        (signed_grant(CONSENT, rights=frozenset(Right)),),
        (CONSENT,),
        frozenset(Right),
    ),
    "for this person": lambda: ((signed_grant(CONSENT, person="li"),), (CONSENT,), VIEW),
    "expired": lambda: (
        (signed_grant(CONSENT, not_before=NOW - timedelta(hours=2), expires=NOW),),
        (CONSENT,),
        NONE,
    ),
    "not begun": lambda: ((signed_grant(CONSENT, not_before=NOW + timedelta(seconds=1)),), (CONSENT,), NONE),
    "revoked": lambda: ((signed_grant(CONSENT, record_id="revoked"),), (CONSENT,), NONE),
    "without an end": lambda: ((signed_grant(CONSENT, expires=None),), (CONSENT,), NONE),
    "for another person": lambda: ((signed_grant(CONSENT, person="wang"),), (CONSENT,), NONE),
    "for another hospital": lambda: ((signed_grant(CONSENT, recipient=ELSEWHERE),), (CONSENT,), NONE),
    "of another study": lambda: ((signed_grant(CONSENT, study="st_2"),), (CONSENT,), NONE),
    "signed by the recipient": lambda: ((signed_grant(CONSENT, issuer=ABROAD),), (CONSENT,), NONE),
    "consent unknown": lambda: ((signed_grant(CONSENT),), (), NONE),
    "consent withdrawn": lambda: ((signed_grant(CONSENT),), withdrawn(), NONE),
    "consent narrowed": lambda: ((signed_grant(CONSENT),), narrower(), NONE),
}


FLAGS = (False, True)


@pytest.mark.requirement("U1", "U2", "U3")
@pytest.mark.parametrize("state", GRANT_STATES)
def test_decide_agrees_with_the_oracle_on_viewing(state: str) -> None:
    """Every role, grade, relationship, purpose, emergency and place, in this state of grants."""
    everything = product(Role, [Action.VIEW], Purpose, Grade, FLAGS, FLAGS, [False], FLAGS)

    assert not disagreements(state, everything)


@pytest.mark.requirement("U1", "U2", "U3")
@pytest.mark.parametrize("state", ["none", "alive, all rights"])
def test_decide_agrees_with_the_oracle_on_every_action_of_people(state: str) -> None:
    """Every role of a person with every action about studies, with and without a second factor."""
    everything = product(PEOPLE, ACTIONS, Purpose, Grade, FLAGS, FLAGS, FLAGS, FLAGS)

    assert not disagreements(state, everything)


@pytest.mark.requirement("U1", "U3")
def test_decide_agrees_with_the_oracle_on_what_is_done_for_others() -> None:
    """Every role, place and purpose, for oneself and for another, with and without a relationship."""
    kinds = {Action.RECORD_CARE: ResourceKind.PATIENT, Action.REVIEW_EMERGENCY: ResourceKind.STUDY}
    found = []
    for role, action, purpose, at_home, related, other in product(
        PEOPLE, kinds, Purpose, FLAGS, FLAGS, FLAGS
    ):
        who = person(role, node=HOME if at_home else ABROAD)
        asked = Request(who, action, Resource(kinds[action], "x", "pt_1", HOME), purpose, NOW)
        verdict = decide(compiled(), asked, Facts(relationship=related, another=other))
        case = Situation(
            role, action, purpose, Grade.ORDINARY, at_home, related, False, False, NONE, another=other
        )
        if owed(verdict) != judge(case) or not verdict.reasons:
            found.append((case, verdict))

    assert not found


DEPARTMENTS = (None, "radiology", "cardiology")


@pytest.mark.requirement("U1", "F5")
def test_decide_agrees_with_the_oracle_on_devices() -> None:
    """Every action, purpose, grade and place, with no, one and all but one service, and every pair of departments."""
    services = [
        frozenset(every) for size in (0, 1, 3) for every in combinations(sorted(SERVICES.values()), size)
    ]
    found = []
    for action, purpose, grade, at_home, registered, stands_in, made_by in product(
        ACTIONS, Purpose, Grade, FLAGS, services, DEPARTMENTS[:2], DEPARTMENTS
    ):
        home = HOME if at_home else ABROAD
        who = person(Role.DEVICE, login="WS1", node=home, department=stands_in, attributes=registered)
        asked = request(who, action, purpose=purpose, resource=study(grade=grade, department=made_by))
        verdict = decide(compiled(), asked, Facts(device_registered=True))
        case = Situation(
            Role.DEVICE, action, purpose, grade, at_home, False, False, False, NONE,
            registered=registered, own_department=stands_in in (None, made_by),
        )  # fmt: skip
        if owed(verdict) != judge(case) or not verdict.reasons:
            found.append((case, verdict))

    assert not found


Combination = tuple[Role, Action, Purpose, Grade, bool, bool, bool, bool]


def disagreements(state: str, combinations: Iterable[Combination]) -> list[tuple[Situation, Verdict]]:
    grants, directives, rights = GRANT_STATES[state]()
    found = []
    for role, action, purpose, grade, at_home, related, factor, urgent in combinations:
        if (role, action) in OFFICES:
            continue
        who = person(role, node=HOME if at_home else ABROAD, second_factor=factor)
        claim = EmergencyClaim("stroke", NOW) if urgent else None
        granted = rights if purpose is Purpose.TREATMENT else NONE
        request = Request(who, action, study(grade=grade), purpose, NOW, claim)
        facts = Facts(
            relationship=related, grants=grants, directives=directives, revoked=frozenset({"revoked"})
        )
        verdict = decide(compiled(), request, facts)
        case = Situation(role, action, purpose, grade, at_home, related, factor, urgent, granted)
        if owed(verdict) != judge(case) or not verdict.reasons:
            found.append((case, verdict))
    return found


def owed(verdict: Verdict) -> frozenset[str] | None:
    if not isinstance(verdict, Permit):
        return None
    return frozenset(NAMES[type(item)] for item in verdict.obligations)
