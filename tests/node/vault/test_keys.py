"""The key ring: creation, grades, rotation, shredding, secrets."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from datetime import timedelta

import pytest
from sqlalchemy import select, text, update

import node.database
from consent.errors import Corrupt, Denied, Invalid, NotFound, Unavailable
from consent.vocabulary import Grade
from node.vault.custody import Custody
from node.vault.custody.keystore import Keystore
from node.vault.keys import KeyRing, vault_kek, vault_secret, vault_study_key
from tests.node.vault.conftest import CREDENTIAL, STUDY, Rig

OTHER = "st_" + "b" * 26


async def make(rig: Rig, *studies: str, grade: Grade = Grade.ORDINARY) -> dict[str, bytes]:
    return {study: await rig.keys.study_key(None, study, grade, create=True) for study in studies}


@pytest.mark.requirement("V1")
async def test_study_key_survives_a_restart_and_differs_by_study_and_grade(rig: Rig) -> None:
    """The same key comes back from the database; no two studies or grades share one."""
    made = await make(rig, STUDY, OTHER)
    restricted = await rig.keys.study_key(None, STUDY, Grade.RESTRICTED, create=True)
    assert len({made[STUDY], made[OTHER], restricted}) == 3
    ring = rig.fresh_ring()
    assert await ring.study_key(None, STUDY, Grade.ORDINARY) == made[STUDY]
    assert await ring.study_key(None, STUDY, Grade.RESTRICTED) == restricted


async def test_missing_key_is_not_found_and_bad_id_invalid(rig: Rig) -> None:
    """Asking without creating makes nothing."""
    with pytest.raises(NotFound):
        await rig.keys.study_key(None, STUDY, Grade.ORDINARY)
    with pytest.raises(Invalid):
        await rig.keys.study_key(None, "st_../x", Grade.ORDINARY, create=True)
    async with rig.database.read() as tx:
        assert (await tx.execute(select(vault_study_key))).first() is None


async def test_many_tasks_that_need_a_new_key_get_the_same(rig: Rig) -> None:
    """The first instances of a study arrive together; there is one key."""
    keys = await asyncio.gather(
        *(rig.keys.study_key(None, STUDY, Grade.ORDINARY, create=True) for _ in range(20))
    )
    assert len(set(keys)) == 1


@pytest.mark.requirement("F4")
async def test_a_custody_that_does_not_answer_keeps_only_its_grade_waiting(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither new studies of a grade in use nor the database's writer wait for the key of another grade."""
    await make(rig, STUDY, grade=Grade.RESTRICTED)
    await make(rig, OTHER)
    ring = rig.fresh_ring()
    await ring.study_key(None, OTHER, Grade.ORDINARY)
    unwrap, asked, answers = Keystore.unwrap, threading.Event(), threading.Event()

    def slowly(keystore: Keystore, wrapped: bytes, context: bytes) -> bytes:
        asked.set()
        assert answers.wait(10)
        return unwrap(keystore, wrapped, context)

    monkeypatch.setattr(Keystore, "unwrap", slowly)
    waiting = asyncio.create_task(ring.study_key(None, "st_vip0", Grade.RESTRICTED, create=True))
    assert await asyncio.to_thread(asked.wait, 10)
    async with asyncio.timeout(5):
        await ring.study_key(None, "st_new0", Grade.ORDINARY, create=True)
    assert not waiting.done()
    answers.set()
    assert len(await waiting) == 32


async def test_two_rings_over_one_database_agree(rig: Rig) -> None:
    """Another process that needs the same new key finds the one that was made first."""
    other = rig.fresh_ring()
    first, second = await asyncio.gather(
        rig.keys.study_key(None, STUDY, Grade.ORDINARY, create=True),
        other.study_key(None, STUDY, Grade.ORDINARY, create=True),
    )
    assert first == second


