"""The rule by which a roster is accepted, and who a TLS certificate belongs to."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from consent.errors import AccordError, Conflict, Corrupt, Denied, Invalid
from consent.signed import sign
from federation.fields import base64_text
from federation.roster import Anchor, Member, Roster, Standing, accept, issuer_of_leaf
from tests.federation.conftest import entry_of, identity_of
from tests.support.clock import FakeClock

KEYS = tuple(Ed25519PrivateKey.generate() for _ in range(3))


def anchor_of(keys: Sequence[Ed25519PrivateKey], threshold: int, region: str = "north") -> Anchor:
    return Anchor(region, tuple(base64_text(key.public_key().public_bytes_raw()) for key in keys), threshold)


TWO_OF_THREE = anchor_of(KEYS, 2)


async def members() -> tuple[Member, ...]:
    return tuple([entry_of(await identity_of(name)) for name in ("a-general", "b-central")])


def signed_by(
    roster: Roster,
    keys: Sequence[Ed25519PrivateKey],
    clock: FakeClock,
    days: float = 14,
    issuer: str = "north",
    record_id: str | None = None,
) -> tuple[str, ...]:
    record_id = record_id or secrets.token_hex(16)
    now = clock.now()
    return tuple(
        sign(
            roster,
            record_id=record_id,
            issuer=issuer,
            key=key,
            issued=now,
            expires=now + timedelta(days=days),
        ).token
        for key in keys
    )


@pytest.mark.requirement("E1")
async def test_roster_signed_by_two_of_three_is_accepted(clock: FakeClock) -> None:
    """Any two of the three region keys put a roster in force."""
    roster = Roster(1, await members(), TWO_OF_THREE)

    accepted = accept(signed_by(roster, KEYS[1:], clock), TWO_OF_THREE, None, clock.now())

    assert accepted.roster == roster
    assert set(accepted.roster.by_id) == {"a-general", "b-central"}


@pytest.mark.requirement("E1")
async def test_one_key_signing_twice_is_one_signature(clock: FakeClock) -> None:
    """The threshold counts keys, not tokens."""
    tokens = signed_by(Roster(1, await members(), TWO_OF_THREE), [KEYS[0], KEYS[0]], clock)

    with pytest.raises(Corrupt, match="1 of the 2"):
        accept(tokens, TWO_OF_THREE, None, clock.now())


@pytest.mark.requirement("E1")
@pytest.mark.parametrize(
    ("case", "error", "code"),
    [
        ("stranger", Corrupt, "roster-signatures"),
        ("mixed", Invalid, "roster-signatures"),
        ("none", Invalid, "roster-signatures"),
        ("expired", Invalid, "expired"),
        ("endless", Invalid, "roster-term"),
        ("region", Invalid, "roster-region"),
        ("older", Conflict, "roster-rollback"),
        ("split", Corrupt, "roster-split"),
    ],
)
async def test_bad_roster_is_refused(
    case: str, error: type[AccordError], code: str, clock: FakeClock
) -> None:
    """Each way in which a roster can be wrong has its own refusal."""
    listed = await members()
    good = Roster(5, listed, TWO_OF_THREE)
    known = accept(signed_by(good, KEYS[:2], clock), TWO_OF_THREE, None, clock.now())
    strangers = [Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()]
    next_one = replace(good, version=6)
    tokens = {
        "stranger": lambda: signed_by(next_one, strangers, clock),
        "mixed": lambda: signed_by(next_one, KEYS[:1], clock) + signed_by(good, KEYS[1:2], clock),
        "none": lambda: (),
        "expired": lambda: signed_by(next_one, KEYS[:2], clock, days=1),
        "endless": lambda: signed_by(next_one, KEYS[:2], clock, days=15),
        "region": lambda: signed_by(replace(next_one, anchor=anchor_of(KEYS, 2, "south")), KEYS[:2], clock),
        "older": lambda: signed_by(replace(good, version=4), KEYS[:2], clock),
        "split": lambda: signed_by(replace(good, members=listed[:1]), KEYS[:2], clock),
    }[case]()
    if case == "expired":
        clock.tick(days=2)

    with pytest.raises(error) as caught:
        accept(tokens, TWO_OF_THREE, known, clock.now())

    assert caught.value.code == code


@pytest.mark.requirement("E1")
async def test_new_region_keys_need_the_old_ones(clock: FakeClock) -> None:
    """Region keys change only by a roster that old and new keys both sign."""
    new_keys = [Ed25519PrivateKey.generate()]
    known = accept(
        signed_by(Roster(1, await members(), TWO_OF_THREE), KEYS[:2], clock), TWO_OF_THREE, None, clock.now()
    )
    changed = Roster(2, await members(), anchor_of(new_keys, 1))
    record_id = secrets.token_hex(16)

    with pytest.raises(Corrupt):
        accept(signed_by(changed, new_keys, clock), TWO_OF_THREE, known, clock.now())
    both = signed_by(changed, [*KEYS[:2], *new_keys], clock, record_id=record_id)
    assert accept(both, TWO_OF_THREE, known, clock.now()).roster.anchor.keys == changed.anchor.keys


@pytest.mark.requirement("E1")
@pytest.mark.parametrize("name", ["id", "tls_ca", "signing", "hpke"])
async def test_two_members_never_share_a_key(name: str) -> None:
    """A key or id names one organisation only."""
    first, second = await members()
    shared = {name: getattr(first, name)}
    if name == "id":  # with the log that this id must have
        shared["log_vkey"] = first.log_vkey
    roster = Roster(1, (first, replace(second, **shared)), TWO_OF_THREE)

    with pytest.raises(Invalid, match=name):
        Roster.from_json(roster.to_json())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("url", "http://plain"),
        ("url", "https://host/path?x"),
        ("id", "Ä"),
        ("hpke", "AAAA"),
        ("signing", "!"),
        ("tls_ca", "no pem"),
        ("status", "gone"),
        ("roles", "hub"),
        ("name", "n" * 500),
        ("log_vkey", "accord/a-general+00000000+AAAA"),
        ("log_vkey", "not a key"),
        ("log_vkey", ""),
    ],
)
async def test_malformed_member_is_refused(field: str, value: object) -> None:
    """A member with an unreadable field never gets into a roster."""
    data = {**(await members())[0].to_json(), field: value}

    with pytest.raises(Invalid):
        Member.from_json(data)


@pytest.mark.requirement("E1", "A1")
async def test_member_lists_only_its_own_log(clock: FakeClock) -> None:
    """A key under another log's name, or of a witness, would take that log's place in every witness's memory."""
    first, second = await members()
    identity = await identity_of("b-central")
    for vkey in (first.log_vkey, identity.cosigner.verifier.vkey):
        with pytest.raises(Invalid, match="log_vkey"):
            Member.from_json({**second.to_json(), "log_vkey": vkey})
        roster = Roster(1, (first, replace(second, log_vkey=vkey)), TWO_OF_THREE)
        with pytest.raises(Invalid):
            accept(signed_by(roster, KEYS[:2], clock), TWO_OF_THREE, None, clock.now())


