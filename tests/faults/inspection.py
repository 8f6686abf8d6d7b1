"""Looks into a small node that a fault went through: is everything there, bit for bit, under keys that live, and nothing left over.

Works on the parts of `tests.support.node`; `examination` does the like with a whole node's folder.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from hashlib import sha256
from pathlib import Path

from sqlalchemy import select

from consent.errors import AccordError, NotFound, Unavailable
from consent.principals import Principal
from consent.vocabulary import Action, EventKind, Grade, Role
from node.rebuilding import Rebuilding
from node.regrading import Regrading
from node.replication import Replication
from node.rotation import Rotation
from node.scrubbing import Scrubbing
from node.vault.key_tables import vault_kek, vault_study_key
from node.vault.throttle import Throttle
from tests.faults.slices import study_uid
from tests.support.node import NodeFixture

Kept = Mapping[str, tuple[int, bytes]]
"""What was acknowledged: by SOP Instance UID, the number of its study (`slices`) and the SHA-256 of its bytes."""
WAITS = "to be asked again"
"""How a finding begins that says of an instance: not now."""
DATABASE = ("node.db", "node.db-wal", "node.db-shm", "node.db-journal")


def parts_of(node: NodeFixture) -> dict[str, object]:
    """What writing packs anew takes of a node."""
    return {
        "vault": node.vault, "blobs": node.replicas or node.blobs, "keys": node.keys, "index": node.index,
        "ingest": node.ingest, "log": node.log, "database": node.database, "clock": node.clock,
    }  # fmt: skip


def regrading_of(node: NodeFixture) -> Regrading:
    """The change of grades over this node's parts."""
    return Regrading(**parts_of(node))  # type: ignore[arg-type]


def rotation_of(node: NodeFixture) -> Rotation:
    """The rotation over this node's parts."""
    return Rotation(node.keys, node.database, node.log, node.policies, node.clock)


async def upkeep(node: NodeFixture) -> None:
    """What a running node does by itself: roots brought back, what was cut short settled, a scrub of everything."""
    if node.replicas is not None:
        replication = Replication(node.replicas, log=node.log, pace=Throttle(2**40))
        await replication.restored()
        await replication.close()
    await node.compaction.recover()
    await regrading_of(node).recover()
    await node.ingest.descriptions.settled()
    await node.ingest.flushed()


async def losses_in(node: NodeFixture, chief: Principal, kept: Kept) -> list[str]:
    """What `chief` cannot read, or not as it was, and keys that do not open; empty when all is well."""
    return [*await _unread(node, chief, kept), *await _unkeyed(node)]


async def faults_in(node: NodeFixture, kept: Kept) -> list[str]:
    """What is lost, altered, unindexed, badly logged or under a dead key; empty when all is well."""
    chief = await node.person(Role.CHIEF_PHYSICIAN, secrets.token_hex(4))
    return [
        *await losses_in(node, chief, kept),
        *(await node.log.verify()).faults,
        *await _scrubbed(node),
        *[f"on record: {entry.event.reason}" for entry in await node.events(EventKind.INTEGRITY_FAILED)],
        *_unlike(node),
    ]


def leftovers(node: NodeFixture) -> list[str]:
    """Files in the node's folder that belong to nothing."""
    packs = node.blobs.root.parent
    known = {packs / name for name in (*DATABASE, "keystore.json")}
    return [
        str(path.relative_to(packs))
        for path in sorted(packs.rglob("*"))
        if path.is_file() and path not in known and not _belongs(path)
    ]


def _belongs(path: Path) -> bool:
    return path.name == ".accord-root.json" or (path.suffix == ".pack" and path.name.startswith("st_"))


async def _unread(node: NodeFixture, chief: Principal, kept: Kept) -> list[str]:
    chief = replace(chief, second_factor=True)
    found: dict[str, bytes] = {}
    wrong = []
    for number in sorted({number for number, _ in kept.values()}):
        name = node.index.pseudonyms.study(study_uid(number))
        try:
            opening = await node.gateway.open(chief, name, action=Action.DOWNLOAD)
        except NotFound:
            continue
        for row in await node.gateway.rows(opening):
            try:
                data = (await node.gateway.instance(opening, row.sop_instance_uid)).data
                found[row.sop_instance_uid] = sha256(data).digest()
            except Unavailable as error:
                wrong.append(f"{WAITS}: {row.sop_instance_uid}: {error}")
                found[row.sop_instance_uid] = row.sha256
            except AccordError as error:
                wrong.append(f"corrupt: {row.sop_instance_uid}: {error}")
        await node.gateway.close_opening(opening)
    wrong += [f"lost: {uid}" for uid in kept.keys() - found.keys()]
    return wrong + [
        f"altered: {uid}" for uid, (_, digest) in kept.items() if found.get(uid, digest) != digest
    ]


async def _unkeyed(node: NodeFixture) -> list[str]:
    """Study keys whose version was ended while they were under it, or that do not open."""
    keys, wrong = vault_study_key.c, []
    async with node.database.read() as tx:
        rows = (await tx.execute(select(keys.study, keys.grade, keys.kek_version))).all()
        living = select(vault_kek.c.grade, vault_kek.c.version).where(vault_kek.c.wrapped.is_not(None))
        versions = {(grade, version) for grade, version in await tx.execute(living)}
        active = (await tx.execute(select(vault_kek.c.grade).where(vault_kek.c.state == "active"))).all()
        for study, grade, version in rows:
            if (grade, version) not in versions:
                wrong.append(f"retired: version {version} of grade {grade} with {study} under it")
            elif len(await node.keys.study_key(tx, study, Grade(grade))) != 32:
                wrong.append(f"key: {study}")
    if len(set(active)) != len(active):
        wrong.append("two active versions of one grade")
    return wrong


async def _scrubbed(node: NodeFixture) -> list[str]:
    rebuilding = Rebuilding(node.vault, node.index, node.log, node.database)
    looked = await rebuilding.everything("system", mend=False)
    wrong = [f"rows differ: {study}" for study in looked.differing]
    wrong += [f"no rows: {study}: {why}" for study, why in looked.failed.items()]
    scrubbing = Scrubbing(
        blobs=node.replicas or node.blobs, vault=node.vault, index=node.index, rebuilding=rebuilding,
        compaction=node.compaction, log=node.log, database=node.database, clock=node.clock,
        pace=lambda count: None, every=timedelta(days=1), deep_every=timedelta(days=1),
    )  # fmt: skip
    for study, _ in await node.vault.studies():
        healed, faults = await scrubbing.study(study, deep=True)
        if healed or faults:
            wrong.append(f"scrub of {study}: {healed} bytes healed, {faults} faults")
    return wrong


def _unlike(node: NodeFixture) -> list[str]:
    """Roots that are out of sync, and packs whose copies differ."""
    if node.replicas is None:
        return []
    roots = node.replicas.quorum.in_sync
    wrong = [] if len(roots) == len(node.replicas.quorum.slots) else ["a root is out of sync"]
    copies = [{name: root.blobs.read(name, 0, 2**30) for name, _ in root.blobs.names()} for root in roots]
    return wrong + [f"copies differ on root {at}" for at, copy in enumerate(copies) if copy != copies[0]]
