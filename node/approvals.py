"""Proposals put, answered and closed at this node; each step signed, kept and on record in one transaction.

The rule (who counts, when it is approved) is `consent.approvals`; this is where its records live. What a
proposal is about, and carrying it out, belong to the caller: it calls `carry_out` in the transaction of the deed.

Invariant: the record's status says how a proposal ended (withdrawn, carried out, refused, expired) or `open`;
whether an open one is approved is worked out from the signed approvals every time.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from consent.approvals import Approval, Proposal, State, Turn, Voice, advance, approve, state_of
from consent.errors import Denied, Invalid, Sentence
from consent.principals import Principal
from consent.signed import Signed, sign
from consent.vocabulary import EventKind, Outcome, Role
from node.audit.log import Event, Log
from node.clock import Clock
from node.database import Database, Tx
from node.records import Kept, Records

DEFAULT_HOURS = 72.0
MAX_HOURS = 24.0 * 30
LIVING = frozenset({State.OPEN, State.APPROVED})
"""The states of a proposal that nobody has closed: it is kept as open in both."""
ENDED_BY = {State.WITHDRAWN.value: Turn.WITHDRAWAL, State.CARRIED_OUT.value: Turn.EXECUTION}


@dataclass(frozen=True)
class Standing:
    """A proposal, the answers so far in the order given, and where that leaves it."""

    proposal: Signed[Proposal]
    answers: tuple[Signed[Approval], ...]
    state: State


class Approvals:
    """The proposals of one node. `key` signs on behalf of proposers and approvers, as issuer `node_id`."""

    def __init__(
        self,
        database: Database,
        records: Records,
        log: Log,
        clock: Clock,
        *,
        node_id: str,
        key: Ed25519PrivateKey,
    ) -> None:
        self._database = database
        self._records = records
        self._log = log
        self._clock = clock
        self._node_id = node_id
        self._key = key

    async def put(
        self,
        proposer: Principal,
        *,
        deed: str,
        subject: str,
        reason: str,
        quorum: int,
        roles: Iterable[Role],
        terms: Mapping[str, Any] | None = None,
        hours: float = DEFAULT_HOURS,
        address: str | None = None,
    ) -> Signed[Proposal]:
        """Put a proposal; it must be approved and done within `hours`. Raises Invalid.

        Whether the proposer may put it is for the caller to decide beforehand.
        """
        if not 0 < hours <= MAX_HOURS:
            raise Invalid(
                Sentence(
                    "A proposal stays open for more than 0 and at most %(most)s hours.",
                    most=format(MAX_HOURS, ".0f"),
                )
            )
        body = Proposal(deed, subject, proposer.id, reason, quorum, frozenset(roles), dict(terms or {}))
        Proposal.from_json(body.to_json())
        now = self._clock.now()
        signed = self._signed(body, now, now + timedelta(hours=hours))
        async with self._database.write() as tx:
            await self._records.keep(tx, signed, State.OPEN.value, subjects=[subject, deed])
            await self._log.append(tx, self._event(EventKind.PROPOSAL_PUT, proposer, signed, address))
        return signed

    async def answer(
        self,
        proposal_id: str,
        approver: Principal,
        voice: Voice,
        *,
        comment: str = "",
        address: str | None = None,
    ) -> Standing:
        """Sign one person's answer.

        Raises Denied when this person may not answer (that attempt is on record), Conflict when they have, or
        when the proposal is closed, NotFound.
        """
        try:
            async with self._database.write() as tx:
                standing = await self.standing(proposal_id, tx=tx)
                if standing.state is not State.OPEN:
                    advance(standing.state, Turn.APPROVAL)
                now = self._clock.now()
                body = approve(standing.proposal, standing.answers, approver, voice, now, comment=comment)
                Approval.from_json(body.to_json())
                signed = self._signed(body, now, None)
                await self._records.keep(tx, signed, subjects=[standing.proposal.digest])
                kind, said = EventKind.PROPOSAL_SIGNED, voice.value
                await self._log.append(
                    tx, self._event(kind, approver, standing.proposal, address, voice=said, reason=comment)
                )
                after = await self.standing(proposal_id, tx=tx)
                if after.state is State.REFUSED:
                    await self._close(tx, after, approver, address)
                return after
        except Denied as denial:
            await self._denied(proposal_id, approver, denial, address)
            raise

    async def withdraw(self, proposal_id: str, who: Principal, *, address: str | None = None) -> Standing:
        """Take one's own proposal back.

        Raises Denied for anybody else (that attempt is on record), Conflict when it is closed, NotFound.
        """
        try:
            async with self._database.write() as tx:
                standing = await self.standing(proposal_id, tx=tx)
                if who.id != standing.proposal.body.proposer or who.node != self._node_id:
                    raise Denied(
                        "Only the proposer withdraws a proposal.",
                        mend="Refuse it instead.",
                        code="not-the-proposer",
                    )
                return await self._end(tx, standing, Turn.WITHDRAWAL, who, address)
        except Denied as denial:
            await self._denied(proposal_id, who, denial, address)
            raise

    async def carry_out(
        self, tx: Tx, proposal_id: str, who: Principal, *, deed: str, address: str | None = None
    ) -> Standing:
        """Spend an approved proposal in the transaction of its deed, so that it is done once.

        Raises Conflict when it is not approved now, Invalid when it is for another deed, NotFound.
        """
        standing = await self.standing(proposal_id, tx=tx)
        if standing.proposal.body.deed != deed:
            raise Invalid(
                Sentence(
                    "This proposal is for %(deed)s, not for %(other)s.",
                    deed=repr(standing.proposal.body.deed),
                    other=repr(deed),
                )
            )
        return await self._end(tx, standing, Turn.EXECUTION, who, address)

    async def standing(self, proposal_id: str, *, tx: Tx | None = None) -> Standing:
        """Where a proposal stands now. Raises NotFound."""
        proposal = await self._records.get(proposal_id, Proposal, tx=tx)
        return await self._standing(Kept(proposal, await self._records.status(proposal_id, tx=tx)), tx)

    async def all(
        self, *, deed: str | None = None, subject: str | None = None, states: Collection[State] = tuple(State)
    ) -> tuple[Standing, ...]:
        """Every proposal that matches what is given, oldest first."""
        status = State.OPEN.value if LIVING.issuperset(states) else None
        async with self._database.read() as tx:
            kept = await self._records.find_kept(Proposal, subject=subject or deed, status=status, tx=tx)
            found = [await self._standing(one, tx) for one in kept]
        return tuple(one for one in found if deed in (None, one.proposal.body.deed) and one.state in states)

    async def close_expired(self) -> int:
        """Mark the open proposals whose time is over; return how many. For a job."""
        closed = 0
        async with self._database.write() as tx:
            for kept in await self._records.find_kept(Proposal, status=State.OPEN.value, tx=tx):
                standing = await self._standing(kept, tx)
                if standing.state is State.EXPIRED:
                    await self._close(tx, standing, None, None)
                    closed += 1
        return closed

    async def _denied(self, proposal_id: str, who: Principal, denial: Denied, address: str | None) -> None:
        """Put on record that somebody may not do this to a proposal."""
        await self._log.record(
            Event(
                EventKind.ACCESS_REFUSED,
                who.actor,
                outcome=Outcome.REFUSED,
                address=address,
                reason=denial.message,
                detail={"proposal": proposal_id, "code": denial.code},
            )
        )

    async def _standing(self, kept: Kept, tx: Tx | None) -> Standing:
        answers = await self._records.find(Approval, subject=kept.signed.digest, tx=tx)
        now = self._clock.now()
        state = state_of(kept.signed, answers, now, ended=ENDED_BY.get(kept.status))
        return Standing(kept.signed, answers, state)

    async def _end(
        self, tx: Tx, standing: Standing, turn: Turn, who: Principal, address: str | None
    ) -> Standing:
        ended = Standing(standing.proposal, standing.answers, advance(standing.state, turn))
        await self._close(tx, ended, who, address)
        return ended

    async def _close(self, tx: Tx, standing: Standing, who: Principal | None, address: str | None) -> None:
        await self._records.mark(tx, standing.proposal.id, standing.state.value, expected=State.OPEN.value)
        event = self._event(
            EventKind.PROPOSAL_CLOSED, who, standing.proposal, address, state=standing.state.value
        )
        await self._log.append(tx, event)

    def _signed(self, body: Any, now: datetime, expires: datetime | None) -> Signed[Any]:
        return sign(
            body,
            record_id=secrets.token_hex(16),
            issuer=self._node_id,
            key=self._key,
            issued=now,
            expires=expires,
        )

    @staticmethod
    def _event(
        kind: EventKind,
        who: Principal | None,
        proposal: Signed[Proposal],
        address: str | None,
        *,
        reason: str = "",
        **detail: str,
    ) -> Event:
        return Event(
            kind,
            who.actor if who is not None else "job:approvals",
            address=address,
            reason=reason or proposal.body.reason,
            detail={
                "proposal": proposal.id,
                "digest": proposal.digest,
                "deed": proposal.body.deed,
                "subject": proposal.body.subject,
                **detail,
            },
        )