def der(pem: bytes) -> bytes:
    return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)


@pytest.mark.requirement("E1", "T2")
async def test_certificate_belongs_to_the_member_whose_authority_signed_it(clock: FakeClock) -> None:
    """Identity comes from the pinned authority; no name inside a certificate changes it."""
    a, b, stranger = [await identity_of(name) for name in ("a-general", "b-central", "stranger")]
    roster = Roster(1, (entry_of(a), entry_of(b)), TWO_OF_THREE)

    assert issuer_of_leaf(roster, der(b.leaf(["127.0.0.1"], clock.now()).certificate)).id == "b-central"
    with pytest.raises(Denied) as unlisted:
        issuer_of_leaf(roster, der(stranger.leaf(["a-general"], clock.now()).certificate))
    assert unlisted.value.code == "peer-unlisted"


@pytest.mark.requirement("E1")
async def test_certificate_of_a_device_does_not_speak_for_its_hospital(clock: FakeClock) -> None:
    """A device certificate, though issued by the same authority, is no peer."""
    a = await identity_of("a-general")
    roster = Roster(1, (entry_of(a),), TWO_OF_THREE)

    with pytest.raises(Denied) as caught:
        issuer_of_leaf(roster, der(a.issue_device_certificate("a-general", clock.now()).certificate))
    assert caught.value.code == "peer-leaf"


@pytest.mark.requirement("E1")
async def test_certificate_of_a_suspended_member_is_refused(clock: FakeClock) -> None:
    """Suspension is in the roster, so it holds wherever the roster is."""
    a = await identity_of("a-general")
    roster = Roster(1, (replace(entry_of(a), status=Standing.SUSPENDED),), TWO_OF_THREE)

    with pytest.raises(Denied) as caught:
        issuer_of_leaf(roster, der(a.leaf([], clock.now()).certificate))
    assert caught.value.code == "peer-suspended"
