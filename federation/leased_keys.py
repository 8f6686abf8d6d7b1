"""Leased keys at the holding hospital: asked of the home when a study is opened, kept in memory for minutes.

Fulfils the gateway's seam for object keys. A key is never written anywhere; when its lease has run out, or the grant
has ended, it is forgotten and the home is asked again. Each opening has a lease of its own, so that the home's
log shows each opening.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from consent.errors import Corrupt, Sentence, Unavailable
from consent.grants import Grant
from consent.principals import Principal
from consent.signed import Signed, parse_json, sign, verify
from consent.vocabulary import Purpose
from federation.client import PeerClient
from federation.envelope import open_sealed_for
from federation.fields import read_object
from federation.holdings import Holdings
from federation.leases import MAX_LEASE_SECONDS
from federation.members import Members
from federation.protocol import MAX_LEASE_OBJECTS, MESSAGE_SECONDS, PREFIX, Lease, LeaseRequest
from node.clock import Clock
from node.identity import Identity

AHEAD_OBJECTS = 64
MAX_OPENINGS = 256
KEY_BYTES = 32


@dataclass
class _Opening:
    """The keys of one opening, each with the end of its lease."""

    grant: str
    keys: dict[str, tuple[bytes, datetime]] = field(default_factory=dict, repr=False)


class LeasedKeys:
    """Object keys of copies that other hospitals share with this one."""

    def __init__(
        self,
        *,
        clock: Clock,
        identity: Identity,
        members: Members,
        client: PeerClient,
        holdings: Holdings,
    ) -> None:
        self._clock = clock
        self._identity = identity
        self._members = members
        self._client = client
        self._holdings = holdings
        self._openings: OrderedDict[tuple[str, ...], _Opening] = OrderedDict()
        holdings.on_end(self.forget)

    async def keys(
        self,
        home: str,
        study: str,
        object_ids: Sequence[str],
        who: Principal,
        purpose: Purpose,
        opening_id: str,
    ) -> Mapping[str, bytes]:
        """The keys of these objects, leased if need be. Raises Denied with the home's reasons; Unavailable when
        the home cannot be asked and the lease has run out."""
        self._members.member(home)
        grant = await self._holdings.usable(home, study, who.id, purpose)
        opening = self._opening((opening_id, who.id, home, study, grant.id), grant.id)
        now = self._clock.now()
        opening.keys = {name: kept for name, kept in opening.keys.items() if now < kept[1]}
        # Gathered here: while a lease is awaited, another call may drop what has run out meanwhile.
        found = {name: opening.keys[name][0] for name in object_ids if name in opening.keys}
        missing = [name for name in dict.fromkeys(object_ids) if name not in found]
        for start in range(0, len(missing), MAX_LEASE_OBJECTS):
            batch = missing[start : start + MAX_LEASE_OBJECTS]
            wanted = await self._with_following(grant, batch, opening)
            leased, until = await self._lease(grant, wanted, who, purpose, opening_id)
            opening.keys |= {name: (key, until) for name, key in leased.items()}
            found |= leased
        return {name: found[name] for name in object_ids}

    def forget(self, grant_id: str) -> None:
        """Drop every key that came under this grant."""
        for key in [key for key, opening in self._openings.items() if opening.grant == grant_id]:
            del self._openings[key]

    def close_opening(self, opening_id: str) -> None:
        """Drop the keys of an opening that was closed."""
        for key in [key for key in self._openings if key[0] == opening_id]:
            del self._openings[key]

    def _opening(self, key: tuple[str, ...], grant_id: str) -> _Opening:
        opening = self._openings.setdefault(key, _Opening(grant_id))
        self._openings.move_to_end(key)
        while len(self._openings) > MAX_OPENINGS:
            self._openings.popitem(last=False)
        return opening

    async def _with_following(
        self, grant: Signed[Grant], wanted: Sequence[str], opening: _Opening
    ) -> tuple[str, ...]:
        """`wanted` and the objects of the same kind that follow: scrolling shall not ask for every picture."""
        objects = (await self._holdings.manifest(grant)).objects
        places = {entry.object_id: place for place, entry in enumerate(objects)}
        if not all(name in places for name in wanted):
            raise Corrupt("The copy holds objects that its manifest does not list.", code="manifest")
        last = max(places[name] for name in wanted)
        kind = objects[last].kind
        following = [
            entry.object_id
            for entry in objects[last + 1 :]
            if entry.kind == kind and entry.object_id not in opening.keys
        ]
        names = dict.fromkeys((*wanted, *following[:AHEAD_OBJECTS]))
        return tuple(names)[:MAX_LEASE_OBJECTS]

    async def _lease(
        self,
        grant: Signed[Grant],
        objects: tuple[str, ...],
        who: Principal,
        purpose: Purpose,
        opening_id: str,
    ) -> tuple[Mapping[str, bytes], datetime]:
        """The keys of `objects`, and when they must be forgotten."""
        now = self._clock.now()
        home, nonce = grant.body.home, secrets.token_hex(32)
        request = sign(
            LeaseRequest(
                home,
                grant.id,
                grant.body.study,
                objects,
                who.id,
                purpose,
                opening_id,
                nonce,
                self._members.version,
            ),
            record_id=secrets.token_hex(16),
            issuer=self._identity.node_id,
            key=self._identity.signing,
            issued=now,
            expires=now + timedelta(seconds=MESSAGE_SECONDS),
        )
        try:
            answer = await self._client.post(home, f"{PREFIX}/leases", {"token": request.token})
        except Unavailable as error:
            raise Unavailable(
                Sentence(
                    "%(home)s cannot be asked for the keys now, and the last lease has run out.", home=home
                ),
                mend="The study opens again when that hospital answers.",
                code="lease-unavailable",
            ) from error
        lease = self._read(answer, grant, nonce, now)
        return self._opened(lease, objects), min(lease.until, now + timedelta(seconds=MAX_LEASE_SECONDS))

    def _read(self, answer: dict[str, object], grant: Signed[Grant], nonce: str, now: datetime) -> Lease:
        token = read_object(answer, "lease").text("token", limit=2 * 1024 * 1024)
        signed = verify(token, Lease, keys_of=self._members.keys_of, now=now)
        lease = signed.body
        if signed.issuer != grant.body.home or lease.grant != grant.digest or lease.nonce != nonce:
            raise Corrupt("The lease answers another request.", code="lease-mismatch")
        return lease

    def _opened(self, lease: Lease, objects: tuple[str, ...]) -> Mapping[str, bytes]:
        plain = parse_json(open_sealed_for(self._identity.hpke, lease.sealed, lease.info))
        read = read_object(plain, "lease")
        keys = {name: read.octets(name, KEY_BYTES) for name in objects}
        if any(len(key) != KEY_BYTES for key in keys.values()):
            raise Corrupt("The lease holds something that is not a key.", code="lease-mismatch")
        return keys
