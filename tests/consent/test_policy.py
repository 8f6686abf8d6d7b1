"""The policy as data: grades, numbers, tightening, and rules that are checked before they are used."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from consent.decision import compile_policy
from consent.errors import Denied, Invalid
from consent.policy import GradeRule, Parameters, Policy, flags_of, grade_of, shipped_policy, tighten
from consent.signed import sign, verify
from consent.vocabulary import Grade
from node.policies import Policies, shipped_cedar
from tests.support.consents import HOME, NOW, key_of, keys_of, policy

NIGHT = """
@id("ward-night") @reason("The archive is closed for this department.")
forbid (principal, action == Action::"study:view", resource)
when { principal has department && principal.department == "Dermatology" };
"""
ANYBODY = '@id("open") @reason("Open day.") permit (principal, action, resource);'


@pytest.mark.requirement("V1")
@pytest.mark.parametrize(
    ("study", "grade"),
    [
        (("CT", "CHEST", None), Grade.ORDINARY),
        ((None, None, None), Grade.ORDINARY),
        (("MG", None, None), Grade.SENSITIVE),
        (("CR", "breast", None), Grade.SENSITIVE),
        (("MR", "HEAD", "Psychiatry "), Grade.RESTRICTED),
        (("MG", None, "PSYCHIATRY"), Grade.RESTRICTED),
    ],
)
def test_the_highest_matching_rule_gives_the_grade(study: tuple[str | None, ...], grade: Grade) -> None:
    """Rules match without regard to case; the highest counts; nothing known is ordinary."""
    assert grade_of(policy(), *study) is grade


def test_a_rule_that_names_two_properties_needs_both() -> None:
    """Every named property must match."""
    rule = GradeRule(Grade.RESTRICTED, modality="MR", body_part="HEAD")

    assert rule.matches("mr", "Head", None)
    assert not rule.matches("MR", None, None)
    assert not rule.matches("CT", "HEAD", None)


@pytest.mark.requirement("V1")
@pytest.mark.parametrize(
    ("words", "grade"),
    [
        ("VIP", Grade.RESTRICTED),
        ("staff; vip", Grade.RESTRICTED),
        ("VIP^see ward office", Grade.RESTRICTED),
        ("VIPER", Grade.ORDINARY),
        ("", Grade.ORDINARY),
    ],
)
def test_a_flag_in_the_data_set_gives_the_grade(words: str, grade: Grade) -> None:
    """A word of the confidentiality constraint counts, a part of a word does not."""
    assert grade_of(policy(), "CT", None, None, flags_of(words)) is grade


@pytest.mark.requirement("V1")
def test_a_grade_rule_is_read_as_settings_have_it() -> None:
    """One line for one rule; values may have spaces."""
    rule = GradeRule.parse("Restricted: department=STAFF HEALTH, modality=MR")
    assert rule == GradeRule(Grade.RESTRICTED, modality="MR", department="STAFF HEALTH")
    assert GradeRule.parse("sensitive:flag=research") == GradeRule(Grade.SENSITIVE, flag="research")


@pytest.mark.parametrize(
    "text", ["", "restricted", "restricted:", "secret: flag=x", "restricted: patient=x", "restricted: flag="]
)
def test_a_grade_rule_that_says_nothing_is_refused(text: str) -> None:
    """A rule without grade, or without a property that exists, is a slip and told as one."""
    with pytest.raises(Invalid, match=r"no grade rule|flag"):
        GradeRule.parse(text)


def test_the_policy_travels_unchanged() -> None:
    """Signed and read again, rules and numbers are the same."""
    signed = sign(policy(), record_id="p", issuer=HOME, key=key_of(HOME), issued=NOW, expires=None)

    assert verify(signed.token, Policy, keys_of=keys_of, now=NOW).body == policy()


@pytest.mark.parametrize("name", [item.name for item in fields(Parameters)])
def test_a_number_outside_its_bounds_is_invalid(name: str) -> None:
    """Every parameter is checked and named."""
    for bad in ("x", -1, 1e15, None, True):
        with pytest.raises(Invalid, match=name):
            Parameters.from_json({name: bad})


@pytest.mark.requirement("U2")
def test_a_lease_is_never_longer_than_a_quarter_of_an_hour() -> None:
    """No policy can lengthen it."""
    with pytest.raises(Invalid, match="lease_seconds"):
        Parameters.from_json({"lease_seconds": 901})


def test_a_hospital_may_tighten() -> None:
    """Stricter numbers, more grade rules and forbidding rules are added to the region's."""
    stricter = replace(
        Parameters(), emergency_minutes=30.0, grades=(GradeRule(Grade.SENSITIVE, modality="US"),)
    )

    result = tighten(policy(), Policy(NIGHT, stricter))

    assert result.parameters.emergency_minutes == 30.0
    assert grade_of(result, "US", None, None) is Grade.SENSITIVE
    assert grade_of(result, "MG", None, None) is Grade.SENSITIVE
    assert len(compile_policy(result).rules) == len(compile_policy(policy()).rules) + 1


