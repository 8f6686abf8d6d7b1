"""The members as this node knows them: the roster in force, kept, consulted and replaced.

Holds the tables of trust. Verification happens here, offline, against keys that this node already has; who
fetches a roster does not matter. Without a roster in force (none yet, or expired) nobody is a member.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from time import monotonic

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from sqlalchemy import Column, Integer, Table, Text, delete, insert, select

from consent.errors import AccordError, Conflict, Denied, Sentence, Unavailable
from consent.signed import parse_json, peek, read
from consent.vocabulary import EventKind, Outcome
from federation.roster import HUB, AcceptedRoster, Anchor, Member, Roster, Standing, accept, issuer_of_leaf
from node.audit.event import Event
from node.audit.log import Log
from node.clock import Clock
from node.database import Database, Tx, UtcDateTime, metadata

KEPT_ROSTERS = 32
LOOK_SECONDS = 0.2
"""How often at most somebody at a door makes this node look at its database again."""

region_anchor = Table(
    "region_anchor",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("anchor", Text, nullable=False),
)

roster_version = Table(
    "roster_version",
    metadata,
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("tokens", Text, nullable=False),
    Column("issued", UtcDateTime, nullable=False),
    Column("accepted", UtcDateTime, nullable=False),
)


class Members:
    """Who may be spoken to, and by which keys. `load()` before use."""

    def __init__(
        self,
        *,
        database: Database,
        log: Log,
        clock: Clock,
        node_id: str,
        own_key: Ed25519PublicKey | None = None,
    ) -> None:
        self.node_id = node_id
        self._database = database
        self._log = log
        self._clock = clock
        self._own_key = own_key
        self._anchor: Anchor | None = None
        self._accepted: AcceptedRoster | None = None
        self._looked = float("-inf")

    async def load(self) -> None:
        """Read anchor and latest roster from the database; also picks up what another process accepted."""
        async with self._database.read() as tx:
            self._anchor, self._accepted = await _stored(tx)

    async def look_again(self) -> None:
        """`load`, at most every LOOK_SECONDS: for the doors, when `accord join` may just have written a roster."""
        if monotonic() - self._looked >= LOOK_SECONDS:
            self._looked = monotonic()
            await self.load()

    @property
    def anchor(self) -> Anchor | None:
        """The region keys in force: the roster's own, or before the first one the invitation's."""
        return self._accepted.roster.anchor if self._accepted else self._anchor

    @property
    def version(self) -> int:
        """The roster version in force; 0 when there is none."""
        return self._accepted.roster.version if self._accepted else 0

    @property
    def expires(self) -> datetime | None:
        """When the roster in force ends."""
        return self._accepted.signed.expires if self._accepted else None

    @property
    def tokens(self) -> tuple[str, ...]:
        """The signed roster, to show to others."""
        return self._accepted.tokens if self._accepted else ()

    def current(self) -> Roster:
        """The roster in force. Raises Unavailable when there is none or it has expired."""
        if self._accepted is None:
            raise Unavailable(
                "This node belongs to no region yet.",
                mend=Sentence("Ask the hub's operator for an invitation, then: accord join DIR INVITATION"),
                code="roster-none",
            )
        if self._accepted.signed.expired(self._clock.now()):
            raise Unavailable(
                Sentence(
                    "Roster version %(version)s has expired, so no member can be trusted.",
                    version=self.version,
                ),
                mend="Check the connection to the hub and both clocks; the hub renews its roster by itself.",
                code="roster-expired",
            )
        return self._accepted.roster

    def member(self, member_id: str) -> Member:
        """A listed, active member. Raises Denied when it is unlisted or suspended."""
        member = self.current().by_id.get(member_id)
        if member is None:
            raise Denied(
                Sentence(
                    "%(member)s is not in roster version %(version)s.",
                    member=repr(member_id),
                    version=self.version,
                ),
                mend="Check the name, or ask the hub's operator whether it has joined.",
                code="peer-unlisted",
            )
        if member.status is not Standing.ACTIVE:
            raise Denied(Sentence("Member %(member)s is suspended.", member=member_id), code="peer-suspended")
        return member

    def is_active(self, member_id: str) -> bool:
        """Whether `member_id` may take part now."""
        try:
            self.member(member_id)
        except (Denied, Unavailable):
            return False
        return True

    def is_suspended(self, member_id: str) -> bool:
        """Whether the latest roster, even an expired one, suspends this member or lists it no more.

        Not the opposite of `is_active`: a hub that is away for two weeks suspends nobody.
        """
        if self._accepted is None:
            return False
        member = self._accepted.roster.by_id.get(member_id)
        return member is None or member.status is not Standing.ACTIVE

    def others(self) -> tuple[Member, ...]:
        """Every other active member, the hub included; empty when no roster is in force."""
        return tuple(member for member in self.listed() if member.status is Standing.ACTIVE)

    def listed(self) -> tuple[Member, ...]:
        """Every other member on the roster in force, suspended ones too; empty when none is in force."""
        try:
            return tuple(member for member in self.current().members if member.id != self.node_id)
        except Unavailable:
            return ()

    def hub(self) -> Member | None:
        """The active member with the role of the hub."""
        return next((member for member in self.others() if HUB in member.roles), None)

    def keys_of(self, issuer: str) -> tuple[Ed25519PublicKey, ...]:
        """The keys that may sign for `issuer`: what `consent.signed.verify` asks for.

        A suspended member's keys still verify what it signed; whether it may act is asked with `member`.
        """
        if issuer == self.node_id and self._own_key is not None:
            return (self._own_key,)
        listed = self._accepted.roster.by_id.get(issuer) if self._accepted else None
        return (listed.signing_key,) if listed else ()

    def identify(self, certificate_der: bytes) -> Member:
        """The active member that speaks with this TLS certificate. Raises Denied."""
        return issuer_of_leaf(self.current(), certificate_der)

    async def trust(self, anchor: Anchor) -> None:
        """Take the region's keys from an invitation. Raises Conflict when this node belongs to another region."""
        async with self._database.write() as tx:
            known, accepted = await _stored(tx)
            in_force = accepted.roster.anchor if accepted else known
            if in_force is not None and in_force.region != anchor.region:
                raise Conflict(
                    Sentence(
                        "This node already belongs to the region %(region)s.", region=repr(in_force.region)
                    ),
                    mend="A node belongs to one region; make another node for another region.",
                    code="region",
                )
            if accepted is None:
                await tx.execute(delete(region_anchor))
                await tx.execute(insert(region_anchor).values(id=1, anchor=json.dumps(anchor.to_json())))
        await self.load()

    async def accept(self, tokens: Sequence[str], *, source: str) -> bool:
        """Judge a roster offered by `source`; keep it when it is newer. Whether something changed.

        Raises as `roster.accept`, after recording the refusal in the log.
        """
        try:
            async with self._database.write() as tx:
                changed = await self.accept_in(tx, tokens, source=source)
        except AccordError as error:
            await self._log.record(
                Event(
                    EventKind.ROSTER_REFUSED,
                    actor="job:roster",
                    outcome=Outcome.REFUSED,
                    reason=error.message,
                    detail={"source": source, "in_force": self.version, "code": error.code},
                )
            )
            raise
        await self.load()
        return changed

    async def stored(self, tx: Tx) -> AcceptedRoster | None:
        """The latest roster in the database, as the caller's transaction sees it."""
        return (await _stored(tx))[1]

    async def accept_in(self, tx: Tx, tokens: Sequence[str], *, source: str) -> bool:
        """As `accept`, inside the caller's transaction; the caller calls `load()` after it has committed."""
        anchor, known = await _stored(tx)
        if known is None and anchor is None:
            raise Unavailable("This node has no region keys to judge a roster by.", code="roster-none")
        now = self._clock.now()
        new = accept(tokens, known.roster.anchor if known else _needed(anchor), known, now)
        if known is not None and new.signed.issued <= known.signed.issued and new.roster == known.roster:
            return False
        await tx.execute(delete(roster_version).where(roster_version.c.version == new.roster.version))
        await tx.execute(
            insert(roster_version).values(
                version=new.roster.version,
                tokens=json.dumps(list(new.tokens)),
                issued=new.signed.issued,
                accepted=now,
            )
        )
        await tx.execute(
            delete(roster_version).where(roster_version.c.version <= new.roster.version - KEPT_ROSTERS)
        )
        await self._log.append(tx, _accepted_event(new, source))
        return True


