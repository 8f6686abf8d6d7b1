"""A site's line to the hub for training: which plans it offers, what this site decided, where Flower's messages go.

Over the members' mutually authenticated channel, to whoever the roster in force names as the hub.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from consent.errors import Invalid, Unavailable
from federation.channel import Channel
from federation.client import PeerClient
from federation.members import Members
from federation.roster import Member

PLANS_PATH = "/peer/v1/learning/plans"
DECISIONS_PATH = "/peer/v1/learning/decisions"
MAX_PLANS = 200
MAX_PLANS_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class Offer:
    """The hub's open plans (tokens), and whether it has registered this site's learning key with Flower."""

    plans: tuple[str, ...]
    registered: bool


class HubLink:
    """Finds the hub in the roster at every call, so that a new roster counts at once."""

    def __init__(self, *, members: Members, channel: Channel, client: PeerClient) -> None:
        self._members, self._channel, self._client = members, channel, client

    @property
    def hub_id(self) -> str:
        """The hub's member id, or "hub" while there is no roster."""
        hub = self._members.hub()
        return hub.id if hub is not None else "hub"

    def keys_of(self, issuer: str) -> tuple[Ed25519PublicKey, ...]:
        """The keys that may sign for a member."""
        return self._members.keys_of(issuer)

    def target(self) -> tuple[str, ssl.SSLContext, str]:
        """Where to send Flower's calls: base URL, TLS context, server name. Raises Unavailable."""
        hub = self._hub()
        return hub.url, self._channel.client_context(hub), hub.id

    async def offers(self) -> Offer:
        """Ask for the open plans. Raises Unavailable, Invalid."""
        answer = await self._client.get(self._hub().id, PLANS_PATH, limit=MAX_PLANS_BYTES)
        plans = answer.get("plans")
        if (
            not isinstance(plans, list)
            or len(plans) > MAX_PLANS
            or not all(isinstance(p, str) for p in plans)
        ):
            raise Invalid("The hub's offer of plans is malformed.")
        return Offer(tuple(plans), answer.get("registered") is True)

    async def decided(self, token: str) -> None:
        """Give the hub a decision. Raises Unavailable, Denied."""
        await self._client.post(self._hub().id, DECISIONS_PATH, {"decision": token})

    def _hub(self) -> Member:
        hub = self._members.hub()
        if hub is None:
            raise Unavailable("This node belongs to no region with a hub yet.", code="no-hub")
        return hub
