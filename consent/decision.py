"""`decide`: every "may I" of the product, answered from policy, request and facts alone.

The rules are Cedar (default deny, a forbid wins); what they cannot say simply, whether a grant lives, whether a
consent covers, whether an emergency stands, is established here first with the same clock. Pure: nothing is
read, kept or sent. A rule that fails to evaluate is a refusal, never a gap.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

import cedarpy

from consent import emergency
from consent.directives import Directive, current, permits, permits_research
from consent.emergency import EmergencyClaim
from consent.errors import Invalid, Sentence
from consent.grants import Grant, alive
from consent.obligations import Duty, Ends, parse_duties, settle
from consent.policy import Policy, parse_rules
from consent.principals import PEOPLE, Principal
from consent.refusals import Case, because
from consent.signed import Signed
from consent.terms import Circumstances, Thing, cedar_request, schema
from consent.verdict import Deny, Permit, Verdict
from consent.vocabulary import Action, Grade, Purpose, ResourceKind, Right, Role

__all__ = [
    "CompiledPolicy",
    "Deny",
    "Facts",
    "Permit",
    "Request",
    "Resource",
    "Verdict",
    "compile_policy",
    "decide",
]

RIGHT_OF = {Action.VIEW: Right.VIEW, Action.DOWNLOAD: Right.DOWNLOAD, Action.PRINT: Right.PRINT}
"""The right that a grant must hold for an action on an image."""


@dataclass(frozen=True)
class Resource:
    """What is asked about. `patient` is the pseudonym at `home`; `home` is the node id of the owning hospital
    and never empty."""

    kind: ResourceKind
    id: str
    patient: str | None
    home: str
    grade: Grade = Grade.ORDINARY
    department: str | None = None
    deidentified: bool = False


@dataclass(frozen=True)
class Request:
    """Who wants to do what to what, why, and when."""

    principal: Principal
    action: Action
    resource: Resource
    purpose: Purpose
    now: datetime
    emergency: EmergencyClaim | None = None


@dataclass(frozen=True)
class Facts:
    """What the caller knows. Absent facts are the cautious ones.

    `directives` are all known versions of the patient's consents; `revoked` are record ids of grants taken back;
    `member_active` speaks of the other hospital whenever two are involved; `another` says that the deed concerns
    somebody else than who asks (whose relationship, whose emergency access).
    """

    relationship: bool = False
    grants: tuple[Signed[Grant], ...] = ()
    directives: tuple[Signed[Directive], ...] = ()
    revoked: frozenset[str] = frozenset()
    emergency_review_overdue: bool = False
    member_active: bool = True
    plan_approved: bool = False
    device_registered: bool = False
    another: bool = False


@dataclass(frozen=True)
class Rule:
    """A rule's annotations: what it is called, what it says, what it owes."""

    id: str
    reason: str
    duties: tuple[Duty, ...]


@dataclass(frozen=True)
class CompiledPolicy:
    """A policy that was checked and parsed once, ready for many decisions."""

    policy: Policy
    rules: Mapping[str, Rule]
    handle: cedarpy.PolicySet


def compile_policy(policy: Policy) -> CompiledPolicy:
    """Check and parse a policy. Raises Invalid naming the rule and what is wrong with it.

    Every rule needs its own `@id` and a `@reason`, may use only the terms of `consent.terms.schema`, and owes
    only known obligations.
    """
    parsed = parse_rules(policy.cedar)
    rules = {
        cedar_id: _rule(body["effect"], body.get("annotations", {})) for cedar_id, body in parsed.items()
    }
    names = [rule.id for rule in rules.values()]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise Invalid(
            Sentence("The rules %(names)s occur twice.", names=", ".join(twice)), code="policy-rule"
        )
    checked = cedarpy.validate_policies(policy.cedar, schema())
    if not checked.validation_passed:
        raise Invalid(
            Sentence("The rules are not sound: %(faults)s", faults="; ".join(map(str, checked.errors))),
            code="policy-rule",
        )
    whole = {"staticPolicies": parsed, "templates": {}, "templateLinks": []}
    return CompiledPolicy(policy, rules, cedarpy.PolicySet.from_json_str(json.dumps(whole)))


def decide(policy: CompiledPolicy, request: Request, facts: Facts) -> Verdict:
    """Answer one request: a Permit with what it owes, or a Deny with at least one reason."""
    parameters = policy.policy.parameters
    grants = _grants(request, facts)
    claim = emergency.standing(request.emergency, request.principal, parameters, request.now)
    circumstances = _circumstances(request, facts, grants.rights, claim.permitted)
    thing = _thing(request.resource)
    question, entities = cedar_request(request.principal, request.action, thing, circumstances)
    answer = cedarpy.is_authorized(question, policy.handle, entities)
    if answer.diagnostics.errors:
        return Deny(("A rule could not be evaluated; ask the hospital's IT to check the policy.",))
    spoke = [policy.rules[rule] for rule in sorted(answer.diagnostics.reasons)]
    if answer.allowed:
        ends = Ends(
            grants.ends,
            emergency.ends(request.emergency, parameters) if request.emergency else None,
            parameters.emergency_review_hours,
        )
        return Permit(settle((duty for rule in spoke for duty in rule.duties), ends), _reasons(spoke))
    if spoke:
        return Deny(_reasons(spoke))
    return Deny(because(_case(request, facts, circumstances, thing, grants, claim)))


