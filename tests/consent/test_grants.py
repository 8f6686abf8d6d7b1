"""Grants: they only narrow, and none survives its end or its consent."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from consent.decision import Facts, decide
from consent.directives import ALL, current
from consent.errors import Denied, Invalid
from consent.grants import Grant, GrantRequest, Mode, alive, issue_grant
from consent.signed import sign, verify
from consent.verdict import Deny, Permit
from consent.vocabulary import Action, Grade, Purpose, Right
from tests.support.consents import (
    ABROAD,
    ELSEWHERE,
    HOME,
    NOW,
    PATIENT,
    STUDY,
    compiled,
    directive,
    grant,
    key_of,
    keys_of,
    next_version,
    person,
    policy,
    request,
    signed_directive,
    signed_grant,
)

CONSENT = signed_directive()
YEAR_SECONDS = 366 * 24 * 3600

seconds = some.integers(-YEAR_SECONDS, 2 * YEAR_SECONDS)
rights = some.frozensets(some.sampled_from(Right))
purposes = some.frozensets(some.sampled_from(Purpose))
nodes = some.sampled_from([ABROAD, ELSEWHERE])
recipients = some.one_of(some.just(ALL), some.lists(nodes, max_size=2).map(tuple))
studies = some.one_of(some.just(ALL), some.lists(some.sampled_from([STUDY, "st_2"]), max_size=2).map(tuple))
scopes = some.fixed_dictionaries(
    {"rights": rights, "purposes": purposes, "recipients": recipients, "studies": studies}
)


def at(offset: int) -> datetime:
    return NOW + timedelta(seconds=offset)


def wish(**changes: Any) -> GrantRequest:
    asked = GrantRequest(
        study=STUDY,
        patient=PATIENT,
        home=HOME,
        recipient=ABROAD,
        person="*",
        purpose=Purpose.TREATMENT,
        rights=frozenset({Right.VIEW}),
        grade=Grade.ORDINARY,
        manifest="00" * 32,
        holder_key="11" * 32,
    )
    return replace(asked, **changes)


@pytest.mark.requirement("U2")
@given(wanted=rights, scope=scopes, start=seconds, length=some.integers(1, YEAR_SECONDS), lasts=seconds)
def test_a_grant_only_narrows(
    wanted: frozenset[Right], scope: dict[str, Any], start: int, length: int, lasts: int
) -> None:
    """Whatever is asked, what is issued lies within the wish, the consent and the policy, or is refused."""
    consent = signed_directive(start=at(start), end=at(start + length), **scope)
    try:
        issued, expires = issue_grant(
            wish(rights=wanted, lasts=timedelta(seconds=lasts)), consent, policy(), NOW
        )
    except Denied as refusal:
        assert refusal.reasons
        return

    assert issued.rights
    assert issued.rights <= wanted
    assert issued.rights <= consent.body.rights
    assert issued.purpose in consent.body.purposes
    assert NOW < expires <= min(consent.body.end, NOW + timedelta(seconds=lasts), NOW + timedelta(days=30))
    assert consent.body.start <= NOW


@pytest.mark.requirement("U2", "E2", "E4")
@given(scope=scopes, withdrawn=some.booleans(), moment=seconds, consent_end=some.integers(1, YEAR_SECONDS))
def test_no_grant_survives_its_end_or_its_consent(
    scope: dict[str, Any], withdrawn: bool, moment: int, consent_end: int
) -> None:
    """Alive means: not expired, and the newest version of the consent still allows every granted right now."""
    newest = next_version(CONSENT, withdrawn=withdrawn, end=at(consent_end), **scope)
    issued = signed_grant(CONSENT, rights=frozenset({Right.VIEW, Right.PRINT}))
    now = at(moment)
    verdict = alive(issued, (CONSENT, newest), frozenset(), now)

    covered = (
        not withdrawn
        and newest.body.start <= now < newest.body.end
        and issued.body.rights <= newest.body.rights
        and Purpose.TREATMENT in newest.body.purposes
        and (newest.body.recipients == ALL or ABROAD in newest.body.recipients)
        and (newest.body.studies == ALL or STUDY in newest.body.studies)
    )
    within = issued.body.not_before <= now < NOW + timedelta(hours=24)
    assert verdict.permitted == (covered and within)
    if isinstance(verdict, Permit):
        assert verdict.expires == min(NOW + timedelta(hours=24), newest.body.end)


@pytest.mark.requirement("U2", "E4")
@given(moment=seconds, length=some.integers(1, 30 * 24 * 3600))
def test_a_permit_under_a_grant_ends_with_it(moment: int, length: int) -> None:
    """At and after the end `decide` refuses; before it, the permit carries exactly that end."""
    issued = signed_grant(CONSENT, expires=at(length))
    facts = Facts(grants=(issued,), directives=(CONSENT,))
    verdict = decide(compiled(), request(person(node=ABROAD), Action.VIEW, now=at(moment)), facts)

    assert verdict.permitted == (0 <= moment < length)
    assert isinstance(verdict, Deny) or verdict.expires == at(length)


@pytest.mark.requirement("U2")
def test_a_grant_lasts_a_day_when_nobody_says_otherwise() -> None:
    """The default is 24 hours."""
    _, expires = issue_grant(wish(), CONSENT, policy(), NOW)

    assert expires == NOW + timedelta(hours=24)


@pytest.mark.requirement("E2", "E3")
@pytest.mark.parametrize(
    ("asked", "consented", "words"),
    [
        ({}, {"withdrawn": True, "version": 2, "previous": "00" * 32}, "The patient withdrew consent."),
        ({}, {"end": NOW}, "The patient's consent has ended."),
        ({}, {"start": NOW + timedelta(hours=1)}, "The patient's consent has not begun yet."),
        ({}, {"studies": ("st_2",)}, "The patient's consent does not cover this study."),
        ({}, {"recipients": (ELSEWHERE,)}, "The patient's consent does not name this hospital."),
        ({"purpose": Purpose.QUALITY}, {}, "The patient's consent does not allow this purpose."),
        (
            {"rights": frozenset({Right.PRINT})},
            {"rights": frozenset({Right.VIEW})},
            "The patient's consent gives none of the rights asked for.",
        ),
        ({"patient": "pt_2"}, {}, "This consent is another patient's or another hospital's."),
        ({"home": ELSEWHERE}, {}, "This consent is another patient's or another hospital's."),
        ({"recipient": HOME}, {}, "A grant is for another hospital."),
        ({"lasts": timedelta()}, {}, "The grant would end before it begins."),
    ],
)
def test_what_the_consent_does_not_cover_is_not_granted(
    asked: dict[str, Any], consented: dict[str, Any], words: str
) -> None:
    """Each way of asking for more than there is consent for is refused by name."""
    with pytest.raises(Denied) as refusal:
        issue_grant(wish(**asked), signed_directive(**consented), policy(), NOW)

    assert words in refusal.value.reasons
    assert refusal.value.mend


@pytest.mark.requirement("E2")
def test_a_wider_new_version_keeps_a_grant_alive_and_never_widens_it() -> None:
    """A newer consent that still covers the grant does not end it; the grant's rights stay what they were."""
    wider = next_version(CONSENT, end=NOW + timedelta(days=3650))
    issued = signed_grant(CONSENT)

    verdict = alive(issued, (CONSENT, wider), frozenset(), NOW)

    assert verdict.permitted
    assert issued.body.rights == frozenset({Right.VIEW})


