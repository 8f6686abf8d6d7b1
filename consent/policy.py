"""The policy: one signed, versioned document of Cedar rules plus parameters, so that every number and rule that
someone may have to change is data.

Leaves reading the shipped rule files to `node.policies` and evaluating them to `consent.decision`. The hub
issues a regional policy; a hospital may add `forbid` rules and stricter numbers, never looser ones (`tighten`).
Format: docs/formats/policy.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, ClassVar, Self

import cedarpy

from consent.errors import Denied, Invalid
from consent.fields import Fields
from consent.vocabulary import Grade

MAX_CEDAR_CHARACTERS = 256 * 1024
MAX_GRADE_RULES = 1_000
_BETWEEN_WORDS = re.compile(r"[\s\\^,;/|]+")


@dataclass(frozen=True)
class GradeRule:
    """Studies that match every named property get at least `grade`; None matches anything.

    `flag` is a word that the study carries about its confidentiality, such as VIP (`flags_of`).
    """

    grade: Grade
    modality: str | None = None
    body_part: str | None = None
    department: str | None = None
    flag: str | None = None

    def matches(
        self,
        modality: str | None,
        body_part: str | None,
        department: str | None,
        flags: Collection[str] = (),
    ) -> bool:
        """Whether every property that the rule names is the study's, upper and lower case alike."""
        pairs = ((self.modality, modality), (self.body_part, body_part), (self.department, department))
        return (self.flag is None or self.flag.casefold() in flags) and all(
            wanted is None or (actual is not None and wanted.casefold() == actual.strip().casefold())
            for wanted, actual in pairs
        )

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `restricted: department=STAFF HEALTH, modality=MR`, as settings have it. Raises Invalid."""
        grade, _, rest = text.partition(":")
        named = [part.partition("=") for part in rest.split(",") if part.strip()]
        values = {name.strip(): value.strip() for name, _, value in named}
        words = {item.name.lower(): item for item in Grade}
        known = {item.name for item in fields(cls)} - {"grade"}
        if grade.strip().lower() not in words or not values or not set(values) <= known:
            raise Invalid(
                f"{text!r} is no grade rule.",
                mend="Write for example: restricted: department=STAFF HEALTH, modality=MR "
                "(properties: modality, body_part, department, flag).",
                code="grade-rule",
            )
        return cls.from_json({"grade": int(words[grade.strip().lower()]), **values})

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**asdict(self), "grade": int(self.grade)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Raise Invalid when a field is wrong."""
        read = Fields(data, "grade rule")
        return cls(
            read.choice("grade", Grade),
            read.optional_text("modality", limit=64),
            read.optional_text("body_part", limit=64),
            read.optional_text("department", limit=128),
            read.optional_text("flag", limit=64),
        )


SHIPPED_GRADES = (
    GradeRule(Grade.SENSITIVE, modality="MG"),
    GradeRule(Grade.SENSITIVE, body_part="BREAST"),
    GradeRule(Grade.SENSITIVE, body_part="GENITALIA"),
    GradeRule(Grade.RESTRICTED, department="PSYCHIATRY"),
    GradeRule(Grade.RESTRICTED, department="STAFF HEALTH"),
    GradeRule(Grade.RESTRICTED, flag="VIP"),
)


def _lower(default: float, high: float, *, low: float = 0.0) -> Any:
    """A number that a hospital may only lower."""
    return field(default=default, metadata={"stricter": "lower", "low": low, "high": high})


def _higher(default: float, high: float, *, low: float = 0.0) -> Any:
    """A number that a hospital may only raise."""
    return field(default=default, metadata={"stricter": "higher", "low": low, "high": high})


