"""Plans and decisions kept: what was proposed, what each site said to it. The same book at the hub and at a site.

Signatures were checked before anything comes in here; the records themselves lie in `node.records`. A site may
change its mind: the newest decision counts. Every change is in the log, in the same transaction.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from consent.errors import AccordError, Conflict, Denied
from consent.principals import Principal
from consent.signed import KeysOf, Signed, sign, verify
from consent.vocabulary import EventKind, Outcome
from learning.plans import PlanDecision, TrainingPlan, Verdict
from node.audit.event import Event
from node.audit.log import Log
from node.clock import Clock
from node.database import Database
from node.records import Records

PLAN_DAYS = 90
DECISION_DAYS = 90
MAX_OPEN_PLANS = 200
SENT = "sent"


@dataclass(frozen=True)
class Listed:
    """A plan with every site's newest decision."""

    plan: Signed[TrainingPlan]
    decisions: Mapping[str, Signed[PlanDecision]]


class PlanBook:
    """`node_id` is who keeps this book; `key` signs what it says itself."""

    def __init__(
        self,
        *,
        node_id: str,
        key: Ed25519PrivateKey,
        database: Database,
        records: Records,
        log: Log,
        clock: Clock,
    ) -> None:
        self.node_id = node_id
        self._key = key
        self._database, self._records, self._log, self._clock = database, records, log, clock

    async def propose(
        self, plan: TrainingPlan, who: Principal, *, address: str | None = None
    ) -> Signed[TrainingPlan]:
        """Sign and keep a plan. Raises Conflict when too many are open."""
        now = self._clock.now()
        if len(await self.plans()) >= MAX_OPEN_PLANS:
            raise Conflict(
                f"There are {MAX_OPEN_PLANS} open plans already.", mend="Wait until older ones have expired."
            )
        signed = sign(
            plan,
            record_id=secrets.token_hex(16),
            issuer=self.node_id,
            key=self._key,
            issued=now,
            expires=now + timedelta(days=PLAN_DAYS),
        )
        await self._keep_plan(signed, who.actor, address)
        return signed

    async def receive_plan(self, token: str, *, keys_of: KeysOf, hub: str) -> Signed[TrainingPlan] | None:
        """Verify and keep a plan that the hub offers; None when it is known already.

        Raises Invalid, Corrupt, or Denied when the hub did not issue it.
        """
        signed = verify(token, TrainingPlan, keys_of=keys_of, now=self._clock.now())
        if signed.issuer != hub:
            raise Denied("This plan was not issued by the hub.", code="plan-issuer")
        if await self._known(signed.digest):
            return None
        await self._keep_plan(signed, f"member:{hub}", None)
        return signed

    async def decide(
        self,
        digest: str,
        verdict: Verdict,
        who: Principal,
        *,
        max_rounds: int | None = None,
        reason: str = "",
        address: str | None = None,
    ) -> Signed[PlanDecision]:
        """Sign and keep this site's decision. Raises NotFound, Conflict when the plan has ended."""
        plan = await self.plan(digest)
        now = self._clock.now()
        if plan.expired(now):
            raise Conflict(
                "This plan has ended.", mend="Ask the researcher for a new one.", code="plan-ended"
            )
        rounds = (
            plan.body.schedule.rounds if max_rounds is None else min(max_rounds, plan.body.schedule.rounds)
        )
        earlier = (await self.decisions(digest)).get(self.node_id)
        signed = sign(
            PlanDecision(
                plan=digest,
                site=self.node_id,
                verdict=verdict,
                role=who.role.value,
                max_rounds=rounds if verdict is Verdict.APPROVE else 0,
                sequence=earlier.body.sequence + 1 if earlier else 1,
                reason=reason,
            ),
            record_id=secrets.token_hex(16),
            issuer=self.node_id,
            key=self._key,
            issued=now,
            expires=min(
                now + timedelta(days=DECISION_DAYS), plan.expires or now + timedelta(days=DECISION_DAYS)
            ),
        )
        await self._keep_decision(signed, who.actor, address)
        return signed

    async def receive_decision(
        self, token: str, member: str, *, keys_of: KeysOf, address: str | None = None
    ) -> Signed[PlanDecision]:
        """Verify and keep a site's decision. Raises Invalid, Corrupt, Denied when it speaks for another site."""
        signed = verify(token, PlanDecision, keys_of=keys_of, now=self._clock.now())
        if not signed.issuer == signed.body.site == member:
            raise Denied("A decision is signed by the site that it speaks for.", code="decision-issuer")
        await self.plan(signed.body.plan)
        await self._keep_decision(signed, f"member:{member}", address)
        return signed

    async def plan(self, digest: str) -> Signed[TrainingPlan]:
        """Raises NotFound."""
        return await self._records.by_digest(digest, TrainingPlan)

    async def plans(self) -> tuple[Signed[TrainingPlan], ...]:
        """Every plan that has not ended, newest first."""
        now = self._clock.now()
        found = await self._records.find(TrainingPlan)
        return tuple(plan for plan in reversed(found) if not plan.expired(now))

    async def listed(self, digest: str) -> Listed:
        """A plan with its decisions. Raises NotFound."""
        return Listed(await self.plan(digest), await self.decisions(digest))

    async def decisions(self, digest: str) -> dict[str, Signed[PlanDecision]]:
        """Each site's newest decision on a plan."""
        found = await self._records.find(PlanDecision, subject=digest)
        return {decision.body.site: decision for decision in sorted(found, key=_sequence)}

    async def approvals(self, digest: str) -> dict[str, Signed[PlanDecision]]:
        """The sites that approve a plan now."""
        now = self._clock.now()
        return {
            site: decision
            for site, decision in (await self.decisions(digest)).items()
            if decision.body.verdict is Verdict.APPROVE and not decision.expired(now)
        }

    async def approves(self, digest: str) -> bool:
        """Whether this site's newest decision on a plan approves it now: signed by this site, for this plan, living."""
        decision = (await self.decisions(digest)).get(self.node_id)
        if decision is None:
            return False
        own = self._key.public_key()
        try:
            signed = verify(
                decision.token,
                PlanDecision,
                keys_of=lambda issuer: (own,) if issuer == self.node_id else (),
                now=self._clock.now(),
            )
        except AccordError:
            return False
        body = signed.body
        return body.verdict is Verdict.APPROVE and (body.plan, body.site) == (digest, self.node_id)

    async def unsent(self) -> tuple[Signed[PlanDecision], ...]:
        """This site's decisions that the hub does not know yet, oldest first."""
        found = await self._records.find_kept(PlanDecision, issuer=self.node_id)
        return tuple(kept.signed for kept in found if kept.status != SENT)

    async def mark_sent(self, decision: Signed[PlanDecision]) -> None:
        """The hub has this decision."""
        async with self._database.write() as tx:
            await self._records.mark(tx, decision.id, SENT)

    async def _known(self, digest: str) -> bool:
        return any(plan.digest == digest for plan in await self._records.find(TrainingPlan))

    async def _keep_plan(self, signed: Signed[TrainingPlan], actor: str, address: str | None) -> None:
        async with self._database.write() as tx:
            await self._records.keep(tx, signed, subjects=[signed.digest])
            await self._log.append(
                tx,
                Event(
                    EventKind.PLAN_PROPOSED,
                    actor,
                    address=address,
                    detail={"plan": signed.digest, "title": signed.body.title, "app": signed.body.app},
                ),
            )

    async def _keep_decision(self, signed: Signed[PlanDecision], actor: str, address: str | None) -> None:
        approves = signed.body.verdict is Verdict.APPROVE
        async with self._database.write() as tx:
            await self._records.keep(tx, signed, subjects=[signed.body.plan])
            await self._log.append(
                tx,
                Event(
                    EventKind.PLAN_APPROVED if approves else EventKind.PLAN_REFUSED,
                    actor,
                    Outcome.DONE if approves else Outcome.REFUSED,
                    address=address,
                    reason=signed.body.reason,
                    detail={
                        "plan": signed.body.plan,
                        "site": signed.body.site,
                        "decision": signed.digest,
                        "max_rounds": signed.body.max_rounds,
                    },
                ),
            )


def _sequence(decision: Signed[PlanDecision]) -> int:
    return decision.body.sequence
