"""A second, Cedar-free reading of the shipped rules, to hold `decide` against.

Written from the requirement and docs/formats/policy.md, not from the rule files: plain words for each fact, no
dates, no signatures. Returns the names of what is owed, or None for a refusal.
"""

from __future__ import annotations

from dataclasses import dataclass

from consent.vocabulary import Action, Grade, Purpose, Right, Role

CARE = {Purpose.TREATMENT, Purpose.EMERGENCY}
CLINICAL = {Role.CLINICIAN, Role.CHIEF_PHYSICIAN}
FOR_OTHERS = {
    Action.RECORD_CARE: {Role.CHIEF_PHYSICIAN, Role.ADMINISTRATOR},
    Action.REVIEW_EMERGENCY: {Role.CHIEF_PHYSICIAN, Role.SECURITY_OFFICER},
}
SERVICES = {
    Action.INGEST: "store",
    Action.COMMIT: "commit",
    Action.SEARCH: "query",
    Action.DOWNLOAD: "retrieve",
}
RIGHTS = {Action.VIEW: Right.VIEW, Action.DOWNLOAD: Right.DOWNLOAD, Action.PRINT: Right.PRINT}


@dataclass(frozen=True)
class Situation:
    role: Role
    action: Action
    purpose: Purpose
    grade: Grade
    at_home: bool
    relationship: bool
    second_factor: bool
    emergency: bool
    granted: frozenset[Right]
    another: bool = False
    registered: frozenset[str] = frozenset()
    own_department: bool = True


def judge(case: Situation) -> frozenset[str] | None:
    """What is owed for doing it, or None."""
    if case.action is Action.REGRADE:
        done = case.at_home and case.role in {Role.CHIEF_PHYSICIAN, Role.SECURITY_OFFICER}
        return frozenset() if done else None
    if case.action in FOR_OTHERS:
        done = case.another and case.at_home and case.role in FOR_OTHERS[case.action]
        return frozenset() if done else None
    if case.role is Role.DEVICE:
        return _device(case)
    if case.role not in CLINICAL:
        return None
    if not case.at_home:
        return _abroad(case)
    if case.action in (Action.GRANT, Action.RECORD_CONSENT):
        return frozenset() if case.relationship or case.role is Role.CHIEF_PHYSICIAN else None
    if case.action is Action.INGEST:
        return frozenset()
    if case.action not in (Action.SEARCH, *RIGHTS):
        return None
    return _at_home(case)


def _device(case: Situation) -> frozenset[str] | None:
    """A device does what it is registered for, at its own node; it reads for its department, nothing restricted."""
    if not case.at_home or SERVICES.get(case.action) not in case.registered:
        return None
    if case.action in (Action.INGEST, Action.COMMIT):
        return frozenset()
    for_care = case.purpose in CARE | {Purpose.QUALITY}
    return frozenset() if for_care and case.own_department and case.grade < Grade.RESTRICTED else None


def _abroad(case: Situation) -> frozenset[str] | None:
    if case.action is Action.REQUEST:
        return frozenset() if case.purpose in CARE else None
    if case.action is Action.FETCH and case.granted:
        return frozenset({"expire"})
    if case.action not in RIGHTS or RIGHTS[case.action] not in case.granted:
        return None
    return frozenset({"expire"}) | _watermark(case)


def _at_home(case: Situation) -> frozenset[str] | None:
    in_care = case.relationship and case.purpose in CARE and case.role is Role.CLINICIAN
    as_chief = case.role is Role.CHIEF_PHYSICIAN and case.purpose in CARE | {Purpose.QUALITY}
    urgent = case.emergency and case.purpose in CARE and case.action in (Action.VIEW, Action.SEARCH)
    locked = case.grade is Grade.RESTRICTED and case.action in RIGHTS and case.role is Role.CLINICIAN
    if locked and not (case.second_factor or case.emergency):
        return None
    if not (in_care or as_chief or urgent):
        return None
    if urgent and case.action is Action.VIEW:
        return _watermark(case) | {"notify", "review", "expire"}
    return _watermark(case)


def _watermark(case: Situation) -> frozenset[str]:
    return frozenset({"watermark"}) if case.action in (Action.VIEW, Action.PRINT) else frozenset()
