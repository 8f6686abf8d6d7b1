"""Appending, reading and searching the log."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from hashlib import sha256

import pytest
from sqlalchemy import text

from consent.errors import Corrupt, Invalid
from consent.vocabulary import EventKind, Outcome, Purpose
from node.audit.event import MAX_REASON_CHARACTERS, SALT_BYTES, RecordSealer, read_record
from node.audit.log import Event
from node.audit.merkle import leaf_hash, root_of
from tests.node.audit.conftest import Bench, opened


@pytest.mark.requirement("V4")
async def test_an_entry_says_who_when_what_from_where_and_why(bench: Bench) -> None:
    """Everything that was appended comes back, in order."""
    event = Event(
        EventKind.STUDY_OPENED,
        "person:dr.li@a-general",
        outcome=Outcome.DONE,
        patient="pt_a",
        study="st_a",
        purpose=Purpose.TREATMENT,
        address="192.0.2.7",
        reason="急诊 emergency",
        detail={"frames": 3, "series": ["se_a", "se_b"], "nested": {"ok": True}},
    )
    entry = await bench.log.record(event)
    bench.clock.tick(seconds=5)
    await bench.log.record(opened(1))
    first, second = await bench.log.entries()
    assert first == entry
    assert (first.index, first.event) == (0, event)
    assert second.at - first.at == timedelta(seconds=5)
    assert (await bench.log.entries(after=0)) == [second]
    assert await bench.log.entry(7) is None


@pytest.mark.requirement("V4")
async def test_an_entry_exists_exactly_if_the_deed_does(bench: Bench) -> None:
    """Appending in the caller's transaction: a rollback takes the entry with it, and leaves no gap."""
    await bench.fill(2)
    with pytest.raises(RuntimeError):
        async with bench.log.database.write() as tx:
            await bench.log.append(tx, opened(2))
            raise RuntimeError("the deed failed")
    entry = await bench.log.record(opened(3))
    assert entry.index == 2
    assert (await bench.log.verify()).ok


async def test_many_callers_share_transactions_and_each_gets_its_own_entry(bench: Bench) -> None:
    """Two hundred at once: indexes without a gap, each event once, in far fewer commits than callers."""
    commits = 0
    write = bench.log.database.write

    def counting() -> object:
        nonlocal commits
        commits += 1
        return write()

    bench.log.database.write = counting  # type: ignore[method-assign,assignment]
    entries = await asyncio.gather(*(bench.log.record(opened(n)) for n in range(200)))
    assert sorted(entry.index for entry in entries) == list(range(200))
    assert [entry.event for entry in entries] == [opened(n) for n in range(200)]
    assert commits <= 4


async def test_a_cancelled_caller_does_not_hold_up_the_others(bench: Bench) -> None:
    """The group goes on without the one that left."""
    first = asyncio.create_task(bench.log.record(opened(0)))
    second = asyncio.create_task(bench.log.record(opened(1)))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).event == opened(1)
    await bench.log.close()


async def test_two_processes_append_to_one_log(bench: Bench) -> None:
    """State is read in the transaction, so a command line beside the server leaves no fork and no gap."""
    other = bench.another()
    await asyncio.gather(
        *(log.record(opened(n)) for n in range(40) for log in (bench.log, other)),
    )
    found = await bench.log.verify()
    assert found.ok, found.faults
    assert found.size == 80
    await other.database.close()


async def test_the_log_of_another_origin_is_not_appended_to(bench: Bench) -> None:
    """A node started in the wrong folder stops instead of mixing two histories."""
    await bench.fill(1)
    other = bench.another("accord/b-central")
    with pytest.raises(Invalid, match="a-general"):
        await other.record(opened(1))
    await other.database.close()


@pytest.mark.requirement("V4")
async def test_search_by_patient_person_study_kind_and_time(bench: Bench) -> None:
    """Each alone and together, newest first, paged by index."""
    await bench.fill(9)
    bench.clock.tick(hours=1)
    late = bench.clock.now()
    await bench.log.record(Event(EventKind.SIGNED_IN, "person:li1@a-general"))
    await bench.log.record(opened(4))
    search = bench.log.search
    assert [e.index for e in await search(patient="pt_4")] == [10, 4]
    assert [e.index for e in await search(study="st_7")] == [7]
    assert [e.index for e in await search(actor="person:li1@a-general")] == [10, 9, 7, 4, 1]
    assert [e.index for e in await search(kind=EventKind.SIGNED_IN)] == [9]
    assert [e.index for e in await search(since=late)] == [10, 9]
    assert [e.index for e in await search(until=late, limit=2)] == [8, 7]
    assert [e.index for e in await search(until=late, limit=2, before=7)] == [6, 5]
    assert [e.index for e in await search(patient="pt_4", until=late)] == [4]
    assert await search(patient="pt_") == []
    with pytest.raises(Invalid):
        await search(limit=0)


async def test_counts_by_kind_for_reports(bench: Bench) -> None:
    """Numbers without a name in them."""
    await bench.fill(3)
    await bench.log.record(Event(EventKind.SIGNED_IN, "person:li"))
    start = bench.clock.now()
    assert await bench.log.counts(start, start + timedelta(seconds=1)) == {
        EventKind.STUDY_OPENED: 3,
        EventKind.SIGNED_IN: 1,
    }
    assert await bench.log.counts(start + timedelta(seconds=1), start + timedelta(seconds=2)) == {}