@pytest.mark.requirement("E2")
def test_the_order_in_which_versions_arrive_does_not_matter() -> None:
    """An old permission that arrives after the withdrawal revives nothing."""
    last = next_version(CONSENT, withdrawn=True)
    issued = signed_grant(CONSENT)

    assert not alive(issued, (last, CONSENT), frozenset(), NOW).permitted
    assert not alive(issued, (CONSENT, last), frozenset(), NOW).permitted


@pytest.mark.requirement("E2")
def test_withdrawing_one_consent_leaves_another_standing() -> None:
    """A grant rests on its own chain; another chain's withdrawal does not touch it."""
    other = signed_directive(chain="chain-2", withdrawn=True, version=2, previous="00" * 32)

    assert alive(signed_grant(CONSENT), (CONSENT, other), frozenset(), NOW).permitted


def test_a_grant_travels_unchanged() -> None:
    """Signed, read and verified, every field is the same."""
    issued = signed_grant(CONSENT, mode=Mode.COPY, rights=frozenset(Right))

    again = verify(issued.token, Grant, keys_of=keys_of, now=NOW)

    assert again == issued
    assert again.body == issued.body


def test_an_expired_grant_is_not_even_read() -> None:
    """Verification at the door already refuses it."""
    issued = signed_grant(CONSENT)

    with pytest.raises(Invalid, match="expired"):
        verify(issued.token, Grant, keys_of=keys_of, now=NOW + timedelta(hours=24))


@pytest.mark.parametrize("name", sorted(grant(CONSENT).to_json()))
def test_a_grant_with_a_bad_field_is_invalid(name: str) -> None:
    """Each field is checked: missing, or of a wrong type, is Invalid and names the field."""
    for bad in (None, 7.5, {}, "x" * 5000):
        data = grant(CONSENT).to_json() | {name: bad}
        with pytest.raises(Invalid, match=name):
            Grant.from_json(data)


def test_directives_choose_the_newest_of_each_chain() -> None:
    """`current` keeps one per chain; a fork of one version falls to the withdrawal."""
    second = next_version(CONSENT, basis="renewed")
    fork = next_version(CONSENT, withdrawn=True)
    research = signed_directive(chain="research", research=True)

    assert current((CONSENT, second, research)) == (second, research)
    assert current((second, fork)) == (fork,)
    assert current((fork, second)) == (fork,)


def test_a_consent_record_with_an_own_expiry_ends_the_grant() -> None:
    """When the record of the consent itself expires, nothing rests on it any longer."""
    body = directive()
    short = sign(
        body, record_id="d", issuer=HOME, key=key_of(HOME), issued=NOW, expires=NOW + timedelta(hours=1)
    )
    issued = signed_grant(short)

    assert alive(issued, (short,), frozenset(), NOW).expires == NOW + timedelta(hours=1)  # type: ignore[union-attr]
    assert not alive(issued, (short,), frozenset(), NOW + timedelta(hours=1)).permitted
