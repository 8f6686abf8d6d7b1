"""Openings: a study opened for somebody, decided anew while it lasts, and put on record at both ends.

An `Opening` is a receipt; here is what it stands for. Who may not see a study
is not told whether it is here: what is missing is refused in the words for a stranger's study. Bounded: openings idle out, the oldest make room. Leaves what
is shown under an opening to the other rooms, which ask here first.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from dataclasses import replace
from datetime import timedelta
from time import monotonic

from consent.decision import Request, Resource, Verdict, decide
from consent.emergency import EmergencyClaim
from consent.errors import AccordError, Denied, NotFound
from consent.obligations import Deidentify
from consent.principals import Principal
from consent.refusals import IMAGES, NOTHING_PERMITS
from consent.verdict import Deny, Permit
from consent.vocabulary import Action, Purpose, ResourceKind
from node import deeds
from node.audit.log import Log
from node.clock import Clock
from node.gateway.reading import Reading
from node.index import InstanceRow
from node.openings import Opening, SeriesView, Visit
from node.policies import Policies
from node.shelves import Shelf

IDLE = timedelta(minutes=30)
"""An opening that shows nothing for so long is over."""
FACTS_LAST_SECONDS = 1.0
"""How long facts serve one opening while it streams; a rendered frame always asks anew."""
MAX_VISITS = 20_000
MAX_ENDED = 2_000
"""Openings that were closed, remembered to say why."""

_Use = tuple[Principal, str, Action, Purpose, str | None, str, str | None]


class Visits:
    """The openings of one node."""

    def __init__(self, *, node_id: str, policies: Policies, reading: Reading, log: Log, clock: Clock) -> None:
        self._node_id = node_id
        self._policies = policies
        self._reading = reading
        self._log = log
        self._clock = clock
        self._visits: OrderedDict[str, Visit] = OrderedDict()
        self._asked: dict[str, float] = {}
        self._uses: dict[_Use, str] = {}
        self._ended: OrderedDict[str, Visit] = OrderedDict()
        self._told_end: set[str] = set()
        """Ended openings whose refusal is on record: a viewer asks for many pictures at once."""

    async def open(
        self,
        who: Principal,
        study: str,
        *,
        action: Action = Action.VIEW,
        purpose: Purpose = Purpose.TREATMENT,
        emergency: EmergencyClaim | None = None,
        address: str | None = None,
        home: str = "",
        session: str | None = None,
        recipient: Principal | None = None,
    ) -> Opening:
        """Open a study; when this returns, that is on record.

        `recipient` is who gets what is taken, when that is somebody else than who asks: both must be permitted.

        `action` is to view, to download or to print: permission to do something else with a study, to bring it in or
        to ask for it, opens nothing. Raises Denied with the reasons once the refusal is on record; NotFound for a
        study that is not here, to those who may know it.
        """
        home = "" if home == self._node_id else home
        shelf = self._reading.shelf(home)
        try:
            resource = await shelf.resource(study)
        except NotFound as error:
            raise await self._missing(error, who, study, home, action, purpose, address, emergency) from None
        verdict = await self._ask_for_both(shelf, who, recipient, action, resource, purpose, emergency)
        if action not in IMAGES:
            verdict = Deny((NOTHING_PERMITS,))
        if isinstance(verdict, Permit) and verdict.owes(Deidentify):
            verdict = Deny(("This may only be seen de-identified, which a viewer does not offer.",))
        if isinstance(verdict, Deny):
            told = await self._told(shelf, who, action, resource, purpose, emergency, verdict)
            raise await self._refused(who, action, purpose, address, verdict, resource, emergency, told)
        opening = Opening(
            id=secrets.token_hex(16),
            study=study,
            home=home,
            who=who,
            purpose=purpose,
            action=action,
            obligations=verdict.obligations,
            reasons=verdict.reasons,
            expires=verdict.expires,
            session=session,
            recipient=recipient,
        )
        now = self._clock.now()
        await self._log.record(deeds.opened(opening, resource, emergency, address))
        self._visits[opening.id] = Visit(opening, resource, emergency, address, verdict, now, now, now)
        self._asked[opening.id] = monotonic()
        await self._make_room()
        return opening

    async def glance(self, who: Principal, study: str, purpose: Purpose, address: str | None) -> Visit:
        """A visit that ends with the answer in which it is used, which is what goes on record.

        Raises NotFound, or Denied when the rules do not let this person view the study now.
        """
        shelf = self._reading.shelf("")
        resource = await shelf.resource(study)
        verdict = await self._ask(shelf, who, Action.VIEW, resource, purpose, None)
        if isinstance(verdict, Permit) and verdict.owes(Deidentify):
            verdict = Deny(("This may only be seen de-identified, which a viewer does not offer.",))
        permit = verdict.or_raise()
        opening = Opening(
            secrets.token_hex(16), study, "", who, purpose, Action.VIEW,
            permit.obligations, permit.reasons, permit.expires,
        )  # fmt: skip
        now = self._clock.now()
        return Visit(opening, resource, None, address, permit, now, now, now)

    async def visit(
        self,
        who: Principal,
        study: str,
        *,
        action: Action,
        purpose: Purpose = Purpose.TREATMENT,
        address: str | None = None,
        home: str = "",
        session: str | None = None,
    ) -> Opening:
        """The living opening for the same person, study and use, or a new one: for doors without a viewer's visit."""
        use = (who, study, action, purpose, address, home, session)
        visit = self._visits.get(self._uses.get(use, ""))
        if visit is not None and not self._over(visit):
            return visit.opening
        opening = await self.open(
            who, study, action=action, purpose=purpose, address=address, home=home, session=session
        )
        self._uses[use] = opening.id
        if len(self._uses) > MAX_VISITS:
            self._uses = {use: one for use, one in self._uses.items() if one in self._visits}
        return opening

    async def close_opening(self, opening: Opening) -> None:
        """End an opening and put on record what was seen."""
        visit = self._visits.pop(opening.id, None)
        self._asked.pop(opening.id, None)
        if visit is None:
            return
        self._reading.let_go(opening.id)
        self._ended[opening.id] = visit
        if len(self._ended) > MAX_ENDED:
            self._told_end.discard(self._ended.popitem(last=False)[0])
        await self._log.record(deeds.closed(visit, self._clock.now()))

    async def sweep(self) -> None:
        """A job: close the openings that have ended or idled too long."""
        for visit in [visit for visit in self._visits.values() if self._over(visit)]:
            await self.close_opening(visit.opening)

    async def end_study(self, study: str) -> None:
        """Close every opening of a study of this node: what it may show is decided anew."""
        for visit in [one for one in self._visits.values() if one.opening.study == study]:
            if not visit.opening.home:
                await self.close_opening(visit.opening)

    async def close(self) -> None:
        """Close every opening."""
        for visit in list(self._visits.values()):
            await self.close_opening(visit.opening)

    async def series(self, opening: Opening) -> tuple[SeriesView, ...]:
        """The series of an opened study and their instances, in order."""
        visit = await self.still(opening)
        return (await self._reading.contents(visit)).series

    async def rows(
        self, opening: Opening, series_uid: str = "", sop_uid: str = ""
    ) -> tuple[InstanceRow, ...]:
        """The instances of an opened study, one series or one instance of it, in order. Raises NotFound."""
        visit = await self.still(opening)
        if sop_uid:
            row, contents = await self._reading.row(visit, sop_uid)
            found = series_uid in ("", contents.series_of[sop_uid])
            rows: tuple[InstanceRow, ...] = (row,) if found else ()
        else:
            contents = await self._reading.contents(visit)
            rows = tuple(
                contents.instances[instance.uid]
                for series in contents.series
                if series_uid in ("", series.uid)
                for instance in series.instances
            )
        if not rows:
            raise NotFound("There is no such series or instance in this study.")
        return rows

    async def still(self, opening: Opening, *, fresh: bool = False) -> Visit:
        """The visit, if it still may go on; facts are asked anew when they are old, or at once when `fresh`.

        Raises Denied (on record) when the rules say no by now, also for one that has been closed since; else NotFound for
        an opening that is not open.
        """
        visit = self._visits.get(opening.id)
        if visit is None or (visit.opening is not opening and visit.opening != opening):
            raise await self._gone(opening)
        now = self._clock.now()
        if visit.expires is not None and now >= visit.expires:
            await self._ask_again(visit)  # the rules say why it ended
        elif self._over(visit):
            await self.close_opening(opening)
            raise Denied(
                "This opening has ended.",
                reasons=("This opening has ended.",),
                mend="Open the study again if you still may.",
                code="opening-ended",
            )
        if fresh or monotonic() - self._asked[opening.id] > FACTS_LAST_SECONDS:
            await self._ask_again(visit)
        visit.used = self._clock.now()
        return visit

    async def taking(self, opening: Opening) -> Visit:
        """The visit, if it still may go on and is a DOWNLOAD. Raises Denied."""
        if opening.action is not Action.DOWNLOAD:
            raise Denied(
                "This was opened to be looked at, not to be taken.",
                reasons=("This was opened to be looked at, not to be taken.",),
                mend="Open it for download.",
            )
        return await self.still(opening)

    async def _ask_for_both(
        self,
        shelf: Shelf,
        who: Principal,
        recipient: Principal | None,
        action: Action,
        resource: Resource,
        purpose: Purpose,
        claim: EmergencyClaim | None,
    ) -> Verdict:
        """What the rules say of the one who asks, and of the one who gets it when that is another."""
        verdict = await self._ask(shelf, who, action, resource, purpose, claim)
        if isinstance(verdict, Deny) or recipient in (None, who):
            return verdict
        assert recipient is not None
        other = await self._ask(shelf, recipient, action, resource, purpose, None)
        return other if isinstance(other, Deny) else verdict

    async def _ask(
        self,
        shelf: Shelf,
        who: Principal,
        action: Action,
        resource: Resource,
        purpose: Purpose,
        claim: EmergencyClaim | None,
    ) -> Verdict:
        now = self._clock.now()
        facts = await shelf.facts(who, resource, now, self._policies.parameters, claim)
        request = Request(who, action, resource, purpose, now, claim)
        return decide(self._policies.current, request, facts)

    async def _ask_again(self, visit: Visit) -> None:
        opening = visit.opening
        verdict = await self._verdict_now(visit)
        if isinstance(verdict, Deny):
            await self.close_opening(opening)
            self._told_end.add(opening.id)
            raise await self._refused(
                opening.who, opening.action, opening.purpose, visit.address, verdict, visit.resource
            )
        visit.permit, visit.decided = verdict, self._clock.now()
        self._asked[opening.id] = monotonic()

    async def _verdict_now(self, visit: Visit) -> Verdict:
        """What the rules say of an opening now, about the study as it is now: its grade may have risen."""
        opening = visit.opening
        try:
            shelf = self._reading.shelf(opening.home)
            if not opening.home:  # a copy lies as it came
                visit.resource = await shelf.resource(opening.study)
            verdict = await self._ask_for_both(
                shelf,
                opening.who,
                opening.recipient,
                opening.action,
                visit.resource,
                opening.purpose,
                visit.claim,
            )
        except NotFound as error:
            verdict = Deny((error.message,))
        if isinstance(verdict, Deny) and opening.home:
            words = await self._reading.ended(opening.home, opening.study, opening.who)
            return Deny((words,)) if words else verdict
        return verdict

    async def _gone(self, opening: Opening) -> AccordError:
        """The error for an opening that is not open: why not, where the rules know."""
        ended = self._ended.get(opening.id)
        if ended is not None and ended.opening == opening:
            verdict = await self._verdict_now(ended)
            if isinstance(verdict, Deny) and opening.id in self._told_end:
                return Denied(" ".join(verdict.reasons), reasons=verdict.reasons)
            if isinstance(verdict, Deny):
                self._told_end.add(opening.id)
                return await self._refused(
                    opening.who, opening.action, opening.purpose, ended.address, verdict, ended.resource
                )
        return NotFound(
            "This viewing session is not open.", mend="Open the study again.", code="opening-gone"
        )

    async def _missing(
        self,
        error: NotFound,
        who: Principal,
        study: str,
        home: str,
        action: Action,
        purpose: Purpose,
        address: str | None,
        claim: EmergencyClaim | None,
    ) -> AccordError:
        """The error for a study that is not here: the same as for a stranger's study, to those who may not see that."""
        if home:
            words = await self._reading.ended(home, study, who)
            verdict: Verdict = Deny((words,)) if words else Permit((), ())
            thing = Resource(ResourceKind.STUDY, study, None, home)
        else:
            thing = self._stranger(study)
            verdict = await self._ask(self._reading.shelf(home), who, action, thing, purpose, claim)
        if isinstance(verdict, Permit):
            return error
        known = replace(thing, patient=None)
        return await self._refused(who, action, purpose, address, verdict, known, claim)

    async def _told(
        self,
        shelf: Shelf,
        who: Principal,
        action: Action,
        resource: Resource,
        purpose: Purpose,
        claim: EmergencyClaim | None,
        verdict: Deny,
    ) -> Deny:
        """What somebody is told of a refusal: of a patient they do not treat, no more than of any stranger."""
        if resource.home != self._node_id:
            return verdict
        facts = await shelf.facts(who, resource, self._clock.now(), self._policies.parameters, claim)
        if facts.relationship:
            return verdict
        stranger = await self._ask(shelf, who, action, self._stranger(resource.id), purpose, claim)
        return stranger if isinstance(stranger, Deny) else verdict

    def _stranger(self, study: str) -> Resource:
        """An ordinary study of a patient whom nobody treats. The patient is looked up as any other: no time tells."""
        return Resource(ResourceKind.STUDY, study, study, self._node_id)

    async def _refused(
        self,
        who: Principal,
        action: Action,
        purpose: Purpose,
        address: str | None,
        verdict: Deny,
        resource: Resource,
        claim: EmergencyClaim | None = None,
        told: Deny | None = None,
    ) -> Denied:
        """Put a refusal on record; return the error to raise, which says `told` when that is less."""
        await self._log.record(deeds.refused(who, action, purpose, address, verdict, resource, claim))
        reasons = (told or verdict).reasons
        return Denied(" ".join(reasons), reasons=reasons)

    def _over(self, visit: Visit) -> bool:
        now = self._clock.now()
        return (visit.expires is not None and now >= visit.expires) or now - visit.used >= IDLE

    async def _make_room(self) -> None:
        while len(self._visits) > MAX_VISITS:
            await self.close_opening(next(iter(self._visits.values())).opening)
