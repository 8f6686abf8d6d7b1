"""A grade that two people guard: locked, its studies are neither read nor taken in, and everything else goes on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from consent.errors import Denied, NotFound, Unavailable
from consent.vocabulary import Action, EventKind, Grade, Outcome, Role
from node.grade_locks import GradeLocks
from node.regrading import Regrading
from node.rotation import Rotation
from node.vault.custody.two_person import TwoPersonKeystore
from tests.support.clock import FakeClock
from tests.support.custodies import QUICK
from tests.support.dicom import ct_slice
from tests.support.node import NodeFixture, arrival, small_node

PEOPLE = {"li": b"passphrase of li", "wang": b"passphrase of wang"}
VIP = {"ConfidentialityConstraintOnPatientDataDescription": "VIP"}


@dataclass
class Guarded:
    node: NodeFixture
    keystore: TwoPersonKeystore
    locks: GradeLocks

    async def unlock(self) -> None:
        assert not await self.locks.unlock(Grade.RESTRICTED, "li", PEOPLE["li"], "person:li@a-general")
        assert await self.locks.unlock(Grade.RESTRICTED, "wang", PEOPLE["wang"], "person:wang@a-general")

    async def read(self, study: str, instance) -> bytes:  # type: ignore[no-untyped-def]
        chief = replace(await self.node.person(Role.CHIEF_PHYSICIAN), second_factor=True)
        opening = await self.node.gateway.open(chief, study, action=Action.DOWNLOAD)
        return (await self.node.gateway.instance(opening, instance.sop_instance_uid)).data


async def started(path: Path, clock: FakeClock) -> AsyncIterator[Guarded]:
    keystore = TwoPersonKeystore.open(path / "restricted.json")
    async with small_node(path, clock=clock, guarded={Grade.RESTRICTED: keystore}) as node:
        locks = GradeLocks({Grade.RESTRICTED: keystore}, node.keys, node.log, node.clock)
        yield Guarded(node, keystore, locks)


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[Guarded]:
    TwoPersonKeystore.create(tmp_path / "restricted.json", Grade.RESTRICTED, PEOPLE, effort=QUICK)
    async for one in started(tmp_path, FakeClock()):
        yield one


@pytest.mark.requirement("V1")
async def test_while_locked_nothing_of_the_grade_goes_in_or_out_and_the_rest_works(guarded: Guarded) -> None:
    """A VIP's study is refused with words before two people have come, taken and shown after, refused again when locked."""
    vip, other = ct_slice(study="vip", **VIP), ct_slice(study="other")
    node = guarded.node
    with pytest.raises(Unavailable, match="two people") as caught:
        await node.ingest.receive(arrival(vip), node.source)
    assert caught.value.code == "grade-locked" and "accord keys unlock" in caught.value.mend
    study = (await node.store(other))[0].study
    assert await guarded.read(study, other) == other.data
    await guarded.unlock()
    restricted = (await node.store(vip))[0].study
    assert (await node.index.study(restricted)).grade is Grade.RESTRICTED
    assert await guarded.read(restricted, vip) == vip.data
    await guarded.locks.lock(Grade.RESTRICTED, "person:li@a-general")
    with pytest.raises(Unavailable, match="two people"):
        await guarded.read(restricted, vip)
    with pytest.raises(Unavailable, match="two people"):
        await node.ingest.receive(arrival(ct_slice(study="vip", number=2, **VIP)), node.source)
    assert await guarded.read(study, other) == other.data
    assert await node.events(EventKind.INTEGRITY_FAILED) == []


