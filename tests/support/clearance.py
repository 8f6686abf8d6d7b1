"""A permit to show to the gateway where a test is about the bytes, not about who may have them."""

from __future__ import annotations

from consent.decision import Permit, Request, Resource
from consent.principals import Principal
from consent.vocabulary import Action, Purpose, ResourceKind, Role
from node.clearance import Clearance
from tests.support.node import NodeFixture


def cleared(node: NodeFixture, study: str, action: Action = Action.FETCH) -> Clearance:
    """For another hospital to do `action` with this study of `node`, now."""
    member = Principal("elsewhere", Role.MEMBER, "Elsewhere", "elsewhere")
    resource = Resource(ResourceKind.STUDY, study, None, node.node_id)
    return Clearance(Request(member, action, resource, Purpose.TREATMENT, node.clock.now()), Permit())
