"""Who asks: a person, a device, a member node or a job, as the rules see them.

Holds no keys, passwords or addresses (`node.access.registry` does). A `Principal` says what was established
when somebody came in; whether they may do a thing is `consent.decision`'s word.
"""

from __future__ import annotations

from dataclasses import dataclass

from consent.vocabulary import Purpose, Role

PEOPLE = frozenset(
    {
        Role.ADMINISTRATOR,
        Role.CLINICIAN,
        Role.CHIEF_PHYSICIAN,
        Role.RESEARCHER,
        Role.SECURITY_OFFICER,
        Role.HUB_OPERATOR,
    }
)
"""The roles that a person can have."""

CLINICAL = frozenset({Role.CLINICIAN, Role.CHIEF_PHYSICIAN})
"""The roles that treat patients."""


@dataclass(frozen=True)
class Principal:
    """`id` is the login of a person, the AE title of a device, the node id of a member, or a job's name.

    `node` is the node that vouches for it: the hospital a person works at, the node a device sends to, the
    member itself. `second_factor` says whether this sign-in used one. `attributes` of a device are the services it is
    registered for, and `purpose` is why it asks, for a machine cannot say so itself.
    """

    id: str
    role: Role
    name: str
    node: str
    department: str | None = None
    attributes: frozenset[str] = frozenset()
    second_factor: bool = False
    active: bool = True
    purpose: Purpose = Purpose.TREATMENT

    @property
    def actor(self) -> str:
        """How the log names this principal: `person:li@a-general`, `device:CT1`, `member:b-central`, `job:sweep`."""
        if self.role in PEOPLE:
            return f"person:{self.id}@{self.node}"
        return f"{self.role.value}:{self.id}"