async def test_key_made_in_a_transaction_that_rolled_back_is_forgotten(rig: Rig) -> None:
    """Nothing may be sealed under a key, or a KEK, that never became durable."""
    with pytest.raises(RuntimeError):
        async with rig.database.write() as tx:
            lost = await rig.keys.study_key(tx, STUDY, Grade.SENSITIVE, create=True)
            raise RuntimeError
    kept = await rig.keys.study_key(None, STUDY, Grade.SENSITIVE, create=True)
    assert kept != lost
    assert await rig.fresh_ring().study_key(None, STUDY, Grade.SENSITIVE) == kept


class Counting:
    """A keystore that counts how often it is asked, and under which context."""

    def __init__(self, custody: Custody) -> None:
        self._custody = custody
        self.asked: list[bytes] = []

    def wrap(self, key: bytes, context: bytes) -> bytes:
        self.asked.append(context)
        return self._custody.wrap(key, context)

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        self.asked.append(context)
        return self._custody.unwrap(wrapped, context)

    def describe(self) -> str:
        return self._custody.describe()

    def close(self) -> None:
        self._custody.close()


@pytest.mark.requirement("V1")
async def test_only_operations_on_keks_touch_custody(rig: Rig) -> None:
    """Making, reading after a restart, rotating and rewrapping: 50 study keys ask custody no oftener than 2 do."""
    asked: dict[int, list[int]] = {}
    for grade, count in ((Grade.ORDINARY, 2), (Grade.RESTRICTED, 50)):
        keystore = Counting(Keystore.open(rig.folder / "keystore", CREDENTIAL))
        studies = [f"st_many{grade}n{number}" for number in range(count)]
        steps = []
        for step in ("make", "read", "rotate", "read again"):
            before = len(keystore.asked)
            ring = KeyRing(keystore, rig.database, rig.clock)
            if step == "rotate":
                await ring.rotate(grade)
                while (await ring.rewrap_batch(7)).moved:
                    pass
                await ring.retire()
            else:
                for study in studies:
                    await ring.study_key(None, study, grade, create=step == "make")
            steps.append(len(keystore.asked) - before)
        assert not [study for study in studies if any(study.encode() in one for one in keystore.asked)]
        asked[count] = steps
    assert asked[50] == asked[2] and min(asked[50]) >= 1
    assert sum(asked[50]) < 10


@pytest.mark.requirement("V1")
async def test_rotation_rewraps_study_keys_and_destroys_the_old_kek(rig: Rig) -> None:
    """After rotation every study key is the same as before, under a new KEK; the old one is gone."""
    studies = [f"st_study{number}" for number in range(12)]
    made = await make(rig, *studies)
    assert await rig.keys.rotate(Grade.ORDINARY) == 2
    status = (await rig.keys.status()).grades[0]
    assert (status.version, status.study_keys, status.behind) == (2, 12, 12)
    batches = []
    while moved := (await rig.keys.rewrap_batch(5)).moved:
        batches.append(moved)
    assert await rig.keys.retire() == [(Grade.ORDINARY, 1)]
    assert batches == [5, 5, 2]
    status = (await rig.keys.status()).grades[0]
    assert (status.study_keys, status.behind) == (12, 0)
    async with rig.database.read() as tx:
        old = (await tx.execute(select(vault_kek).where(vault_kek.c.version == 1))).one()
    assert (old.grade, old.state, old.wrapped) == (1, "destroyed", None)
    assert old.destroyed is not None
    ring = rig.fresh_ring()
    for study, key in made.items():
        assert await ring.study_key(None, study, Grade.ORDINARY) == key


