"""A region in one process: a hub and hospitals, each with all its real parts, over real sockets and mutual TLS.

`async with region(tmp_path) as r:` gives `r.hub`, `r.a`, `r.b`, `r.c`. Nothing runs by itself: a test calls the jobs it
wants (`await r.b.sweep()`) and moves `r.clock`. In front of each node is a `Wire` that can be cut.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import federation.schema  # noqa: F401  (its tables are made with the node's)
from consent.grants import Grant
from consent.policy import Parameters
from consent.principals import Principal
from consent.signed import Signed
from consent.vocabulary import Purpose, Right, Role
from federation.archive import Archive
from federation.asking import Asking
from federation.authority import Authority
from federation.channel import Channel
from federation.client import PeerClient
from federation.doorway import Doorway
from federation.fetching import Fetching
from federation.fields import base64_text
from federation.following import Following
from federation.grants import Grants
from federation.holdings import Holdings
from federation.incoming import Incoming
from federation.joining import read_invitation
from federation.keys import (
    AUTHORITY,
    DOORWAY,
    GRANTS,
    HOLDINGS,
    INCOMING,
    LEASES,
    MEMBERS,
    RELEASES,
    REPORTS,
    WITNESSING,
)
from federation.leased_keys import LeasedKeys
from federation.leases import Leases
from federation.members import Members
from federation.notices import Notices
from federation.protocol import Particulars
from federation.releases import Releases
from federation.reporting import Reporter, Reports
from federation.roster import Anchor, Member, own_entry
from federation.service import HUB_ROUTES, PEER_ROUTES, make_peer_app, peer_listener
from federation.witnessing import Witnessing
from node.audit.witness import Witness
from node.clock import TrustedClock
from node.consents import Consents, Terms
from node.web.kit import Listener
from tests.support.clock import FakeClock
from tests.support.dicom import Instance, study
from tests.support.node import NodeFixture, small_node
from tests.support.wire import Wire


@dataclass
class MemberNode:
    """What the hub and a hospital have in common."""

    node: NodeFixture
    wire: Wire
    members: Members
    channel: Channel
    client: PeerClient
    witnessing: Witnessing
    following: Following
    entry: Member
    listener: Listener = field(init=False)

    @property
    def id(self) -> str:
        return self.node.node_id

    @property
    def log(self):  # type: ignore[no-untyped-def]
        return self.node.log


@dataclass
class HubNode(MemberNode):
    authority: Authority
    reports: Reports


@dataclass
class Hospital(MemberNode):
    asking: Asking
    incoming: Incoming
    notices: Notices
    grants: Grants
    leases: Leases
    releases: Releases
    holdings: Holdings
    fetching: Fetching
    leased_keys: LeasedKeys
    reporter: Reporter
    consents: Consents

    async def sweep(self) -> None:
        """What the timed duties of a hospital do, once."""
        await self.asking.deliver()
        await self.notices.sweep()
        await self.fetching.fetch_waiting()
        await self.holdings.sweep()

    def pack(self, home: str, study_id: str) -> Path:
        """Where the held copy of a study lies."""
        return self.holdings.blobs(home).root / study_id[-2:] / f"{study_id}.pack"


@dataclass
class Sharing:
    """A study of A that A's clinician granted to B's."""

    study: str
    patient: str
    grant: Signed[Grant]
    owner: Principal
    asker: Principal
    instances: tuple[Instance, ...]
    consent: str


@dataclass
class Region:
    clock: FakeClock
    hub: HubNode
    hospitals: dict[str, Hospital]
    studies: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def a(self) -> Hospital:
        return self.hospitals["a-general"]

    @property
    def b(self) -> Hospital:
        return self.hospitals["b-central"]

    @property
    def c(self) -> Hospital:
        return self.hospitals["c-clinic"]

    async def refresh(self) -> None:
        """Every hospital takes the hub's latest roster."""
        for hospital in self.hospitals.values():
            await hospital.following.refresh()

    async def restore(self) -> None:
        """Make whole what a test broke, so that the next may use the same region."""
        for member in (self.hub, *self.hospitals.values()):
            member.wire.mend()
            member.wire.target = member.listener.port
        for hospital in self.hospitals.values():
            await self.hub.authority.reinstate(hospital.id, by="person:op@hub", reason="end of the test")
        self.clock.tick(minutes=2)
        await self.hub.authority.renew()
        await self.refresh()

    async def store(
        self, name: str = "", slices: int = 3, **more: object
    ) -> tuple[str, str, Principal, tuple[Instance, ...]]:
        """Store a study at A, of a patient of its own unless named; return its pseudonym, its patient's, who treats
        the patient, and the instances."""
        name = name or f"study-{next(self.studies)}"
        more.setdefault("patient_id", f"P-{name}")
        instances = study(name=name, slices=slices, **more)
        receipts = await self.a.node.store(*instances)
        row = await self.a.node.index.study(receipts[0].study)
        owner = await self.a.node.person(Role.CLINICIAN, treats=[row.patient])
        return row.study, row.patient, owner, instances

    async def consent(self, owner: Principal, patient: str, *, days: float = 365) -> str:
        """Record at A that the patient agrees to sharing for treatment; return the record's id."""
        terms = Terms(
            purposes=frozenset({Purpose.TREATMENT}),
            rights=frozenset(Right),
            end=self.clock.now() + timedelta(days=days),
            basis="signed form",
        )
        return (await self.a.consents.record(owner, patient, terms)).id

    async def ask(
        self, instances: tuple[Instance, ...], asker: Principal | None = None, **more: object
    ) -> tuple[str, Principal]:
        """B's clinician asks A for the study; returns the request's id and who asked."""
        asker = asker or await self.b.node.person(Role.CLINICIAN)
        uid = str(instances[0].dataset().StudyInstanceUID)
        particulars = Particulars(asker.name, "second opinion", study_instance_uid=uid)
        asked = await self.b.asking.ask(asker, home="a-general", particulars=particulars, **more)  # type: ignore[arg-type]
        return asked.id, asker

    async def share(
        self,
        *,
        name: str = "",
        slices: int = 3,
        lasts: timedelta | None = None,
        rights: frozenset[Right] = frozenset({Right.VIEW}),
        fetch: bool = True,
        **more: object,
    ) -> Sharing:
        """The whole walk: store at A, consent, ask from B, grant at A, fetch to B."""
        study_id, patient, owner, instances = await self.store(name, slices, **more)
        consent = await self.consent(owner, patient)
        request, asker = await self.ask(instances, rights=rights)
        grant = await self.a.grants.issue(owner, request, lasts=lasts)
        if fetch:
            await self.b.fetching.fetch(grant.id)
        return Sharing(study_id, patient, grant, owner, asker, instances, consent)


