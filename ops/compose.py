"""The composition root: builds a hospital's node bottom-up with plain calls, and runs it.

Nothing else constructs a service. `build_node` makes the parts, `running` starts listeners and duties in order and
stops them in the opposite one. `ops.hub` composes the hub from the same parts.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiohttp import web
from prometheus_client import CollectorRegistry

from federation import api as federation_api
from federation import keys as peers
from federation.archive import Archive
from federation.asking import Asking
from federation.channel import Channel
from federation.client import PeerClient
from federation.doorway import Doorway
from federation.fetching import Fetching
from federation.following import Following
from federation.grants import Grants
from federation.holdings import Holdings
from federation.incoming import Incoming
from federation.leased_keys import LeasedKeys
from federation.leases import Leases
from federation.members import Members
from federation.notices import Notices
from federation.regraded import Regraded
from federation.releases import Releases
from federation.reporting import Reporter
from federation.roster import HOSPITAL
from federation.service import PEER_ROUTES, make_peer_app, peer_listener
from federation.witnessing import Witnessing
from node.access.certificates import read_certificate
from node.access.resets import Resets
from node.audit.witness import Witness
from node.consents import Consents
from node.dicom import dicomweb
from node.dicom.gate import Gate
from node.dicom.listener import Listener as DicomListener
from node.dicom.watch import DeviceWatch
from node.gateway import Gateway
from node.imaging.rendering import Renderer
from node.index import Index
from node.ingest import Ingest
from node.jobs import Job, Jobs
from node.regrading import Regrading
from node.replication import StorageMetrics
from node.vault.blobs import FileBlobs
from node.vault.replicas import Replicas
from node.vault.vault import Vault
from node.web import api as node_api
from node.web import keys as people
from node.web.kit import Box, Listener, make_app
from node.web.metrics import HttpMetrics
from node.web.openings import Openings
from ops import health, oversight, storage
from ops.checks import Checks
from ops.dicom_door import COMMITMENT_SECONDS, build_commitment, build_devices, build_gate
from ops.doors import LOOPBACK_NAMES, Doors
from ops.findings import Findings
from ops.foundation import Foundation
from ops.region import build_channel
from ops.sightings import Overseer
from ops.storage import Upkeep, build_blobs, build_upkeep

if TYPE_CHECKING:
    from federation.discovery import Discovery
    from ops.training import Training

SESSION_SWEEP_SECONDS = 60.0
OPENING_SWEEP_SECONDS = 5.0
KEY_SECONDS = 3600.0
UNLOCKED_SECONDS = 30.0
"""How soon studies are indexed that a crash left behind and whose keys were locked at the start."""
REGRADING_SECONDS = 60.0
FINDING_SECONDS = 2.0
"""How soon what the log says becomes a finding."""
CHECK_SECONDS = 60.0
VERIFY_SECONDS = 24 * 3600.0
NOTICE_SECONDS = 2.0
"""How soon a holder hears that a grant has ended, when it can be reached."""
DEVICE_REFRESH_SECONDS = 2.0


@dataclass(frozen=True)
class LocalArchive:
    """Vault, index and the one way in: what `accord import` needs of a node."""

    blobs: FileBlobs | Replicas
    vault: Vault
    index: Index
    ingest: Ingest
    regrading: Regrading
    upkeep: Upkeep

    @asynccontextmanager
    async def running(self) -> AsyncIterator[LocalArchive]:
        """Recover what a crash left unindexed, then take instances until the block ends."""
        await self.index.load()
        await self.upkeep.replication.tell()
        await self.upkeep.compaction.recover()
        await self.regrading.recover()
        await self.ingest.recover()
        try:
            async with self.ingest:
                yield self
        finally:
            await self.close()

    async def close(self) -> None:
        """End what runs in threads, and close every file."""
        await self.upkeep.close()
        self.index.close()
        await self.vault.close()
        if isinstance(self.blobs, Replicas):
            await asyncio.to_thread(self.blobs.close)


@dataclass(frozen=True)
class Exchange:
    """What a node does with other members."""

    members: Members
    channel: Channel
    client: PeerClient
    doorway: Doorway
    following: Following
    asking: Asking
    incoming: Incoming
    grants: Grants
    notices: Notices
    releases: Releases
    leases: Leases
    holdings: Holdings
    fetching: Fetching
    leased_keys: LeasedKeys
    witnessing: Witnessing
    reporter: Reporter
    discovery: Discovery | None

    def services(self) -> dict[web.AppKey[Any], Any]:
        """For the applications, under their keys."""
        return {
            peers.MEMBERS: self.members,
            peers.DOORWAY: self.doorway,
            peers.ASKING: self.asking,
            peers.INCOMING: self.incoming,
            peers.GRANTS: self.grants,
            peers.NOTICES: self.notices,
            peers.RELEASES: self.releases,
            peers.LEASES: self.leases,
            peers.HOLDINGS: self.holdings,
            peers.FETCHING: self.fetching,
            peers.WITNESSING: self.witnessing,
        }


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


async def build_archive(foundation: Foundation) -> LocalArchive:
    """Build vault, index and ingest."""
    base = foundation
    blobs = await build_blobs(base)
    vault = Vault(blobs, base.keys, base.clock)
    index = Index(base.database, await base.keys.secret("index"))
    ingest = Ingest(
        node_id=base.identity.node_id,
        policies=base.policies,
        vault=vault,
        index=index,
        log=base.log,
        database=base.database,
        clock=base.clock,
    )
    regrading = Regrading(
        vault=vault,
        blobs=blobs,
        keys=base.keys,
        index=index,
        ingest=ingest,
        log=base.log,
        database=base.database,
        clock=base.clock,
    )
    upkeep = build_upkeep(base, blobs, vault, index, ingest)
    return LocalArchive(blobs, vault, index, ingest, regrading, upkeep)


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
    jobs = Jobs(_duties(base, gateway, exchange, doors, watch), base.clock)
    archive.upkeep.compaction.leave_alone(exchange.grants.covers)
    registry.register(StorageMetrics(archive.upkeep.replication))
    for duty in (*_after_trouble(archive), *storage.duties(archive.upkeep)):
        jobs.add(duty)
    jobs.add(Job("commitments", COMMITMENT_SECONDS, commitment.deliver))
    for duty in _oversight(base, findings, jobs, registry):
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


def build_exchange(base: Foundation, index: Index, gateway: Gateway) -> Exchange:
    """Build what a node does with other members."""
    database, log, clock, identity, records = base.database, base.log, base.clock, base.identity, base.records
    members = base.members
    channel = build_channel(base)
    discovery = _discovery(base)
    client = PeerClient(
        members=members,
        channel=channel,
        log=log,
        **({"hints": discovery.addresses} if discovery else {}),
    )
    archive = Archive(index=index, pseudonyms=index.pseudonyms, care=base.care, clock=clock, packs=gateway)
    asking = Asking(
        database=database,
        log=log,
        clock=clock,
        identity=identity,
        members=members,
        client=client,
        policies=base.policies,
    )
    incoming = Incoming(
        database=database,
        log=log,
        clock=clock,
        identity=identity,
        members=members,
        archive=archive,
        policies=base.policies,
    )
    notices = Notices(
        database=database,
        log=log,
        clock=clock,
        identity=identity,
        members=members,
        client=client,
        records=records,
    )
    grants = Grants(
        database=database,
        log=log,
        clock=clock,
        identity=identity,
        members=members,
        archive=archive,
        records=records,
        incoming=incoming,
        notices=notices,
        policies=base.policies,
    )
    holdings = Holdings(
        root=base.settings.folder / "held",
        database=database,
        log=log,
        clock=clock,
        identity=identity,
        members=members,
        client=client,
        records=records,
        asking=asking,
    )
    return Exchange(
        members=members,
        channel=channel,
        client=client,
        doorway=Doorway(members=members, log=log, clock=clock),
        following=Following(identity=identity, members=members, client=client, clock=clock),
        asking=asking,
        incoming=incoming,
        grants=grants,
        notices=notices,
        releases=Releases(
            log=log,
            clock=clock,
            identity=identity,
            archive=archive,
            records=records,
            grants=grants,
            policies=base.policies,
        ),
        leases=Leases(
            database=database,
            log=log,
            clock=clock,
            identity=identity,
            members=members,
            archive=archive,
            records=records,
            grants=grants,
            policies=base.policies,
        ),
        holdings=holdings,
        fetching=Fetching(log=log, clock=clock, members=members, client=client, holdings=holdings),
        leased_keys=LeasedKeys(
            clock=clock, identity=identity, members=members, client=client, holdings=holdings
        ),
        witnessing=build_witnessing(base, members, client),
        reporter=Reporter(
            database=database, log=log, clock=clock, identity=identity, members=members, client=client
        ),
        discovery=discovery,
    )


def build_witnessing(base: Foundation, members: Members, client: PeerClient) -> Witnessing:
    """Cosigning others' checkpoints, and having our own cosigned."""
    return Witnessing(
        log=base.log,
        witness=Witness(base.database, signer=base.identity.cosigner, clock=base.clock),
        members=members,
        client=client,
        raise_floor=base.clock.raise_floor,
    )


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
        # Pictures are asked for later than instances come: their processes start when the doors are open.
        warming = asyncio.create_task(node.renderer.warm())
        stack.callback(warming.cancel)
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


