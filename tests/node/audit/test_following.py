"""A reader of the log: every entry of its kinds once, whoever reads, and altered ones named instead of in the way."""

from __future__ import annotations

import pytest

from consent.errors import Conflict
from consent.vocabulary import EventKind
from node.audit import following
from node.audit.following import News, news, settle
from node.audit.log import Event, Log
from tests.node.audit.conftest import Bench

READER = "test"
KINDS = (EventKind.INTEGRITY_FAILED,)


async def fail(bench: Bench, number: int) -> None:
    await bench.log.record(Event(EventKind.INTEGRITY_FAILED, "system", reason=f"fault {number}"))


async def deal(log: Log) -> News:
    """Read, and settle as a reader does."""
    read = await news(log, READER, KINDS)
    async with log.database.write() as tx:
        await settle(log, tx, read)
    return read


@pytest.mark.requirement("V4")
async def test_each_entry_of_the_kinds_comes_once_in_order(bench: Bench) -> None:
    """Others are passed over; what was settled does not come again."""
    await bench.fill(5)
    await fail(bench, 1)
    await bench.fill(3)
    await fail(bench, 2)
    assert [entry.event.reason for entry in (await deal(bench.log)).entries] == ["fault 1", "fault 2"]

    again = await news(bench.log, READER, KINDS)
    assert again.entries == () and not again.worth_settling
    await fail(bench, 3)
    assert [entry.event.reason for entry in (await deal(bench.log)).entries] == ["fault 3"]


async def test_a_reader_far_behind_comes_up_in_steps(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a long stretch of other kinds nor many of its own are taken at once."""
    monkeypatch.setattr(following, "MAX_WINDOW", 10)
    await bench.fill(25)
    await fail(bench, 1)
    steps = [await deal(bench.log) for _step in range(3)]

    assert [(step.upto, step.more) for step in steps] == [(9, True), (19, True), (25, False)]
    assert [len(step.entries) for step in steps] == [0, 0, 1]
    for number in range(4):
        await fail(bench, number)
    assert len((await news(bench.log, READER, KINDS, limit=3)).entries) == 3


async def test_two_processes_under_one_name_do_not_count_twice(bench: Bench) -> None:
    """Who settles second is told, and its transaction does nothing."""
    await fail(bench, 1)
    other = bench.another()
    first, second = await news(bench.log, READER, KINDS), await news(other, READER, KINDS)
    async with bench.log.database.write() as tx:
        await settle(bench.log, tx, first)
    with pytest.raises(Conflict):
        async with other.database.write() as tx:
            await settle(other, tx, second)
    await other.database.close()


@pytest.mark.requirement("A1")
async def test_an_altered_entry_is_named_and_passed_over(bench: Bench) -> None:
    """Whoever altered it does not silence the reader that would report it."""
    for number in range(3):
        await fail(bench, number)
    bench.alter("UPDATE log_entry SET sealed = zeroblob(60) WHERE position = 1")
    read = await deal(bench.log)

    assert [entry.index for entry in read.entries] == [0, 2] and read.unreadable == (1,)
