"""Following the region: joining by an invitation, and keeping the roster fresh.

Whoever hands a roster over is not trusted for it: the signatures are. So when the hub is away, other members are
asked, and an old roster from one of them changes nothing. Leaves judging to `members`.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import datetime

from consent.errors import AccordError, Invalid
from consent.signed import Json, Signed
from federation.client import PeerClient
from federation.fields import read_object
from federation.joining import Invitation, describe
from federation.members import Members
from federation.protocol import MAX_ROSTER_BODY_BYTES, PREFIX
from federation.roster import MAX_REGION_KEYS, Member
from node.clock import Clock
from node.identity import Identity

ASKED_MEMBERS = 3


class Following:
    """Keeps this node's roster the region's latest."""

    def __init__(self, *, identity: Identity, members: Members, client: PeerClient, clock: Clock) -> None:
        self._identity = identity
        self._members = members
        self._client = client
        self._clock = clock

    async def join(self, invitation: Signed[Invitation], own: Member) -> bool:
        """Show our descriptor and the code to the hub; whether we are listed (else the region keys' holders
        still have to sign). May be repeated. Raises Denied, Conflict, Invalid or Unavailable as the hub says.
        """
        body = invitation.body
        await self._members.trust(body.anchor)
        descriptor = describe(
            own,
            region=body.anchor.region,
            key=self._identity.signing,
            record_id=secrets.token_hex(16),
            now=self._clock.now(),
        )
        answer = await self._client.join(
            body.hub_url, body.hub_ca, {"descriptor": descriptor.token, "code": body.code}
        )
        read = read_object(answer, "answer to joining")
        tokens = _tokens(answer)
        if tokens:
            await self._members.accept(tokens, source="hub")
        return read.flag("listed") and self._members.is_active(self._identity.node_id)

    async def refresh(self) -> None:
        """A job: fetch the roster from the hub, or from other members while the hub is away.

        Raises the hub's refusal, or Unavailable when nobody answered.
        """
        await self._members.load()
        failure: AccordError | None = None
        for member_id in self._sources():
            try:
                answer = await self._client.get(member_id, f"{PREFIX}/roster", limit=MAX_ROSTER_BODY_BYTES)
                await self._members.accept(_tokens(answer), source=member_id)
                return
            except AccordError as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def expires_in_days(self, now: datetime) -> float | None:
        """How long the roster in force still lasts; None when there is none."""
        expires = self._members.expires
        return None if expires is None else (expires - now).total_seconds() / 86400

    def _sources(self) -> Sequence[str]:
        hub = self._members.hub()
        others = [member.id for member in self._members.others() if hub is None or member.id != hub.id]
        secrets.SystemRandom().shuffle(others)
        return [*([hub.id] if hub else []), *others[:ASKED_MEMBERS]]


def _tokens(answer: Json) -> tuple[str, ...]:
    tokens = answer.get("tokens")
    if not isinstance(tokens, list) or len(tokens) > MAX_REGION_KEYS:
        raise Invalid("The answer holds no roster.", code="roster-signatures")
    return tuple(str(token) for token in tokens)
