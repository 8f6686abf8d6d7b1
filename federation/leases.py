"""Leases at the home hospital: who at another hospital opens what, decided again each time, on record, for minutes.

A lease releases the derived keys of single objects, never a study key, sealed by HPKE to the holder's node and bound
to the grant, the request's nonce and the lease's end. Expiry, revocation, withdrawn consent and suspension
need no message: the next lease is refused. Format: docs/formats/lease.md.

Invariants: a nonce releases keys at most once; the release is durable in the log before the answer leaves.
"""

from __future__ import annotations

import secrets
from datetime import datetime, timedelta

from sqlalchemy import Column, String, Table, delete, insert, select

from consent.decision import Request, Resource, decide
from consent.errors import AccordError, Conflict, Corrupt, Denied, Invalid, NotFound, Sentence
from consent.grants import Grant
from consent.principals import Principal
from consent.signed import Signed, canonical_json, sign, verify
from consent.vocabulary import Action, EventKind, Outcome, ResourceKind, Right, Role
from federation.archive import Archive
from federation.envelope import seal_for
from federation.fields import base64_text
from federation.grants import Grants
from federation.members import Members
from federation.protocol import MESSAGE_SKEW_SECONDS, Lease, LeaseRequest, lease_info
from federation.roster import Member
from node.audit.event import Event
from node.audit.log import Log
from node.clearance import Clearance
from node.clock import Clock
from node.database import Database, Tx, UtcDateTime, metadata
from node.identity import Identity
from node.policies import Policies
from node.records import Records
from node.vault.manifest import Manifest

MAX_LEASE_SECONDS = 15 * 60
ACTION_OF = {Right.VIEW: Action.VIEW, Right.DOWNLOAD: Action.DOWNLOAD, Right.PRINT: Action.PRINT}

lease_nonce = Table(
    "lease_nonce",
    metadata,
    Column("nonce", String(64), primary_key=True),
    Column("expires", UtcDateTime, nullable=False, index=True),
)