@dataclass(frozen=True)
class _Grants:
    """What the grants at hand come to: the rights that live, until when, and why the others do not count."""

    rights: frozenset[Right]
    ends: datetime | None
    faults: tuple[str, ...]


def _grants(request: Request, facts: Facts) -> _Grants:
    """Judge every grant of this study; the rights of those that live and fit add up."""
    rights: set[Right] = set()
    ends: list[datetime] = []
    faults: list[str] = []
    for grant in facts.grants:
        if (grant.body.study, grant.body.home) != (request.resource.id, request.resource.home):
            continue
        verdict = alive(grant, facts.directives, facts.revoked, request.now)
        mismatch = _mismatch(grant.body, request)
        if isinstance(verdict, Deny):
            faults.extend(verdict.reasons)
        elif mismatch:
            faults.append(mismatch)
        else:
            rights |= grant.body.rights
            if verdict.expires is not None and _confers(grant.body, request.action):
                ends.append(verdict.expires)
    wanted = RIGHT_OF.get(request.action)
    if rights and wanted is not None and wanted not in rights:
        faults.append("The grant does not include this right.")
    return _Grants(frozenset(rights), max(ends, default=None), tuple(dict.fromkeys(faults)))


def _mismatch(grant: Grant, request: Request) -> str | None:
    principal = request.principal
    if grant.recipient != principal.node:
        return "The grant is for another hospital."
    if principal.role in PEOPLE and not grant.names(principal.id):
        return "The grant is for another person."
    if grant.purpose is not request.purpose:
        return "The grant is for another purpose."
    if request.resource.grade > grant.grade_max:
        return "The study's grade has risen above what was granted."
    return None


def _confers(grant: Grant, action: Action) -> bool:
    wanted = RIGHT_OF.get(action)
    return wanted is None or wanted in grant.rights


def _circumstances(
    request: Request, facts: Facts, granted: frozenset[Right], in_emergency: bool
) -> Circumstances:
    return Circumstances(
        purpose=request.purpose,
        relationship=facts.relationship,
        emergency=in_emergency,
        emergency_review_overdue=facts.emergency_review_overdue,
        granted=granted,
        consented=any(verdict.permitted for verdict in _sharing(request, facts)),
        research_consented=any(verdict.permitted for verdict in _research(request, facts)),
        plan_approved=facts.plan_approved,
        device_registered=facts.device_registered,
        member_active=facts.member_active,
        another=facts.another,
    )


def _sharing(request: Request, facts: Facts) -> list[Verdict]:
    if request.principal.role is not Role.MEMBER:
        return []
    return [
        permits(item.body, request.resource.id, request.purpose, request.principal.node, None, request.now)
        for item in _patients_own(request, facts)
    ]


def _research(request: Request, facts: Facts) -> list[Verdict]:
    if request.action is not Action.TRAIN:
        return []
    own = _patients_own(request, facts)
    return [permits_research(item.body, request.resource.id, request.now) for item in own]


def _patients_own(request: Request, facts: Facts) -> list[Signed[Directive]]:
    resource = request.resource
    return [
        item
        for item in current(facts.directives)
        if item.body.patient == resource.patient
        and item.issuer == resource.home
        and not item.expired(request.now)
    ]


def _thing(resource: Resource) -> Thing:
    return Thing(
        resource.kind,
        resource.id,
        resource.home,
        int(resource.grade),
        resource.department,
        resource.deidentified,
    )


def _case(
    request: Request,
    facts: Facts,
    circumstances: Circumstances,
    thing: Thing,
    grants: _Grants,
    claim: Verdict,
) -> Case:
    return Case(
        request.principal,
        request.action,
        thing,
        circumstances,
        grants.faults,
        _refused(_sharing(request, facts)),
        _refused(_research(request, facts)),
        claim.reasons if request.emergency is not None and not claim.permitted else (),
    )


def _refused(verdicts: Iterable[Verdict]) -> tuple[str, ...]:
    reasons = (reason for verdict in verdicts if not verdict.permitted for reason in verdict.reasons)
    return tuple(dict.fromkeys(reasons))


def _reasons(rules: Iterable[Rule]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(rule.reason for rule in rules))


def _rule(effect: str, annotations: Mapping[str, str | None]) -> Rule:
    name = annotations.get("id") or ""
    reason = annotations.get("reason") or ""
    if not name or not reason:
        raise Invalid(
            Sentence("The rule %(rule)s lacks @id or @reason.", rule=name or "without a name"),
            mend="Give every rule both: refusals are explained with them.",
            code="policy-rule",
        )
    if effect != "permit" and "obligation" in annotations:
        raise Invalid(
            Sentence("Rule %(name)s forbids; only a permit owes something.", name=name), code="policy-rule"
        )
    try:
        duties = parse_duties(annotations.get("obligation") or "")
    except Invalid as error:
        raise Invalid(
            Sentence("Rule %(name)s: %(fault)s", name=name, fault=error.message),
            mend=error.mend,
            code="policy-rule",
        ) from error
    return Rule(name, reason, duties)
