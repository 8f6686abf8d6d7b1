"""Break-glass: how long a claim stands and who may review it."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as some

from consent.emergency import EmergencyClaim, may_review, review_due, standing
from consent.policy import Parameters
from consent.vocabulary import Role
from tests.support.consents import NOW, person


@pytest.mark.requirement("U3")
@given(minutes=some.integers(1, 1440), passed=some.integers(-100, 100_000))
def test_a_claim_stands_for_the_policys_minutes(minutes: int, passed: int) -> None:
    """From the moment of the claim, for exactly as long as the policy says."""
    claim = EmergencyClaim("stroke", NOW)
    verdict = standing(
        claim, person(), Parameters(emergency_minutes=minutes), NOW + timedelta(seconds=passed)
    )

    assert verdict.permitted == (0 <= passed < minutes * 60)


@pytest.mark.requirement("U3")
@pytest.mark.parametrize(
    "role", [role for role in Role if role not in (Role.CLINICIAN, Role.CHIEF_PHYSICIAN)]
)
def test_only_clinicians_declare_an_emergency(role: Role) -> None:
    """Everybody else is told so."""
    verdict = standing(EmergencyClaim("stroke", NOW), person(role), Parameters(), NOW)

    assert verdict.reasons == ("Only a clinician can declare an emergency.",)


@pytest.mark.requirement("U3")
def test_the_review_is_somebody_elses_and_due_in_three_days() -> None:
    """A security officer or another chief reviews; nobody their own; no clinician; no disabled account."""
    officer = person(Role.SECURITY_OFFICER, login="zhou")
    chief = person(Role.CHIEF_PHYSICIAN, login="chen")

    assert may_review("li", officer).permitted
    assert may_review("li", chief).permitted
    assert not may_review("chen", chief).permitted
    assert not may_review("li", person(login="wang")).permitted
    assert not may_review("li", person(Role.SECURITY_OFFICER, login="zhou", active=False)).permitted
    assert review_due(NOW, Parameters()) == NOW + timedelta(hours=72)