async def test_interrupted_rewrap_goes_on_where_it_stopped(rig: Rig) -> None:
    """Between batches, after a restart, and with new studies coming in, every key opens."""
    made = await make(rig, *(f"st_study{number}" for number in range(6)))
    await rig.keys.rotate(Grade.ORDINARY)
    await rig.keys.rewrap_batch(2)
    ring = rig.fresh_ring()
    made["st_later"] = await ring.study_key(None, "st_later", Grade.ORDINARY, create=True)
    await ring.rotate(Grade.ORDINARY)
    for study, key in made.items():
        assert await rig.fresh_ring().study_key(None, study, Grade.ORDINARY) == key
    while (await ring.rewrap_batch(3)).moved:
        pass
    assert (await ring.status()).grades[0].behind == 0
    for study, key in made.items():
        assert await rig.fresh_ring().study_key(None, study, Grade.ORDINARY) == key


@pytest.mark.requirement("V1")
async def test_keys_rotate_by_age_each_grade_alone(rig: Rig) -> None:
    """A KEK older than the policy says is replaced; a younger one is left."""
    await make(rig, STUDY, grade=Grade.ORDINARY)
    rig.clock.tick(days=60)
    await make(rig, OTHER, grade=Grade.RESTRICTED)
    rig.clock.tick(days=31)
    ages = dict.fromkeys(Grade, timedelta(days=90))
    assert await rig.keys.due(ages) == (Grade.ORDINARY,)
    await rig.keys.rotate(Grade.ORDINARY)
    assert await rig.keys.due(ages) == ()
    assert {grade.grade: grade.version for grade in (await rig.keys.status()).grades} == {1: 2, 3: 1}


@pytest.mark.requirement("D1")
async def test_shredded_key_is_gone_from_rows_caches_and_files(rig: Rig) -> None:
    """After the commit and the purge no cache, row, or page of the database file holds the wrapped key."""
    await make(rig, STUDY, OTHER)
    await rig.keys.study_key(None, STUDY, Grade.RESTRICTED, create=True)
    async with rig.database.read() as tx:
        rows = await tx.execute(select(vault_study_key.c.wrapped).where(vault_study_key.c.study == STUDY))
        wrapped = [row.wrapped for row in rows]
    async with rig.database.write() as tx:
        assert await rig.keys.shred(tx, STUDY) == 2
    await rig.keys.purge_journal()
    for ring in (rig.keys, rig.fresh_ring()):
        with pytest.raises(NotFound):
            await ring.study_key(None, STUDY, Grade.ORDINARY)
    await rig.keys.study_key(None, OTHER, Grade.ORDINARY)
    files = b"".join(path.read_bytes() for path in rig.folder.glob("node.db*"))
    assert len(wrapped) == 2
    assert not any(key in files for key in wrapped)


