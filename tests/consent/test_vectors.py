"""Frozen signed records: each case is one way of failing, and none may ever be read otherwise."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from consent.directives import Directive
from consent.errors import Corrupt, Invalid
from consent.grants import Grant, alive
from consent.signed import read, verify

VECTORS = json.loads(
    (Path(__file__).parents[1] / "vectors" / "consent" / "records.json").read_text(encoding="utf-8")
)
FAMILIES = {"corrupt": Corrupt, "invalid": Invalid}
BODIES: dict[str, Any] = {"grant": Grant, "consent-directive": Directive}


def at(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def keys_of(issuer: str) -> tuple[Ed25519PublicKey, ...]:
    key = VECTORS["keys"].get(issuer)
    return (Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)),) if key else ()


@pytest.mark.parametrize("case", VECTORS["reading"], ids=lambda case: case["name"])
def test_a_record_is_read_or_refused_as_frozen(case: dict[str, Any]) -> None:
    """The answer is the record, or the error family that the vector names."""
    if case["expect"] == "ok":
        signed = verify(case["token"], BODIES[case["kind"]], keys_of=keys_of, now=at(VECTORS["now"]))
        assert signed.token == case["token"]
        return
    with pytest.raises(FAMILIES[case["expect"]]):
        verify(case["token"], BODIES[case["kind"]], keys_of=keys_of, now=at(VECTORS["now"]))


@pytest.mark.requirement("U2", "E2", "E4")
@pytest.mark.parametrize("case", VECTORS["living"], ids=lambda case: case["name"])
def test_a_grant_lives_or_not_as_frozen(case: dict[str, Any]) -> None:
    """The answer is the moment until which the grant lives, or a refusal with words."""
    grant = read(case["grant"], Grant, keys_of=keys_of)
    directives = [read(token, Directive, keys_of=keys_of) for token in case["directives"]]
    verdict = alive(grant, directives, frozenset(case["revoked"]), at(case["now"]))

    expected = None if case["until"] is None else at(case["until"])
    assert (verdict.expires if verdict.permitted else None) == expected
    assert verdict.reasons
