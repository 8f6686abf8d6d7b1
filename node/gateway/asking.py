"""What the rules say of a use of a study, and how much of a refusal the asker is told.

Who may not see a study is not told whether it is here: what is missing is refused in the words for a stranger's study,
and what may neither be had nor found is missing to those who may see strangers'. The log has the true reasons. Opens
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from consent.decision import Facts, Request, Resource, Verdict, decide
from consent.emergency import EmergencyClaim
from consent.errors import AccordError, Denied, NotFound, Sentences
from consent.principals import Principal
from consent.verdict import Deny, Permit
from consent.vocabulary import Action, Purpose, ResourceKind
from node import deeds
from node.audit.log import Log
from node.clock import Clock
from node.gateway.reading import Reading
from node.index.index import no_such_study
from node.openings import Visit
from node.policies import Policies


@dataclass(frozen=True)
class Use:
    """What somebody wants of a study. `home` is "" for a study of this node.

    `recipient` is who gets what is taken, when that is somebody else than who asks: both must be permitted.
    """

    who: Principal
    study: str
    action: Action
    purpose: Purpose
    address: str | None
    home: str = ""
    claim: EmergencyClaim | None = None
    recipient: Principal | None = None

    @classmethod
    def of(cls, visit: Visit) -> Use:
        """The use that a visit was opened for."""
        opening = visit.opening
        return cls(
            opening.who, opening.study, opening.action, opening.purpose, visit.address,
            opening.home, visit.claim, opening.recipient,
        )  # fmt: skip


class Asking:
    """Asks the rules of one node, with facts as of now."""

    def __init__(self, *, node_id: str, policies: Policies, reading: Reading, log: Log, clock: Clock) -> None:
        self._node_id = node_id
        self._policies = policies
        self._reading = reading
        self._log = log
        self._clock = clock

    async def resource(self, use: Use) -> Resource:
        """What the rules are asked about. Raises NotFound."""
        return await self._reading.shelf(use.home).resource(use.study)

    async def verdict(self, use: Use, resource: Resource) -> Verdict:
        """What the rules say of the one who asks, and of the one who gets it when that is another."""
        verdict = await self._one(use, resource)
        if isinstance(verdict, Deny) or use.recipient in (None, use.who):
            return verdict
        assert use.recipient is not None
        other = await self._one(replace(use, who=use.recipient, claim=None), resource)
        return other if isinstance(other, Deny) else verdict

    async def refused(self, use: Use, resource: Resource, verdict: Deny) -> Denied:
        """Put a refusal on record; return the error to raise."""
        event = deeds.refused(use.who, use.action, use.purpose, use.address, verdict, resource, use.claim)
        await self._log.record(event)
        return Denied(Sentences(verdict.reasons), reasons=verdict.reasons)

    async def turned_away(self, use: Use, resource: Resource, verdict: Deny) -> AccordError:
        """`refused`; the error says to those who do not treat the patient no more than of any stranger's study."""
        denied = await self.refused(use, resource, verdict)
        if use.home:
            return denied
        facts = await self._facts(use, resource)
        if facts.relationship:
            return denied
        stranger = await self._one(use, self._stranger(use.study))
        if isinstance(stranger, Deny):
            return Denied(Sentences(stranger.reasons), reasons=stranger.reasons)
        # Who may see strangers' studies would be told of one that is not here that it is not.
        known = any(
            self._decide(replace(use, action=action), resource, facts).permitted
            for action in (use.action, Action.SEARCH)
        )
        return denied if known else no_such_study()

    async def missing(self, use: Use, error: NotFound) -> AccordError:
        """The error for a study that is not here: the same as for a stranger's study, to those who may not see that."""
        if use.home:
            words = await self._reading.ended(use.home, use.study, use.who)
            verdict: Verdict = Deny((words,)) if words else Permit((), ())
            thing = Resource(ResourceKind.STUDY, use.study, None, use.home)
        else:
            thing = self._stranger(use.study)
            verdict = await self._one(use, thing)
        if isinstance(verdict, Permit):
            return error
        return await self.refused(use, replace(thing, patient=None), verdict)

    async def _one(self, use: Use, resource: Resource) -> Verdict:
        return self._decide(use, resource, await self._facts(use, resource))

    async def _facts(self, use: Use, resource: Resource) -> Facts:
        shelf = self._reading.shelf(use.home)
        return await shelf.facts(use.who, resource, self._clock.now(), self._policies.parameters, use.claim)

    def _decide(self, use: Use, resource: Resource, facts: Facts) -> Verdict:
        request = Request(use.who, use.action, resource, use.purpose, self._clock.now(), use.claim)
        return decide(self._policies.current, request, facts)

    def _stranger(self, study: str) -> Resource:
        """An ordinary study of a patient whom nobody treats. The patient is looked up as any other: no time tells."""
        return Resource(ResourceKind.STUDY, study, study, self._node_id)
