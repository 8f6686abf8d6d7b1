"""Frozen plans, decisions and model versions: each good one is read, each bad one fails in its own way."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from consent.errors import Corrupt, Invalid
from consent.signed import verify
from learning.models import ModelVersion
from learning.networks import declared_arrays, initial_vector
from learning.plans import PlanDecision, TrainingPlan
from tests.learning.region import digits_plan

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "learning" / "records.json").read_text("utf-8")
)
TYPES: dict[str, Any] = {"training-plan": TrainingPlan, "plan-decision": PlanDecision, "model": ModelVersion}
ERRORS: dict[str, type[Exception]] = {"invalid": Invalid, "corrupt": Corrupt}
KEY = Ed25519PublicKey.from_public_bytes(base64.b64decode(VECTORS["key"]))


@pytest.mark.requirement("R2", "R4")
@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: f"{case['kind']}-{case['name']}")
def test_a_frozen_record_reads_as_it_always_did(case: dict[str, str]) -> None:
    """What was signed once stays readable, and what was wrong stays wrong."""
    now = datetime.fromtimestamp(VECTORS["now"], UTC)

    def read() -> Any:
        return verify(case["token"], TYPES[case["kind"]], keys_of=lambda _: (KEY,), now=now)

    if case["error"]:
        with pytest.raises(ERRORS[case["error"]]):
            read()
    else:
        assert read().body.to_json()


def test_the_parameters_lie_as_the_format_says() -> None:
    """Order, shapes and the first numbers of a start: other software can read a model by the document alone."""
    plan = digits_plan()
    assert declared_arrays(plan.model, 10) == (
        ("convolution1.weight", (16, 1, 3, 3)),
        ("convolution1.bias", (16,)),
        ("convolution2.weight", (32, 16, 3, 3)),
        ("convolution2.bias", (32,)),
        ("dense1.weight", (64, 512)),
        ("dense1.bias", (64,)),
        ("dense2.weight", (10, 64)),
        ("dense2.bias", (10,)),
    )
    vector = initial_vector(plan)
    assert len(vector) == 38_282
    assert [round(float(value), 6) for value in vector[:3]] == [0.007881, 0.300309, -0.237227]
