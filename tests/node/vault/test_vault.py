"""The vault: durable before it answers, one fdatasync for many, bounded, and final when it destroys."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from consent.errors import Conflict, Corrupt, Invalid, NotFound, Unavailable
from consent.vocabulary import Grade
from node.vault import commit, seal
from node.vault import vault as module
from node.vault.keys import object_key
from node.vault.vault import ATTRIBUTES, INSTANCE, NewObject, Vault
from tests.node.vault.conftest import CREDENTIAL, STUDY, Rig
from tests.node.vault.test_blobs import largest_file

ROOT = Path(__file__).parents[3]


def pair(number: int, size: int = 2000) -> list[NewObject]:
    payload = number.to_bytes(4, "big") * (size // 4)
    return [
        NewObject(f"in_{number}.a", ATTRIBUTES, b"{}"),
        NewObject(f"in_{number}", INSTANCE, payload, sha256(payload).digest()),
    ]


async def opened(rig: Rig, study: str = STUDY) -> dict[str, bytes]:
    """Every object of a study, opened with the keys as after a restart."""
    ring = rig.fresh_ring()
    payloads = {}
    for stored in await rig.reader.objects(study):
        study_key = await ring.study_key(None, study, stored.grade)
        payloads[stored.object_id] = await rig.reader.read(
            study, stored, object_key(study_key, stored.object_id)
        )
    return payloads


@pytest.mark.requirement("V1", "C3")
async def test_what_was_appended_opens_after_a_restart(rig: Rig) -> None:
    """Payload, place, lengths and digest come back as they went in, in the same order."""
    objects = pair(7)
    stored = await rig.vault.append(STUDY, Grade.SENSITIVE, objects)
    assert [item.object_id for item in stored] == ["in_7.a", "in_7"]
    assert stored[1].plain_length == 2000
    assert list(stored) == await rig.reader.objects(STUDY)
    payloads = await opened(rig)
    assert payloads == {"in_7.a": b"{}", "in_7": objects[1].payload}


@pytest.mark.requirement("V1")
async def test_one_study_may_hold_objects_of_several_grades(rig: Rig) -> None:
    """Each grade has its own study key; a later, more sensitive series does not change the earlier ones."""
    await rig.vault.append(STUDY, Grade.ORDINARY, pair(1))
    await rig.vault.append(STUDY, Grade.RESTRICTED, pair(2))
    assert {stored.grade for stored in await rig.reader.objects(STUDY)} == {Grade.ORDINARY, Grade.RESTRICTED}
    assert len(await opened(rig)) == 4
    ordinary = await rig.keys.study_key(None, STUDY, Grade.ORDINARY)
    restricted = (await rig.reader.objects(STUDY))[3]
    with pytest.raises(Corrupt):
        await rig.reader.read(STUDY, restricted, object_key(ordinary, restricted.object_id))


@pytest.mark.requirement("V1")
async def test_payload_is_nowhere_on_disk_in_clear(rig: Rig) -> None:
    """Neither pack, database nor journal holds a byte of what was given."""
    secret = b"ZHANG^SAN^19700101"
    await rig.vault.append(STUDY, Grade.ORDINARY, [NewObject("in_1", INSTANCE, [secret, secret * 50])])
    for path in rig.folder.rglob("*"):
        assert not path.is_file() or secret not in path.read_bytes()


@pytest.mark.requirement("F4")
async def test_append_answers_only_after_an_fdatasync_that_covers_it(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the disk has not confirmed, nobody is told that the object is safe."""
    gate, real = threading.Event(), os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: (gate.wait(10), real(descriptor)))
    first = asyncio.create_task(rig.vault.append(STUDY, Grade.ORDINARY, pair(1)))
    await asyncio.sleep(0.1)
    late = asyncio.create_task(rig.vault.append(STUDY, Grade.ORDINARY, pair(2)))
    await asyncio.sleep(0.1)
    assert not first.done()
    assert not late.done()
    gate.set()
    await asyncio.gather(first, late)