@asynccontextmanager
async def region(
    path: Path,
    *,
    nodes: tuple[str, ...] = ("a-general", "b-central", "c-clinic"),
    lease_seconds: float = 900.0,
) -> AsyncIterator[Region]:
    """Found a region, join every hospital by invitation, start every peer listener."""
    clock = FakeClock()
    async with AsyncExitStack() as stack:
        hub = await _hub(stack, path / "hub", clock)
        hospitals: dict[str, Hospital] = {}
        for name in nodes:
            hospital = await _hospital(
                stack, path / name, name, clock, Parameters(lease_seconds=lease_seconds)
            )
            invitation = read_invitation((await hub.authority.invite(hub.entry)).token, clock.now())
            assert await hospital.following.join(invitation, hospital.entry)
            hospitals[name] = hospital
        built = Region(clock, hub, hospitals)
        await built.refresh()
        yield built


async def _hub(stack: AsyncExitStack, path: Path, clock: FakeClock) -> HubNode:
    node, wire, members, channel, client = await _base(stack, path, "hub", clock, None)
    key = Ed25519PrivateKey.generate()
    anchor = Anchor("north", (base64_text(key.public_key().public_bytes_raw()),), 1)
    authority = Authority(
        database=node.database, log=node.log, clock=clock, members=members, anchor=anchor, signers=[key]
    )
    port = await wire.start()
    entry = own_entry(node.identity.public(), f"https://127.0.0.1:{port}", roles=("hub",))
    await authority.found(entry)
    witnessing = _witnessing(node, members, client)
    reports = Reports(database=node.database, clock=clock, members=members)
    following = Following(identity=node.identity, members=members, client=client, clock=clock)
    hub = HubNode(node, wire, members, channel, client, witnessing, following, entry, authority, reports)
    services = {
        DOORWAY: Doorway(members=members, log=node.log, clock=clock),
        MEMBERS: members,
        AUTHORITY: authority,
        WITNESSING: witnessing,
        REPORTS: reports,
    }
    await _listen(stack, hub, make_peer_app(routes=HUB_ROUTES, services=services))
    return hub


