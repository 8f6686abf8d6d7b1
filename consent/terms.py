"""The terms that a rule may use: how a request and its facts look to Cedar.

`schema()` is made from the vocabulary, and `compile_policy` checks every rule against it, because Cedar skips a
rule that fails at evaluation, and a skipped `forbid` would let somebody in. `cedar_request` gives exactly what the
schema promises. Documented for rule writers in docs/formats/policy.md.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from consent.principals import Principal
from consent.vocabulary import Action, Purpose, ResourceKind, Right, Role


@dataclass(frozen=True)
class Circumstances:
    """What `decide` has established from the facts, one field for each term of `context`."""

    purpose: Purpose
    relationship: bool
    emergency: bool
    emergency_review_overdue: bool
    granted: frozenset[Right]
    consented: bool
    research_consented: bool
    plan_approved: bool
    device_registered: bool
    member_active: bool
    another: bool


@dataclass(frozen=True)
class Thing:
    """What is asked about, as a rule sees it."""

    kind: ResourceKind
    id: str
    home: str
    grade: int
    department: str | None
    deidentified: bool


def schema() -> str:
    """The Cedar schema of every request that `decide` can make."""
    kinds = ", ".join(_type(kind) for kind in ResourceKind)
    actions = ", ".join(json.dumps(action.value) for action in Action)
    return f"""
entity Role enum [{", ".join(json.dumps(role.value) for role in Role)}];
entity Principal in [Role] {{
  "node": String, "department"?: String, "active": Bool, "second_factor": Bool, "attributes": Set<String>
}};
entity {kinds} {{
  "home": String, "grade": Long, "department"?: String, "deidentified": Bool
}};
action {actions} appliesTo {{
  principal: [Principal],
  resource: [{kinds}],
  context: {{
    "purpose": String, "relationship": Bool, "emergency": Bool, "emergency_review_overdue": Bool,
    "granted": Set<String>, "consented": Bool, "research_consented": Bool, "plan_approved": Bool,
    "device_registered": Bool, "member_active": Bool, "another": Bool
  }}
}};
"""


def cedar_request(
    principal: Principal, action: Action, thing: Thing, circumstances: Circumstances
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The request and the two entities that Cedar judges."""
    who = {"type": "Principal", "id": principal.id}
    what = {"type": _type(thing.kind), "id": thing.id}
    request = {
        "principal": who,
        "action": {"type": "Action", "id": action.value},
        "resource": what,
        "context": {
            "purpose": circumstances.purpose.value,
            "relationship": circumstances.relationship,
            "emergency": circumstances.emergency,
            "emergency_review_overdue": circumstances.emergency_review_overdue,
            "granted": sorted(circumstances.granted),
            "consented": circumstances.consented,
            "research_consented": circumstances.research_consented,
            "plan_approved": circumstances.plan_approved,
            "device_registered": circumstances.device_registered,
            "member_active": circumstances.member_active,
            "another": circumstances.another,
        },
    }
    person = {
        "uid": who,
        "parents": [{"type": "Role", "id": principal.role.value}],
        "attrs": {
            "node": principal.node,
            "active": principal.active,
            "second_factor": principal.second_factor,
            "attributes": sorted(principal.attributes),
            **_present("department", principal.department),
        },
    }
    resource = {
        "uid": what,
        "parents": [],
        "attrs": {
            "home": thing.home,
            "grade": thing.grade,
            "deidentified": thing.deidentified,
            **_present("department", thing.department),
        },
    }
    return request, [person, resource]


def _type(kind: ResourceKind) -> str:
    return kind.value.capitalize()


def _present(name: str, value: str | None) -> dict[str, str]:
    return {} if value is None else {name: value}
