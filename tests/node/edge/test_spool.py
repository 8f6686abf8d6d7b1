"""The spool beside a modality: sealed, bounded, never silently losing anything."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from consent.errors import Conflict, Corrupt, Unavailable
from node.edge import spool as module
from tests.node.edge.conftest import KEY, instance, spool

pytestmark = pytest.mark.requirement("C2")


def packs(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.pack"))


async def test_what_was_added_is_read_back_after_a_restart(tmp_path: Path) -> None:
    """Bytes, digest and names come back exactly, in the order of their arrival."""
    sent = [instance(number) for number in range(1, 6)]
    async with spool(tmp_path) as one:
        assert [await one.add(arrival) for arrival in sent] == [True] * 5
    async with spool(tmp_path) as again:
        assert again.count == 5
        (segment,) = await again.waiting()
        read = [again.read(segment, each) for each in segment.left]
        assert read == [bytes(arrival.data) for arrival in sent]
        assert [each.sop_instance_uid for each in segment.left] == [
            arrival.sop_instance_uid for arrival in sent
        ]


async def test_nothing_lies_in_clear(tmp_path: Path) -> None:
    """Neither names nor UIDs are on the disk, not even in file names."""
    arrival = instance(patient="Planted^Name")
    async with spool(tmp_path) as one:
        await one.add(arrival)
    for file in packs(tmp_path):
        content = file.read_bytes() + str(file).encode()
        assert b"Planted" not in content
        assert arrival.sop_instance_uid.encode() not in content


async def test_full_spool_refuses_and_loses_nothing(tmp_path: Path) -> None:
    """The bound holds over restarts; what was taken stays, and room that comes free is used again."""
    async with spool(tmp_path, max_bytes=30_000) as one:
        taken = 0
        with pytest.raises(Unavailable) as refused:
            for number in range(1, 50):
                await one.add(instance(number))
                taken += 1
        assert refused.value.code == "spool-full"
        assert taken >= 2
    assert sum(file.stat().st_size for file in packs(tmp_path)) <= 30_000
    async with spool(tmp_path, max_bytes=30_000) as again:
        assert again.count == taken
        with pytest.raises(Unavailable):
            await again.add(instance(77))
        (segment,) = await again.waiting()
        await again.committed(segment, [each.id for each in segment.left])
        assert (again.count, again.used_bytes, packs(tmp_path)) == (0, 0, [])
        assert await again.add(instance(77))


async def test_the_same_instance_twice_is_kept_once_and_other_bytes_are_refused(tmp_path: Path) -> None:
    """A modality that sends again is answered with success; one that changed an instance is not."""
    async with spool(tmp_path) as one:
        assert await one.add(instance(1))
        assert not await one.add(instance(1))
        with pytest.raises(Conflict):
            await one.add(instance(1, patient="Another^Name"))
        assert one.count == 1


async def test_the_same_instance_at_once_is_answered_when_it_is_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sent twice side by side while the disk fails: nobody is told that it is kept."""
    async with spool(tmp_path) as one:

        def full(*_: object) -> int:
            raise OSError(errno.ENOSPC, "no space")

        monkeypatch.setattr(os, "pwritev", full)
        both = await asyncio.gather(one.add(instance(1)), one.add(instance(1)), return_exceptions=True)
        monkeypatch.undo()
        assert [type(answer) for answer in both] == [Unavailable, Unavailable]
        assert one.count == 0
        assert sorted(await asyncio.gather(one.add(instance(1)), one.add(instance(1)))) == [False, True]


async def test_segment_goes_only_when_all_of_it_is_committed(tmp_path: Path) -> None:
    """What the node does not have for good stays, and is sent again after a restart."""
    async with spool(tmp_path) as one:
        for number in (1, 2, 3):
            await one.add(instance(number))
        (segment,) = await one.waiting()
        first, second, third = segment.left
        await one.committed(segment, [first.id, third.id])
        assert segment.left == [second]
        assert len(packs(tmp_path)) == 1
    async with spool(tmp_path) as again:
        assert again.count == 3
        (segment,) = await again.waiting()
        await again.committed(segment, [each.id for each in segment.left])
        assert packs(tmp_path) == []


async def test_what_arrives_while_a_segment_is_sent_goes_into_the_next(tmp_path: Path) -> None:
    """Taking a segment closes it."""
    async with spool(tmp_path) as one:
        await one.add(instance(1))
        (first,) = await one.waiting()
        await one.add(instance(2))
        await one.committed(first, [each.id for each in first.left])
        (second,) = await one.waiting()
        assert second.name != first.name
        assert len(second.left) == 1