async def test_one_fdatasync_covers_all_that_arrived_while_the_last_ran(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fifty associations that write one study at once cost two or three syncs, not fifty."""
    await rig.vault.append(STUDY, Grade.ORDINARY, pair(0))
    real, syncs = os.fdatasync, 0

    def slow(descriptor: int) -> None:
        nonlocal syncs
        syncs += 1
        time.sleep(0.05)
        real(descriptor)

    monkeypatch.setattr(os, "fdatasync", slow)
    await asyncio.gather(*(rig.vault.append(STUDY, Grade.ORDINARY, pair(number)) for number in range(1, 51)))
    assert syncs <= 3
    assert len(await opened(rig)) == 102


async def test_different_studies_sync_side_by_side(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """One slow sync does not hold up another study."""
    studies = [f"st_study{number}" for number in range(4)]
    for study in studies:
        await rig.vault.append(study, Grade.ORDINARY, pair(0))
    barrier, real = threading.Barrier(4, timeout=10), os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: (barrier.wait(), real(descriptor)))
    await asyncio.gather(*(rig.vault.append(study, Grade.ORDINARY, pair(1)) for study in studies))


async def test_many_tasks_may_append_to_one_study(rig: Rig) -> None:
    """Several modalities send one study: every object is there once, whole."""
    payloads = {}

    async def send(sender: int) -> None:
        for number in range(8):
            payload = os.urandom(500 + 97 * sender)
            payloads[f"in_{sender}.{number}"] = payload
            await rig.vault.append(
                STUDY, Grade.ORDINARY, [NewObject(f"in_{sender}.{number}", INSTANCE, payload)]
            )

    await asyncio.gather(*(send(sender) for sender in range(8)))
    assert await opened(rig) == payloads
    assert await rig.reader.verify(STUDY) == []


async def test_two_vaults_over_one_folder_do_not_spoil_each_other(rig: Rig) -> None:
    """An import from the command line runs beside the server."""
    other = Vault(rig.blobs, rig.fresh_ring(), rig.clock)
    await asyncio.gather(
        *(
            (rig.vault if number % 2 else other).append(STUDY, Grade.ORDINARY, pair(number))
            for number in range(20)
        )
    )
    await other.close()
    assert len(await opened(rig)) == 40
    assert await rig.reader.verify(STUDY) == []


async def test_large_payload_is_sealed_off_the_loop(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past a bound the sealing happens in a thread; the result is the same."""
    threads: list[int] = []
    real = seal.Cobblestone256Encryptor

    def noted(*arguments: Any) -> object:
        threads.append(threading.get_ident())
        return real(*arguments)

    monkeypatch.setattr(seal, "Cobblestone256Encryptor", noted)
    payload = os.urandom(module.INLINE_BYTES + 1)
    await rig.vault.append(STUDY, Grade.ORDINARY, [NewObject("in_1", INSTANCE, payload)])
    await rig.vault.append(STUDY, Grade.ORDINARY, [NewObject("in_2", INSTANCE, payload[:-1])])
    assert [thread == threading.get_ident() for thread in threads] == [False, True]
    assert (await opened(rig))["in_1"] == payload


@pytest.mark.requirement("F4")
async def test_full_disk_refuses_keeps_what_was_there_and_recovers(rig: Rig) -> None:
    """The kernel stops taking bytes: the sender is told, nothing half written counts, and later it works again."""
    await rig.vault.append(STUDY, Grade.ORDINARY, pair(1))
    with largest_file(rig.pack().stat().st_size + 3000):
        refused = await asyncio.gather(
            *(rig.vault.append(STUDY, Grade.ORDINARY, pair(number, 4000)) for number in range(2, 6)),
            return_exceptions=True,
        )
    assert all(isinstance(result, Unavailable) for result in refused)
    assert len(await opened(rig)) == 2
    await rig.vault.append(STUDY, Grade.ORDINARY, pair(9))
    assert set(await opened(rig)) == {"in_1", "in_1.a", "in_9", "in_9.a"}
    assert await rig.reader.verify(STUDY) == []


@pytest.mark.requirement("F4")
async def test_failing_sync_is_unavailable_for_everybody_in_the_group(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group shares its fate; the next group after the failure is kept."""

    def fail(_: int) -> None:
        raise OSError(errno.EIO, "no")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        refused = await asyncio.gather(
            *(rig.vault.append(STUDY, Grade.ORDINARY, pair(number)) for number in range(5)),
            return_exceptions=True,
        )
    assert all(isinstance(result, Unavailable) for result in refused)
    await rig.vault.append(STUDY, Grade.ORDINARY, pair(9))
    assert set(await opened(rig)) == {"in_9", "in_9.a"}


@pytest.mark.requirement("C3")
async def test_corrupt_pack_refuses_and_other_studies_go_on(rig: Rig) -> None:
    """Damage in the middle is named by study and offset and left for repair; nobody else is hurt."""
    await rig.vault.append(STUDY, Grade.ORDINARY, pair(1))
    await rig.vault.append(STUDY, Grade.ORDINARY, pair(2))
    stored = (await rig.reader.objects(STUDY))[1]
    await rig.vault.close()
    data = bytearray(rig.pack().read_bytes())
    data[stored.offset - 30] ^= 1
    rig.pack().write_bytes(data)
    again = Vault(rig.blobs, rig.keys, rig.clock)
    with pytest.raises(Corrupt) as refused:
        await again.append(STUDY, Grade.ORDINARY, pair(3))
    assert STUDY in refused.value.message
    assert "byte" in refused.value.message
    await again.append("st_other", Grade.ORDINARY, pair(3))
    with pytest.raises(Corrupt):
        await again.objects(STUDY)
    await again.close()
    assert rig.pack().read_bytes() == data


@pytest.mark.requirement("F4")
async def test_torn_tail_after_a_crash_is_cut_off_at_the_next_append(rig: Rig) -> None:
    """What was never answered for vanishes; what was stays."""
    await rig.vault.append(STUDY, Grade.ORDINARY, pair(1))
    await rig.vault.close()
    whole = rig.pack().read_bytes()
    rig.pack().write_bytes(whole + whole[60:300])
    again = Vault(rig.blobs, rig.keys, rig.clock)
    assert [stored.object_id for stored in (await again.objects(STUDY)).objects] == ["in_1.a", "in_1"]
    await again.append(STUDY, Grade.ORDINARY, pair(2))
    await again.close()
    assert set(await opened(rig)) == {"in_1", "in_1.a", "in_2", "in_2.a"}
    assert await rig.reader.verify(STUDY) == []


async def test_open_files_are_bounded(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many studies arrive, only so many packs stay open, and each can be appended to again."""
    monkeypatch.setattr(commit, "MAX_OPEN_PACKS", 10)

    def open_packs() -> int:
        links = {os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()}
        return sum(link.endswith(".pack") for link in links)

    for _ in range(2):
        await asyncio.gather(
            *(
                rig.vault.append(
                    f"st_study{number}", Grade.ORDINARY, [NewObject(os.urandom(8).hex(), INSTANCE, b"x")]
                )
                for number in range(40)
            )
        )
    assert open_packs() <= 10
    assert len(await rig.reader.objects("st_study0")) == 2
    await rig.vault.close()
    assert open_packs() == 0


async def test_slow_disk_holds_senders_back(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits in memory for the disk is bounded: the next sender waits before it is sealed."""
    monkeypatch.setattr(commit, "MAX_WAITING_BYTES", 5000)
    gate, real = threading.Event(), os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: (gate.wait(10), real(descriptor)))
    await rig.keys.study_key(None, STUDY, Grade.ORDINARY, create=True)
    tasks = [
        asyncio.create_task(rig.vault.append(STUDY, Grade.ORDINARY, pair(number, 4000)))
        for number in range(6)
    ]
    await asyncio.sleep(0.2)
    late = asyncio.create_task(rig.vault.append("st_late", Grade.ORDINARY, pair(1)))
    await asyncio.sleep(0.1)
    with pytest.raises(NotFound):
        await rig.fresh_ring().study_key(None, "st_late", Grade.ORDINARY)
    gate.set()
    await asyncio.gather(late, *tasks)


async def test_cancelled_caller_does_not_disturb_the_group(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """An association that is cut while its object is on the way spoils nobody else's."""
    await rig.vault.append(STUDY, Grade.ORDINARY, pair(0))
    real = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: (time.sleep(0.1), real(descriptor)))
    tasks = [
        asyncio.create_task(rig.vault.append(STUDY, Grade.ORDINARY, pair(number))) for number in range(1, 4)
    ]
    await asyncio.sleep(0.05)
    tasks[1].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[1], asyncio.CancelledError)
    assert {"in_1", "in_3"} <= set(await opened(rig))


@pytest.mark.parametrize("study", ["../../etc", "st_", "st_A", "st_aaaa/..", "\x00"])
async def test_study_ids_that_could_be_paths_are_refused(rig: Rig, study: str) -> None:
    """Nothing is written for an id that is not a pseudonym."""
    with pytest.raises(Invalid):
        await rig.vault.append(study, Grade.ORDINARY, pair(1))
    with pytest.raises(Invalid):
        await rig.vault.objects(study)
    with pytest.raises(Invalid):
        await rig.vault.erase(study)
    assert not rig.blobs.root.exists()


async def test_bad_objects_are_refused_before_anything_is_written(rig: Rig) -> None:
    """One bad object refuses the whole call."""
    with pytest.raises(Invalid):
        await rig.vault.append(STUDY, Grade.ORDINARY, [*pair(1), NewObject("../x", INSTANCE, b"")])
    with pytest.raises(Invalid):
        await rig.vault.append(STUDY, Grade.ORDINARY, [*pair(1), *pair(1)])
    with pytest.raises(Invalid):
        await rig.vault.append(STUDY, Grade.ORDINARY, [NewObject("in_1", INSTANCE, b"x", b"not a digest")])
    assert await rig.vault.append(STUDY, Grade.ORDINARY, []) == ()
    assert await rig.vault.studies() == []


async def test_ingest_reads_back_attributes_and_nothing_else(rig: Rig) -> None:
    """The index can be rebuilt from packs; images leave through the gateway only."""
    await rig.vault.append(STUDY, Grade.ORDINARY, pair(1))
    ((study, size),) = await rig.vault.studies()
    assert (study, size) == (STUDY, rig.pack().stat().st_size)
    found = await rig.vault.objects(STUDY)
    assert await rig.vault.attributes(STUDY, found.objects[0]) == b"{}"
    with pytest.raises(Invalid):
        await rig.vault.attributes(STUDY, found.objects[1])
    await rig.vault.append(STUDY, Grade.ORDINARY, pair(2))
    later = await rig.vault.objects(STUDY, found.end)
    assert [stored.object_id for stored in later.objects] == ["in_2.a", "in_2"]
    with pytest.raises(Corrupt):
        await rig.vault.objects(STUDY, later.end + 1)
    with pytest.raises(NotFound):
        await rig.vault.objects("st_nothing")


@pytest.mark.requirement("D1")
async def test_shredded_study_is_unreadable_and_its_pack_is_gone(rig: Rig) -> None:
    """Key first, in the transaction; ciphertext after it; a kept copy of the pack opens no more."""
    await rig.vault.append(STUDY, Grade.ORDINARY, pair(1))
    stored = await rig.reader.objects(STUDY)
    copy = rig.pack().read_bytes()
    async with rig.database.write() as tx:
        assert await rig.vault.shred(tx, STUDY) == 1
    await rig.vault.erase(STUDY)
    await rig.vault.erase(STUDY)
    assert await rig.vault.studies() == []
    rig.pack().write_bytes(copy)
    for ring in (rig.keys, rig.fresh_ring()):
        with pytest.raises(NotFound):
            await ring.study_key(None, STUDY, Grade.ORDINARY)
    with pytest.raises(NotFound):
        await rig.vault.attributes(STUDY, stored[0])


async def test_object_that_arrives_while_its_study_is_destroyed_is_refused(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is told that an object is safe whose key has just been destroyed."""
    await rig.vault.append(STUDY, Grade.ORDINARY, pair(1))
    real = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: (time.sleep(0.2), real(descriptor)))
    late = asyncio.create_task(rig.vault.append(STUDY, Grade.ORDINARY, pair(2)))
    await asyncio.sleep(0.05)
    async with rig.database.write() as tx:
        await rig.vault.shred(tx, STUDY)
    with pytest.raises(Conflict):
        await late
    await rig.vault.erase(STUDY)
    await rig.vault.append(STUDY, Grade.ORDINARY, pair(3))
    assert set(await opened(rig)) == {"in_3", "in_3.a"}


async def test_closed_vault_refuses_and_finished_what_was_on_its_way(rig: Rig) -> None:
    """A stop waits for the disk; what comes later is told to come again."""
    await rig.keys.study_key(None, STUDY, Grade.ORDINARY, create=True)
    going = asyncio.create_task(rig.vault.append(STUDY, Grade.ORDINARY, pair(1)))
    await asyncio.sleep(0)
    await rig.vault.close()
    await asyncio.wait([going])
    with pytest.raises(Unavailable):
        await rig.vault.append(STUDY, Grade.ORDINARY, pair(2))


_WRITER = """
import asyncio, sys
from pathlib import Path
from consent.vocabulary import Grade
from node.clock import TrustedClock
from node.database import Database
from node.vault.blobs import FileBlobs
from node.vault.custody.keystore import Keystore
from node.vault.keys import KeyRing
from node.vault.vault import NewObject, Vault

async def main(folder, credential):
    ring = KeyRing(Keystore.open(folder / "keystore", credential), Database(f"sqlite+aiosqlite:///{folder}/node.db"), TrustedClock())
    vault = Vault(FileBlobs(folder / "packs"), ring, TrustedClock())
    async def send(sender):
        for number in range(10_000):
            name = f"in_{sender}.{number}"
            await vault.append(f"st_crash{sender % 2}", Grade.ORDINARY, [NewObject(name, "instance", name.encode() * 3000)])
            print(f"st_crash{sender % 2}", name, flush=True)
    await asyncio.gather(*(send(sender) for sender in range(4)))

asyncio.run(main(Path(sys.argv[1]), sys.argv[2].encode()))
"""


@pytest.mark.requirement("F4")
async def test_process_killed_while_it_writes_loses_nothing_that_it_answered_for(rig: Rig) -> None:
    """kill -9 in the middle of four senders: every acknowledged object opens, and appending goes on."""
    process = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(rig.folder), CREDENTIAL.decode()],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    answered = [process.stdout.readline().split() for _ in range(40)]
    time.sleep(0.013)
    process.send_signal(signal.SIGKILL)
    answered += [
        line.split() for line in process.stdout.read().splitlines(keepends=True) if line.endswith("\n")
    ]
    process.wait()
    for study in ("st_crash0", "st_crash1"):
        await rig.vault.append(study, Grade.ORDINARY, [NewObject("in_after", INSTANCE, b"after")])
        payloads = await opened(rig, study)
        assert {name for of, name in answered if of == study} <= set(payloads)
        assert all(payloads[name] == name.encode() * 3000 for of, name in answered if of == study)
        assert payloads["in_after"] == b"after"
        assert await rig.reader.verify(study) == []


async def test_settling_makes_no_pack_where_there_is_none(rig: Rig) -> None:
    """A pack that was lost stays missing, and is named as such."""
    with pytest.raises(NotFound):
        await rig.vault.settle(STUDY)
    assert await rig.vault.studies() == []