class Leases:
    """Releases object keys of this node's studies to the holders of its grants."""

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
        grants: Grants,
        policies: Policies,
    ) -> None:
        self._database = database
        self._log = log
        self._clock = clock
        self._identity = identity
        self._members = members
        self._archive = archive
        self._records = records
        self._grants = grants
        self._policies = policies

    async def release(self, member: Member, token: str, address: str | None) -> Signed[Lease]:
        """Answer one lease request of `member`, or refuse it; both are on record.

        Raises Invalid or Corrupt (a bad, late or future statement), Conflict (replayed; unknown roster version),
        Denied with the decision's reasons.
        """
        try:
            asked = self._read(member, token)
            grant, cleared = await self._granted(member, asked.body)
            until = self._until(grant)
            lease = await self._sealed(member, asked.body, grant, until, cleared)
            async with self._database.write() as tx:
                await self._use_nonce(tx, asked.body.nonce)
                await self._log.append(tx, _released(member, asked.body, grant, until, address))
        except AccordError as error:
            await self._log.record(_refused(member, error, address))
            raise
        return lease

    def _read(self, member: Member, token: str) -> Signed[LeaseRequest]:
        now = self._clock.now()
        asked = verify(token, LeaseRequest, keys_of=self._members.keys_of, now=now)
        if asked.issuer != member.id or asked.body.home != self._identity.node_id:
            raise Denied(
                "This lease request is another member's, or for another hospital.", code="wrong-party"
            )
        if abs((now - asked.issued).total_seconds()) > MESSAGE_SKEW_SECONDS:
            raise Invalid(
                "This lease request is not of now.", mend="Check the clocks of both nodes.", code="stale"
            )
        if asked.body.roster > self._members.version:
            raise Conflict(
                Sentence(
                    "The request rests on roster version %(asked)s; this node knows up to %(known)s.",
                    asked=asked.body.roster,
                    known=self._members.version,
                ),
                mend="It fetches the roster by itself; ask again in a moment.",
                code="unknown-roster",
            )
        return asked

    async def _granted(self, member: Member, asked: LeaseRequest) -> tuple[Signed[Grant], Clearance]:
        """The grant, when it lets this person open this study now, and the permit for that. Raises Denied with every reason."""
        grant = await self._grants.held_by(member, asked.grant)
        body = grant.body
        if body.study != asked.study:
            raise Denied("The grant is for another study.", code="wrong-study")
        if body.holder_key != member.hpke_thumbprint:
            raise Denied(
                "The grant was made for another key of this hospital.",
                mend="Ask for a new grant.",
                code="holder-key",
            )
        found = await self._archive.study(body.study)
        if found is None:
            raise NotFound("The study is not here any more.", code="study")
        person = Principal(asked.person, Role.CLINICIAN, asked.person, member.id)
        resource = Resource(
            ResourceKind.STUDY,
            found.study,
            found.patient,
            self._identity.node_id,
            found.grade,
            found.department,
        )
        action = next(ACTION_OF[right] for right in Right if right in body.rights)
        request = Request(person, action, resource, asked.purpose, self._clock.now())
        verdict = decide(self._policies.current, request, await self._grants.facts(grant))
        return grant, Clearance.of(request, verdict)

    def _until(self, grant: Signed[Grant]) -> datetime:
        seconds = min(self._policies.parameters.lease_seconds, MAX_LEASE_SECONDS)
        until = self._clock.now() + timedelta(seconds=seconds)
        return min(until, grant.expires) if grant.expires else until

    async def _sealed(
        self, member: Member, asked: LeaseRequest, grant: Signed[Grant], until: datetime, cleared: Clearance
    ) -> Signed[Lease]:
        manifest = await self._records.by_digest(grant.body.manifest, Manifest)
        listed = {entry.object_id for entry in manifest.body.objects}
        if not listed.issuperset(asked.objects):
            raise Denied("The request names objects that were not granted.", code="not-granted")
        keys = await self._archive.packs.object_keys(asked.study, asked.objects, cleared)
        plain = canonical_json({name: base64_text(key) for name, key in keys.items()})
        sealed = seal_for(member.hpke_key, plain, lease_info(grant.digest, asked.nonce, until))
        return sign(
            Lease(grant.digest, asked.nonce, until, sealed),
            record_id=secrets.token_hex(16),
            issuer=self._identity.node_id,
            key=self._identity.signing,
            issued=self._clock.now(),
            expires=None,
        )

    async def _use_nonce(self, tx: Tx, nonce: str) -> None:
        now = self._clock.now()
        await tx.execute(delete(lease_nonce).where(lease_nonce.c.expires < now))
        if (await tx.execute(select(lease_nonce).where(lease_nonce.c.nonce == nonce))).first() is not None:
            raise Conflict("This lease request was answered before.", code="replayed")
        keep = now + timedelta(seconds=2 * MAX_LEASE_SECONDS)
        await tx.execute(insert(lease_nonce).values(nonce=nonce, expires=keep))


def _released(
    member: Member, asked: LeaseRequest, grant: Signed[Grant], until: datetime, address: str | None
) -> Event:
    return Event(
        EventKind.LEASE_RELEASED,
        f"person:{asked.person}@{member.id}",
        patient=grant.body.patient,
        study=grant.body.study,
        purpose=asked.purpose,
        address=address,
        detail={
            "grant": grant.id,
            "holder": member.id,
            "opening": asked.opening,
            "objects": len(asked.objects),
            "until": until.isoformat(),
        },
    )


def _refused(member: Member, error: AccordError, address: str | None) -> Event:
    integrity = isinstance(error, Corrupt)
    return Event(
        EventKind.LEASE_REFUSED,
        f"member:{member.id}",
        outcome=Outcome.FAILED if integrity else Outcome.REFUSED,
        address=address,
        reason=error.message,
        detail={"code": error.code},
    )