async def _hospital(
    stack: AsyncExitStack, path: Path, name: str, clock: FakeClock, parameters: Parameters
) -> Hospital:
    node, wire, members, channel, client = await _base(stack, path, name, clock, parameters)
    port = await wire.start()
    entry = own_entry(node.identity.public(), f"https://127.0.0.1:{port}")
    common = {
        "database": node.database,
        "log": node.log,
        "clock": clock,
        "identity": node.identity,
        "members": members,
    }
    archive = Archive(
        index=node.index, pseudonyms=node.index.pseudonyms, care=node.care, clock=clock, packs=node.gateway
    )
    asking = Asking(**common, client=client, policies=node.policies)
    incoming = Incoming(**common, archive=archive, policies=node.policies)
    notices = Notices(**common, client=client, records=node.records)
    grants = Grants(
        **common,
        archive=archive,
        records=node.records,
        incoming=incoming,
        notices=notices,
        policies=node.policies,
    )
    leases = Leases(**common, archive=archive, records=node.records, grants=grants, policies=node.policies)
    releases = Releases(
        log=node.log, clock=clock, identity=node.identity, archive=archive, records=node.records,
        grants=grants, policies=node.policies,
    )  # fmt: skip
    holdings = Holdings(root=path / "held", **common, client=client, records=node.records, asking=asking)
    fetching = Fetching(log=node.log, clock=clock, members=members, client=client, holdings=holdings)
    leased = LeasedKeys(
        clock=clock, identity=node.identity, members=members, client=client, holdings=holdings
    )
    node.gateway.hold(holdings, leased)
    witnessing = _witnessing(node, members, client)
    consents = Consents(node.database, node.records, node.log, node.policies, node.care, node.identity, clock)
    following = Following(identity=node.identity, members=members, client=client, clock=clock)
    reporter = Reporter(**common, client=client)
    hospital = Hospital(
        node, wire, members, channel, client, witnessing, following, entry, asking, incoming, notices,
        grants, leases, releases, holdings, fetching, leased, reporter, consents,
    )  # fmt: skip
    services = {
        DOORWAY: Doorway(members=members, log=node.log, clock=clock),
        MEMBERS: members,
        INCOMING: incoming,
        GRANTS: grants,
        HOLDINGS: holdings,
        LEASES: leases,
        RELEASES: releases,
        WITNESSING: witnessing,
    }
    await _listen(stack, hospital, make_peer_app(routes=PEER_ROUTES, services=services))
    return hospital


async def _base(
    stack: AsyncExitStack, path: Path, name: str, clock: FakeClock, parameters: Parameters | None
) -> tuple[NodeFixture, Wire, Members, Channel, PeerClient]:
    path.mkdir(parents=True)
    node = await stack.enter_async_context(small_node(path, node_id=name, clock=clock, parameters=parameters))
    own_key = node.identity.signing.public_key()
    members = Members(database=node.database, log=node.log, clock=clock, node_id=name, own_key=own_key)
    await members.load()
    # Certificates are checked by OpenSSL against the machine's own clock.
    channel = Channel(identity=node.identity, members=members, hosts=["127.0.0.1"], clock=TrustedClock())
    client = PeerClient(members=members, channel=channel, log=node.log)
    stack.push_async_callback(client.close)
    wire = Wire()
    return node, wire, members, channel, client


def _witnessing(node: NodeFixture, members: Members, client: PeerClient) -> Witnessing:
    witness = Witness(node.database, signer=node.identity.cosigner, clock=node.clock)
    return Witnessing(log=node.log, witness=witness, members=members, client=client)


async def _listen(stack: AsyncExitStack, member: MemberNode, app) -> None:  # type: ignore[no-untyped-def]
    member.listener = await stack.enter_async_context(
        peer_listener(app, "127.0.0.1", 0, channel=member.channel)
    )
    member.wire.target = member.listener.port
    stack.push_async_callback(member.wire.stop)


def nonce() -> str:
    return secrets.token_hex(32)