async def test_segments_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long run is cut, so that what was committed can go."""
    monkeypatch.setattr(module, "SEGMENT_INSTANCES", 2)
    async with spool(tmp_path) as one:
        for number in range(1, 6):
            await one.add(instance(number))
        assert [len(segment.left) for segment in await one.waiting()] == [2, 2, 1]


async def test_changed_byte_is_never_forwarded(tmp_path: Path) -> None:
    """A flipped bit in a body is found when it is read; in a record, at the start."""
    async with spool(tmp_path) as one:
        await one.add(instance(1))
    (file,) = packs(tmp_path)
    data = bytearray(file.read_bytes())
    async with spool(tmp_path) as again:
        (segment,) = await again.waiting()
        place = segment.left[0].place
        data[place.offset + place.length // 2] ^= 1
        file.write_bytes(data)
        with pytest.raises(Corrupt):
            again.read(segment, segment.left[0])


async def test_damaged_record_keeps_none_of_the_others_back(tmp_path: Path) -> None:
    """The segment is named and its file stays, also when all that is sound in it was committed."""
    async with spool(tmp_path) as one:
        for number in (1, 2, 3):
            await one.add(instance(number))
        (segment,) = await one.waiting()
        second = segment.left[1].place
    (file,) = packs(tmp_path)
    data = bytearray(file.read_bytes())
    data[second.offset - 8] ^= 1  # in the header before the body
    file.write_bytes(data)
    async with spool(tmp_path) as again:
        assert (again.count, len(again.damaged)) == (2, 1)
        (segment,) = await again.waiting()
        await again.committed(segment, [each.id for each in segment.left])
        assert again.count == 0
    assert packs(tmp_path) == [file]


async def test_wrong_key_opens_nothing_and_destroys_nothing(tmp_path: Path) -> None:
    """A segment that does not open is named and left where it is."""
    async with spool(tmp_path) as one:
        await one.add(instance(1))
    async with spool(tmp_path, key=bytes(32)) as strange:
        assert strange.count == 0
        assert len(strange.damaged) == 1
    async with spool(tmp_path) as again:
        assert again.count == 1


async def test_full_disk_is_told_and_the_spool_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The refused instance leaves nothing behind and may be sent again."""
    async with spool(tmp_path) as one:
        await one.add(instance(1))

        def full(*_: object) -> int:
            raise OSError(errno.ENOSPC, "no space")

        monkeypatch.setattr(os, "pwritev", full)
        with pytest.raises(Unavailable):
            await one.add(instance(2))
        monkeypatch.undo()
        assert one.count == 1
        assert await one.add(instance(2))


async def test_many_at_once_are_all_durable(tmp_path: Path) -> None:
    """Concurrent senders share segments and syncs."""
    async with spool(tmp_path) as one:
        assert all(await asyncio.gather(*(one.add(instance(number)) for number in range(1, 41))))
    async with spool(tmp_path) as again:
        assert again.count == 40


_SENDER = """
import asyncio, sys
from pathlib import Path
from tests.node.edge.conftest import instance, spool

async def main():
    async with spool(Path(sys.argv[1])) as one:
        for number in range(1, 10_000):
            await one.add(instance(number))
            print(number, flush=True)

asyncio.run(main())
"""


def test_killed_agent_keeps_what_it_answered_for(tmp_path: Path) -> None:
    """kill -9 in the middle of the stream: everything acknowledged is there and opens."""
    process = subprocess.Popen(
        [sys.executable, "-c", _SENDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    acknowledged = 0
    for line in process.stdout:
        acknowledged = int(line)
        if acknowledged == 25:
            process.send_signal(signal.SIGKILL)
    process.wait()
    assert acknowledged >= 25

    async def look() -> None:
        async with spool(tmp_path, key=KEY) as again:
            assert again.count >= acknowledged
            for segment in await again.waiting():
                for each in segment.left:
                    again.read(segment, each)

    asyncio.run(look())


async def test_failed_arrival_does_not_hold_back_what_waits_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever forwards waits while something is being added, and goes on when that fails."""
    async with spool(tmp_path) as one:
        await one.add(instance(1))
        failing = asyncio.Event()

        async def append(*_: object) -> None:
            await failing.wait()
            raise Unavailable("The disk failed.")

        monkeypatch.setattr(one._commit, "append", append)
        adding = asyncio.create_task(one.add(instance(2)))
        await asyncio.sleep(0)
        waiting = asyncio.create_task(one.waiting())
        await asyncio.sleep(0.01)
        assert not waiting.done()
        failing.set()
        with pytest.raises(Unavailable):
            await adding
        async with asyncio.timeout(5):
            (segment,) = await waiting
        assert [each.sop_instance_uid for each in segment.left] == [instance(1).sop_instance_uid]
