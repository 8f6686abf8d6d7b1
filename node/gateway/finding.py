"""Searching: what somebody may find is part of the search itself, so totals and pages betray nothing else."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Sequence
from contextlib import aclosing
from dataclasses import replace
from time import monotonic

from consent.errors import Denied, Sentences
from consent.principals import Principal
from consent.vocabulary import Action, EventKind, Purpose
from node import deeds
from node.audit.event import Detail
from node.audit.log import Event, Log
from node.clock import Clock
from node.facts import FactFinder
from node.gateway.fields import MAX_DESCRIBED, FieldReader, Fields
from node.index import Index, Level, Match, Page, Query
from node.index.query import is_wild
from node.policies import Policies
from node.sight import Sight

SIGHT_LASTS_SECONDS = 5.0
"""How long decisions about what somebody may find serve their next searches."""
MAX_SIGHTS = 256
FOUND_AT_ONCE = 500
"""Answers that go out under one entry of the log."""


class Finding:
    """Searches of one node's index."""

    def __init__(
        self,
        *,
        node_id: str,
        policies: Policies,
        index: Index,
        facts: FactFinder,
        fields: FieldReader,
        log: Log,
        clock: Clock,
    ) -> None:
        self._fields = fields
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
        page, _ = await self.search_with_fields(who, level, query, (), purpose, address)
        return page

    async def search_with_fields(
        self,
        who: Principal,
        level: Level,
        query: Query,
        wanted: Collection[str],
        purpose: Purpose,
        address: str | None,
    ) -> tuple[Page, Sequence[Fields]]:
        """As `search`, and for each answer the attributes `wanted` that the index does not have; see `fields`.

        With such attributes there are at most MAX_DESCRIBED answers on a page, and every study of which some were read is
        on record as viewed.
        """
        if wanted:
            query = replace(query, limit=min(query.limit, MAX_DESCRIBED))
        sight, patients = await self._looking(who, purpose, address)
        page = await self._index.search(query, sight.visible(patients), self._shows(sight, patients))
        kept = page.matches
        fields: Sequence[Fields] = ()
        if wanted:
            fields = await self._fields.fields(who, level, kept, wanted, purpose, address)
        event = self._searched(who, level, query, purpose, address, len(kept))
        if not wanted:
            await self._log.record(event)
            return page, fields
        # Which attributes, and of how many answers they were read: that much was viewed, of each study by its name.
        read = Counter(match.study for match, one in zip(kept, fields, strict=True) if one)
        detail: dict[str, Detail] = {"fields": sorted(wanted), "described": read.total()}
        patients_of = {match.study: match.patient for match in kept}
        viewed = [
            deeds.fields_viewed(who, patients_of[study], study, purpose, address, wanted, answers)
            for study, answers in read.items()
        ]
        event = replace(event, detail={**event.detail, **detail})
        await asyncio.gather(*map(self._log.record, [event, *viewed]))
        return page, fields

    async def find(
        self, who: Principal, query: Query, purpose: Purpose, address: str | None
    ) -> AsyncGenerator[Match, None]:
        """Answer a search with what this asker may find, answer by answer, as long as somebody takes them.

        Put on record slice by slice of FOUND_AT_ONCE answers, each before the first of it leaves. Raises Denied when it
        can be nothing. Close it when done.
        """
        sight, patients = await self._looking(who, purpose, address)
        found = self._index.stream(query, sight.visible(patients), self._shows(sight, patients))
        told = False
        async with aclosing(found):
            while True:
                kept = [match async for match in _first(found, FOUND_AT_ONCE)]
                if kept or not told:
                    event = self._searched(who, query.level, query, purpose, address, len(kept), told)
                    await self._log.record(event)
                    told = True
                for match in kept:
                    yield match
                if len(kept) < FOUND_AT_ONCE:
                    return

    async def _looking(
        self, who: Principal, purpose: Purpose, address: str | None
    ) -> tuple[Sight, frozenset[str]]:
        """What somebody may find, and the patients in their care. Raises Denied, on record, when that can be nothing."""
        sight = self._sight(who, purpose)
        if (refusal := sight.refusal) is not None:
            await self._log.record(deeds.refused(who, Action.SEARCH, purpose, address, refusal, None, None))
            raise Denied(Sentences(refusal.reasons), reasons=refusal.reasons)
        # Who may find everybody's studies needs no list of patients.
        if sight.sees_all:
            return sight, frozenset()
        return sight, await self._facts.patients_of(who, self._clock.now())

    @staticmethod
    def _shows(sight: Sight, patients: frozenset[str]) -> Callable[[Match], bool]:
        return lambda match: sight.shows(match, match.patient in patients)

    def _searched(
        self,
        who: Principal,
        level: Level,
        query: Query,
        purpose: Purpose,
        address: str | None,
        answers: int,
        more: bool = False,
    ) -> Event:
        """Somebody searched; `more`: these answers follow those of an entry before."""
        detail: dict[str, Detail] = {"level": level.value, "keys": sorted(query.keys), "answers": answers}
        if more:
            detail["more"] = True
        return Event(
            EventKind.STUDIES_SEARCHED,
            who.actor,
            patient=self._patient_asked(query),
            purpose=purpose,
            address=address,
            detail=detail,
        )

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


async def _first(matches: AsyncIterator[Match], number: int) -> AsyncIterator[Match]:
    """The next `number` of them, and no further."""
    for _ in range(number):
        try:
            yield await anext(matches)
        except StopAsyncIteration:
            return
