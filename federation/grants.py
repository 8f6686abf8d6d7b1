"""Grants at the home hospital: issued on a request, within the patient's consent, and taken back.

A grant is judged by `consent.grants.alive` at every use, so consent withdrawn, time run out and revocation end
it at once, with the transaction that recorded them. Telling the holder is `notices`, opening under a grant is
`leases`, the holder's side is `holdings`.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import insert, select, update

from consent.decision import Deny, Facts, Permit, Request, Resource, Verdict, decide
from consent.directives import current
from consent.errors import Conflict, Denied, NotFound
from consent.grants import Grant, GrantRequest, alive, issue_grant
from consent.obligations import ExpireAt
from consent.principals import Principal
from consent.signed import Signed, sign, verify
from consent.vocabulary import Action, EventKind, Grade, Outcome, Purpose, ResourceKind, Right
from federation.archive import Archive
from federation.incoming import Incoming, IncomingRequest
from federation.members import Members
from federation.notices import GrantState, Notices, issued_grant
from federation.protocol import Json, RequestState, ShredReceipt
from federation.roster import Member
from node.audit.event import Event
from node.audit.log import Log
from node.clearance import Clearance
from node.clock import Clock
from node.database import Database
from node.identity import Identity
from node.policies import Policies
from node.records import Records

REVOKED_PAGE = 100
"""Of the revocations of one study's grants, so many are looked at in one question."""
MAX_LISTED = 500
REVOKED = "revoked"


@dataclass(frozen=True)
class IssuedGrant:
    """A grant as the home hospital's people see it. `words` say why it ended, or why its holder has not taken it."""

    id: str
    study: str
    patient: str
    holder: str
    person: str
    purpose: Purpose
    rights: frozenset[Right]
    issued: datetime
    ends: datetime
    state: GrantState
    words: str
    delivered: bool


