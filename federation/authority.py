"""The hub's roster authority: invites, admits, suspends, and signs each new roster with the region's keys.

Holds the tables of invitations and of a roster that still waits for signatures. With fewer region keys at the
hub than the threshold, a change waits as a draft until the other keys' holders have cosigned it (`cosign`);
nothing of it is in force before. Every roster in force went through `Members.accept_in`: the authority cannot
put in force what a member would refuse.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from hashlib import sha256

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import Column, Integer, String, Table, Text, delete, insert, select, update

from consent.errors import Conflict, Corrupt, Denied, NotFound
from consent.signed import Signed, peek, sign
from consent.vocabulary import EventKind
from federation.joining import INVITATION_HOURS, Invitation, read_descriptor
from federation.members import Members
from federation.roster import HUB, MAX_ROSTER_DAYS, Anchor, Member, Roster, Standing
from node.audit.event import Event
from node.audit.log import Log
from node.clock import Clock
from node.database import Database, Tx, UtcDateTime, metadata

authority_invitation = Table(
    "authority_invitation",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("code_digest", String(64), nullable=False, unique=True),
    Column("note", Text, nullable=False),
    Column("expires", UtcDateTime, nullable=False),
    Column("used_by", String(32)),
)

authority_draft = Table(
    "authority_draft",
    metadata,
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("tokens", Text, nullable=False),
)


@dataclass(frozen=True)
class Admission:
    """What came of a request to join: listed now (the roster to keep), or waiting for the region's keys."""

    listed: bool
    tokens: tuple[str, ...]


