"""The facts of a decision, gathered fresh from care, records and log: what `decide` must know and cannot find out.

Reads, and decides nothing. Facts about a study of another hospital come from whoever holds the copy.
"""

from __future__ import annotations

from collections import OrderedDict
from datetime import datetime, timedelta

from consent.decision import Facts
from consent.directives import Directive
from consent.emergency import EmergencyClaim
from consent.policy import Parameters
from consent.principals import CLINICAL, Principal
from consent.vocabulary import Role
from node import emergencies
from node.access.care import Care
from node.audit.log import Log
from node.records import Records

MAX_ANSWERS = 1024
"""Claims whose answer about overdue reviews is kept."""


class FactFinder:
    """Gathers facts at one node."""

    def __init__(self, care: Care, records: Records, log: Log) -> None:
        self._care = care
        self._records = records
        self._log = log
        self._answers: OrderedDict[tuple[str, EmergencyClaim], bool] = OrderedDict()

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
            # A principal of this role is made by the device gate alone.
            device_registered=who.role is Role.DEVICE,
            relationship=who.role in CLINICAL and await self._care.related(who.id, patient, now),
            emergency_review_overdue=claim is not None and await self._overdue(who, claim, now, parameters),
        )

    async def for_research(self, patient: str, *, plan_approved: bool) -> Facts:
        """What bears on the use of a patient's images in research."""
        directives = await self._records.find(Directive, subject=patient)
        return Facts(directives=directives, plan_approved=plan_approved)

    async def patients_of(self, who: Principal, now: datetime) -> frozenset[str]:
        """The pseudonyms of the patients whom a clinician treats."""
        return await self._care.patients_of(who.id, now) if who.role in CLINICAL else frozenset()

    async def _overdue(
        self, who: Principal, claim: EmergencyClaim, now: datetime, parameters: Parameters
    ) -> bool:
        """Whether an earlier emergency of this person waits for its review past its time.

        Asked of the log once for a claim, not with every picture: the answer serves the whole opening.
        """
        key = (who.actor, claim)
        if key not in self._answers:
            late = await self._late(who, now, parameters)
            self._answers[key] = late
            while len(self._answers) > MAX_ANSWERS:
                self._answers.popitem(last=False)
            return late
        return self._answers[key]

    async def _late(self, who: Principal, now: datetime, parameters: Parameters) -> bool:
        overdue = now - timedelta(hours=parameters.emergency_review_hours)
        opened = await emergencies.openings(self._log, now, actor=who.actor, until=overdue)
        if not opened:
            return False
        reviewed = await emergencies.reviews(self._log, now)
        return any(emergencies.opening_of(entry) not in reviewed for entry in opened)
