"""Plans, decisions and the rule between them."""

from __future__ import annotations

import copy
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from consent.errors import Invalid
from consent.signed import Signed, canonical_json, parse_json, sign
from learning.bundle import bundle_digest
from learning.plans import Ask, PlanDecision, Refusal, Schedule, TrainingPlan, Verdict, gate
from tests.learning.region import digits_plan

NOW = datetime(2026, 11, 22, 9, 0, tzinfo=UTC)
KEY = Ed25519PrivateKey.generate()
APP = bundle_digest()


def signed(body: Any, expires: datetime | None = NOW + timedelta(days=1), record: str = "r1") -> Signed[Any]:
    return sign(body, record_id=record, issuer="hub", key=KEY, issued=NOW, expires=expires)


PLAN: Signed[TrainingPlan] = signed(digits_plan())


def decision(**changes: Any) -> Signed[PlanDecision]:
    body = PlanDecision(PLAN.digest, "a", Verdict.APPROVE, "security-officer", 6, 1)
    return signed(replace(body, **changes), record="r2")


ASK = Ask(APP, PLAN.digest, 3)


@pytest.mark.requirement("R2")
@pytest.mark.parametrize(
    ("plan", "word", "ask", "words"),
    [
        pytest.param(PLAN, decision(), ASK, None, id="approved"),
        pytest.param(None, None, ASK, Refusal.UNKNOWN_PLAN, id="unknown plan"),
        pytest.param(PLAN, decision(), replace(ASK, plan="0" * 64), Refusal.UNKNOWN_PLAN, id="other plan"),
        pytest.param(PLAN, None, ASK, Refusal.NOT_APPROVED, id="no decision"),
        pytest.param(PLAN, decision(plan="0" * 64), ASK, Refusal.NOT_APPROVED, id="decision on another plan"),
        pytest.param(PLAN, decision(site="b"), ASK, Refusal.NOT_APPROVED, id="another site's approval"),
        pytest.param(PLAN, decision(verdict=Verdict.REFUSE), ASK, Refusal.REFUSED, id="refused"),
        pytest.param(PLAN, decision(), replace(ASK, app="0" * 64), Refusal.OTHER_CODE, id="other code came"),
        pytest.param(
            PLAN, decision(max_rounds=2), ASK, Refusal.TOO_MANY_ROUNDS, id="more rounds than approved"
        ),
        pytest.param(
            PLAN, decision(), replace(ASK, round=7), Refusal.TOO_MANY_ROUNDS, id="more than planned"
        ),
        pytest.param(PLAN, decision(), replace(ASK, round=6), None, id="the last round"),
    ],
)
def test_the_gate_says_why(
    plan: Signed[TrainingPlan] | None, word: Signed[PlanDecision] | None, ask: Ask, words: Refusal | None
) -> None:
    """Every way of not being allowed has its own fixed words."""
    assert gate(plan, word, ask, site="a", installed_app=APP, now=NOW) is words


@pytest.mark.requirement("R2")
def test_an_approval_ends() -> None:
    """At its end, not after it, and also when the plan itself has ended."""
    late = NOW + timedelta(days=1)
    assert gate(PLAN, decision(), ASK, site="a", installed_app=APP, now=late) is Refusal.ENDED


@pytest.mark.requirement("R2")
def test_a_site_with_other_code_installed_does_not_run() -> None:
    """What came, what the plan names and what is installed must all be one."""
    assert gate(PLAN, decision(), ASK, site="a", installed_app="1" * 64, now=NOW) is Refusal.OTHER_CODE


def test_a_plan_survives_its_own_json() -> None:
    """To JSON and back is the same plan and the same bytes."""
    again = TrainingPlan.from_json(parse_json(canonical_json(digits_plan().to_json())))

    assert again == digits_plan()
    assert canonical_json(again.to_json()) == canonical_json(digits_plan().to_json())


BAD: list[tuple[str, Any]] = [
    ("title", ""),
    ("title", "x" * 121),
    ("purpose", 7),
    ("app", "not a digest"),
    ("baseline", "yes"),
    ("model.network", "gpt"),
    ("model.width", 0),
    ("model.width", 10_000),
    ("model.hidden", True),
    ("labels.attribute", "PatientComments"),
    ("labels.scheme", "no spaces please"),
    ("labels.codes", ["one"]),
    ("labels.codes", ["one", "one"]),
    ("labels.codes", ["a b", "c"]),
    ("labels.codes", ["x"] * 101),
    ("cohort.modality", "ct; drop"),
    ("cohort.minimum_patients", 4),
    ("image.rows", 4),
    ("image.columns", 4096),
    ("holdout.fraction", 0.9),
    ("holdout.code", "two words"),
    ("training.learning_rate", float("inf")),
    ("training.learning_rate", 0),
    ("training.momentum", 1),
    ("training.batch_size", 0),
    ("training.local_epochs", 1.5),
    ("training.update_norm_max", -1),
    ("schedule.rounds", 0),
    ("schedule.rounds", 501),
    ("schedule.minimum_sites", 1),
    ("schedule.deadline_seconds", 10**9),
    ("privacy.differential_privacy", True),
    ("privacy.secure_aggregation", True),
    ("privacy.secure_aggregation", None),
]


@pytest.mark.parametrize(("path", "value"), BAD, ids=[f"{path}={value!r}"[:60] for path, value in BAD])
def test_a_bad_plan_is_refused(path: str, value: Any) -> None:
    """Each field has its bounds, and a plan outside them is Invalid before anybody signs it."""
    data = copy.deepcopy(digits_plan().to_json())
    *parents, name = path.split(".")
    place = data
    for parent in parents:
        place = place[parent]
    place[name] = value
    with pytest.raises(Invalid):
        TrainingPlan.from_json(data)


@settings(max_examples=60, deadline=None)
@given(
    st.recursive(st.none() | st.integers() | st.text(max_size=8), lambda inner: st.lists(inner, max_size=3))
)
def test_nothing_but_a_plan_is_a_plan(junk: Any) -> None:
    """Any other value in any field is Invalid, never another error."""
    for name in digits_plan().to_json():
        data = digits_plan().to_json() | {name: junk}
        try:
            TrainingPlan.from_json(data)
        except Invalid:
            continue
        assert isinstance(junk, str)


def test_one_changed_number_is_another_plan() -> None:
    """The digest that a site approves covers every field."""
    other = signed(digits_plan(schedule=Schedule(rounds=7)))
    assert other.digest != PLAN.digest
    assert gate(other, decision(), ASK, site="a", installed_app=APP, now=NOW) is Refusal.UNKNOWN_PLAN
