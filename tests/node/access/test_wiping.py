"""Frozen wipe certificates: each case is one way of failing, and none may ever be read otherwise."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from consent.errors import Corrupt, Denied, Invalid
from node.access.wiping import check_wipe

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "consent" / "wipes.json").read_text("utf-8"))
FAMILIES = {"corrupt": Corrupt, "invalid": Invalid, "denied": Denied}


def at(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


@pytest.mark.requirement("C2")
@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: case["name"])
def test_a_wipe_certificate_holds_or_not_as_frozen(case: dict[str, Any]) -> None:
    """The answer is the statement, or the error family that the vector names."""
    seen = None if case["last_seen"] is None else at(case["last_seen"])
    given = {
        "ae_title": VECTORS["device"],
        "agent": VECTORS["agent"],
        "last_seen": seen,
        "now": at(VECTORS["now"]),
    }
    if case["expect"] == "ok":
        assert check_wipe(case["token"], **given).token == case["token"]
        return
    with pytest.raises(FAMILIES[case["expect"]]):
        check_wipe(case["token"], **given)