@pytest.mark.requirement("D1")
async def test_a_journal_that_cannot_be_purged_is_not_called_purged(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While somebody reads an older state, the journal keeps the key: the caller is told to come again."""
    monkeypatch.setattr(node.database, "BUSY_TIMEOUT_SECONDS", 0)
    database = node.database.Database(rig.database.url)
    ring = KeyRing(Keystore.open(rig.folder / "keystore", CREDENTIAL), database, rig.clock)
    await make(rig, STUDY)
    reading = sqlite3.connect(rig.folder / "node.db", isolation_level=None)
    reading.execute("BEGIN")
    reading.execute("SELECT count(*) FROM vault_study_key").fetchone()
    async with rig.database.write() as tx:
        await rig.keys.shred(tx, STUDY)

    with pytest.raises(Unavailable, match="destroyed key"):
        await ring.purge_journal()
    reading.close()
    await ring.purge_journal()
    await database.close()


async def test_shred_that_rolled_back_leaves_the_key(rig: Rig) -> None:
    """Destruction counts only with its transaction."""
    made = await make(rig, STUDY)
    with pytest.raises(RuntimeError):
        async with rig.database.write() as tx:
            await rig.keys.shred(tx, STUDY)
            raise RuntimeError
    assert await rig.keys.study_key(None, STUDY, Grade.ORDINARY) == made[STUDY]


async def test_study_that_comes_back_after_shredding_gets_a_new_key(rig: Rig) -> None:
    """What was destroyed stays unreadable even when the same study is sent again."""
    made = await make(rig, STUDY)
    async with rig.database.write() as tx:
        await rig.keys.shred(tx, STUDY)
    again = await make(rig, STUDY)
    assert again[STUDY] != made[STUDY]
    assert await rig.keys.study_key(None, STUDY, Grade.ORDINARY) == again[STUDY]


@pytest.mark.requirement("V1")
@pytest.mark.parametrize("change", ["study", "grade", "bytes", "kek"])
async def test_wrapped_key_that_was_moved_or_altered_is_corrupt(rig: Rig, change: str) -> None:
    """Rows of the database cannot be exchanged: each wrapped key is bound to its study, grade and KEK."""
    await make(rig, STUDY, OTHER)
    await rig.keys.study_key(None, "st_third", Grade.RESTRICTED, create=True)
    rows = vault_study_key.c
    async with rig.database.write() as tx:
        mine = (await tx.execute(select(rows.wrapped).where(rows.study == STUDY))).scalar_one()
        if change == "study":
            await tx.execute(update(vault_study_key).where(rows.study == OTHER).values(wrapped=mine))
        elif change == "grade":
            await tx.execute(update(vault_study_key).where(rows.study == OTHER).values(grade=3))
        elif change == "bytes":
            altered = mine[:-1] + bytes([mine[-1] ^ 1])
            await tx.execute(update(vault_study_key).where(rows.study == OTHER).values(wrapped=altered))
        else:
            await tx.execute(update(vault_kek).where(vault_kek.c.grade == 1).values(wrapped=None))
    with pytest.raises(Corrupt):
        await rig.fresh_ring().study_key(None, OTHER, Grade(3 if change == "grade" else 1))


async def test_stolen_database_with_another_keystore_yields_nothing(rig: Rig) -> None:
    """Without its own root key no row opens."""
    await make(rig, STUDY)
    await rig.keys.secret("index")
    thief = Keystore.create(rig.folder / "thief", b"thief's credential")
    ring = KeyRing(thief, rig.database, rig.clock)
    with pytest.raises(Corrupt):
        await ring.study_key(None, STUDY, Grade.ORDINARY)
    with pytest.raises(Corrupt):
        await ring.secret("index")
    with pytest.raises(Denied):
        Keystore.open(rig.folder / "keystore", b"thief's credential")


async def test_secrets_are_made_once_kept_and_bound_to_their_name(rig: Rig) -> None:
    """Each name has one value for ever; a row that was renamed does not open."""
    made = await asyncio.gather(*(rig.keys.secret("audit", 48) for _ in range(5)))
    assert len(set(made)) == 1
    assert len(made[0]) == 48
    given = await rig.keys.secret("identity/tls", make=lambda: b"a private key in DER")
    assert given == b"a private key in DER"
    ring = rig.fresh_ring()
    assert await ring.secret("audit") == made[0]
    assert await ring.secret("identity/tls") == given
    async with rig.database.write() as tx:
        await tx.execute(text("UPDATE vault_secret SET name = 'index' WHERE name = 'audit'"))
        wrapped = (await tx.execute(select(vault_secret.c.wrapped))).scalars().all()
    assert not any(made[0] in row or given in row for row in wrapped)
    with pytest.raises(Corrupt):
        await rig.fresh_ring().secret("index")


@pytest.mark.parametrize("name", ["", "Index", "in dex", "../x", "a" * 65])
async def test_secret_names_are_checked(rig: Rig, name: str) -> None:
    """Names come from code, but a slip is told at once."""
    with pytest.raises(Invalid):
        await rig.keys.secret(name)


async def test_status_names_the_custody_and_no_key(rig: Rig) -> None:
    """A report says what kind of custody and how many keys, never a key."""
    made = await make(rig, STUDY)
    status = await rig.keys.status()
    assert "keystore" in status.custody
    assert made[STUDY].hex() not in repr(status)
