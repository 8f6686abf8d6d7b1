"""Requests from other hospitals, as the home hospital sees them: taken, matched, shown, declined.

Whether the study exists is never told to the asker: an unknown study and an undecided request look the same from
outside. In the table a study has its pseudonym only; the particulars stay in the envelope that the asker
sealed for this node. Granting is `grants`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Column, Integer, String, Table, Text, insert, select, update

from consent.decision import Facts, Request, Resource, decide
from consent.errors import Conflict, Denied, NotFound, Sentence, Unavailable
from consent.principals import Principal
from consent.signed import Signed, peek, verify
from consent.vocabulary import Action, EventKind, Grade, Outcome, Purpose, ResourceKind, Right, Role
from federation.archive import Archive, FoundStudy
from federation.members import Members
from federation.protocol import Json, Particulars, RequestState, StudyRequest
from federation.roster import Member
from node.audit.event import Event
from node.audit.log import Log
from node.clock import Clock
from node.database import Database, Tx, UtcDateTime, metadata
from node.identity import Identity
from node.policies import Policies

MAX_OPEN_PER_MEMBER = 1000
MAX_LISTED = 200

incoming_request = Table(
    "incoming_request",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("asker", String(32), nullable=False, index=True),
    Column("state", String(16), nullable=False, index=True),
    Column("token", Text, nullable=False),
    Column("study", String(40)),
    Column("patient", String(40)),
    Column("grade", Integer),
    Column("received", UtcDateTime, nullable=False),
    Column("expires", UtcDateTime, nullable=False),
    Column("grant_id", String(32)),
    Column("words", Text, nullable=False, default=""),
)


@dataclass(frozen=True)
class IncomingRequest:
    """A request as the home hospital's clinician sees it."""

    id: str
    asker: str
    person: str
    state: RequestState
    received: datetime
    expires: datetime
    purpose: Purpose
    rights: frozenset[Right]
    hours: int
    particulars: Particulars
    study: str
    patient: str
    grade: Grade
    grant: str | None