@pytest.mark.parametrize(
    ("cedar", "change", "words"),
    [
        (ANYBODY, {}, "'open' permits"),
        (NIGHT, {"emergency_minutes": 90.0}, "emergency_minutes is 90.0"),
        (NIGHT, {"min_cohort": 4}, "min_cohort is 4"),
    ],
)
def test_a_hospital_may_not_loosen(cedar: str, change: dict[str, Any], words: str) -> None:
    """A permitting rule or a number on the wrong side is refused by name."""
    with pytest.raises(Denied) as refusal:
        tighten(policy(), Policy(cedar, replace(Parameters(), **change)))

    assert any(words in reason for reason in refusal.value.reasons)


@pytest.mark.parametrize(
    ("cedar", "words"),
    [
        ("permit (principal, action, resource", "do not parse"),
        ("permit (principal, action, resource);", "lacks @id or @reason"),
        ('@id("a") permit (principal, action, resource);', "lacks @id or @reason"),
        (ANYBODY + ANYBODY, "occur twice"),
        (
            '@id("a") @reason("r") forbid (principal, action, resource) when { context.relationshp };',
            "not sound",
        ),
        ('@id("a") @reason("r") forbid (principal, action == Action::"study:veiw", resource);', "not sound"),
        ('@id("a") @reason("r") forbid (principal in Role::"clinican", action, resource);', "not sound"),
        ('@id("a") @reason("r") @obligation("watermrak") permit (principal, action, resource);', "watermrak"),
        (
            '@id("a") @reason("r") @obligation("notify:boss") permit (principal, action, resource);',
            "notify:boss",
        ),
        (
            '@id("a") @reason("r") @obligation("watermark") forbid (principal, action, resource);',
            "only a permit",
        ),
        ('@id("a") @reason("r") permit (principal == ?principal, action, resource);', "template"),
    ],
)
def test_unsound_rules_are_refused_before_they_are_used(cedar: str, words: str) -> None:
    """A misspelt term, action, role or duty never reaches a decision, where Cedar would skip the rule."""
    with pytest.raises(Invalid, match=words):
        compile_policy(Policy(cedar))


def test_shipped_rules_are_readable_files() -> None:
    """The shipped rules are several small files, each rule with its name, and joined in order."""
    texts = shipped_cedar()
    compiled = compile_policy(shipped_policy(texts))

    assert len(texts) >= 5
    assert all(len(text.splitlines()) < 130 for text in texts.values())
    assert all(rule.reason.endswith(".") for rule in compiled.rules.values())


def test_an_unsound_policy_leaves_the_old_one_in_force() -> None:
    """Replacing checks first."""
    policies = Policies()
    before = policies.current
    with pytest.raises(Invalid):
        policies.replace(Policy("nonsense"))

    assert policies.current is before
    policies.replace(tighten(policies.policy, Policy(NIGHT)))
    assert policies.current is not before


def test_an_unsound_policy_is_found_before_the_first_decision() -> None:
    """Who serves prepares the policy first."""
    with pytest.raises(Invalid):
        Policies(Policy("nonsense")).prepare()
