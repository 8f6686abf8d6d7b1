"""Asking another hospital for a study: decide, sign, keep, send, and follow how the request stands.

What could not be sent is sent again by `deliver`, which also asks how the open requests stand. In the table nothing
names a patient: the particulars lie in envelopes, one for the home hospital, one for this node to show them to
the person who asked. The home hospital's side is `incoming`.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Column, LargeBinary, String, Table, Text, insert, select, update

from consent.decision import Deny, Facts, Request, Resource, decide
from consent.errors import AccordError, Invalid, NotFound, Sentence, Unavailable
from consent.principals import Principal
from consent.signed import peek, sign
from consent.vocabulary import Action, EventKind, Outcome, Purpose, ResourceKind, Right
from federation.client import PeerClient
from federation.fields import read_object
from federation.members import Members
from federation.protocol import (
    MAX_HOURS,
    PREFIX,
    REQUEST_DAYS,
    Json,
    Particulars,
    RequestState,
    StudyRequest,
)
from node.audit.event import Detail, Event
from node.audit.log import Log
from node.clock import Clock
from node.database import Database, UtcDateTime, metadata
from node.identity import Identity
from node.policies import Policies

MAX_LISTED = 200
OPEN = (RequestState.UNSENT, RequestState.WAITING)

asked_request = Table(
    "asked_request",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("home", String(32), nullable=False),
    Column("person", String(120), nullable=False, index=True),
    Column("state", String(16), nullable=False, index=True),
    Column("token", Text, nullable=False),
    Column("own_envelope", LargeBinary, nullable=False),
    Column("asked", UtcDateTime, nullable=False),
    Column("expires", UtcDateTime, nullable=False),
    Column("grant_id", String(32)),
    Column("words", Text, nullable=False, default=""),
)


@dataclass(frozen=True)
class AskedRequest:
    """A request as its asker sees it."""

    id: str
    home: str
    state: RequestState
    asked: datetime
    expires: datetime
    purpose: Purpose
    rights: frozenset[Right]
    hours: int
    particulars: Particulars
    grant: str | None
    words: str


class Asking:
    """The asking hospital's side."""

    def __init__(
        self,
        *,
        database: Database,
        log: Log,
        clock: Clock,
        identity: Identity,
        members: Members,
        client: PeerClient,
        policies: Policies,
    ) -> None:
        self._database = database
        self._log = log
        self._clock = clock
        self._identity = identity
        self._members = members
        self._client = client
        self._policies = policies

    async def ask(
        self,
        who: Principal,
        *,
        home: str,
        particulars: Particulars,
        purpose: Purpose = Purpose.TREATMENT,
        rights: frozenset[Right] = frozenset({Right.VIEW}),
        hours: int = 24,
        address: str | None = None,
    ) -> AskedRequest:
        """Ask `home` for a study. Kept and sent; sent later when `home` does not answer now.

        Raises Denied (the rules, an unlisted or suspended hospital), Invalid (nothing named, no reason).
        """
        if home == self._identity.node_id:
            raise Invalid("This study would be your own hospital's: open it directly.", code="own-study")
        if not 1 <= hours <= MAX_HOURS or not rights:
            raise Invalid(Sentence("Ask for at least one right, for 1 to %(most)s hours.", most=MAX_HOURS))
        member = self._members.member(home)
        now = self._clock.now()
        request_id = secrets.token_hex(16)
        resource = Resource(ResourceKind.STUDY, request_id, None, home)
        verdict = decide(
            self._policies.current, Request(who, Action.REQUEST, resource, purpose, now), Facts()
        )
        if isinstance(verdict, Deny):
            await self._log.record(_refused(who, purpose, address, verdict.reasons, home))
            verdict.or_raise()
        statement = sign(
            StudyRequest(home, who.id, purpose, rights, hours, particulars.seal(member.hpke_key, request_id)),
            record_id=request_id,
            issuer=self._identity.node_id,
            key=self._identity.signing,
            issued=now,
            expires=now + timedelta(days=REQUEST_DAYS),
        )
        async with self._database.write() as tx:
            await tx.execute(
                insert(asked_request).values(
                    id=request_id,
                    home=home,
                    person=who.id,
                    state=RequestState.UNSENT,
                    token=statement.token,
                    own_envelope=particulars.seal(self._identity.hpke.public_key(), request_id),
                    asked=now,
                    expires=statement.expires,
                    words="",
                )
            )
            detail: dict[str, Detail] = {
                "home": home,
                "request": request_id,
                "rights": sorted(rights),
                "hours": hours,
            }
            await self._log.append(
                tx,
                Event(
                    EventKind.STUDY_REQUESTED,
                    actor=who.actor,
                    purpose=purpose,
                    address=address,
                    reason=particulars.reason,
                    detail=detail,
                ),
            )
        await self._send(request_id, home, statement.token)
        return self._read(await self._row(request_id))

    async def asked(self, who: Principal) -> tuple[AskedRequest, ...]:
        """What this person has asked for, newest first."""
        query = select(asked_request).where(asked_request.c.person == who.id)
        async with self._database.read() as tx:
            rows = (await tx.execute(query.order_by(asked_request.c.asked.desc()).limit(MAX_LISTED))).all()
        return tuple(self._read(row) for row in rows)

    async def deliver(self) -> None:
        """A job: send what waits to be sent, and ask how the open requests stand. One away hospital delays none."""
        async with self._database.read() as tx:
            rows = (await tx.execute(select(asked_request).where(asked_request.c.state.in_(OPEN)))).all()
        away: set[str] = set()
        for row in rows:
            if row.home in away:
                continue
            if row.expires <= self._clock.now():
                await self._settle(row.id, RequestState.EXPIRED, None, "")
                continue
            try:
                if row.state == RequestState.UNSENT:
                    await self._post(row.id, row.home, row.token)
                else:
                    await self._ask_state(row.id, row.home)
            except Unavailable:
                away.add(row.home)
            except AccordError as error:
                await self._settle(row.id, RequestState.DECLINED, None, error.message)

    async def asker(self, request_id: str) -> tuple[str, str]:
        """Who asked, and which home hospital. Raises NotFound."""
        asked = await self._row(request_id)
        return str(asked.person), str(asked.home)

    async def granted(self, request_id: str, grant_id: str) -> None:
        """The grant that answers a request has come."""
        await self._settle(request_id, RequestState.GRANTED, grant_id, "")

    async def _send(self, request_id: str, home: str, token: str) -> None:
        try:
            await self._post(request_id, home, token)
        except Unavailable:
            return  # kept; `deliver` sends it when the other hospital answers
        except AccordError as error:
            await self._settle(request_id, RequestState.DECLINED, None, error.message)
            raise

    async def _post(self, request_id: str, home: str, token: str) -> None:
        answer = await self._client.post(home, f"{PREFIX}/requests", {"token": token})
        await self._take_state(request_id, answer)

    async def _ask_state(self, request_id: str, home: str) -> None:
        await self._take_state(request_id, await self._client.get(home, f"{PREFIX}/requests/{request_id}"))

    async def _take_state(self, request_id: str, answer: Json) -> None:
        read = read_object(answer, "request's state")
        state = read.choice("state", RequestState)
        if state is not RequestState.GRANTED:  # granted is what the grant itself says, when it has come
            await self._settle(request_id, state, None, read.text("words", limit=500, empty=True))

    async def _settle(self, request_id: str, state: RequestState, grant_id: str | None, words: str) -> None:
        async with self._database.write() as tx:
            await tx.execute(
                update(asked_request)
                .where(asked_request.c.id == request_id, asked_request.c.state.in_(OPEN))
                .values(state=state, grant_id=grant_id, words=words[:500])
            )

    async def _row(self, request_id: str) -> Any:
        async with self._database.read() as tx:
            row = (await tx.execute(select(asked_request).where(asked_request.c.id == request_id))).first()
        if row is None:
            raise NotFound("There is no such request.", code="request")
        return row

    def _read(self, row: Any) -> AskedRequest:
        body = StudyRequest.from_json(peek(row.token)[2]["body"])
        return AskedRequest(
            row.id,
            row.home,
            RequestState(row.state),
            row.asked,
            row.expires,
            body.purpose,
            body.rights,
            body.hours,
            Particulars.open(self._identity.hpke, row.own_envelope, row.id),
            row.grant_id,
            row.words,
        )


def _refused(
    who: Principal, purpose: Purpose, address: str | None, reasons: tuple[str, ...], home: str
) -> Event:
    return Event(
        EventKind.ACCESS_REFUSED,
        actor=who.actor,
        outcome=Outcome.REFUSED,
        purpose=purpose,
        address=address,
        reason=" ".join(reasons),
        detail={"action": str(Action.REQUEST), "home": home},
    )