def _duties(
    base: Foundation, gateway: Gateway, exchange: Exchange, doors: Doors, watch: DeviceWatch
) -> list[Job]:
    every = base.settings.intervals

    async def keys() -> None:
        await base.rotation.run()

    regraded = Regraded(database=base.database, log=base.log, records=base.records, notices=exchange.notices)

    async def proposals() -> None:
        await base.approvals.close_expired()

    async def sessions() -> None:
        await base.sessions.sweep()

    member = exchange.members
    return [
        Job("roster", every.roster_seconds, _when_member(member, exchange.following.refresh)),
        Job("checkpoint", every.checkpoint_seconds, _when_member(member, exchange.witnessing.submit)),
        Job("holdings", every.sweep_seconds, _when_member(member, exchange.holdings.sweep)),
        Job("asking", every.sweep_seconds, _when_member(member, exchange.asking.deliver)),
        Job("fetching", every.sweep_seconds, _when_member(member, exchange.fetching.fetch_waiting)),
        Job("notices", NOTICE_SECONDS, _when_member(member, exchange.notices.sweep)),
        Job("regraded", NOTICE_SECONDS, _when_member(member, regraded.follow)),
        Job("report", every.report_seconds, _when_member(member, exchange.reporter.send)),
        Job("openings", OPENING_SWEEP_SECONDS, gateway.sweep),
        Job("sessions", SESSION_SWEEP_SECONDS, sessions),
        Job("access-rows", SESSION_SWEEP_SECONDS, base.access_rows.run),
        Job("proposals", SESSION_SWEEP_SECONDS, proposals),
        Job("devices", DEVICE_REFRESH_SECONDS, doors.refresh),
        Job("watch", DEVICE_REFRESH_SECONDS, watch.look),
        Job("keys", KEY_SECONDS, keys, delay_seconds=KEY_SECONDS / 60),
    ]