def _accepted_event(new: AcceptedRoster, source: str) -> Event:
    active = [member.id for member in new.roster.members if member.status is Standing.ACTIVE]
    return Event(
        EventKind.ROSTER_ACCEPTED,
        actor="job:roster",
        detail={
            "version": new.roster.version,
            "digest": new.signed.digest,
            "active": active,
            "source": source,
        },
    )


def _needed(anchor: Anchor | None) -> Anchor:
    assert anchor is not None
    return anchor


async def _stored(tx: Tx) -> tuple[Anchor | None, AcceptedRoster | None]:
    """Anchor and latest roster from the tables; the signature is checked again, expiry is left to `current`."""
    row = (await tx.execute(select(region_anchor.c.anchor))).first()
    anchor = Anchor.from_json(parse_json(row.anchor.encode())) if row else None
    latest = (
        await tx.execute(select(roster_version.c.tokens).order_by(roster_version.c.version.desc()).limit(1))
    ).first()
    if latest is None:
        return anchor, None
    tokens = tuple(str(token) for token in json.loads(latest.tokens))
    return anchor, _reread(tokens)


def _reread(tokens: tuple[str, ...]) -> AcceptedRoster:
    # Region keys may have changed since the anchor was taken, so a stored roster is read by its own keys: it
    # was judged by the old ones when it came in, and whoever can edit this table can edit the anchor too.
    anchor = Anchor.from_json(peek(tokens[0])[2].get("body", {}).get("anchor"))
    signed = read(
        tokens[0],
        Roster,
        keys_of=lambda issuer: anchor.public_keys if issuer == anchor.region else (),
    )
    return AcceptedRoster(signed, tokens)
