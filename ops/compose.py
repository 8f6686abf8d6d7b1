"""The composition root: builds a hospital's node bottom-up with plain calls, and runs it.

Nothing else constructs a service: `foundation`, `storage`, `dicom_door`, `exchange` and `duties` beside it are its pieces.
`build_node` makes the parts, `running` starts listeners and duties in order and stops them in the opposite one. `ops.hub`
composes the hub from the same parts.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiohttp import web
from prometheus_client import CollectorRegistry

from federation import api as federation_api
from federation.roster import HOSPITAL
from federation.service import PEER_ROUTES, make_peer_app, peer_listener
from node.access.resets import Resets
from node.consents import Consents
from node.dicom import dicomweb
from node.dicom.gate import Gate
from node.dicom.listener import Listener as DicomListener
from node.dicom.watch import DeviceWatch
from node.gateway import Gateway
from node.imaging.rendering import Renderer
from node.jobs import Job, Jobs
from node.replication import StorageMetrics
from node.web import api as node_api
from node.web import keys as people
from node.web.kit import Box, Listener, make_app
from node.web.metrics import HttpMetrics
from node.web.openings import Openings
from ops import health, oversight, storage
from ops.dicom_door import COMMITMENT_SECONDS, build_commitment, build_devices, build_gate
from ops.doors import LOOPBACK_NAMES, Doors
from ops.duties import node_duties, oversight_duties
from ops.exchange import Exchange, build_exchange
from ops.findings import Findings
from ops.foundation import Foundation
from ops.storage import LocalArchive, build_archive

if TYPE_CHECKING:
    from ops.training import Training


@dataclass(frozen=True)
class Node:
    """One hospital's node, built and not yet running."""

    foundation: Foundation
    archive: LocalArchive
    renderer: Renderer
    gateway: Gateway
    exchange: Exchange
    training: Training | None
    gate: Gate
    watch: DeviceWatch
    doors: Doors
    jobs: Jobs
    people_app: web.Application
    peer_app: web.Application
    health_app: web.Application
    metrics: HttpMetrics


async def build_node(foundation: Foundation) -> Node:
    """Build every part of a hospital's node, bottom-up."""
    base = foundation
    archive = await build_archive(base)
    renderer = Renderer()
    gateway = Gateway(
        identity=base.identity,
        policies=base.policies,
        blobs=archive.blobs,
        keys=base.keys,
        index=archive.index,
        log=base.log,
        care=base.care,
        records=base.records,
        renderer=renderer,
        descriptions=archive.ingest.descriptions,
        clock=base.clock,
    )
    exchange = build_exchange(base, archive.index, gateway)
    gateway.hold(exchange.holdings, exchange.leased_keys)
    training = await _training(base, exchange, gateway, renderer)
    registry = CollectorRegistry()
    metrics = HttpMetrics(registry)
    doors = Doors(
        identity=base.identity,
        registry=base.registry,
        clock=base.clock,
        names=(*base.settings.http.names, *LOOPBACK_NAMES),
    )
    callable_devices = build_devices(base, doors)
    commitment = await build_commitment(base, archive.ingest, gateway, callable_devices)
    gate = build_gate(
        base,
        ingest=archive.ingest,
        index=archive.index,
        gateway=gateway,
        renderer=renderer,
        devices=callable_devices,
        commitment=commitment,
        registry=registry,
    )
    watch = DeviceWatch(
        database=base.database, log=base.log, clock=base.clock, registry=base.registry, gate=gate
    )
    findings = Findings(base.database, base.log, base.clock)
    jobs = Jobs(node_duties(base, gateway, exchange, doors, watch), base.clock)
    archive.upkeep.compaction.leave_alone(exchange.grants.covers)
    registry.register(StorageMetrics(archive.upkeep.replication))
    for duty in storage.duties(archive):
        jobs.add(duty)
    jobs.add(Job("commitments", COMMITMENT_SECONDS, commitment.deliver))
    for duty in oversight_duties(base, findings, jobs, registry):
        jobs.add(duty)
    exchange.doorway.hold(lambda: jobs.wake("roster"))
    services = {
        **people_services(base),
        people.GATEWAY: gateway,
        people.RENDERER: renderer,
        people.INGEST: archive.ingest,
        people.INDEX: archive.index,
        people.REGRADING: archive.regrading,
        people.REPLICATION: archive.upkeep.replication,
        people.SCRUBBING: archive.upkeep.scrubbing,
        people.KEY_DUTY: lambda: jobs.wake("keys"),
        people.PSEUDONYMS: archive.index.pseudonyms,
        people.DEVICE_WATCH: watch,
        oversight.FINDINGS: findings,
        people.CONSENTS: Consents(
            base.database, base.records, base.log, base.policies, base.care, base.identity, base.clock
        ),
        people.MEMBERS: lambda: {
            member.id: member.name for member in exchange.members.others() if HOSPITAL in member.roles
        },
        **exchange.services(),
        **(training.services if training else {}),
    }
    return Node(
        foundation=base,
        archive=archive,
        renderer=renderer,
        gateway=gateway,
        exchange=exchange,
        training=training,
        gate=gate,
        watch=watch,
        doors=doors,
        jobs=jobs,
        people_app=make_app(
            routes=[
                *node_api.ROUTES,
                *dicomweb.ROUTES,
                *federation_api.ROUTES,
                *oversight.ROUTES,
                *(training.routes if training else ()),
            ],
            services=services,
            nav=(*node_api.NAV, *oversight.NAV, *federation_api.NAV, *(training.nav if training else ())),
            boxes=_boxes(oversight.BOXES, federation_api.BOXES),
            name=base.settings.node.name,
            metrics=metrics,
        ),
        peer_app=make_peer_app(routes=PEER_ROUTES, services=exchange.services(), metrics=metrics),
        health_app=build_health(base, jobs, registry, archive.upkeep.replication.closed),
        metrics=metrics,
    )