def _oversight(base: Foundation, findings: Findings, jobs: Jobs, registry: CollectorRegistry) -> list[Job]:
    """The duties that find what needs a person."""
    overseer = Overseer(base.database, base.log, base.registry, findings)
    checks = Checks.of(base.settings, findings, base.registry, base.log, base.clock, jobs.status)
    gauge = oversight.FindingMetrics(registry)

    async def follow() -> None:
        await overseer.follow()
        gauge.show(await findings.counts())

    return [
        Job("findings", FINDING_SECONDS, follow),
        Job("checks", CHECK_SECONDS, checks.look, delay_seconds=FINDING_SECONDS),
        Job("verify", VERIFY_SECONDS, checks.verify_log, delay_seconds=VERIFY_SECONDS / 24),
    ]


def _after_trouble(archive: LocalArchive) -> list[Job]:
    """What could not be done at the start: keys were locked, or the database could not be written."""

    async def unlocked() -> None:
        await archive.ingest.recover_unlocked()

    async def regrading() -> None:
        await archive.regrading.recover()

    return [
        Job("unlocked", UNLOCKED_SECONDS, unlocked, delay_seconds=UNLOCKED_SECONDS),
        Job("regrading", REGRADING_SECONDS, regrading, delay_seconds=REGRADING_SECONDS),
    ]


def _when_member(members: Members, duty: Any) -> Any:
    """A duty among members, left out while this node has joined no region."""

    async def run() -> None:
        await members.load()
        if members.anchor is not None:
            await duty()

    return run


async def _training(
    base: Foundation, exchange: Exchange, gateway: Gateway, renderer: Renderer
) -> Training | None:
    if not base.settings.learning.enabled:
        return None
    from ops.training import build_site  # brings NumPy and pydicom, which nothing else here needs

    return await build_site(base, exchange.channel, exchange.client, gateway, renderer)


def _discovery(base: Foundation) -> Discovery | None:
    settings = base.settings
    if not settings.discovery.enabled:
        return None
    from federation.discovery import Discovery

    _, fingerprint = read_certificate(base.identity.authority_pem)
    return Discovery(interface=settings.discovery.interface, fingerprint=fingerprint, port=settings.peer.port)
