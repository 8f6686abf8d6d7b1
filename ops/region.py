"""Founding a region and entering one: the parts that the command line needs beside a node's foundation."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from federation.authority import Authority
from federation.channel import Channel
from federation.client import PeerClient
from federation.doorway import ROSTER_PATH
from federation.following import Following
from federation.roster import HUB, Anchor, Member, own_entry
from node.tls import client_context
from ops.doors import LOOPBACK_NAMES, url_of
from ops.foundation import Foundation

REGION_KEY = "region/signing"
SEEN_SECONDS = 10.0
ANSWER_SECONDS = 5.0
ASK_AGAIN_SECONDS = 0.2


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


async def seen_by_running_node(base: Foundation) -> bool | None:
    """Ask the node that serves this folder, at its own peer door, until it shows the roster that the database holds.

    None when no node of ours answers there; False when it shows another roster after SEEN_SECONDS.
    """
    settings = base.settings.peer
    if not settings.port:
        return None
    url = url_of(settings.host, settings.port, ROSTER_PATH)
    own = base.identity.node_id
    context = client_context([base.identity.authority_pem], base.identity.leaf([own], base.clock.now()))
    timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
    end = asyncio.get_running_loop().time() + SEEN_SECONDS
    async with aiohttp.ClientSession(timeout=timeout, trust_env=False) as session:
        while True:
            try:
                async with session.get(url, ssl=context, server_hostname=own) as response:
                    shown = await response.read()
            except TimeoutError:
                shown = b""
            except (aiohttp.ClientError, OSError):
                return None
            await base.members.load()  # the running node may have fetched a newer one meanwhile
            if shown and all(token.encode() in shown for token in base.members.tokens):
                return True
            if asyncio.get_running_loop().time() > end:
                return False
            await asyncio.sleep(ASK_AGAIN_SECONDS)


def _text(key: Ed25519PrivateKey) -> str:
    return base64.b64encode(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)).decode()
