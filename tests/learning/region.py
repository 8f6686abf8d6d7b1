"""A hub and some sites for tests of training: real Flower processes, real TLS, real records and logs.

Images come straight from the digits corpus; whatever is between vault and examples has tests of its own.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.x509.oid import NameOID

from consent.principals import Principal
from consent.signed import Signed
from consent.vocabulary import Role
from federation.doorway import PEER
from federation.roster import Member
from learning.bundle import bundle_digest
from learning.corpus import ATTRIBUTE, BODY_PART, CODES, MODALITY, REFERENCE, SCHEME
from learning.dataset import Examples, TooFewPatients
from learning.digits import digits_as_examples
from learning.door import FLEET_DOOR, MAX_MESSAGE_BYTES, FleetDoor
from learning.hublink import Offer
from learning.models import ModelStore
from learning.planbook import PlanBook
from learning.plans import Cohort, HoldOut, Image, Labels, Model, Schedule, Training, TrainingPlan
from learning.runs import Runs
from learning.service import fleet
from learning.site import TrainingSite
from learning.superlink import Superlink
from node.audit.log import Log
from node.clock import TrustedClock
from node.database import Database
from node.identity import Identity, client_context, server_context
from node.policies import Policies
from node.records import Records
from node.web.kit import body_limit, make_app
from node.web.listener import Listener, serve
from tests.support.databases import database_in

RESEARCHER = Principal("wang", Role.RESEARCHER, "Wang", "hub")
OFFICER = Principal("officer", Role.SECURITY_OFFICER, "Officer", "a")


def digits_plan(**changes: object) -> TrainingPlan:
    """A plan over the digits corpus: 6 rounds of 3 epochs, two sites at least."""
    plan = TrainingPlan(
        title="Digits",
        purpose="Tell ten classes apart.",
        researcher="person:wang@hub",
        model=Model(),
        labels=Labels(ATTRIBUTE, SCHEME, CODES),
        cohort=Cohort(MODALITY, BODY_PART),
        image=Image(8, 8),
        holdout=HoldOut(code=REFERENCE),
        training=Training(local_epochs=3, batch_size=16),
        schedule=Schedule(rounds=6, minimum_sites=2, round_seconds=60, deadline_seconds=300),
        baseline=True,
        app=bundle_digest(),
    )
    return replace(plan, **changes)  # type: ignore[arg-type]


class Digits:
    """`site.Gatherer` over one site's part of the corpus; `gathered` counts how often it was asked."""

    def __init__(self, site: int, sites: int, limit: int | None = None) -> None:
        self.examples = digits_as_examples(site, sites, limit=limit)
        self.gathered = 0

    async def gather(self, plan: Signed[TrainingPlan]) -> Examples:
        self.gathered += 1
        if len(self.examples) < plan.body.cohort.minimum_patients:
            raise TooFewPatients("Too few.")
        return self.examples


@dataclass
class Party:
    """What hub and sites have in common."""

    identity: Identity
    database: Database
    log: Log
    records: Records
    book: PlanBook
    clock: TrustedClock


@dataclass
class Hub(Party):
    """The hub with its runs and door."""

    runs: Runs
    door: FleetDoor
    listener: Listener


@dataclass
class Hospital(Party):
    """A site."""

    site: TrainingSite
    digits: Digits


class Wire:
    """`HubLink` over this test's process for records, and over real TLS for Flower's messages."""

    def __init__(
        self, hub: Hub, member: str, identity: Identity, keys: Mapping[str, Ed25519PublicKey]
    ) -> None:
        self._hub, self._member, self._keys = hub, member, keys
        pair = identity.leaf(["127.0.0.1"], hub.clock.now())
        self._context = client_context([hub.identity.authority_pem], pair)

    @property
    def hub_id(self) -> str:
        return "hub"

    def keys_of(self, issuer: str) -> tuple[Ed25519PublicKey, ...]:
        return (self._keys[issuer],) if issuer in self._keys else ()

    def target(self) -> tuple[str, ssl.SSLContext, str]:
        return f"https://127.0.0.1:{self._hub.listener.port}", self._context, "hub"

    async def offers(self) -> Offer:
        plans = tuple(plan.token for plan in await self._hub.book.plans())
        return Offer(plans, self._hub.runs.superlink.registered(self._member))

    async def decided(self, token: str) -> None:
        await self._hub.book.receive_decision(token, self._member, keys_of=self.keys_of)


