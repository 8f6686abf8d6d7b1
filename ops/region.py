"""Founding a region and entering one: the parts that the command line needs beside a node's foundation."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from federation.authority import Authority
from federation.channel import Channel
from federation.client import PeerClient
from federation.following import Following
from federation.roster import HUB, Anchor, Member, own_entry
from ops.doors import LOOPBACK_NAMES
from ops.foundation import Foundation

REGION_KEY = "region/signing"


def build_channel(base: Foundation) -> Channel:
    """TLS between members. The certificate carries the member's id, which callers check."""
    hosts = (base.identity.node_id, base.settings.peer.host, *LOOPBACK_NAMES)
    return Channel(identity=base.identity, members=base.members, hosts=hosts, clock=base.clock)


async def build_authority(base: Foundation, *, region: str = "") -> tuple[Authority, Member]:
    """The roster's authority and the hub's own entry. `region` is needed at the founding only."""
    key = Ed25519PrivateKey.from_private_bytes(await base.keys.secret(REGION_KEY))
    anchor = base.members.anchor or Anchor(region, (_text(key),), 1)
    authority = Authority(
        database=base.database,
        log=base.log,
        clock=base.clock,
        members=base.members,
        anchor=anchor,
        signers=(key,),
    )
    return authority, own_entry(base.identity.public(), base.settings.peer_url, roles=(HUB,))


@asynccontextmanager
async def joining(base: Foundation) -> AsyncIterator[Following]:
    """What `accord join` needs: a way to the hub before the first roster is known."""
    client = PeerClient(members=base.members, channel=build_channel(base), log=base.log)
    try:
        yield Following(identity=base.identity, members=base.members, client=client, clock=base.clock)
    finally:
        await client.close()


def _text(key: Ed25519PrivateKey) -> str:
    return base64.b64encode(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)).decode()
