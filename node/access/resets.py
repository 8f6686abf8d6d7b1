"""A new one-time sign-in for somebody who has forgotten their password: asked for by one person, handed over by another.

Whoever holds such a secret is that person until its next use, so for everybody who sees patients, or watches over those
who do, hospital IT asks and somebody else decides, who also is the one to whom the secret is shown. The reasons
are in docs/decisions/0011-second-person-for-a-new-sign-in.md. Every reset of an account in use is an alarm, and the person
is told at the next sign-in (`registry`).
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from consent.approvals import State, Voice
from consent.errors import Denied, Invalid
from consent.principals import Principal
from consent.vocabulary import EventKind, Outcome, Role
from node.access.registry import ALONE, Registry
from node.approvals import LIVING, Approvals, Standing
from node.audit.log import Event, Log
from node.database import Database

DEED: Final = "sign-in-reset"
APPROVERS: Final = frozenset({Role.SECURITY_OFFICER, Role.CHIEF_PHYSICIAN})
HOURS: Final = 24.0
"""How long a request waits."""
ESTABLISHED: Final = timedelta(hours=24)
"""How long an approver's account must have been there when the request was made: IT can make accounts."""
MIN_REASON_CHARACTERS: Final = 5
MAX_REASON_CHARACTERS: Final = 500


class Resets:
    """Asks for, and hands over, one-time sign-ins of one node."""

    def __init__(self, database: Database, registry: Registry, approvals: Approvals, log: Log) -> None:
        self._database = database
        self._registry = registry
        self._approvals = approvals
        self._log = log

    async def alone(self, login: str) -> bool:
        """Whether hospital IT may make this one-time sign-in without a second person. Raises NotFound."""
        person = await self._registry.person(login)
        return person.role in ALONE or not person.has_password

    async def ask(self, who: Principal, login: str, reason: str, *, address: str | None = None) -> None:
        """Ask for a one-time sign-in that needs a second person; a request that waits already stands.

        Raises Invalid without a reason, NotFound without such an account.
        """
        if not MIN_REASON_CHARACTERS <= len(reason.strip()) <= MAX_REASON_CHARACTERS:
            raise Invalid(
                "Say why, and how the person was recognised.",
                mend="Name who asked, how, and how you know that it was they.",
                code="reason",
            )
        await self._registry.person(login)
        if any(one.proposal.body.subject == login for one in await self.waiting()):
            return
        await self._approvals.put(
            who,
            deed=DEED,
            subject=login,
            reason=reason.strip(),
            quorum=1,
            roles=APPROVERS,
            hours=HOURS,
            address=address,
        )

    async def waiting(self) -> tuple[Standing, ...]:
        """The requests that can still be answered or carried out, oldest first."""
        return await self._approvals.all(deed=DEED, states=LIVING)

    async def answer(
        self, who: Principal, proposal_id: str, voice: Voice, *, address: str | None = None
    ) -> tuple[str, str] | None:
        """Answer a request; return login and secret when it was approved, for handing over in person.

        Raises Denied for who may not answer, Conflict when it has been answered, NotFound.
        """
        standing = await self._approvals.standing(proposal_id)
        body = standing.proposal.body
        if body.deed != DEED:
            raise Invalid("This is not a request for a one-time sign-in.", code="wrong-deed")
        await self._require_established(who, standing, address)
        # Approved and not carried out: cut short, and the same person goes on.
        resumed = standing.state is State.APPROVED and who.id in [one.body.person for one in standing.answers]
        if not resumed:
            standing = await self._approvals.answer(proposal_id, who, voice, address=address)
        if standing.state is not State.APPROVED:
            return None
        async with self._database.write() as tx:
            await self._approvals.carry_out(tx, proposal_id, who, deed=DEED, address=address)
            asked_by = f"person:{body.proposer}@{self._registry.node}"
            secret = await self._registry.create_one_time(
                body.subject, by=who.actor, asked_by=asked_by, approval=proposal_id, tx=tx
            )
        return body.subject, secret

    async def _require_established(self, who: Principal, standing: Standing, address: str | None) -> None:
        """Refuse an approver who is concerned, or whose account was made for the purpose."""
        person = await self._registry.person(who.id)
        if standing.proposal.body.subject == who.id:
            denial = Denied(
                "Nobody decides about their own sign-in.", mend="Ask a colleague.", code="own-sign-in"
            )
        elif person.created > standing.proposal.issued - ESTABLISHED:
            denial = Denied(
                "Your account is too new to decide about somebody's sign-in.",
                mend="Ask a colleague whose account was there a day before the request.",
                code="new-account",
            )
        else:
            return
        detail = {"proposal": standing.proposal.id, "code": denial.code}
        await self._log.record(
            Event(
                EventKind.ACCESS_REFUSED,
                who.actor,
                outcome=Outcome.REFUSED,
                address=address,
                reason=denial.message,
                detail=detail,
            )
        )
        raise denial
