"""Signed records: each way in which a statement can be wrong is told apart."""

from __future__ import annotations

import base64
import json
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as some

from consent.approvals import Approval, Voice
from consent.errors import AccordError, Corrupt, Invalid
from consent.policy import Parameters, Policy
from consent.signed import canonical_json, parse_json, sign, verify
from consent.vocabulary import Role
from tests.support.consents import ABROAD, HOME, NOW, key_of, keys_of

BODY = Approval("00" * 32, "zhou", Role.SECURITY_OFFICER, Voice.APPROVE)
SIGNED = sign(
    BODY, record_id="r-1", issuer=HOME, key=key_of(HOME), issued=NOW, expires=NOW + timedelta(days=1)
)


def forged(**claims: object) -> str:
    """The token with other claims under the old signature."""
    header, payload, signature = SIGNED.token.split(".")
    changed = json.loads(base64.urlsafe_b64decode(payload + "==")) | claims
    return ".".join(
        (header, base64.urlsafe_b64encode(canonical_json(changed)).rstrip(b"=").decode(), signature)
    )


def check(token: str) -> None:
    verify(token, Approval, keys_of=keys_of, now=NOW)


def test_a_signed_record_is_read_as_it_was_made() -> None:
    """Verification gives back the body, the issuer and the same digest."""
    again = verify(SIGNED.token, Approval, keys_of=keys_of, now=NOW)

    assert (again, again.body, again.digest) == (SIGNED, BODY, SIGNED.digest)


@pytest.mark.parametrize(
    ("token", "family"),
    [
        (forged(id="r-2"), Corrupt),
        (forged(iss=ABROAD), Corrupt),
        (forged(iss="nobody"), Corrupt),
        (SIGNED.token[:-8] + "AAAAAAAA", Corrupt),
        (SIGNED.token + ".x", Invalid),
        (SIGNED.token.replace(".", "", 1), Invalid),
        ("ü" + SIGNED.token, Invalid),
        ("", Invalid),
        (SIGNED.token + "=", Corrupt),
        (SIGNED.token[:-1] + "B", Corrupt),
    ],
    ids=["other id", "other issuer", "unknown issuer", "other signature", "four parts", "two parts"]
    + ["not ascii", "empty", "padded", "bits beyond the signature"],
)
def test_a_changed_record_is_refused(token: str, family: type[AccordError]) -> None:
    """A changed payload is Corrupt; what is no token at all is Invalid."""
    with pytest.raises(family):
        check(token)


def test_a_record_is_valid_in_its_own_time_only() -> None:
    """Neither from its end on, nor when dated in the future beyond the clocks' tolerance."""
    with pytest.raises(Invalid, match="expired"):
        verify(SIGNED.token, Approval, keys_of=keys_of, now=NOW + timedelta(days=1))
    with pytest.raises(Invalid, match="future"):
        verify(SIGNED.token, Approval, keys_of=keys_of, now=NOW - timedelta(minutes=3))


def test_a_record_of_one_kind_is_not_another() -> None:
    """The kind is part of what is signed."""
    with pytest.raises(Invalid, match="Not a policy"):
        verify(SIGNED.token, Policy, keys_of=keys_of, now=NOW)


@given(position=some.integers(0, len(SIGNED.token) - 1), letter=some.sampled_from("AZaz09-_."))
def test_no_single_changed_character_passes(position: int, letter: str) -> None:
    """Any other token than the signed one is refused with one of our errors."""
    changed = SIGNED.token[:position] + letter + SIGNED.token[position + 1 :]
    if changed == SIGNED.token:
        return
    with pytest.raises(AccordError):
        check(changed)


@pytest.mark.parametrize(
    "data",
    [
        b'{"a":1,"a":2}',
        b"[1]",
        b'{"a":NaN}',
        b"{" * 50_000,
        b'{"a":' * 40 + b"1" + b"}" * 40,
        b"\xff\xfe",
        b"",
        b'{"a":["\\ud800"]}',
        b'{"a\\uDFFF":1}',
    ],
    ids=[
        "duplicate",
        "list",
        "nan",
        "deep and broken",
        "deep",
        "not utf-8",
        "empty",
        "half a pair",
        "half a pair as a key",
    ],
)
def test_hostile_json_is_invalid(data: bytes) -> None:
    """Duplicate keys, other values than objects, NaN and depth are refused, never a crash."""
    with pytest.raises(Invalid):
        parse_json(data)


def test_a_whole_surrogate_pair_is_a_character() -> None:
    """Only half of one is refused: it could be neither stored nor sent."""
    assert parse_json(b'{"a":"\\ud83d\\ude00"}') == {"a": "\U0001f600"}


def test_a_statement_of_many_megabytes_can_be_signed_and_verified() -> None:
    """A study's manifest is larger than what web tokens are usually bounded to."""
    body = Policy("// " + "x" * 200_000, Parameters())
    signed = sign(body, record_id="r-2", issuer=HOME, key=key_of(HOME), issued=NOW, expires=None)

    assert verify(signed.token, Policy, keys_of=keys_of, now=NOW).digest == signed.digest
