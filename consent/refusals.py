"""Why nothing permitted: the most useful sentence for the person who was refused.

A forbidding rule brings its own words. When no rule permits, each function here looks for one cause; the first
that finds any speaks. The words explain and never decide.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from consent.principals import CLINICAL, Principal
from consent.terms import Circumstances, Thing
from consent.vocabulary import Action, Purpose, Role

IMAGES = frozenset({Action.VIEW, Action.DOWNLOAD, Action.PRINT})
SHARING = frozenset({Action.GRANT, Action.REVOKE, Action.RECORD_CONSENT})
CARE = frozenset({Purpose.TREATMENT, Purpose.EMERGENCY})

NOTHING_PERMITS = "No rule permits this."


@dataclass(frozen=True)
class Case:
    """A refused request with everything that was established about it."""

    principal: Principal
    action: Action
    thing: Thing
    circumstances: Circumstances
    grant_faults: tuple[str, ...]
    consent_faults: tuple[str, ...]
    research_faults: tuple[str, ...]
    emergency_faults: tuple[str, ...]

    @property
    def abroad(self) -> bool:
        """Whether the study belongs to another hospital than the one asking."""
        return self.thing.home != self.principal.node


def because(case: Case) -> tuple[str, ...]:
    """The reasons of the first cause that applies; never empty."""
    for cause in _CAUSES:
        if reasons := cause(case):
            return reasons
    return (NOTHING_PERMITS,)


SERVICES = {
    Action.INGEST: ("store", "This device is not registered to send."),
    Action.COMMIT: ("commit", "This device is not registered to ask for storage commitment."),
    Action.SEARCH: ("query", "This device is not registered to query."),
    Action.DOWNLOAD: ("retrieve", "This device is not registered to retrieve."),
}
"""What a device must be registered for, and the words when it is not."""


def _service(case: Case) -> tuple[str, ...]:
    """A registered device that asks for something else than it is registered for, or for another department."""
    if case.principal.role is not Role.DEVICE or not case.circumstances.device_registered or case.abroad:
        return ()
    service, words = SERVICES.get(case.action, ("", "Devices send, query and retrieve; nothing else."))
    if service not in case.principal.attributes:
        return (words,)
    if case.circumstances.purpose not in CARE | {Purpose.QUALITY}:
        return ("A device queries and retrieves for care; this purpose does not allow it.",)
    return ("This device acts for another department than the one that made this study.",)


def _device(case: Case) -> tuple[str, ...]:
    if case.action is not Action.INGEST:
        return ()
    if case.abroad:
        return ("Studies are stored at the hospital where they are made.",)
    if case.principal.role is Role.DEVICE:
        return ("This device is not registered at this node.",)
    return ("Only devices, clinicians and hospital IT bring studies in.",)


def _office(case: Case) -> tuple[str, ...]:
    words = {
        Action.ADMINISTER: "Only hospital IT changes this node's settings.",
        Action.READ_LOG: "Only the security officer reads the log.",
        Action.APPROVE_PLAN: "Training plans are approved by the security officer or a chief physician.",
        Action.LAUNCH_RUN: "Only researchers launch training.",
        Action.RECORD_CARE: "Treatment relationships are entered by a chief physician or hospital IT.",
        Action.REGRADE: "A security officer or a chief physician sets the grade of a study.",
        Action.REVIEW_EMERGENCY: "Emergency access is reviewed by a security officer or a chief physician.",
    }
    return (words[case.action],) if case.action in words else ()


def _training(case: Case) -> tuple[str, ...]:
    if case.action is not Action.TRAIN:
        return ()
    if case.principal.role not in (Role.RESEARCHER, Role.JOB):
        return ("Only research reads studies for training.",)
    if case.abroad:
        return ("Training reads studies only at the hospital where they lie.",)
    if case.circumstances.purpose is not Purpose.RESEARCH:
        return ("Training needs the purpose research.",)
    if not case.circumstances.plan_approved:
        return ("This hospital has not approved the training plan.",)
    return case.research_faults or ("The patient has not consented to research.",)


def _member(case: Case) -> tuple[str, ...]:
    if case.principal.role is not Role.MEMBER:
        return ()
    if case.action is Action.SEARCH:
        return case.consent_faults or ("The patient has not consented to sharing with this hospital.",)
    if case.action is Action.FETCH:
        return case.grant_faults or ("There is no grant of this study for this hospital.",)
    return ("Another hospital may only find, ask for and fetch studies.",)


def _profession(case: Case) -> tuple[str, ...]:
    if case.principal.role in CLINICAL:
        return ()
    if case.action in SHARING:
        return ("Only clinicians record consent and issue or revoke grants.",)
    return ("Only clinicians do this.",)


def _purpose(case: Case) -> tuple[str, ...]:
    judged = case.action in IMAGES or case.action in (Action.SEARCH, Action.REQUEST)
    if judged and not case.abroad and case.circumstances.purpose not in CARE:
        return ("Images are opened for care; this purpose does not allow it.",)
    return ()


def _foreign(case: Case) -> tuple[str, ...]:
    if not case.abroad:
        return ()
    if case.action in IMAGES or case.action is Action.FETCH:
        return case.grant_faults or ("There is no grant of this study for you.",)
    if case.action in SHARING:
        return ("Only the study's home hospital does this.",)
    if case.action is Action.SEARCH:
        return ("Ask the other hospital for a study; its archive cannot be searched from here.",)
    return ("Images are opened for care; this purpose does not allow it.",)


def _asking(case: Case) -> tuple[str, ...]:
    if case.action is Action.REQUEST:
        return ("This study is at your own hospital; open it there.",)
    if case.action is Action.FETCH:
        return ("This study is at your own hospital; there is nothing to fetch.",)
    return ()


def _relationship(case: Case) -> tuple[str, ...]:
    if case.circumstances.relationship:
        return ()
    return ("You have no treatment relationship with this patient.", *case.emergency_faults)


_CAUSES: tuple[Callable[[Case], tuple[str, ...]], ...] = (
    _service,
    _device,
    _office,
    _training,
    _member,
    _profession,
    _purpose,
    _foreign,
    _asking,
    _relationship,
)
