"""Break-glass: what an emergency claim must say, how long it stands, and when its review is due.

The claim is judged inside `consent.decision.decide`; nothing opens a study around the rules. A claim never
waits for anybody: care comes first, the review afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from consent.policy import Parameters
from consent.principals import CLINICAL, Principal
from consent.verdict import Deny, Permit, Verdict
from consent.vocabulary import Role

MIN_REASON_CHARACTERS = 2
MAX_REASON_CHARACTERS = 500

REVIEWERS = frozenset({Role.SECURITY_OFFICER, Role.CHIEF_PHYSICIAN})
"""To whom the portal shows the page of reviews; who may do one is the rules' word (`emergency:review`)."""


@dataclass(frozen=True)
class EmergencyClaim:
    """A clinician's word that waiting would harm the patient, given at `opened`."""

    reason: str
    opened: datetime


def standing(
    claim: EmergencyClaim | None, principal: Principal, parameters: Parameters, now: datetime
) -> Verdict:
    """Whether a claim stands at `now`: given by a clinician, with a reason, and not yet run out."""
    if claim is None:
        return Deny(("No emergency was declared.",))
    if principal.role not in CLINICAL:
        return Deny(("Only a clinician can declare an emergency.",))
    if not MIN_REASON_CHARACTERS <= len(claim.reason.strip()) <= MAX_REASON_CHARACTERS:
        return Deny(("An emergency needs a reason in words.",))
    if claim.opened > now:
        return Deny(("The emergency is dated in the future.",))
    if now >= ends(claim, parameters):
        return Deny(("The emergency access has run out; declare it again if it still holds.",))
    return Permit(reasons=("Emergency access.",))


def ends(claim: EmergencyClaim, parameters: Parameters) -> datetime:
    """When the access that the claim gives is over."""
    return claim.opened + timedelta(minutes=parameters.emergency_minutes)


def review_due(opened: datetime, parameters: Parameters) -> datetime:
    """When the review must have been done."""
    return opened + timedelta(hours=parameters.emergency_review_hours)
