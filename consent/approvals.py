"""Approval by several people: a proposal, signatures by m different people, and what state that makes.

A proposal names a deed and what it is about; the node signs it on the proposer's behalf, and each approval on the
approver's. The proposer never counts, nobody counts twice, one refusal ends it. Pure: `node.approvals` keeps
and logs them. Format: docs/formats/policy.md, section Approvals.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar, Self

from consent.errors import Conflict, Denied, Invalid, Sentence
from consent.fields import Fields
from consent.principals import Principal
from consent.signed import Signed
from consent.vocabulary import Role

MAX_QUORUM = 16
MAX_COMMENT_CHARACTERS = 2_000


class Voice(StrEnum):
    """What one person says to a proposal."""

    APPROVE = "approve"
    REFUSE = "refuse"


class State(StrEnum):
    """Where a proposal stands."""

    OPEN = "open"
    APPROVED = "approved"
    REFUSED = "refused"
    EXPIRED = "expired"
    WITHDRAWN = "withdrawn"
    CARRIED_OUT = "carried-out"


class Turn(StrEnum):
    """What can happen to a proposal."""

    APPROVAL = "approval"
    QUORUM = "quorum"
    REFUSAL = "refusal"
    DEADLINE = "deadline"
    WITHDRAWAL = "withdrawal"
    EXECUTION = "execution"


TRANSITIONS: Mapping[tuple[State, Turn], State] = {
    (State.OPEN, Turn.APPROVAL): State.OPEN,
    (State.OPEN, Turn.QUORUM): State.APPROVED,
    (State.OPEN, Turn.REFUSAL): State.REFUSED,
    (State.OPEN, Turn.DEADLINE): State.EXPIRED,
    (State.OPEN, Turn.WITHDRAWAL): State.WITHDRAWN,
    (State.APPROVED, Turn.DEADLINE): State.EXPIRED,
    (State.APPROVED, Turn.WITHDRAWAL): State.WITHDRAWN,
    (State.APPROVED, Turn.EXECUTION): State.CARRIED_OUT,
}
"""Everything else is a Conflict. An approved deed that was not done in time must be proposed again."""


@dataclass(frozen=True)
class Proposal:
    """`deed` is a stable slug ("training-plan"), `subject` what it is about (a record digest or id), `terms` its
    particulars. `quorum` different people with one of `roles` must approve. The signed record's expiry is the
    deadline for approving and for doing."""

    deed: str
    subject: str
    proposer: str
    reason: str
    quorum: int
    roles: frozenset[Role]
    terms: Mapping[str, Any]

    KIND: ClassVar[str] = "proposal"
    VERSION: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not 1 <= self.quorum <= MAX_QUORUM:
            raise Invalid(Sentence("A quorum is 1 to %(most)s people.", most=MAX_QUORUM))
        if not self.roles:
            raise Invalid("A proposal names the roles that may approve it.")

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "deed": self.deed,
            "subject": self.subject,
            "proposer": self.proposer,
            "reason": self.reason,
            "quorum": self.quorum,
            "roles": sorted(self.roles),
            "terms": dict(self.terms),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Raise Invalid when a field is missing, of the wrong type, or past its bound."""
        read = Fields(data, cls.KIND)
        return cls(
            deed=read.text("deed", limit=64),
            subject=read.text("subject", limit=200),
            proposer=read.text("proposer", limit=200),
            reason=read.text("reason", limit=MAX_COMMENT_CHARACTERS, empty=True),
            quorum=read.integer("quorum", low=1, high=MAX_QUORUM),
            roles=read.choices("roles", Role),
            terms=read.mapping("terms"),
        )


@dataclass(frozen=True)
class Approval:
    """One person's voice on the proposal with this digest. `person` is a login at the issuing node."""

    proposal: str
    person: str
    role: Role
    voice: Voice
    comment: str = ""

    KIND: ClassVar[str] = "approval"
    VERSION: ClassVar[int] = 1

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "proposal": self.proposal,
            "person": self.person,
            "role": self.role.value,
            "voice": self.voice.value,
            "comment": self.comment,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Raise Invalid when a field is missing, of the wrong type, or past its bound."""
        read = Fields(data, cls.KIND)
        return cls(
            proposal=read.text("proposal", limit=64),
            person=read.text("person", limit=200),
            role=read.choice("role", Role),
            voice=read.choice("voice", Voice),
            comment=read.text("comment", limit=MAX_COMMENT_CHARACTERS, empty=True),
        )


def advance(state: State, turn: Turn) -> State:
    """The next state. Raises Conflict for a turn that cannot happen now."""
    try:
        return TRANSITIONS[state, turn]
    except KeyError:
        raise Conflict(
            Sentence(
                "This proposal is %(state)s; %(turn)s is not possible now.",
                state=state.value,
                turn=turn.value,
            ),
            mend="Put a new proposal."
            if state is not State.OPEN
            else "Wait until enough people have approved.",
            code="proposal-state",
        ) from None


def state_of(
    proposal: Signed[Proposal],
    approvals: Iterable[Signed[Approval]],
    now: datetime,
    *,
    ended: Turn | None = None,
) -> State:
    """Where a proposal stands at `now`, from its approvals in the order in which they were given.

    `ended` is WITHDRAWAL or EXECUTION when that is on record. Approvals that do not count (of another
    proposal or node, by the proposer, given after the end, a second by one person) are passed over.
    """
    state = State.OPEN
    in_favour: set[str] = set()
    for approval in sorted(approvals, key=lambda item: (item.issued, item.id)):
        body = approval.body
        if state is not State.OPEN or not _counts(proposal, approval):
            continue
        if body.voice is Voice.REFUSE:
            state = advance(state, Turn.REFUSAL)
            continue
        in_favour.add(body.person)
        state = advance(state, Turn.QUORUM if len(in_favour) >= proposal.body.quorum else Turn.APPROVAL)
    if ended is not None:
        return advance(state, ended)
    if proposal.expired(now) and state in (State.OPEN, State.APPROVED):
        return advance(state, Turn.DEADLINE)
    return state


def approve(
    proposal: Signed[Proposal],
    approvals: Iterable[Signed[Approval]],
    approver: Principal,
    voice: Voice,
    now: datetime,
    *,
    comment: str = "",
) -> Approval:
    """The approval to sign for `approver`.

    Raises Denied when this person may not speak, Conflict when they have spoken or the proposal is closed.
    """
    given = tuple(approvals)
    body = proposal.body
    state = state_of(proposal, given, now)
    if state is not State.OPEN:
        advance(state, Turn.APPROVAL)
    if approver.id == body.proposer:
        raise Denied("Nobody approves their own proposal.", mend="Ask a colleague.", code="own-proposal")
    if not approver.active or approver.node != proposal.issuer or approver.role not in body.roles:
        wanted = ", ".join(sorted(body.roles))
        raise Denied(
            Sentence("This proposal is for: %(roles)s.", roles=wanted),
            mend="Ask one of them.",
            code="not-an-approver",
        )
    if any(_counts(proposal, item) and item.body.person == approver.id for item in given):
        raise Conflict("You have already answered this proposal.", code="already-answered")
    return Approval(proposal.digest, approver.id, approver.role, voice, comment)


def _counts(proposal: Signed[Proposal], approval: Signed[Approval]) -> bool:
    body = approval.body
    return (
        body.proposal == proposal.digest
        and approval.issuer == proposal.issuer
        and body.person != proposal.body.proposer
        and body.role in proposal.body.roles
        and not proposal.expired(approval.issued)
    )
