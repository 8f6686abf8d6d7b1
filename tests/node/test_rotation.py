"""Rotation on record: by age, when asked, interrupted, beside ingest and reading, with a key that does not open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select, update

from consent.errors import Corrupt
from consent.policy import Parameters
from consent.vocabulary import Action, EventKind, Grade
from node.rotation import Progress, Rotation, max_ages
from node.vault.custody.keystore import Keystore
from node.vault.key_tables import vault_kek, vault_study_key
from node.vault.keys import KeyRing
from tests.support.dicom import ct_slice
from tests.support.node import CREDENTIAL, NodeFixture, small_node


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[NodeFixture]:
    async with small_node(tmp_path) as running:
        yield running


def rotation_of(node: NodeFixture, keys: KeyRing | None = None) -> Rotation:
    return Rotation(keys or node.keys, node.database, node.log, node.policies, node.clock)


async def study_keys(node: NodeFixture, count: int, grade: Grade = Grade.ORDINARY) -> dict[str, bytes]:
    names = [f"st_study{number:04}" for number in range(count)]
    return {name: await node.keys.study_key(None, name, grade, create=True) for name in names}


@pytest.mark.requirement("V1", "V4")
async def test_the_duty_rotates_by_age_each_grade_by_its_own_and_puts_it_on_record(node: NodeFixture) -> None:
    """The restricted grade rotates after thirty days, the others after ninety; old versions end; nobody is asked."""
    made = await study_keys(node, 5)
    secret = await study_keys(node, 3, Grade.RESTRICTED)
    rotation = rotation_of(node)
    node.clock.tick(days=29)
    await rotation.run()
    assert await node.events(EventKind.KEY_ROTATED) == []
    node.clock.tick(days=1)
    await rotation.run()
    node.clock.tick(days=60)
    await rotation.run()
    rotated = [entry.event.detail for entry in await node.events(EventKind.KEY_ROTATED)]
    assert [(one["grade"], one["version"], one["cause"]) for one in rotated] == [
        (3, 2, "age"), (1, 2, "age"), (3, 3, "age"),
    ]  # fmt: skip
    ended = [entry.event.detail for entry in await node.events(EventKind.KEY_DESTROYED)]
    assert [(one["grade"], one["version"]) for one in ended] == [(3, 1), (1, 1), (3, 2)]
    status = {one.grade: one for one in (await node.keys.status()).grades}
    assert [(one.version, one.behind, len(one.versions)) for one in status.values()] == [(2, 0, 1), (3, 0, 1)]
    ring = KeyRing(Keystore.open(node.path / "keystore.json", CREDENTIAL), node.database, node.clock)
    for keys, grade in ((made, Grade.ORDINARY), (secret, Grade.RESTRICTED)):
        for study, key in keys.items():
            assert await ring.study_key(None, study, grade) == key


@pytest.mark.requirement("V1")
async def test_no_image_is_rewritten_and_reading_and_ingest_go_on(node: NodeFixture) -> None:
    """While batches move, slices arrive and are read at every moment; the packs grow and are never rewritten."""
    first = await node.store(ct_slice(number=1))
    who = await node.person(treats=[await node.index.patient_of(first[0].study)])
    await study_keys(node, 300)
    pack = next((node.path / "studies").rglob("*.pack"))
    before, inode = pack.read_bytes(), pack.stat().st_ino
    rotation = rotation_of(node)
    await rotation.rotate(Grade.ORDINARY, "person:it@a-general")
    rewrapping = asyncio.create_task(rotation.rewrap(batch=10))
    opening = await node.gateway.open(who, first[0].study, action=Action.DOWNLOAD)
    for number in range(2, 8):
        await node.store(ct_slice(number=number))
        await node.store(ct_slice(study=f"study-new-{number}", number=number))
        assert len((await node.gateway.series(opening))[0].instances) == number
        read = await node.gateway.instance(opening, ct_slice(number=number).sop_instance_uid)
        assert read.data == ct_slice(number=number).data
    done = await rewrapping
    assert done.moved >= 300 and done.moved == done.total and not done.running
    assert pack.stat().st_ino == inode and pack.read_bytes().startswith(before)
    (grade,) = (await node.keys.status()).grades
    assert (grade.version, grade.behind) == (2, 0)


@pytest.mark.requirement("V1", "F4")
async def test_a_rewrapping_that_was_cut_off_is_gone_on_with(node: NodeFixture) -> None:
    """After any batch the rest may be done by another ring, as after a restart; every key opens at every moment."""
    made = await study_keys(node, 25)
    rotation = rotation_of(node)
    await rotation.rotate(Grade.ORDINARY, "system")
    running = asyncio.create_task(rotation.rewrap(batch=3))
    progress = Progress()
    while progress.moved < 6:
        progress = await rotation.changed(progress, 5.0)
    running.cancel()
    await asyncio.wait([running])
    assert not rotation.progress.running and rotation.progress.error
    ring = KeyRing(Keystore.open(node.path / "keystore.json", CREDENTIAL), node.database, node.clock)
    assert 0 < (await ring.status()).grades[0].behind < 25
    for study, key in made.items():
        assert await ring.study_key(None, study, Grade.ORDINARY) == key
    done = await rotation_of(node, ring).rewrap()
    assert (await ring.status()).grades[0].behind == 0 and done.moved < 25


@pytest.mark.requirement("V1", "C3")
async def test_a_key_that_does_not_open_is_named_and_stops_no_other(node: NodeFixture) -> None:
    """Its old version stays alive, so that a restored row still opens; the rest moves on."""
    await study_keys(node, 10)
    keys = vault_study_key.c
    async with node.database.write() as tx:
        await tx.execute(
            update(vault_study_key).where(keys.study == "st_study0003").values(wrapped=b"\1" + bytes(60))
        )
    rotation = rotation_of(node)
    await rotation.rotate(Grade.ORDINARY, "system")
    done = await rotation.rewrap(batch=4)
    assert (done.moved, done.broken) == (9, 1)
    (failed,) = await node.events(EventKind.INTEGRITY_FAILED)
    assert failed.event.study == "st_study0003"
    async with node.database.read() as tx:
        states = (await tx.execute(select(vault_kek.c.state).order_by(vault_kek.c.version))).scalars().all()
    assert states == ["decrypt-only", "active"]


@pytest.mark.requirement("V1")
async def test_a_key_shredded_during_the_rewrapping_does_not_come_back(
    node: NodeFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the reading and the writing of a batch a study is destroyed, and made anew: neither row is overwritten."""
    made = await study_keys(node, 4)
    rotation = rotation_of(node)
    await rotation.rotate(Grade.ORDINARY, "system")
    real, again = node.database.write_in_one, dict[str, bytes]()

    async def late(work):  # type: ignore[no-untyped-def]
        monkeypatch.undo()
        async with node.database.write() as tx:
            for study in ("st_study0000", "st_study0001"):
                await node.keys.shred(tx, study)
        again["st_study0001"] = await node.keys.study_key(None, "st_study0001", Grade.ORDINARY, create=True)
        return await real(work)

    monkeypatch.setattr(node.database, "write_in_one", late)
    await rotation.rewrap()
    ring = KeyRing(Keystore.open(node.path / "keystore.json", CREDENTIAL), node.database, node.clock)
    assert again["st_study0001"] != made["st_study0001"]
    assert await ring.study_key(None, "st_study0001", Grade.ORDINARY) == again["st_study0001"]
    assert (await ring.status()).grades[0].study_keys == 3


