"""Frozen wipe certificates: each case is one way of failing, and none may ever be read otherwise."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
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


@pytest.mark.requirement("C2")
def test_a_statement_speaks_of_whole_seconds() -> None:
    """Seen, or put in use, a moment before the wipe within one second: it holds. A second later: it does not."""
    good = next(case for case in VECTORS["cases"] if case["expect"] == "ok")
    given = {"ae_title": VECTORS["device"], "agent": VECTORS["agent"], "now": at(VECTORS["now"])}
    wiped = check_wipe(good["token"], **given, last_seen=None).body.wiped
    within, after = wiped + timedelta(milliseconds=999), wiped + timedelta(seconds=1)
    assert check_wipe(good["token"], **given, last_seen=within, since=within).body.wiped == wiped
    with pytest.raises(Denied, match="seen here"):
        check_wipe(good["token"], **given, last_seen=after)
    with pytest.raises(Denied, match="put in use"):
        check_wipe(good["token"], **given, last_seen=None, since=after)
