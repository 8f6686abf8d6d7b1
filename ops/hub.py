"""The regional hub: the same parts, composed differently. No vault, no DICOM, no patient.

It signs the roster, cosigns every member's checkpoints, takes counters, and starts training runs. `build_hub` makes
the parts, `running` starts and stops them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from aiohttp import web
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from prometheus_client import CollectorRegistry

from federation import keys as peers
from federation.authority import Authority
from federation.channel import Channel
from federation.client import PeerClient
from federation.doorway import Doorway
from federation.following import Following
from federation.members import Members
from federation.reporting import Reports
from federation.roster import HUB, Anchor, Member, own_entry
from federation.service import HUB_ROUTES, make_peer_app, peer_listener
from federation.witnessing import Witnessing
from node.jobs import Job, Jobs
from node.web.api import session
from node.web.kit import Listener, make_app
from node.web.metrics import HttpMetrics
from ops import api as hub_api
from ops.compose import (
    LOOPBACK_NAMES,
    SESSION_SWEEP_SECONDS,
    build_channel,
    build_health,
    build_members,
    build_witnessing,
    people_services,
)
from ops.doors import Doors
from ops.foundation import Foundation

REGION_KEY = "region/signing"
RENEW_SECONDS = 3600.0


@dataclass(frozen=True)
class Hub:
    """The hub, built and not yet running."""

    foundation: Foundation
    members: Members
    channel: Channel
    client: PeerClient
    witnessing: Witnessing
    doors: Doors
    jobs: Jobs
    people_app: web.Application
    peer_app: web.Application
    health_app: web.Application
    metrics: HttpMetrics


async def build_authority(base: Foundation, *, region: str = "") -> tuple[Authority, Member]:
    """The roster's authority and the hub's own entry. `region` is needed at the founding only."""
    members = build_members(base)
    await members.load()
    key = Ed25519PrivateKey.from_private_bytes(await base.keys.secret(REGION_KEY))
    anchor = members.anchor or Anchor(region, (_text(key),), 1)
    authority = Authority(
        database=base.database, log=base.log, clock=base.clock, members=members, anchor=anchor, signers=(key,)
    )
    return authority, own_entry(base.identity.public(), base.settings.peer_url, roles=(HUB,))


@asynccontextmanager
async def joining(base: Foundation) -> AsyncIterator[Following]:
    """What `accord join` needs: a way to the hub before the first roster is known."""
    members = build_members(base)
    await members.load()
    client = PeerClient(members=members, channel=build_channel(base, members), log=base.log)
    try:
        yield Following(identity=base.identity, members=members, client=client, clock=base.clock)
    finally:
        await client.close()


async def build_hub(base: Foundation) -> Hub:
    """Build every part of the hub, bottom-up."""
    members = build_members(base)
    channel = build_channel(base, members)
    client = PeerClient(members=members, channel=channel, log=base.log)
    authority, _own = await build_authority(base)
    witnessing = build_witnessing(base, members, client)
    reports = Reports(database=base.database, clock=base.clock, members=members)
    registry = CollectorRegistry()
    metrics = HttpMetrics(registry)
    doors = Doors(
        identity=base.identity,
        registry=base.registry,
        clock=base.clock,
        names=(*base.settings.http.names, *LOOPBACK_NAMES),
    )
    jobs = Jobs(_duties(base, members, authority, witnessing), base.clock)
    between = {
        peers.MEMBERS: members,
        peers.AUTHORITY: authority,
        peers.DOORWAY: Doorway(members=members, log=base.log, clock=base.clock),
        peers.WITNESSING: witnessing,
        peers.REPORTS: reports,
    }
    return Hub(
        foundation=base,
        members=members,
        channel=channel,
        client=client,
        witnessing=witnessing,
        doors=doors,
        jobs=jobs,
        people_app=make_app(
            routes=[*session.ROUTES, *hub_api.ROUTES],
            services={**people_services(base), **between},
            nav=hub_api.NAV,
            name=base.settings.node.name,
            metrics=metrics,
        ),
        peer_app=make_peer_app(routes=HUB_ROUTES, services=between, metrics=metrics),
        health_app=build_health(base, jobs, registry),
        metrics=metrics,
    )


@asynccontextmanager
async def running(hub: Hub) -> AsyncIterator[Mapping[str, str]]:
    """Start everything in order; yield the addresses; stop in the opposite order."""
    settings = hub.foundation.settings
    addresses: dict[str, str] = {}
    async with AsyncExitStack() as stack:
        await hub.members.load()
        stack.push_async_callback(hub.client.close)
        door = peer_listener(
            hub.peer_app, settings.peer.host, settings.peer.port, channel=hub.channel, metrics=hub.metrics
        )
        await stack.enter_async_context(door)
        addresses["peers"] = f"https://{settings.peer.host}:{door.port}"
        await stack.enter_async_context(hub.jobs.running())
        portal = Listener(
            hub.people_app, settings.http.host, settings.http.port, hub.doors.people, metrics=hub.metrics
        )
        await stack.enter_async_context(portal)
        addresses["portal"] = f"https://{settings.http.host}:{portal.port}"
        if settings.metrics.port:
            watched = Listener(hub.health_app, settings.metrics.host, settings.metrics.port)
            await stack.enter_async_context(watched)
            addresses["metrics"] = f"http://{settings.metrics.host}:{watched.port}"
        yield addresses


def _duties(base: Foundation, members: Members, authority: Authority, witnessing: Witnessing) -> list[Job]:
    every = base.settings.intervals

    async def sessions() -> None:
        await base.sessions.sweep()

    return [
        Job("roster", min(every.roster_seconds, RENEW_SECONDS), authority.renew),
        Job("members", every.checkpoint_seconds, members.load),
        Job("checkpoint", every.checkpoint_seconds, witnessing.submit),
        Job("sessions", SESSION_SWEEP_SECONDS, sessions),
    ]


def _text(key: Ed25519PrivateKey) -> str:
    import base64

    return base64.b64encode(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)).decode()
