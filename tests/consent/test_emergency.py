"""Break-glass: how long a claim stands and who may review it."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as some

from consent.emergency import EmergencyClaim, review_due, standing
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
def test_the_review_is_due_in_three_days() -> None:
    """From the opening on, by the shipped numbers."""
    assert review_due(NOW, Parameters()) == NOW + timedelta(hours=72)