@pytest.mark.requirement("V1")
async def test_nothing_of_an_entry_is_on_disk_in_clear(bench: Bench) -> None:
    """Neither in the database nor in its WAL: no pseudonym, no login, no reason, no kind."""
    await bench.log.record(
        Event(EventKind.STUDY_OPENED, "person:dr.li", patient="pt_secret", study="st_secret", reason="zebra")
    )
    data = b"".join(path.read_bytes() for path in bench.file.parent.iterdir())
    for word in (b"dr.li", b"pt_secret", b"st_secret", b"zebra", b"StudyOpened"):
        assert word not in data


async def test_a_leaf_is_the_hash_of_the_salted_record(bench: Bench) -> None:
    """As docs/formats/log.md says: SHA-256(0x00, 16 bytes of salt, canonical JSON); equal events differ."""
    for _ in range(2):
        await bench.log.record(opened(1))
    async with bench.log.database.read() as tx:
        rows = (
            await tx.execute(text("SELECT position, leaf, sealed FROM log_entry ORDER BY position"))
        ).all()
        state = (await tx.execute(text("SELECT size, frontier FROM log_state"))).one()
    records = [bench.log.sealer.open(row.position, row.sealed) for row in rows]
    assert [leaf_hash(record) for record in records] == [row.leaf for row in rows]
    assert records[0][:SALT_BYTES] != records[1][:SALT_BYTES]
    assert records[0][SALT_BYTES:] == records[1][SALT_BYTES:]
    assert (state.size, state.frontier) == (2, root_of(row.leaf for row in rows))
    assert read_record(records[0])[1] == opened(1)


async def test_a_sealed_record_opens_only_at_its_own_index_of_its_own_log() -> None:
    """An entry moved to another place, or taken to another log, does not open."""
    key = sha256(b"key").digest()
    one, two = RecordSealer(key, "accord/a"), RecordSealer(key, "accord/b")
    sealed = one.seal(4, b"record")
    assert one.open(4, sealed) == b"record"
    assert one.seal(4, b"record") != sealed
    for sealer, index in ((one, 5), (two, 4), (RecordSealer(bytes(32), "accord/a"), 4)):
        with pytest.raises(Corrupt):
            sealer.open(index, sealed)
    with pytest.raises(Corrupt):
        one.open(4, b"short")


async def test_cursors_move_in_the_transaction_of_what_was_done(bench: Bench) -> None:
    """A reader that fails half way reads the same entry again."""
    await bench.fill(3)
    assert await bench.log.cursor("feed") == -1
    async with bench.log.database.write() as tx:
        await bench.log.advance(tx, "feed", 1)
    with pytest.raises(RuntimeError):
        async with bench.log.database.write() as tx:
            await bench.log.advance(tx, "feed", 2)
            raise RuntimeError
    assert await bench.log.cursor("feed") == 1


async def test_follow_gives_what_is_there_and_what_comes(bench: Bench) -> None:
    """The log is the feed: a reader sees each entry once, in order."""
    await bench.fill(2)
    seen: list[int] = []

    async def read() -> None:
        async for entry in bench.log.follow(poll_seconds=0.005):
            seen.append(entry.index)
            if entry.index == 3:
                return

    task = asyncio.create_task(read())
    await asyncio.sleep(0.02)
    await bench.log.record(opened(2))
    await bench.log.record(opened(3))
    await asyncio.wait_for(task, 5)
    assert seen == [0, 1, 2, 3]


def test_a_long_reason_is_cut_and_a_huge_detail_refused() -> None:
    """No deed goes unrecorded over a person's wording; a programmer's mistake is told at once."""
    event = Event(EventKind.EMERGENCY_OPENED, "person:li", reason="x" * 9000)
    assert len(event.reason) == MAX_REASON_CHARACTERS
    assert event.reason.endswith("…")
    with pytest.raises(Invalid, match="bytes"):
        Event(EventKind.INSTANCES_STORED, "device:CT1", detail={"all": ["x" * 100] * 1000})
    with pytest.raises(Invalid, match="plain JSON"):
        Event(EventKind.INSTANCES_STORED, "device:CT1", detail={"when": object()})  # type: ignore[dict-item]
    with pytest.raises(Invalid, match="plain JSON"):
        Event(EventKind.INSTANCES_STORED, "device:CT1", detail={"rate": float("nan")})


@pytest.mark.parametrize(
    "record",
    [b"", b"0" * 16, b"0" * 16 + b"[]", b"0" * 16 + b'{"v":2}', b"0" * 16 + b'{"v":1,"kind":"Nonsense"}'],
)
def test_what_is_no_record_is_refused(record: bytes) -> None:
    """Foreign bytes in an extra line do not pass for an entry."""
    with pytest.raises(Invalid):
        read_record(record)


async def test_a_thousand_entries_are_appended_at_once(bench: Bench) -> None:
    """One call, one transaction, indexes in the order given."""
    async with bench.log.database.write() as tx:
        entries = await bench.log.append_many(tx, [opened(n) for n in range(1000)])
        assert await bench.log.append_many(tx, []) == ()
    assert [entry.index for entry in entries] == list(range(1000))
    assert await bench.log.size() == 1000