async def party(node_id: str, folder: Path) -> Party:
    """Database, identity, log, records, book of one node."""
    clock = TrustedClock()

    async def secret(name: str) -> bytes:
        return os.urandom(32)

    identity = await Identity.load_or_create(secret, node_id, node_id)
    folder.mkdir(parents=True, exist_ok=True)
    database = database_in(folder / "node.db")
    log = Log(database, key=os.urandom(32), origin=identity.origin, signer=identity.log_signer, clock=clock)
    records = Records(database, key=os.urandom(32), log=log)
    book = PlanBook(
        node_id=node_id, key=identity.signing, database=database, records=records, log=log, clock=clock
    )
    return Party(identity, database, log, records, book, clock)


@asynccontextmanager
async def training_region(
    folder: Path, sites: int = 3, limit: int | None = 300
) -> AsyncIterator[tuple[Hub, list[Hospital]]]:
    """A hub and `sites` sites named a, b, c …, all running; everything ends with the block."""
    async with AsyncExitStack() as stack:
        names = [chr(ord("a") + number) for number in range(sites)]
        bare = {name: await party(name, folder / name) for name in ("hub", *names)}
        for one in bare.values():
            stack.push_async_callback(one.database.close)
        hub = await _hub(bare.pop("hub"), {name: one.identity for name, one in bare.items()}, folder, stack)
        keys = {name: one.identity.signing.public_key() for name, one in bare.items()}
        keys["hub"] = hub.identity.signing.public_key()
        hospitals = []
        for number, (name, one) in enumerate(bare.items()):
            digits = Digits(number, sites, limit)
            site = TrainingSite(
                node_id=name,
                book=one.book,
                cohorts=digits,
                link=Wire(hub, name, one.identity, keys),  # type: ignore[arg-type]
                learning_key=one.identity.learning_private,
                log=one.log,
                clock=one.clock,
                folder=folder / name / "learning",
                sync_seconds=0.3,
            )
            hospitals.append(Hospital(**vars(one), site=site, digits=digits))
        tasks = [asyncio.create_task(hub.runs.run())]
        tasks += [asyncio.create_task(hospital.site.run()) for hospital in hospitals]
        try:
            yield hub, hospitals
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _hub(bare: Party, members: Mapping[str, Identity], folder: Path, stack: AsyncExitStack) -> Hub:
    runs: Runs
    door = FleetDoor(holding=lambda: runs.busy)
    stack.push_async_callback(door.close)
    superlink = Superlink(
        folder=folder / "hub" / "learning",
        door=door,
        learning_keys=lambda: {name: one.learning_public for name, one in members.items()},
    )
    runs = Runs(
        node_id="hub",
        key=bare.identity.signing,
        book=bare.book,
        superlink=superlink,
        store=ModelStore(folder / "hub" / "models", os.urandom(32)),
        database=bare.database,
        records=bare.records,
        log=bare.log,
        clock=bare.clock,
        policies=Policies(),
        members=lambda: tuple(members),
    )
    calls = web.route("*", "/v1/{call:.*}", body_limit(MAX_MESSAGE_BYTES)(_as_member(members)))
    app = make_app(routes=[calls], services={FLEET_DOOR: door}, people=False)
    pair = bare.identity.leaf(["127.0.0.1"], bare.clock.now())
    context = server_context(pair, [one.authority_pem for one in members.values()])
    listener = await serve(app, "127.0.0.1", 0, context)
    stack.push_async_callback(listener.stop)
    return Hub(**vars(bare), runs=runs, door=door, listener=listener)


def _as_member(members: Mapping[str, Identity]) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """The hub's own route for Flower's calls, behind what the peer listener does with a roster: who is it by TLS?"""

    async def identified(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        shown = request.transport.get_extra_info("ssl_object").getpeercert(binary_form=True)
        subject = x509.load_der_x509_certificate(shown).subject
        name = str(subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
        one = members[name]
        request[PEER] = Member(
            name, name, "https://127.0.0.1", one.authority_pem, "", "", "", one.learning_public
        )
        return await fleet(request)

    return identified
