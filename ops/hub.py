"""The regional hub: the same parts, composed differently. No vault, no DICOM, no patient.

It signs the roster, cosigns every member's checkpoints, takes counters, and starts training runs. `build_hub` makes
the parts, `running` starts and stops them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiohttp import web
from prometheus_client import CollectorRegistry

from federation import keys as peers
from federation.authority import Authority
from federation.channel import Channel
from federation.client import PeerClient
from federation.doorway import Doorway
from federation.members import Members
from federation.reporting import Reports
from federation.service import HUB_ROUTES, make_peer_app, peer_listener
from federation.witnessing import Witnessing
from node.jobs import Job, Jobs
from node.web.api import session
from node.web.kit import Listener, make_app
from node.web.metrics import HttpMetrics
from ops import api as hub_api
from ops.compose import build_health, people_services
from ops.doors import LOOPBACK_NAMES, Doors
from ops.duties import SESSION_SWEEP_SECONDS
from ops.exchange import build_witnessing
from ops.foundation import Foundation
from ops.region import build_authority, build_channel

if TYPE_CHECKING:
    from ops.training import Training

RENEW_SECONDS = 3600.0


@dataclass(frozen=True)
class Hub:
    """The hub, built and not yet running."""

    foundation: Foundation
    members: Members
    channel: Channel
    client: PeerClient
    witnessing: Witnessing
    training: Training | None
    doors: Doors
    jobs: Jobs
    people_app: web.Application
    peer_app: web.Application
    health_app: web.Application
    metrics: HttpMetrics


async def build_hub(base: Foundation) -> Hub:
    """Build every part of the hub, bottom-up."""
    members = base.members
    channel = build_channel(base)
    client = PeerClient(members=members, channel=channel, log=base.log)
    authority, _own = await build_authority(base)
    witnessing = build_witnessing(base, members, client)
    reports = Reports(database=base.database, clock=base.clock, members=members)
    training = await _training(base)
    registry = CollectorRegistry()
    metrics = HttpMetrics(registry)
    doors = Doors(
        identity=base.identity,
        registry=base.registry,
        clock=base.clock,
        names=(*base.settings.http.names, *LOOPBACK_NAMES),
    )
    jobs = Jobs(_duties(base, members, authority, witnessing), base.clock)
    between: dict[web.AppKey[Any], Any] = {
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
        training=training,
        doors=doors,
        jobs=jobs,
        people_app=make_app(
            routes=[*session.ROUTES, *hub_api.ROUTES, *(training.routes if training else ())],
            services={**people_services(base), **between, **(training.services if training else {})},
            nav=(*hub_api.NAV, *(training.nav if training else ())),
            name=base.settings.node.name,
            metrics=metrics,
        ),
        peer_app=make_peer_app(
            routes=[*HUB_ROUTES, *(training.peer_routes if training else ())],
            services={**between, **(training.services if training else {})},
            metrics=metrics,
        ),
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
        if hub.training is not None:
            await stack.enter_async_context(hub.training.running())
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


async def _training(base: Foundation) -> Training | None:
    if not base.settings.learning.enabled:
        return None
    from ops.training import build_runs  # brings NumPy and pydicom, which nothing else here needs

    return await build_runs(base)


def _duties(base: Foundation, members: Members, authority: Authority, witnessing: Witnessing) -> list[Job]:
    every = base.settings.intervals

    async def sessions() -> None:
        await base.sessions.sweep()

    return [
        Job("roster", min(every.roster_seconds, RENEW_SECONDS), authority.renew),
        Job("members", every.checkpoint_seconds, members.load),
        Job("checkpoint", every.checkpoint_seconds, witnessing.submit),
        Job("sessions", SESSION_SWEEP_SECONDS, sessions),
        Job("access-rows", SESSION_SWEEP_SECONDS, base.access_rows.run),
    ]