class Incoming:
    """The home hospital's side."""

    def __init__(
        self,
        *,
        database: Database,
        log: Log,
        clock: Clock,
        identity: Identity,
        members: Members,
        archive: Archive,
        policies: Policies,
    ) -> None:
        self._database = database
        self._log = log
        self._clock = clock
        self._identity = identity
        self._members = members
        self._archive = archive
        self._policies = policies

    async def receive(self, member: Member, token: str, address: str | None) -> Json:
        """Take a request of `member`. Returns how it stands, never whether the study exists.

        Raises Invalid or Corrupt for a bad statement, Denied when it is another's, Unavailable when the member
        has too many open.
        """
        now = self._clock.now()
        signed = verify(token, StudyRequest, keys_of=self._members.keys_of, now=now)
        body = signed.body
        if signed.issuer != member.id or body.home != self._identity.node_id:
            raise Denied("This request is not yours, or not for this hospital.", code="wrong-party")
        particulars = Particulars.open(self._identity.hpke, body.sealed, signed.id)
        asker = Principal(member.id, Role.MEMBER, member.name, member.id)
        resource = Resource(ResourceKind.STUDY, signed.id, None, self._identity.node_id)
        request = Request(asker, Action.REQUEST, resource, body.purpose, now)
        decide(self._policies.current, request, Facts(member_active=True)).or_raise()
        found = await self._archive.find(
            particulars.study_instance_uid, particulars.accession_number, particulars.patient_id
        )
        if await self._known(signed.id, member.id):
            return await self.state(member, signed.id)
        await self._check_open(member.id)
        state = RequestState.WAITING if found else RequestState.UNMATCHED
        async with self._database.write() as tx:
            await tx.execute(
                insert(incoming_request).values(
                    id=signed.id,
                    asker=member.id,
                    state=state,
                    token=token,
                    study=found.study if found else None,
                    patient=found.patient if found else None,
                    grade=int(found.grade) if found else None,
                    received=now,
                    expires=signed.expires,
                    words="",
                )
            )
            await self._log.append(tx, _received(member, signed, particulars, found, address))
        return _state_json(RequestState.WAITING, None, "")

    async def state(self, member: Member, request_id: str) -> Json:
        """How a request of `member` stands. Raises NotFound for one that is not theirs."""
        row = await self._row(request_id)
        if row.asker != member.id:
            raise _no_request()
        state = RequestState(row.state)
        if state is RequestState.UNMATCHED:
            state = RequestState.WAITING
        if state is RequestState.WAITING and row.expires <= self._clock.now():
            state = RequestState.EXPIRED
        return _state_json(state, row.grant_id, row.words)

    async def incoming(self, who: Principal) -> tuple[IncomingRequest, ...]:
        """The open requests that this clinician may grant, oldest first."""
        now = self._clock.now()
        query = select(incoming_request).where(
            incoming_request.c.state == RequestState.WAITING, incoming_request.c.expires > now
        )
        async with self._database.read() as tx:
            rows = (await tx.execute(query.order_by(incoming_request.c.received))).all()
        mine = [row for row in rows if await self._may_grant(who, row.patient, row.id)]
        return tuple(self._read(row) for row in mine[:MAX_LISTED])

    async def one(self, request_id: str) -> IncomingRequest:
        """One matched request. Raises NotFound, also for one that matches no study here."""
        row = await self._row(request_id)
        if row.study is None:
            raise _no_request()
        return self._read(row)

    async def granted(self, tx: Tx, request_id: str, grant_id: str) -> None:
        """Close a request with its grant, in the caller's transaction. Raises Conflict when it is not open."""
        changed = await tx.execute(
            update(incoming_request)
            .where(incoming_request.c.id == request_id, incoming_request.c.state == RequestState.WAITING)
            .values(state=RequestState.GRANTED, grant_id=grant_id)
        )
        if not changed.rowcount:
            raise _closed()

    async def decline(self, who: Principal, request_id: str, words: str, address: str | None) -> None:
        """Say no, with words that the asker sees. Raises Denied, NotFound or Conflict."""
        request = await self.one(request_id)
        if not await self._may_grant(who, request.patient, request.id):
            raise Denied("Only a clinician who treats this patient decides on sharing.", code="not-yours")
        async with self._database.write() as tx:
            changed = await tx.execute(
                update(incoming_request)
                .where(incoming_request.c.id == request_id, incoming_request.c.state == RequestState.WAITING)
                .values(state=RequestState.DECLINED, words=words[:500])
            )
            if not changed.rowcount:
                raise _closed()
            event = Event(
                EventKind.STUDY_REQUEST_DECLINED,
                actor=who.actor,
                patient=request.patient,
                study=request.study,
                purpose=request.purpose,
                address=address,
                reason=words,
                detail={"asker": request.asker, "request": request.id},
            )
            await self._log.append(tx, event)

    async def _may_grant(self, who: Principal, patient: str, request_id: str) -> bool:
        now = self._clock.now()
        resource = Resource(ResourceKind.GRANT, request_id, patient, self._identity.node_id)
        facts = Facts(relationship=await self._archive.related(who.id, patient))
        request = Request(who, Action.GRANT, resource, Purpose.TREATMENT, now)
        return decide(self._policies.current, request, facts).permitted

    async def _known(self, request_id: str, asker: str) -> bool:
        async with self._database.read() as tx:
            row = (
                await tx.execute(select(incoming_request.c.asker).where(incoming_request.c.id == request_id))
            ).first()
        if row is not None and row.asker != asker:
            raise Conflict("Another member's request has this id.", code="request-exists")
        return row is not None

    async def _check_open(self, asker: str) -> None:
        query = select(incoming_request.c.id).where(
            incoming_request.c.asker == asker,
            incoming_request.c.state.in_((RequestState.WAITING, RequestState.UNMATCHED)),
            incoming_request.c.expires > self._clock.now(),
        )
        async with self._database.read() as tx:
            rows = (await tx.execute(query.limit(MAX_OPEN_PER_MEMBER))).all()
        if len(rows) >= MAX_OPEN_PER_MEMBER:
            raise Unavailable(
                Sentence(
                    "%(member)s has %(count)s open requests here.", member=asker, count=MAX_OPEN_PER_MEMBER
                ),
                mend="Wait until some are answered.",
                code="too-many-requests",
            )

    async def _row(self, request_id: str) -> Any:
        async with self._database.read() as tx:
            row = (
                await tx.execute(select(incoming_request).where(incoming_request.c.id == request_id))
            ).first()
        if row is None:
            raise _no_request()
        return row

    def _read(self, row: Any) -> IncomingRequest:
        body = StudyRequest.from_json(peek(row.token)[2]["body"])
        return IncomingRequest(
            row.id,
            row.asker,
            body.person,
            RequestState(row.state),
            row.received,
            row.expires,
            body.purpose,
            body.rights,
            body.hours,
            Particulars.open(self._identity.hpke, body.sealed, row.id),
            row.study,
            row.patient,
            Grade(row.grade),
            row.grant_id,
        )


def _state_json(state: RequestState, grant_id: str | None, words: str) -> Json:
    return {"state": str(state), "grant": grant_id, "words": words}


def _received(
    member: Member,
    signed: Signed[StudyRequest],
    particulars: Particulars,
    found: FoundStudy | None,
    address: str | None,
) -> Event:
    body = signed.body
    return Event(
        EventKind.STUDY_REQUESTED,
        actor=f"member:{member.id}",
        outcome=Outcome.DONE if found else Outcome.REFUSED,
        patient=found.patient if found else None,
        study=found.study if found else None,
        purpose=body.purpose,
        address=address,
        reason=particulars.reason,
        detail={
            "request": signed.id,
            "person": body.person,
            "rights": sorted(body.rights),
            "hours": body.hours,
            "matched": found is not None,
        },
    )


def _closed() -> Conflict:
    return Conflict("This request is not open any more.", code="request-closed")


def _no_request() -> NotFound:
    return NotFound("There is no such request.", code="request")
