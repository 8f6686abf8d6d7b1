"""The decisions that doors themselves ask for: reading the log, administering the node, sending to it, saying who treats
whom, reviewing an emergency.

Studies are never decided here; gateway and ingest do that. A refusal is on record before the person sees it.
"""

from __future__ import annotations

from aiohttp import web

from consent.decision import Deny, Facts, Request, Resource, Verdict, decide
from consent.errors import Denied
from consent.principals import Principal
from consent.vocabulary import Action, EventKind, Outcome, Purpose, ResourceKind
from node.audit.log import Event
from node.web.keys import CLOCK, IDENTITY, LOG, POLICIES
from node.web.people import address_of, current_person
from node.web.text import N_

KIND_OF = {
    Action.READ_LOG: ResourceKind.LOG,
    Action.ADMINISTER: ResourceKind.NODE,
    Action.INGEST: ResourceKind.STUDY,
    Action.RECORD_CARE: ResourceKind.PATIENT,
    Action.REVIEW_EMERGENCY: ResourceKind.STUDY,
    Action.REGRADE: ResourceKind.STUDY,
}
"""What is asked about; for studies and patients, any of this node's: a word before they are looked up."""


def verdict_of(request: web.Request, action: Action, *, another: bool = False) -> Verdict:
    """What the policy says of this person and `action` at this node; nothing is on record yet."""
    node = request.app[IDENTITY].node_id
    resource = Resource(KIND_OF[action], node, None, node)
    asked = Request(current_person(request), action, resource, Purpose.OPERATIONS, request.app[CLOCK].now())
    return decide(request.app[POLICIES].current, asked, Facts(another=another))


async def permitted(
    request: web.Request,
    action: Action,
    *,
    another: bool = False,
    words: str = N_("Your role does not include this."),
) -> Principal:
    """The person, when the policy lets them do `action` at this node. Raises Denied with `words` and the reasons.

    `another`: whether the deed concerns somebody else than who asks.
    """
    verdict = verdict_of(request, action, another=another)
    if isinstance(verdict, Deny):
        raise await _refused(request, action, words, verdict.reasons)
    return current_person(request)


async def _refused(request: web.Request, action: Action, words: str, reasons: tuple[str, ...]) -> Denied:
    """Put a refusal on record; return the error for the person."""
    await request.app[LOG].record(
        Event(
            EventKind.ACCESS_REFUSED,
            current_person(request).actor,
            outcome=Outcome.REFUSED,
            address=address_of(request),
            reason=" ".join(reasons),
            detail={"action": action.value},
        )
    )
    return Denied(
        words,
        reasons=reasons,
        mend=N_("If you need it for your work, ask your hospital's administrator."),
        code="role",
    )