class Authority:
    """Only the hub has one. `signers` are the region keys kept at the hub, of those in `anchor`."""

    def __init__(
        self,
        *,
        database: Database,
        log: Log,
        clock: Clock,
        members: Members,
        anchor: Anchor,
        signers: Sequence[Ed25519PrivateKey],
        roster_days: float = MAX_ROSTER_DAYS,
    ) -> None:
        self._database = database
        self._log = log
        self._clock = clock
        self._members = members
        self._anchor = anchor
        self._signers = tuple(signers)
        self._term = timedelta(days=min(roster_days, MAX_ROSTER_DAYS))

    async def found(self, hub: Member) -> None:
        """Sign version 1 with the hub itself on it; does nothing when the region exists already."""
        await self._members.load()
        if self._members.version:
            return
        await self._members.trust(self._anchor)
        listed = replace(hub, roles=tuple(dict.fromkeys((*hub.roles, HUB))))
        async with self._database.write() as tx:
            await self._publish(tx, (listed,))
            await self._log.append(tx, _joined(listed, "founding of the region"))
        await self._members.load()

    async def invite(
        self, hub: Member, *, note: str = "", hours: float = INVITATION_HOURS, by: str = "system"
    ) -> Signed[Invitation]:
        """Make an invitation for one node; its token is the file to hand over. On record, without the code."""
        now = self._clock.now()
        code = secrets.token_urlsafe(32)
        invitation = sign(
            Invitation(hub.url, hub.tls_ca, self._members.anchor or self._anchor, code, note),
            record_id=secrets.token_hex(16),
            issuer=self._anchor.region,
            key=self._signers[0],
            issued=now,
            expires=now + timedelta(hours=hours),
        )
        async with self._database.write() as tx:
            await tx.execute(
                insert(authority_invitation).values(
                    id=invitation.id,
                    code_digest=_digest(code),
                    note=note,
                    expires=invitation.expires,
                    used_by=None,
                )
            )
            await self._log.append(
                tx,
                Event(
                    EventKind.MEMBER_INVITED,
                    by,
                    reason=note,
                    detail={"invitation": invitation.id, "hours": hours},
                ),
            )
        return invitation

    async def admit(self, token: str, code: str, *, address: str | None = None) -> Admission:
        """List the node that this descriptor describes, in exchange for a code.

        The same node may repeat its request (the answer may have been lost). Raises Denied (code unknown, used
        by another or expired), Conflict (id or key taken), Invalid or Corrupt (bad descriptor).
        """
        now = self._clock.now()
        member = read_descriptor(token, self._anchor.region, now)
        if HUB in member.roles:
            raise Denied("A joining node cannot be the hub.", code="join-role")
        async with self._database.write() as tx:
            await self._redeem(tx, code, member, now)
            roster = await self._latest(tx)
            known = roster.by_id.get(member.id)
            if known is None:
                _check_unused(member, roster.members)
                await self._publish(tx, (*roster.members, member))
                await self._log.append(tx, _joined(member, "by invitation", address))
            elif replace(known, status=Standing.ACTIVE) != member:
                raise Conflict(
                    f"A member {member.id!r} with other keys is listed already.",
                    mend="Choose another node id, or have the hub's operator remove the old entry first.",
                    code="join-taken",
                )
        await self._members.load()
        return Admission(member.id in self._members.current().by_id, self._members.tokens)

    async def suspend(self, member_id: str, *, by: str, reason: str) -> None:
        """Cut a member off: everywhere, as soon as each node has refreshed its roster."""
        await self._set_standing(member_id, Standing.SUSPENDED, by, reason)

    async def reinstate(self, member_id: str, *, by: str, reason: str) -> None:
        """Let a suspended member take part again."""
        await self._set_standing(member_id, Standing.ACTIVE, by, reason)

    async def renew(self) -> None:
        """Sign the roster anew when less than half of its term is left: run daily or oftener."""
        await self._members.load()
        expires = self._members.expires
        if expires is None or expires - self._clock.now() > self._term / 2:
            return
        async with self._database.write() as tx:
            roster = await self._latest(tx)
            await self._publish(tx, roster.members)
        await self._members.load()

    async def draft(self) -> tuple[str, ...]:
        """The tokens of a roster that waits for more signatures; empty when none does."""
        async with self._database.read() as tx:
            return await _draft(tx)

    async def cosign(self, token: str) -> bool:
        """Add a region key's signature, made elsewhere, to the draft. Whether the roster is now in force."""
        async with self._database.write() as tx:
            tokens = await _draft(tx)
            if not tokens or peek(tokens[0])[1] != peek(token)[1]:
                raise Conflict("No draft with these contents waits for a signature.", code="roster-draft")
            in_force = await self._put(tx, (*tokens, token))
        await self._members.load()
        return in_force

    async def _set_standing(self, member_id: str, status: Standing, by: str, reason: str) -> None:
        async with self._database.write() as tx:
            roster = await self._latest(tx)
            member = roster.by_id.get(member_id)
            if member is None:
                raise NotFound(f"{member_id!r} is not in the roster.", mend="Check the name.")
            if HUB in member.roles:
                raise Denied("The hub cannot suspend itself.", code="suspend-hub")
            if member.status is status:
                return
            members = tuple(replace(m, status=status) if m.id == member_id else m for m in roster.members)
            await self._publish(tx, members)
            kind = EventKind.MEMBER_SUSPENDED if status is Standing.SUSPENDED else EventKind.MEMBER_REINSTATED
            await self._log.append(tx, Event(kind, actor=by, reason=reason, detail={"member": member_id}))
        await self._members.load()

    async def _redeem(self, tx: Tx, code: str, member: Member, now: datetime) -> None:
        row = (
            await tx.execute(
                select(authority_invitation).where(authority_invitation.c.code_digest == _digest(code))
            )
        ).first()
        if row is None or row.used_by not in (None, member.id):
            raise Denied(
                "This invitation is not known here or has been used.",
                mend="Ask the hub's operator for a new one.",
                code="join-code",
            )
        if now >= row.expires:
            raise Denied(
                "This invitation has expired.", mend="Ask the hub's operator for a new one.", code="join-code"
            )
        await tx.execute(
            update(authority_invitation).where(authority_invitation.c.id == row.id).values(used_by=member.id)
        )

    async def _latest(self, tx: Tx) -> Roster:
        """The newest roster, drafts included, so that changes made while one waits are not lost."""
        tokens = await _draft(tx)
        if tokens:
            return Roster.from_json(peek(tokens[0])[2]["body"])
        stored = await self._members.stored(tx)
        if stored is None:
            raise NotFound("This region has no roster yet.", mend="Run: accord hub init DIR --name NAME")
        return stored.roster

    async def _publish(self, tx: Tx, members: tuple[Member, ...]) -> None:
        stored = await self._members.stored(tx)
        in_force = stored.roster.version if stored else 0
        now = self._clock.now()
        record_id = secrets.token_hex(16)
        roster = Roster(in_force + 1, members, self._members.anchor or self._anchor)
        tokens = tuple(
            sign(
                roster,
                record_id=record_id,
                issuer=roster.anchor.region,
                key=key,
                issued=now,
                expires=now + self._term,
            ).token
            for key in self._signers
        )
        await self._put(tx, tokens)

    async def _put(self, tx: Tx, tokens: tuple[str, ...]) -> bool:
        """Put a roster in force when it has signatures enough, else keep it as the draft."""
        await tx.execute(delete(authority_draft))
        anchor = self._members.anchor or self._anchor
        if len(tokens) >= anchor.threshold:
            try:
                return await self._members.accept_in(tx, tokens, source="own authority")
            except Corrupt:
                if len(tokens) > len(self._signers):
                    raise
        version = Roster.from_json(peek(tokens[0])[2]["body"]).version
        await tx.execute(insert(authority_draft).values(version=version, tokens=json.dumps(list(tokens))))
        return False


async def _draft(tx: Tx) -> tuple[str, ...]:
    row = (await tx.execute(select(authority_draft.c.tokens))).first()
    return tuple(str(token) for token in json.loads(row.tokens)) if row else ()


def _check_unused(member: Member, listed: tuple[Member, ...]) -> None:
    for other in listed:
        for name in ("tls_ca", "signing", "hpke", "log_vkey"):
            if getattr(other, name) == getattr(member, name):
                raise Conflict(
                    f"The {name} of {member.id!r} is already listed as {other.id!r}'s.",
                    mend="Each node has keys of its own: initialise a new folder instead of copying one.",
                    code="join-taken",
                )


def _joined(member: Member, how: str, address: str | None = None) -> Event:
    return Event(
        EventKind.MEMBER_JOINED,
        actor=f"member:{member.id}",
        address=address,
        reason=how,
        detail={"url": member.url, "authority": member.fingerprint},
    )


def _digest(code: str) -> str:
    return sha256(code.encode()).hexdigest()