@pytest.mark.requirement("V1")
async def test_a_key_that_is_on_its_way_when_the_grade_is_locked_is_not_kept(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock comes between the unwrapping and its result: nobody gets the key, and memory does not hold it."""
    await guarded.unlock()
    study = (await guarded.node.store(ct_slice(study="vip", **VIP)))[0].study
    keys, unwrap = guarded.node.keys, guarded.keystore.unwrap
    keys.forget(Grade.RESTRICTED)
    unwrapped, locked = threading.Event(), threading.Event()

    def slowly(wrapped: bytes, context: bytes) -> bytes:
        key = unwrap(wrapped, context)
        unwrapped.set()
        assert locked.wait(10)
        return key

    monkeypatch.setattr(guarded.keystore, "unwrap", slowly)
    opening = asyncio.create_task(keys.study_key(None, study, Grade.RESTRICTED))
    assert await asyncio.to_thread(unwrapped.wait, 10)
    await guarded.locks.lock(Grade.RESTRICTED, "person:li@a-general")
    locked.set()
    with pytest.raises(Unavailable, match="two people"):
        await opening
    assert Grade.RESTRICTED not in {grade for grade, _ in keys._keks._open.values()}


@pytest.mark.requirement("V1", "V4")
async def test_unlocking_is_on_record_also_when_it_is_refused(guarded: Guarded) -> None:
    """Who gave a passphrase, who gave a wrong one, who is no holder, who locked."""
    with pytest.raises(Denied):
        await guarded.locks.unlock(Grade.RESTRICTED, "li", b"a wrong passphrase", "person:li@a-general")
    with pytest.raises(Denied):
        await guarded.locks.unlock(Grade.RESTRICTED, "mallory", PEOPLE["li"], "person:mallory@a-general")
    with pytest.raises(NotFound):
        await guarded.locks.unlock(Grade.SENSITIVE, "li", PEOPLE["li"], "person:li@a-general")
    assert guarded.locks.states()[0].waiting == ""
    await guarded.unlock()
    await guarded.locks.lock(Grade.RESTRICTED, "person:wang@a-general")
    seen = [entry.event for entry in await guarded.node.events(EventKind.GRADE_UNLOCKED)]
    assert [(one.actor.split("@")[0], one.outcome) for one in seen] == [
        ("person:li", Outcome.REFUSED),
        ("person:mallory", Outcome.REFUSED),
        ("person:li", Outcome.DONE),
        ("person:wang", Outcome.DONE),
    ]
    assert [one.detail.get("unlocked") for one in seen[2:]] == [False, True]
    assert len(await guarded.node.events(EventKind.GRADE_LOCKED)) == 1
    words = " ".join(str(one.detail) + one.reason for one in seen)
    assert "passphrase of" not in words and "a wrong passphrase" not in words


@pytest.mark.requirement("V1", "F4")
async def test_a_locked_grade_waits_and_a_restart_loses_nothing(tmp_path: Path) -> None:
    """Rotation passes the grade over; what a crash left unindexed of it is indexed once two people have come."""
    TwoPersonKeystore.create(tmp_path / "restricted.json", Grade.RESTRICTED, PEOPLE, effort=QUICK)
    clock, vip = FakeClock(), ct_slice(study="vip", **VIP)
    async for one in started(tmp_path, clock):
        await one.unlock()
        study = (await one.node.store(vip))[0].study
        async with one.node.database.write() as tx:
            await one.node.index.remove(tx, study)  # as if the crash had come before its rows were written
    clock.tick(days=40)
    async for one in started(tmp_path, clock):
        rotation = Rotation(one.node.keys, one.node.database, one.node.log, one.node.policies, clock)
        await rotation.run()
        assert await one.node.events(EventKind.KEY_ROTATED) == []
        assert await one.node.ingest.recover_unlocked() == 0
        await one.unlock()
        assert await one.node.ingest.recover_unlocked() == 1
        assert await one.node.ingest.recover_unlocked() == 0
        assert await one.read(study, vip) == vip.data
        await rotation.run()
        (status,) = (await one.node.keys.status()).grades
        assert (status.version, status.behind, status.guarded, status.locked) == (2, 0, True, False)
        assert all(version.two_person for version in status.versions)


@pytest.mark.requirement("V1")
async def test_regrading_into_a_locked_grade_waits_for_two_people(guarded: Guarded) -> None:
    """The study stays what it was until its new keys can be opened."""
    node, one = guarded.node, ct_slice()
    regrading = Regrading(
        vault=node.vault, blobs=node.blobs, keys=node.keys, index=node.index, ingest=node.ingest,
        log=node.log, database=node.database, clock=node.clock,
    )  # fmt: skip
    study = (await node.store(one))[0].study
    with pytest.raises(Unavailable, match="two people"):
        await regrading.regrade(study, Grade.RESTRICTED, "system")
    assert await guarded.read(study, one) == one.data
    await guarded.unlock()
    await regrading.regrade(study, Grade.RESTRICTED, "system")
    assert await guarded.read(study, one) == one.data
    await guarded.locks.lock(Grade.RESTRICTED, "system")
    with pytest.raises(Unavailable):
        await guarded.read(study, one)


@pytest.mark.requirement("V1")
async def test_without_its_keystore_the_grade_does_not_fall_back_to_the_nodes_root(tmp_path: Path) -> None:
    """A setting that was taken out of node.toml opens nothing and starts no second chain of keys."""
    TwoPersonKeystore.create(tmp_path / "restricted.json", Grade.RESTRICTED, PEOPLE, effort=QUICK)
    clock, vip = FakeClock(), ct_slice(study="vip", **VIP)
    async for one in started(tmp_path, clock):
        await one.unlock()
        await one.node.store(vip)
    async with small_node(tmp_path, clock=clock) as node:
        with pytest.raises(Unavailable, match="two people unlock"):
            await node.ingest.receive(arrival(ct_slice(study="vip-2", **VIP)), node.source)
        rotation = Rotation(node.keys, node.database, node.log, node.policies, clock)
        with pytest.raises(Unavailable, match="two people unlock"):
            await rotation.rotate(Grade.RESTRICTED, "system")