@dataclass(frozen=True)
class Parameters:
    """Every number of the policy, with its unit last. Bounds and which way is stricter stand beside each."""

    grant_default_hours: float = _lower(24.0, 24.0 * 366)
    grant_max_days: float = _lower(30.0, 366.0)
    lease_seconds: float = _lower(15 * 60.0, 15 * 60.0, low=1.0)
    emergency_minutes: float = _lower(60.0, 24 * 60.0, low=1.0)
    emergency_review_hours: float = _lower(72.0, 24.0 * 30, low=1.0)
    session_idle_minutes: float = _lower(15.0, 8 * 60.0, low=1.0)
    session_hours: float = _lower(12.0, 24.0, low=0.25)
    token_max_days: float = _lower(90.0, 366.0, low=1.0)
    kek_max_age_days: float = _lower(90.0, 3 * 366.0, low=1.0)
    """Of grades ordinary and sensitive."""
    restricted_kek_max_age_days: float = _lower(30.0, 3 * 366.0, low=1.0)
    min_cohort: int = _higher(5, 100_000, low=1)
    log_retention_years: float = _higher(5.0, 1_000.0, low=5.0)
    sharing_retention_years: float = _higher(15.0, 1_000.0, low=15.0)
    grades: tuple[GradeRule, ...] = SHIPPED_GRADES

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        numbers = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "grades"}
        return {**numbers, "grades": [rule.to_json() for rule in self.grades]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Absent numbers keep their shipped value; a wrong one is Invalid."""
        read = Fields(data, "policy")
        values: dict[str, Any] = {}
        for item in fields(cls):
            if item.name in data and item.name != "grades":
                number = read.number(item.name, low=item.metadata["low"], high=item.metadata["high"])
                values[item.name] = int(number) if isinstance(item.default, int) else number
        if "grades" in data:
            values["grades"] = read.objects("grades", GradeRule.from_json, limit=MAX_GRADE_RULES)
        return cls(**values)


@dataclass(frozen=True)
class Policy:
    """Cedar rules as text, and the parameters."""

    cedar: str
    parameters: Parameters = Parameters()

    KIND: ClassVar[str] = "policy"
    VERSION: ClassVar[int] = 1

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"cedar": self.cedar, "parameters": self.parameters.to_json()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Raise Invalid when a field is wrong; the rules themselves are checked by `compile_policy`."""
        read = Fields(data, "policy")
        return cls(
            read.text("cedar", limit=MAX_CEDAR_CHARACTERS), Parameters.from_json(read.mapping("parameters"))
        )


def shipped_policy(cedar_texts: Mapping[str, str], parameters: Parameters | None = None) -> Policy:
    """Join the rule files, in the order of their names, into one policy."""
    parts = [f"// {name}\n{cedar_texts[name].strip()}\n" for name in sorted(cedar_texts)]
    return Policy("\n".join(parts), parameters or Parameters())


def grade_of(
    policy: Policy,
    modality: str | None,
    body_part: str | None,
    department: str | None,
    flags: Collection[str] = (),
) -> Grade:
    """The highest grade that any matching rule asks for; ORDINARY when none matches. `flags` as `flags_of` gives them."""
    matching = (
        rule.grade
        for rule in policy.parameters.grades
        if rule.matches(modality, body_part, department, flags)
    )
    return max(matching, default=Grade.ORDINARY)


def flags_of(confidentiality: str) -> frozenset[str]:
    """The words of a Confidentiality Constraint on Patient Data Description (0040,3001), case folded.

    It is free text (PS3.3 §C.4.11), in which systems put what HL7's VIP Indicator (PV1-16) says.
    """
    return frozenset(word for word in _BETWEEN_WORDS.split(confidentiality.casefold()) if word)


def tighten(regional: Policy, local: Policy) -> Policy:
    """Return the regional policy with a hospital's stricter rules and numbers.

    Raises Denied naming every place where `local` would loosen it: a `permit` rule, or a number on the wrong
    side. Grade rules add up: a study gets the higher grade.
    """
    loosened = [*_permits(local.cedar), *_looser(regional.parameters, local.parameters)]
    if loosened:
        raise Denied(
            "A hospital may only tighten the regional policy.",
            reasons=tuple(loosened),
            mend="Change: " + " ".join(loosened),
            code="policy-loosened",
        )
    grades = tuple(dict.fromkeys((*regional.parameters.grades, *local.parameters.grades)))
    return Policy(f"{regional.cedar}\n{local.cedar}", replace(local.parameters, grades=grades))


def parse_rules(cedar: str) -> dict[str, Any]:
    """The rules in Cedar's JSON form, by Cedar's id. Raises Invalid where the text does not parse."""
    try:
        parsed = json.loads(cedarpy.policies_to_json_str(cedar))
    except ValueError as error:
        raise Invalid(f"The rules do not parse: {error}", code="policy-syntax") from error
    if parsed["templates"]:
        raise Invalid("A rule is a template.", mend="Write it out without ?principal and ?resource.")
    rules: dict[str, Any] = parsed["staticPolicies"]
    return rules


def _permits(cedar: str) -> list[str]:
    permits = [rule for rule in parse_rules(cedar).values() if rule["effect"] == "permit"]
    return [f"The rule {rule.get('annotations', {}).get('id', 'without @id')!r} permits." for rule in permits]


def _looser(regional: Parameters, local: Parameters) -> list[str]:
    found = []
    for item in fields(Parameters):
        stricter = item.metadata.get("stricter")
        theirs, ours = getattr(regional, item.name), getattr(local, item.name)
        if (stricter == "lower" and ours > theirs) or (stricter == "higher" and ours < theirs):
            found.append(f"{item.name} is {ours}, the region asks for {theirs} or {stricter}.")
    return found