async def test_a_rotation_that_cannot_open_the_active_key_changes_nothing(node: NodeFixture) -> None:
    """A version is only followed by another where the custody opens it: a wrong setting starts no second chain."""
    await study_keys(node, 1)
    stranger = Keystore.create(node.path / "other.json", CREDENTIAL)
    ring = KeyRing(stranger, node.database, node.clock)
    with pytest.raises(Corrupt):
        await rotation_of(node, ring).rotate(Grade.ORDINARY, "system")
    async with node.database.read() as tx:
        assert len((await tx.execute(select(vault_kek))).all()) == 1
    assert await node.events(EventKind.KEY_ROTATED) == []


async def test_nothing_is_rotated_where_nothing_is_kept(node: NodeFixture) -> None:
    """The duty of a new node finds nothing to do."""
    rotation = rotation_of(node)
    node.clock.tick(days=400)
    await rotation.run()
    assert rotation.progress.total == 0
    assert (await node.keys.status()).grades == ()


def test_each_grade_has_its_own_age() -> None:
    """By the policy's two numbers."""
    ages = max_ages(Parameters(kek_max_age_days=60.0, restricted_kek_max_age_days=7.0))
    assert ages == {1: timedelta(days=60), 2: timedelta(days=60), 3: timedelta(days=7)}
