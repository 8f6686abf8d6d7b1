"""Searching: what somebody may find is part of the search itself, so totals and pages betray nothing else."""

from __future__ import annotations

from time import monotonic

from consent.errors import Denied
from consent.principals import Principal
from consent.vocabulary import Action, EventKind, Purpose
from node import deeds
from node.audit.log import Event, Log
from node.clock import Clock
from node.facts import FactFinder
from node.index import Index, Level, Page, Query
from node.index.query import is_wild
from node.policies import Policies
from node.sight import Sight

SIGHT_LASTS_SECONDS = 1.0
"""How long decisions about what somebody may find serve their next searches."""
MAX_SIGHTS = 256


class Finding:
    """Searches of one node's index."""

    def __init__(
        self, *, node_id: str, policies: Policies, index: Index, facts: FactFinder, log: Log, clock: Clock
    ) -> None:
        self._node_id = node_id
        self._policies = policies
        self._index = index
        self._facts = facts
        self._log = log
        self._clock = clock
        self._sights: dict[tuple[Principal, Purpose], tuple[float, Sight]] = {}

    async def search(
        self, who: Principal, level: Level, query: Query, purpose: Purpose, address: str | None
    ) -> Page:
        """Answer a search with what this person may find. Raises Denied when that can be nothing.

        When this returns, that it was asked is on record.
        """
        sight = self._sight(who, purpose)
        # Who may find everybody's studies needs no list of patients.
        patients = frozenset() if sight.sees_all else await self._facts.patients_of(who, self._clock.now())
        if (refusal := sight.refusal()) is not None:
            await self._log.record(deeds.refused(who, Action.SEARCH, purpose, address, refusal, None, None))
            raise Denied(" ".join(refusal.reasons), reasons=refusal.reasons)
        page = await self._index.search(query, sight.visible(patients))
        kept = tuple(match for match in page.matches if sight.shows(match, match.patient in patients))
        await self._log.record(
            Event(
                EventKind.STUDIES_SEARCHED,
                who.actor,
                patient=self._patient_asked(query),
                purpose=purpose,
                address=address,
                detail={"level": level.value, "keys": sorted(query.keys), "answers": len(kept)},
            )
        )
        return Page(kept, page.more)

    def _sight(self, who: Principal, purpose: Purpose) -> Sight:
        """What this person may find; the rules are asked again when they have changed, or after a moment."""
        made, sight = self._sights.get((who, purpose), (0.0, None))
        policy = self._policies.current
        if sight is None or sight.policy is not policy or monotonic() - made > SIGHT_LASTS_SECONDS:
            sight = Sight(policy, who, purpose, self._clock.now(), self._node_id)
            if len(self._sights) >= MAX_SIGHTS:
                self._sights.clear()
            self._sights[(who, purpose)] = (monotonic(), sight)
        return sight

    def _patient_asked(self, query: Query) -> str | None:
        """The pseudonym of the patient that a search names exactly, so that the log finds it by patient."""
        value = query.keys.get("PatientID", "")
        return self._index.pseudonyms.patient(value.strip()) if value and not is_wild(value) else None