def _boxes(*floors: Mapping[str, tuple[Box, ...]]) -> dict[str, tuple[Box, ...]]:
    """What several floors add to the pages of others, the first given first."""
    slots = dict.fromkeys(slot for boxes in floors for slot in boxes)
    return {slot: tuple(box for boxes in floors for box in boxes.get(slot, ())) for slot in slots}


def people_services(base: Foundation) -> dict[web.AppKey[Any], Any]:
    """What the people's application of a node and of the hub both have."""
    return {
        people.LOG: base.log,
        people.REGISTRY: base.registry,
        people.SESSIONS: base.sessions,
        people.CARE: base.care,
        people.RECORDS: base.records,
        people.APPROVALS: base.approvals,
        people.RESETS: Resets(base.database, base.registry, base.approvals, base.log),
        people.POLICIES: base.policies,
        people.CLOCK: base.clock,
        people.IDENTITY: base.identity,
        people.SETTINGS: base.settings,
        people.DATABASE: base.database,
        people.OPENINGS: Openings(),
        people.KEYS: base.keys,
        people.ROTATION: base.rotation,
        people.GRADE_LOCKS: base.grade_locks,
    }


def build_health(
    base: Foundation, jobs: Jobs, registry: CollectorRegistry, closed: Callable[[], str] = str
) -> web.Application:
    """The application of the metrics listener. `closed()` says why no images can be taken in."""
    looked_at = health.Health(base.database, base.clock, jobs, base.settings.folder, registry, closed)
    return make_app(routes=health.ROUTES, services={health.HEALTH: looked_at}, people=False)


@asynccontextmanager
async def running(node: Node) -> AsyncIterator[Mapping[str, str]]:
    """Start everything in order; yield the addresses; stop in the opposite order."""
    base, exchange, settings = node.foundation, node.exchange, node.foundation.settings
    addresses: dict[str, str] = {}
    async with AsyncExitStack() as stack:
        await base.access_rows.sweep(max_rows=0)  # before anybody can sign in
        await exchange.members.load()
        await stack.enter_async_context(node.archive.running())
        stack.push_async_callback(node.renderer.close)
        stack.push_async_callback(node.gateway.close)
        stack.push_async_callback(exchange.client.close)
        if exchange.discovery is not None:
            await stack.enter_async_context(exchange.discovery)
        if node.training is not None:
            await stack.enter_async_context(node.training.running())
        if settings.peer.port:
            door = peer_listener(
                node.peer_app,
                settings.peer.host,
                settings.peer.port,
                channel=exchange.channel,
                metrics=node.metrics,
            )
            await stack.enter_async_context(door)
            addresses["peers"] = f"https://{settings.peer.host}:{door.port}"
        stack.push_async_callback(node.watch.close)
        await stack.enter_async_context(node.jobs.running())
        await _open_dicom(node, stack, addresses)
        if settings.http.port:
            portal = Listener(
                node.people_app,
                settings.http.host,
                settings.http.port,
                node.doors.people,
                metrics=node.metrics,
            )
            await stack.enter_async_context(portal)
            addresses["portal"] = f"https://{settings.http.host}:{portal.port}"
        if settings.metrics.port:
            watched = Listener(node.health_app, settings.metrics.host, settings.metrics.port)
            await stack.enter_async_context(watched)
            addresses["metrics"] = f"http://{settings.metrics.host}:{watched.port}"
        addresses["node"] = base.identity.node_id
        yield addresses


async def _open_dicom(node: Node, stack: AsyncExitStack, addresses: dict[str, str]) -> None:
    settings, log = node.foundation.settings.dicom, node.foundation.log
    if settings.port:
        tls = await node.doors.dicom()
        secure = DicomListener(node.gate, log, settings.host, settings.port, tls=tls)
        await stack.enter_async_context(secure)
        addresses["dicom-tls"] = f"{settings.host}:{secure.port}"
        discovery = node.foundation.settings.discovery
        if discovery.enabled:
            from node.edge.announcement import announcing  # pays for zeroconf only where it is used

            authority = node.foundation.identity.authority_pem
            announced = announcing(interface=discovery.interface, authority=authority, port=secure.port)
            await stack.enter_async_context(announced)
    if settings.plain_port:
        plain = DicomListener(node.gate, log, settings.host, settings.plain_port)
        await stack.enter_async_context(plain)
        addresses["dicom"] = f"{settings.host}:{plain.port}"


async def _training(
    base: Foundation, exchange: Exchange, gateway: Gateway, renderer: Renderer
) -> Training | None:
    if not base.settings.learning.enabled:
        return None
    from ops.training import build_site  # brings NumPy and pydicom, which nothing else here needs

    return await build_site(base, exchange.channel, exchange.client, gateway, renderer)
