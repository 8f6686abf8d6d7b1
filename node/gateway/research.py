"""For research: instances of patients who consent now, de-identified in a confined worker before anything sees them."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from time import monotonic

from consent.decision import Request, Resource, decide
from consent.obligations import Deidentify
from consent.principals import Principal
from consent.verdict import Permit
from consent.vocabulary import Action, Purpose, ResourceKind
from node import deeds
from node.audit.log import Log
from node.clock import Clock
from node.facts import FactFinder
from node.gateway.reading import MAX_WHOLE_BYTES, Reading
from node.imaging.deidentified import DeidentifiedInstance
from node.imaging.rendering import Renderer
from node.index import Index, Level, Match, Query
from node.openings import Opening, Visit
from node.policies import Policies


class Research:
    """Finds and de-identifies what an approved plan may use."""

    def __init__(
        self,
        *,
        node_id: str,
        policies: Policies,
        reading: Reading,
        index: Index,
        facts: FactFinder,
        renderer: Renderer,
        log: Log,
        clock: Clock,
    ) -> None:
        self._node_id = node_id
        self._policies = policies
        self._reading = reading
        self._index = index
        self._facts = facts
        self._renderer = renderer
        self._log = log
        self._clock = clock

    async def training_instances(
        self,
        who: Principal,
        query: Query,
        *,
        plan: str,
        approved: Callable[[str], Awaitable[bool]],
        project_key: bytes,
        address: str | None = None,
        have: Callable[[str, str], bool] | None = None,
    ) -> AsyncIterator[tuple[str, DeidentifiedInstance]]:
        """De-identified instances of patients who consent to research now, each with the patient's pseudonym.

        Studies that the rules refuse are passed over; instances that cannot be made safe are left out. `plan` is the
        plan's digest; `approved` is asked with it for each study whether this hospital approves it now. `have(patient,
        study)` is asked for each study that may be used now; when the caller holds its images from an earlier round
        already, it is not read again.
        """
        async for match in self._every_match(query):
            permitted = await self._permitted(who, match, await approved(plan))
            if permitted is None or (have is not None and have(match.patient, match.study)):
                continue
            resource, permit = permitted
            opening = Opening(
                secrets.token_hex(16), match.study, "", who, Purpose.RESEARCH, Action.TRAIN,
                permit.obligations, permit.reasons, permit.expires,
            )  # fmt: skip
            await self._log.record(deeds.opened(opening, resource, None, address, plan=plan))
            now = self._clock.now()
            visit = Visit(opening, resource, None, address, permit, now, now, monotonic())
            for row in (await self._reading.contents(visit)).instances.values():
                if query.level is Level.SERIES and row.series != match.series:
                    continue
                if row.size_bytes > MAX_WHOLE_BYTES:
                    continue
                data = await self._reading.read(visit, row)
                made = await self._renderer.deidentify(data, row.transfer_syntax_uid, project_key=project_key)
                if isinstance(made, DeidentifiedInstance):
                    yield match.patient, made

    async def _permitted(
        self, who: Principal, match: Match, plan_approved: bool
    ) -> tuple[Resource, Permit] | None:
        """The permit to train on a study, which owes de-identification; None when the rules refuse."""
        facts = await self._facts.for_research(match.patient, plan_approved=plan_approved)
        resource = Resource(
            ResourceKind.STUDY, match.study, match.patient, self._node_id, match.grade, match.department,
            deidentified=True,
        )  # fmt: skip
        request = Request(who, Action.TRAIN, resource, Purpose.RESEARCH, self._clock.now())
        verdict = decide(self._policies.current, request, facts)
        return (resource, verdict) if isinstance(verdict, Permit) and verdict.owes(Deidentify) else None

    async def _every_match(self, query: Query) -> AsyncIterator[Match]:
        offset = query.offset
        while True:
            page = await self._index.search(replace(query, offset=offset))
            for match in page.matches:
                yield match
            offset += query.limit
            if not page.more:
                return