class Grants:
    """The grants that this node has issued."""

    def __init__(
        self,
        *,
        database: Database,
        log: Log,
        clock: Clock,
        identity: Identity,
        members: Members,
        archive: Archive,
        records: Records,
        incoming: Incoming,
        notices: Notices,
        policies: Policies,
    ) -> None:
        self._database = database
        self._log = log
        self._clock = clock
        self._identity = identity
        self._members = members
        self._archive = archive
        self._records = records
        self._incoming = incoming
        self._notices = notices
        self._policies = policies

    async def issue(
        self,
        who: Principal,
        request_id: str,
        *,
        rights: frozenset[Right] | None = None,
        lasts: timedelta | None = None,
        address: str | None = None,
    ) -> Signed[Grant]:
        """Grant what a request asks for, or less: fewer rights, a shorter time.

        Raises Denied (no treatment relationship, no consent that covers it), NotFound, Conflict (not open).
        """
        asked = await self._incoming.one(request_id)
        now = self._clock.now()
        if asked.state is not RequestState.WAITING or asked.expires <= now:
            raise Conflict("This request is not open any more.", code="request-closed")
        member = self._members.member(asked.asker)
        found = await self._archive.study(asked.study)
        if found is None:
            raise NotFound("The study is not here any more.", code="study")
        cleared = await self._check(who, Action.GRANT, request_id, found.patient, address)
        manifest = await self._archive.packs.manifest(found.study, cleared)
        wish = self._wish(asked, member, found.grade, manifest.digest, rights, lasts)
        body, expires = await self._covered(wish, now)
        grant = sign(
            body,
            record_id=secrets.token_hex(16),
            issuer=self._identity.node_id,
            key=self._identity.signing,
            issued=now,
            expires=expires,
        )
        verdict = alive(grant, await self._notices.directives(found.patient), frozenset(), now).or_raise()
        async with self._database.write() as tx:
            await self._records.keep(tx, manifest, subjects=[found.study])
            await self._records.keep(tx, grant, subjects=[found.study, found.patient])
            await tx.execute(
                insert(issued_grant).values(
                    id=grant.id,
                    holder=member.id,
                    study=found.study,
                    patient=found.patient,
                    state=GrantState.ALIVE,
                    request=request_id,
                    issued_by=who.actor,
                    ends=verdict.expires or grant.expires,
                    words="",
                    delivered=False,
                    notified=False,
                )
            )
            await self._incoming.granted(tx, request_id, grant.id)
            await self._log.append(tx, _issued(who, grant, asked, address))
        await self._notices.deliver(grant.id)
        return grant

    async def coverage(self, asked: IncomingRequest) -> Verdict:
        """Whether a consent on record covers what is asked for, and until when; with the reasons if not."""
        now = self._clock.now()
        try:
            member = self._members.member(asked.asker)
            wish = self._wish(asked, member, asked.grade, "0" * 64, None, None)
            body, expires = await self._covered(wish, now)
        except Denied as error:
            return Deny(error.reasons or (error.message,))
        return Permit((ExpireAt(expires),), tuple(sorted(body.rights)))

    async def revoke(self, who: Principal, grant_id: str, words: str, *, address: str | None = None) -> None:
        """End a grant now, everywhere. Raises Denied, NotFound or Conflict (has ended already)."""
        row = await self._notices.row(grant_id)
        await self._check(who, Action.REVOKE, grant_id, row.patient, address)
        async with self._database.write() as tx:
            if not await self._notices.end(
                tx, row, words or "The home hospital took the grant back.", who.actor
            ):
                raise Conflict("This grant has ended already.", code="grant-ended")
            await self._records.mark(tx, grant_id, REVOKED)
        await self._notices.notify(grant_id)

    async def issued(self, who: Principal) -> tuple[IssuedGrant, ...]:
        """The grants that this clinician may revoke, newest first, those that ended lately included."""
        async with self._database.read() as tx:
            rows = (
                await tx.execute(select(issued_grant).order_by(issued_grant.c.ends.desc()).limit(MAX_LISTED))
            ).all()
        mine = [row for row in rows if await self._may(who, Action.REVOKE, row.id, row.patient)]
        return tuple([await self._read(row) for row in mine])

    async def facts(self, grant: Signed[Grant]) -> Facts:
        """What `decide` must know about one grant of ours, as of now."""
        revoked = await self._records.status(grant.id) == REVOKED or await self._revoked_on_record(grant)
        return Facts(
            grants=(grant,),
            directives=await self._notices.directives(grant.body.patient),
            revoked=frozenset({grant.id}) if revoked else frozenset(),
            member_active=self._members.is_active(grant.body.recipient),
        )

    async def _revoked_on_record(self, grant: Signed[Grant]) -> bool:
        """Whether the log says so: a row can be set back by whoever holds the disk, the log cannot unnoticed."""
        study, kind = grant.body.study, EventKind.GRANT_REVOKED
        before: int | None = None
        while True:
            ended = await self._log.search(
                study=study, kind=kind, since=grant.issued, before=before, limit=REVOKED_PAGE
            )
            if any(entry.event.detail.get("grant") == grant.id for entry in ended):
                return True
            if len(ended) < REVOKED_PAGE:
                return False
            before = ended[-1].index

    async def covers(self, study: str) -> bool:
        """Whether a grant that may still live names this study's pack: it is not written anew then."""
        named = select(issued_grant.c.id).where(
            issued_grant.c.study == study, issued_grant.c.ends > self._clock.now()
        )
        async with self._database.read() as tx:
            return (await tx.execute(named.limit(1))).first() is not None

    async def held_by(self, member: Member, grant_id: str) -> Signed[Grant]:
        """A grant of ours that names this member as its holder. Raises Denied for any other."""
        try:
            grant = await self._records.get(grant_id, Grant)
        except NotFound:
            grant = None
        if grant is None or grant.issuer != self._identity.node_id or grant.body.recipient != member.id:
            raise Denied("This hospital has no such grant for you.", code="no-grant")
        return grant

    async def states(self, member: Member, grant_ids: Sequence[str]) -> Json:
        """How these grants stand, for the member that holds them: {id: {"alive": bool, "words": str}}."""
        answer: Json = {}
        for grant_id in grant_ids:
            try:
                verdict = await self.verdict(await self.held_by(member, grant_id))
            except Denied as unknown:
                answer[grant_id] = {"alive": False, "words": unknown.message}
                continue
            words = "" if verdict.permitted else " ".join(verdict.reasons)[:500]
            answer[grant_id] = {"alive": verdict.permitted, "words": words}
        return answer

    async def verdict(self, grant: Signed[Grant]) -> Verdict:
        """Whether the grant lives now, with its reasons."""
        facts = await self.facts(grant)
        if not facts.member_active:
            return Deny(("This hospital is not an active member of the region.",))
        return alive(grant, facts.directives, facts.revoked, self._clock.now())

    async def receipt(self, member: Member, token: str, address: str | None) -> None:
        """Take a holder's word that its copy is gone; it stays on record. Repeating it changes nothing."""
        now = self._clock.now()
        signed = verify(token, ShredReceipt, keys_of=self._members.keys_of, now=now)
        grant = await self.held_by(member, signed.body.grant)
        if signed.issuer != member.id or signed.body.study != grant.body.study:
            raise Denied("This receipt is not for a copy of yours.", code="wrong-party")
        async with self._database.write() as tx:
            row = (await tx.execute(select(issued_grant).where(issued_grant.c.id == grant.id))).one()
            if row.state == GrantState.SHREDDED:
                return
            await self._notices.end(tx, row, signed.body.reason, f"member:{member.id}")
            await self._records.keep(tx, signed, subjects=[grant.id, grant.body.study])
            await tx.execute(
                update(issued_grant)
                .where(issued_grant.c.id == grant.id)
                .values(state=GrantState.SHREDDED, notified=True)
            )
            await self._log.append(tx, _receipt_event(member, grant, signed, address))

    def _wish(
        self,
        asked: IncomingRequest,
        member: Member,
        grade: Grade,
        manifest: str,
        rights: frozenset[Right] | None,
        lasts: timedelta | None,
    ) -> GrantRequest:
        """What would be granted: what was asked for, or less."""
        longest = timedelta(hours=asked.hours)
        return GrantRequest(
            study=asked.study,
            patient=asked.patient,
            home=self._identity.node_id,
            recipient=member.id,
            person=asked.person,
            purpose=asked.purpose,
            rights=asked.rights if rights is None else asked.rights & rights,
            grade=grade,
            manifest=manifest,
            holder_key=member.hpke_thumbprint,
            lasts=longest if lasts is None else min(lasts, longest),
        )

    async def _covered(self, wish: GrantRequest, now: datetime) -> tuple[Grant, datetime]:
        """The grant and its end under the first consent of the patient that covers the wish."""
        refusal: Denied | None = None
        for directive in current(await self._notices.directives(wish.patient)):
            try:
                return issue_grant(wish, directive, self._policies.policy, now)
            except Denied as error:
                refusal = refusal or error
        raise refusal or Denied(
            "The patient's consent to sharing is not on record.",
            reasons=("The patient's consent to sharing is not on record.",),
            mend="Record the consent first, then grant.",
            code="no-consent",
        )

    async def _check(
        self, who: Principal, action: Action, subject: str, patient: str, address: str | None
    ) -> Clearance:
        request, verdict = await self._judge(who, action, subject, patient)
        if isinstance(verdict, Deny):
            await self._log.record(
                Event(
                    EventKind.ACCESS_REFUSED,
                    who.actor,
                    outcome=Outcome.REFUSED,
                    patient=patient,
                    address=address,
                    reason=" ".join(verdict.reasons),
                    detail={"action": str(action), "about": subject},
                )
            )
        return Clearance.of(request, verdict)

    async def _may(self, who: Principal, action: Action, subject: str, patient: str) -> bool:
        return (await self._judge(who, action, subject, patient))[1].permitted

    async def _judge(
        self, who: Principal, action: Action, subject: str, patient: str
    ) -> tuple[Request, Verdict]:
        resource = Resource(ResourceKind.GRANT, subject, patient, self._identity.node_id)
        request = Request(who, action, resource, Purpose.TREATMENT, self._clock.now())
        facts = Facts(relationship=await self._archive.related(who.id, patient))
        return request, decide(self._policies.current, request, facts)

    async def _read(self, row: Any) -> IssuedGrant:
        grant = await self._records.get(row.id, Grant)
        body = grant.body
        state = GrantState(row.state)
        words = row.words
        if state is GrantState.ALIVE:
            verdict = await self.verdict(grant)
            if isinstance(verdict, Deny):
                state, words = GrantState.ENDED, " ".join(verdict.reasons)
        return IssuedGrant(
            row.id,
            body.study,
            body.patient,
            body.recipient,
            body.person,
            body.purpose,
            body.rights,
            grant.issued,
            row.ends,
            state,
            words,
            bool(row.delivered),
        )


def _issued(who: Principal, grant: Signed[Grant], asked: IncomingRequest, address: str | None) -> Event:
    body = grant.body
    return Event(
        EventKind.GRANT_ISSUED,
        who.actor,
        patient=body.patient,
        study=body.study,
        purpose=body.purpose,
        address=address,
        reason=asked.particulars.reason,
        detail={
            "grant": grant.id,
            "digest": grant.digest,
            "holder": body.recipient,
            "person": body.person,
            "rights": sorted(body.rights),
            "consent": body.consent,
            "expires": grant.expires.isoformat() if grant.expires else "",
            "request": asked.id,
        },
    )


def _receipt_event(
    member: Member, grant: Signed[Grant], signed: Signed[ShredReceipt], address: str | None
) -> Event:
    return Event(
        EventKind.SHRED_RECEIPT_RECEIVED,
        f"member:{member.id}",
        patient=grant.body.patient,
        study=grant.body.study,
        address=address,
        reason=signed.body.reason,
        detail={
            "grant": grant.id,
            "receipt": signed.digest,
            "method": signed.body.method,
            "size_bytes": signed.body.size_bytes,
            "shredded": signed.body.shredded.isoformat(),
        },
    )
