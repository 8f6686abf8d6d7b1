"""A whole small node in a folder, for tests: the real parts put together as a node does, no network.

`async with small_node(tmp_path) as node:` starts it; `async with small_node(tmp_path)` again in the same folder is a
restart. Time stands still until a test moves `node.clock`.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import node.schema  # noqa: F401  (its tables are made)
from consent.decision import compile_policy
from consent.policy import Parameters
from consent.principals import Principal
from consent.vocabulary import EventKind, Grade, Role
from node.access.care import Care
from node.access.passwords import Passwords
from node.access.registry import Registry
from node.audit.log import Entry, Log
from node.compaction import Compaction
from node.database import Database
from node.gateway import Gateway
from node.identity import Identity
from node.imaging.rendering import Renderer
from node.index import Index
from node.ingest import Arrival, Ingest, Receipt, Source
from node.policies import Policies
from node.records import Records
from node.vault.blobs import FileBlobs
from node.vault.custody.keystore import Keystore
from node.vault.keks import GuardedCustody
from node.vault.keys import KeyRing
from node.vault.quorum import Quorum
from node.vault.replicas import Replicas
from node.vault.roots import DatabaseLedger
from node.vault.vault import Vault
from tests.support.clock import FakeClock
from tests.support.custodies import QUICK
from tests.support.databases import database_in
from tests.support.dicom import Instance

CREDENTIAL = b"a test's own credential"
PASSWORD = "correct horse battery staple"
DEVICE = "CT1"
_unique = itertools.count()
_compiled = cache(compile_policy)
"""Checking the shipped rules takes half as long as all else that a small node does at its start."""


@dataclass
class NodeFixture:
    """The parts of a running node, by name."""

    path: Path
    node_id: str
    clock: FakeClock
    database: Database
    keys: KeyRing
    blobs: FileBlobs
    vault: Vault
    identity: Identity
    log: Log
    records: Records
    policies: Policies
    registry: Registry
    care: Care
    index: Index
    ingest: Ingest
    renderer: Renderer
    gateway: Gateway
    replicas: Replicas | None
    """The store over several roots; `blobs` is the first of them then."""
    compaction: Compaction

    @property
    def device(self) -> Principal:
        """A registered device, as the device gate would let it in."""
        return Principal(
            DEVICE, Role.DEVICE, "CT scanner", self.node_id, attributes=frozenset({"store", "commit"})
        )

    @property
    def source(self) -> Source:
        """Where `store` says that instances come from."""
        return Source(self.device, "dimse", "10.0.0.5")

    async def store(self, *instances: Instance) -> list[Receipt]:
        """Send instances as the device does, and wait until they are in the index."""
        receipts = [await self.ingest.receive(arrival(one), self.source) for one in instances]
        await self.ingest.flushed()
        return receipts

    async def person(
        self,
        role: Role = Role.CLINICIAN,
        login: str | None = None,
        *,
        treats: Iterable[str] = (),
        department: str | None = None,
    ) -> Principal:
        """Make an account, and the treatment relationships to these patients (pseudonyms)."""
        login = login or f"{role.value.split('-', maxsplit=1)[0]}{next(_unique)}"
        await self.registry.add_person(login, login.title(), role, department)
        for patient in treats:
            await self.care.record(login, patient)
        return await self.registry.principal(login)

    async def events(self, kind: EventKind | None = None) -> list[Entry]:
        """Log entries, oldest first."""
        return list(reversed(await self.log.search(kind=kind, limit=1000)))


def arrival(instance: Instance) -> Arrival:
    """An instance as it comes off the wire."""
    return Arrival(
        instance.sop_class_uid,
        instance.sop_instance_uid,
        instance.transfer_syntax_uid,
        instance.data,
        instance.sha256,
    )


@asynccontextmanager
async def small_node(
    path: Path,
    *,
    node_id: str = "a-general",
    clock: FakeClock | None = None,
    parameters: Parameters | None = None,
    guarded: Mapping[Grade, GuardedCustody] | None = None,
    roots: int = 1,
) -> AsyncIterator[NodeFixture]:
    """Build, recover and run a node in `path`, or start again the one that is there; with `roots` copies."""
    clock = clock or FakeClock()
    database = database_in(path / "node.db")
    keystore = path / "keystore.json"
    custody = (
        Keystore.open(keystore, CREDENTIAL)
        if keystore.exists()
        else Keystore.create(keystore, CREDENTIAL, effort=QUICK)
    )
    keys = KeyRing(custody, database, clock, guarded=guarded)
    identity = await Identity.load_or_create(keys.secret, node_id, "General Hospital")
    log = Log(
        database,
        key=await keys.secret("audit"),
        origin=identity.origin,
        signer=identity.log_signer,
        clock=clock,
    )
    key = await keys.secret("registry")
    records = Records(database, key=key, log=log)
    policies = Policies(parameters=parameters)
    policies._compiled = _compiled(policies.policy)
    passwords = Passwords(passes=1, memory_bytes=8192)
    registry = Registry(database, log, clock, key=key, node=node_id, ae_title="ACCORD", passwords=passwords)
    care = Care(database, log, clock, key=key)
    blobs = FileBlobs(path / "studies")
    replicas = await _replicas(path, roots, node_id, clock, database) if roots > 1 else None
    store = replicas or blobs
    vault = Vault(store, keys, clock)
    index = Index(database, await keys.secret("index"))
    await index.load()
    ingest = Ingest(
        node_id=node_id,
        policies=policies,
        vault=vault,
        index=index,
        log=log,
        database=database,
        clock=clock,
    )
    renderer = Renderer(workers=1)
    gateway = Gateway(
        identity=identity,
        policies=policies,
        blobs=store,
        keys=keys,
        index=index,
        log=log,
        care=care,
        records=records,
        renderer=renderer,
        descriptions=ingest.descriptions,
        clock=clock,
    )
    compaction = Compaction(
        vault=vault,
        blobs=store,
        keys=keys,
        index=index,
        ingest=ingest,
        log=log,
        database=database,
        clock=clock,
    )
    await compaction.recover()
    await ingest.recover()
    fixture = NodeFixture(
        path, node_id, clock, database, keys, blobs, vault, identity, log, records, policies,
        registry, care, index, ingest, renderer, gateway, replicas, compaction,
    )  # fmt: skip
    try:
        async with ingest, renderer:
            yield fixture
    finally:
        await gateway.close()
        await log.close()
        await vault.close()
        if replicas is not None:
            replicas.close()
        index.close()
        passwords.close()
        await database.close()


async def _replicas(path: Path, roots: int, node_id: str, clock: FakeClock, database: Database) -> Replicas:
    folders = [path / "studies", *(path / f"studies{number}" for number in range(2, roots + 1))]
    ledger = DatabaseLedger(database)
    membership = await ledger.load()
    replicas = Replicas(Quorum(folders, node=node_id, clock=clock, ledger=ledger, membership=membership))
    await asyncio.to_thread(replicas.start)
    return replicas
