"""Openings: a study opened for somebody, decided anew while it lasts, and put on record at both ends.

An `Opening` is a receipt; here is what it stands for. Bounded: openings idle out, the oldest make room. Leaves the
rules and their words to `asking`, and what is shown under an opening to the other rooms, which ask here first.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from datetime import timedelta
from time import monotonic

from consent.decision import Resource
from consent.emergency import EmergencyClaim
from consent.errors import AccordError, Denied, NotFound, Sentences
from consent.obligations import Deidentify
from consent.principals import Principal
from consent.refusals import IMAGES, NOTHING_PERMITS
from consent.verdict import Deny, Permit, Verdict
from consent.vocabulary import Action, Purpose
from node import deeds
from node.audit.log import Log
from node.clock import Clock
from node.gateway.asking import Asking, Use
from node.gateway.reading import Reading
from node.index import InstanceRow
from node.openings import Opening, SeriesView, Visit

IDLE = timedelta(minutes=30)
"""An opening that shows nothing for so long is over."""
FACTS_LAST_SECONDS = 1.0
"""How long facts serve one opening while it streams; a rendered frame always asks anew."""
MAX_VISITS = 20_000
MAX_ENDED = 2_000
"""Openings that were closed, remembered to say why."""


class Visits:
    """The openings of one node."""

    def __init__(self, *, node_id: str, asking: Asking, reading: Reading, log: Log, clock: Clock) -> None:
        self._node_id = node_id
        self._asking = asking
        self._reading = reading
        self._log = log
        self._clock = clock
        self._visits: OrderedDict[str, Visit] = OrderedDict()
        self._uses: dict[tuple[Use, str | None], str] = {}
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
        use = Use(who, study, action, purpose, address, home, emergency, recipient)
        try:
            resource = await self._asking.resource(use)
        except NotFound as error:
            raise await self._asking.missing(use, error) from None
        verdict = _shown(await self._asking.verdict(use, resource))
        if action not in IMAGES:
            verdict = Deny((NOTHING_PERMITS,))
        if isinstance(verdict, Deny):
            raise await self._asking.turned_away(use, resource, verdict)
        visit = self._begun(use, resource, verdict, session)
        opening = visit.opening
        await self._log.record(deeds.opened(opening, resource, emergency, address))
        self._visits[opening.id] = visit
        await self._make_room()
        return opening

    async def glance(self, who: Principal, study: str, purpose: Purpose, address: str | None) -> Visit:
        """A visit that ends with the answer in which it is used, which is what goes on record.

        Raises NotFound, or Denied when the rules do not let this person view the study now.
        """
        use = Use(who, study, Action.VIEW, purpose, address)
        resource = await self._asking.resource(use)
        permit = _shown(await self._asking.verdict(use, resource)).or_raise()
        return self._begun(use, resource, permit, None)

    def _begun(self, use: Use, resource: Resource, permit: Permit, session: str | None) -> Visit:
        opening = Opening(
            id=secrets.token_hex(16),
            study=use.study,
            home=use.home,
            who=use.who,
            purpose=use.purpose,
            action=use.action,
            obligations=permit.obligations,
            reasons=permit.reasons,
            expires=permit.expires,
            session=session,
            recipient=use.recipient,
        )
        now = self._clock.now()
        return Visit(opening, resource, use.claim, use.address, permit, now, now, monotonic())

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
        use = (Use(who, study, action, purpose, address, home), session)
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
        if fresh or monotonic() - visit.asked > FACTS_LAST_SECONDS:
            await self._ask_again(visit)
        if self._visits.get(opening.id) is not visit:  # closed while the rules were asked
            raise await self._gone(opening)
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

    async def _ask_again(self, visit: Visit) -> None:
        opening = visit.opening
        verdict = await self._verdict_now(visit)
        if isinstance(verdict, Deny):
            await self.close_opening(opening)
            raise await self._ended_by(verdict, visit)
        visit.permit, visit.asked = verdict, monotonic()

    async def _verdict_now(self, visit: Visit) -> Verdict:
        """What the rules say of an opening now, about the study as it is now: its grade may have risen."""
        opening, use = visit.opening, Use.of(visit)
        try:
            if not opening.home:  # a copy lies as it came
                visit.resource = await self._asking.resource(use)
            verdict = _shown(await self._asking.verdict(use, visit.resource))
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
            if isinstance(verdict, Deny):
                return await self._ended_by(verdict, ended)
        return NotFound(
            "This viewing session is not open.", mend="Open the study again.", code="opening-gone"
        )

    async def _ended_by(self, verdict: Deny, visit: Visit) -> Denied:
        """The error for an opening that the rules have ended; the first time it is put on record."""
        if visit.opening.id in self._told_end:
            return Denied(Sentences(verdict.reasons), reasons=verdict.reasons)
        self._told_end.add(visit.opening.id)
        try:
            return await self._asking.refused(Use.of(visit), visit.resource, verdict)
        except BaseException:
            self._told_end.discard(visit.opening.id)
            raise

    def _over(self, visit: Visit) -> bool:
        now = self._clock.now()
        return (visit.expires is not None and now >= visit.expires) or now - visit.used >= IDLE

    async def _make_room(self) -> None:
        while len(self._visits) > MAX_VISITS:
            await self.close_opening(next(iter(self._visits.values())).opening)


def _shown(verdict: Verdict) -> Verdict:
    """The verdict, as far as a viewer can carry out what is owed for it."""
    if isinstance(verdict, Permit) and verdict.owes(Deidentify):
        return Deny(("This may only be seen de-identified, which a viewer does not offer.",))
    return verdict
