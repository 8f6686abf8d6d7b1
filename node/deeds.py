"""How openings, refusals and ends of visits stand in the log: one place for their words and details.

Patients and studies appear as pseudonyms; search values, UIDs and names never appear.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime

from consent.decision import Resource
from consent.emergency import EmergencyClaim
from consent.obligations import Notify, ReviewWithin
from consent.principals import Principal
from consent.verdict import Deny
from consent.vocabulary import Action, EventKind, Outcome, Purpose
from node.audit.event import Detail, Event
from node.openings import Opening, Visit

MAX_FAULTS_TOLD = 5


def opened(
    opening: Opening,
    resource: Resource,
    claim: EmergencyClaim | None,
    address: str | None,
    *,
    plan: str = "",
) -> Event:
    """Somebody opened a study. An emergency has its own kind and says the reason that was given."""
    told = [item.role.value for item in opening.obligations if isinstance(item, Notify)]
    review = [item.hours for item in opening.obligations if isinstance(item, ReviewWithin)]
    detail: dict[str, Detail] = {"opening": opening.id, "action": opening.action.value}
    detail |= {"home": opening.home} if opening.home else {}
    detail |= {"to": opening.recipient.actor} if opening.recipient else {}
    detail |= {"notify": told} if told else {}
    detail |= {"review_within_hours": review[0]} if review else {}
    detail |= {"expires": opening.expires.isoformat()} if opening.expires else {}
    detail |= {"plan": plan} if plan else {}
    # A person with a treatment relationship may have pressed the button too: what counts is what the rules used.
    emergency = claim is not None and bool(review)
    return Event(
        EventKind.EMERGENCY_OPENED if emergency else EventKind.STUDY_OPENED,
        opening.who.actor,
        patient=resource.patient,
        study=resource.id,
        purpose=opening.purpose,
        address=address,
        reason=claim.reason if claim is not None else " ".join(opening.reasons),
        detail=detail,
    )


def closed(visit: Visit, now: datetime) -> Event:
    """A visit ended: how much was seen or taken, and for how long it was open."""
    opening = visit.opening
    taken = opening.action is Action.DOWNLOAD
    detail: dict[str, Detail] = {
        "opening": opening.id,
        "pictures": visit.pictures,
        "frames": len({seen for seen in visit.seen if seen[1] > 0}),
        "instances": visit.instances,
        "bytes": visit.sent_bytes,
        "seconds": round((now - visit.opened).total_seconds(), 1),
    }
    detail |= {"home": opening.home} if opening.home else {}
    detail |= {"to": opening.recipient.actor} if opening.recipient else {}
    return Event(
        EventKind.STUDY_DOWNLOADED if taken else EventKind.STUDY_VIEWED,
        opening.who.actor,
        patient=visit.resource.patient,
        study=visit.resource.id,
        purpose=opening.purpose,
        address=visit.address,
        detail=detail,
    )


def fields_viewed(
    who: Principal,
    patient: str,
    study: str,
    purpose: Purpose,
    address: str | None,
    fields: Collection[str],
    answers: int,
) -> Event:
    """A search read attributes of a study's images, for so many of its answers."""
    return Event(
        EventKind.STUDY_VIEWED,
        who.actor,
        patient=patient,
        study=study,
        purpose=purpose,
        address=address,
        detail={"fields": sorted(fields), "described": answers},
    )


def refused(
    who: Principal,
    action: Action,
    purpose: Purpose,
    address: str | None,
    verdict: Deny,
    resource: Resource | None,
    claim: EmergencyClaim | None,
) -> Event:
    """The rules said no."""
    return Event(
        EventKind.ACCESS_REFUSED,
        who.actor,
        Outcome.REFUSED,
        patient=resource.patient if resource else None,
        study=resource.id if resource else None,
        purpose=purpose,
        address=address,
        reason=" ".join(verdict.reasons),
        detail={"action": action.value} | ({"emergency": claim.reason} if claim else {}),
    )


def integrity_failed(visit: Visit, what: str) -> Event:
    """Bytes were not those that arrived; nothing of them was shown."""
    opening = visit.opening
    return Event(
        EventKind.INTEGRITY_FAILED,
        opening.who.actor,
        Outcome.FAILED,
        patient=visit.resource.patient,
        study=visit.resource.id,
        purpose=opening.purpose,
        address=visit.address,
        reason=what,
        detail={"opening": opening.id} | ({"home": opening.home} if opening.home else {}),
    )


def log_altered(faults: Sequence[str], actor: str) -> Event:
    """A verification of the log found that it was altered; the first faults in their words."""
    return Event(
        EventKind.INTEGRITY_FAILED,
        actor,
        Outcome.FAILED,
        reason=" ".join(faults[:MAX_FAULTS_TOLD]),
        detail={"log": True, "faults": len(faults)},
    )
