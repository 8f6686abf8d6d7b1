"""The facts of a decision, gathered fresh from care, records and log: what `decide` must know and cannot find out.

Reads, and decides nothing. Facts about a study of another hospital come from whoever holds the copy.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from consent.decision import Facts
from consent.directives import Directive
from consent.emergency import EmergencyClaim, review_due
from consent.policy import Parameters
from consent.principals import CLINICAL, Principal
from consent.vocabulary import EventKind
from node.access.care import Care
from node.audit.log import Log
from node.records import Records

REVIEWS_LOOKED_BACK = timedelta(days=366)
MAX_EMERGENCIES = 200


class FactFinder:
    """Gathers facts at one node."""

    def __init__(self, care: Care, records: Records, log: Log) -> None:
        self._care = care
        self._records = records
        self._log = log

    async def about(
        self,
        who: Principal,
        patient: str,
        now: datetime,
        parameters: Parameters,
        claim: EmergencyClaim | None = None,
    ) -> Facts:
        """What bears on a person's access to a patient of this hospital."""
        return Facts(
            relationship=who.role in CLINICAL and await self._care.related(who.id, patient, now),
            emergency_review_overdue=claim is not None and await self._overdue(who, now, parameters),
        )

    async def for_research(self, patient: str, *, plan_approved: bool) -> Facts:
        """What bears on the use of a patient's images in research."""
        directives = await self._records.find(Directive, subject=patient)
        return Facts(directives=directives, plan_approved=plan_approved)

    async def patients_of(self, who: Principal, now: datetime) -> frozenset[str]:
        """The pseudonyms of the patients whom a clinician treats."""
        return await self._care.patients_of(who.id, now) if who.role in CLINICAL else frozenset()

    async def _overdue(self, who: Principal, now: datetime, parameters: Parameters) -> bool:
        """Whether an earlier emergency of this person waits for its review past its time."""
        since = now - REVIEWS_LOOKED_BACK
        opened = await self._log.search(
            kind=EventKind.EMERGENCY_OPENED, actor=who.actor, since=since, limit=MAX_EMERGENCIES
        )
        late = {
            entry.event.detail.get("opening") for entry in opened if review_due(entry.at, parameters) <= now
        }
        if not late:
            return False
        reviewed = await self._log.search(kind=EventKind.EMERGENCY_REVIEWED, since=since, limit=1000)
        return bool(late - {entry.event.detail.get("opening") for entry in reviewed})
