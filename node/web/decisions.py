"""The decisions that doors themselves ask for: reading the log, administering the node.

Studies are never decided here; the gateway does that. A refusal is on record before the person sees it.
"""

from __future__ import annotations

from aiohttp import web

from consent.decision import Deny, Facts, Permit, Request, Resource, decide
from consent.errors import Denied
from consent.principals import Principal
from consent.vocabulary import Action, EventKind, Outcome, Purpose, ResourceKind
from node.audit.log import Event
from node.web.keys import CLOCK, IDENTITY, LOG, POLICIES
from node.web.people import address_of, current_person
from node.web.text import N_

KIND_OF = {Action.READ_LOG: ResourceKind.LOG, Action.ADMINISTER: ResourceKind.NODE}


async def permitted(request: web.Request, action: Action) -> Principal:
    """The person, when the policy lets them do `action` at this node. Raises Denied with the reasons."""
    person = current_person(request)
    app = request.app
    node = app[IDENTITY].node_id
    resource = Resource(KIND_OF[action], node, None, node)
    asked = Request(person, action, resource, Purpose.OPERATIONS, app[CLOCK].now())
    match decide(app[POLICIES].current, asked, Facts()):
        case Permit():
            return person
        case Deny(reasons):
            await app[LOG].record(
                Event(
                    EventKind.ACCESS_REFUSED,
                    person.actor,
                    outcome=Outcome.REFUSED,
                    address=address_of(request),
                    reason=" ".join(reasons),
                    detail={"action": action.value},
                )
            )
            raise Denied(
                N_("Your role does not include this."),
                reasons=reasons,
                mend=N_("If you need it for your work, ask your hospital's administrator."),
                code="role",
            )
