"""Consent directives: versions, what one permits, withdrawal, and the FHIR form."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from consent.directives import Directive, permits, permits_research, to_fhir, withdraw
from consent.errors import Conflict, Invalid
from consent.signed import verify
from consent.vocabulary import Purpose, Right
from tests.support.consents import (
    ABROAD,
    ELSEWHERE,
    HOME,
    NOW,
    STUDY,
    directive,
    keys_of,
    next_version,
    signed_directive,
)


@pytest.mark.requirement("E2")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"withdrawn": True}, "The patient withdrew consent."),
        ({"start": NOW + timedelta(seconds=1)}, "The patient's consent has not begun yet."),
        ({"end": NOW}, "The patient's consent has ended."),
        ({"studies": ("st_2",)}, "The patient's consent does not cover this study."),
        ({"purposes": frozenset({Purpose.QUALITY})}, "The patient's consent does not allow this purpose."),
        ({"recipients": (ELSEWHERE,)}, "The patient's consent does not name this hospital."),
        ({"rights": frozenset({Right.PRINT})}, "The patient's consent does not allow this use."),
    ],
)
def test_a_consent_says_why_it_does_not_permit(change: dict[str, Any], words: str) -> None:
    """Every limit of a consent has its own sentence; without the change it permits."""
    plain, changed = directive(), directive(**change)

    assert permits(plain, STUDY, Purpose.TREATMENT, ABROAD, Right.VIEW, NOW).permitted
    assert permits(changed, STUDY, Purpose.TREATMENT, ABROAD, Right.VIEW, NOW).reasons == (words,)


@pytest.mark.requirement("E2", "R2")
def test_research_is_consented_separately() -> None:
    """A consent to treatment is none to research, and the other way round."""
    care, research = directive(), directive(research=True, purposes=frozenset())

    assert permits_research(care, STUDY, NOW).reasons == ("The patient's consent does not include research.",)
    assert permits_research(research, STUDY, NOW).permitted
    assert not permits(research, STUDY, Purpose.TREATMENT, ABROAD, Right.VIEW, NOW).permitted


@pytest.mark.requirement("E2")
def test_a_withdrawal_is_the_next_version_and_names_the_one_before() -> None:
    """Withdrawing keeps the scope, raises the version, and cannot be done twice."""
    first = signed_directive()
    last = next_version(first, withdrawn=True)

    body = withdraw(first, recorded_by="wang", basis="phone call")

    assert (body.version, body.previous, body.withdrawn) == (2, first.digest, True)
    assert body.chain == first.body.chain
    with pytest.raises(Conflict, match="already"):
        withdraw(last, recorded_by="wang", basis="again")


def test_a_consent_travels_unchanged() -> None:
    """Signed, read and verified, every field is the same."""
    signed = signed_directive(studies=(STUDY,), recipients=(ABROAD,), research=True)

    again = verify(signed.token, Directive, keys_of=keys_of, now=NOW)

    assert again.body == signed.body


@pytest.mark.parametrize(
    "change", [{"end": NOW - timedelta(days=2)}, {"version": 2}, {"version": 0}, {"previous": "00" * 32}]
)
def test_a_consent_that_contradicts_itself_is_invalid(change: dict[str, Any]) -> None:
    """An end before the start, or a version that does not fit its predecessor, is refused when made."""
    with pytest.raises(Invalid):
        directive(**change)


@pytest.mark.parametrize("name", sorted(set(directive().to_json()) - {"previous"}))
def test_a_consent_with_a_bad_field_is_invalid(name: str) -> None:
    """Each field is checked and named."""
    for bad in (None, 7.5, {"a": 1}, ["x"] * 20_000):
        with pytest.raises(Invalid, match=name):
            Directive.from_json(directive().to_json() | {name: bad})


@pytest.mark.requirement("E2")
def test_the_fhir_form_says_the_same() -> None:
    """R4 Consent: status, patient pseudonym, period, purposes, recipients and studies."""
    signed = signed_directive(studies=(STUDY,), recipients=(ABROAD,), research=True)

    resource = to_fhir(signed)
    provision = resource["provision"]

    assert resource["resourceType"] == "Consent"
    assert resource["status"] == "active"
    assert resource["patient"]["identifier"] == {"system": f"urn:accord:patient:{HOME}", "value": "pt_1"}
    assert {item["code"] for item in provision["purpose"]} == {"TREAT", "ETREAT", "HRESCH"}
    assert provision["actor"][0]["reference"]["identifier"]["value"] == ABROAD
    assert provision["data"][0]["reference"]["identifier"]["value"] == STUDY
    assert provision["period"]["start"] == signed.body.start.isoformat()


def test_the_fhir_form_of_everything_names_nobody_and_nothing() -> None:
    """Without limits there is neither actor nor data; a withdrawn consent is inactive."""
    signed = signed_directive()
    last = next_version(signed, withdrawn=True)

    assert not {"actor", "data"} & set(to_fhir(signed)["provision"])
    assert to_fhir(last)["status"] == "inactive"
    assert to_fhir(last)["meta"]["versionId"] == "2"


def test_times_are_whole_seconds() -> None:
    """A moment with microseconds is cut when the directive is made, so that reading gives the same back."""
    made = replace(directive(), start=NOW + timedelta(microseconds=7))

    assert made == Directive.from_json(made.to_json())
