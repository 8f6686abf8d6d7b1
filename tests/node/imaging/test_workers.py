"""Worker processes: there when there is work, gone when there has been none, and never more than may be."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from consent.errors import Invalid, Unavailable
from node.imaging import workers
from node.imaging.workers import Workers
from tests.support.children import children

REST_SECONDS = 0.1
WAIT_SECONDS = 10.0
BUSY = """
import time
import node.imaging.worker as worker

def busy(job, data):
    time.sleep(job["seconds"])
    return {}, b"done"

worker.JOBS["busy"] = busy
worker.main()
"""
"""A worker that knows one job more, which takes as long as it is told."""


@pytest.fixture(autouse=True)
def program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "PROGRAM", ("-c", BUSY))


def workers_now(program: str = BUSY) -> int:
    return children(program)


def tasks() -> set[str]:
    """What a pool does by itself now."""
    return {name for task in asyncio.all_tasks() if (name := task.get_name()).startswith("imaging-")}


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while not what():
            await asyncio.sleep(0.01)


async def woken() -> None:
    await until(lambda: "imaging-wake" not in tasks())


async def busy(pool: Workers, seconds: float = 0.0) -> None:
    assert (await pool.run({"kind": "busy", "seconds": seconds}))[1] == b"done"


@pytest.mark.requirement("F1")
async def test_there_is_no_worker_before_there_is_work_and_one_for_one_caller() -> None:
    """An idle node holds no process; somebody who asks for one thing after the other is served by one."""
    pool = Workers(2)
    assert workers_now() == 0
    for _ in range(3):
        await busy(pool)

    assert workers_now() == 1
    await pool.close()
    assert workers_now() == 0


@pytest.mark.requirement("F1")
async def test_a_worker_that_rested_is_ended_and_the_next_job_starts_another() -> None:
    """After its rest no process is left, nobody watches any more, and work goes on as before."""
    pool = Workers(1, rest_seconds=REST_SECONDS)
    for _ in range(2):
        await busy(pool)
        assert workers_now() == 1
        await until(lambda: workers_now() == 0)
        await until(lambda: not tasks())
    await pool.close()


@pytest.mark.requirement("F1")
async def test_a_worker_at_work_is_not_ended_however_long_it_takes() -> None:
    """Rest begins when a job ends: one longer than the rest is answered, and its worker still there after it."""
    pool = Workers(2, rest_seconds=3 * REST_SECONDS)
    pool.wake()
    await woken()
    assert workers_now() == 2

    await busy(pool, 10 * REST_SECONDS)
    assert workers_now() == 1  # the other rested
    await until(lambda: workers_now() == 0)
    await pool.close()


@pytest.mark.requirement("F4")
async def test_the_jobs_of_many_callers_end_no_worker_and_lose_no_answer() -> None:
    """With a rest as short as a job, workers end and start while callers wait; every one gets its answer."""
    pool = Workers(2, rest_seconds=0.0)
    async with asyncio.TaskGroup() as callers:
        for number in range(12):
            callers.create_task(busy(pool, 0.01 * (number % 3)))
        callers.create_task(asyncio.sleep(0.05)).add_done_callback(lambda _: pool.wake())

    await until(lambda: workers_now() == 0)
    await pool.close()


@pytest.mark.requirement("F1")
async def test_waking_starts_all_of_them_once_and_hides_the_start() -> None:
    """Whoever opens a page has the processes by the time its pictures are asked for."""
    pool = Workers(2)
    for _ in range(3):
        pool.wake()
    await busy(pool)
    await woken()

    assert workers_now() == 2
    pool.wake()
    await woken()
    assert workers_now() == 2
    await pool.close()


async def test_a_worker_that_does_not_start_is_no_error_of_waking(monkeypatch: pytest.MonkeyPatch) -> None:
    """The job that needs it is refused in words; once it can be started again, work goes on."""
    pool = Workers(1)
    monkeypatch.setattr(workers, "PROGRAM", ("-c", "raise SystemExit(3)"))
    pool.wake()
    await woken()
    with pytest.raises(Unavailable):
        await busy(pool)
    monkeypatch.setattr(workers, "PROGRAM", ("-c", BUSY))
    await busy(pool)
    await pool.close()


@pytest.mark.requirement("F4")
async def test_a_worker_that_starts_too_late_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a job nor waking leaves a process that would say later that it is ready: that would pass for an answer."""
    late = BUSY.replace("worker.main()", "time.sleep(0.1); worker.main()")
    pool = Workers(1, deadline_seconds=0.05)
    monkeypatch.setattr(workers, "PROGRAM", ("-c", late))
    with pytest.raises(Unavailable):
        await busy(pool)
    pool.wake()
    await woken()
    assert workers_now(late) == 0

    await pool.close()


async def test_closing_ends_what_starts_what_works_and_what_watches() -> None:
    """A job in work is refused, and neither a process nor a task is left."""
    pool = Workers(2)
    await busy(pool)
    working = asyncio.create_task(busy(pool, 5.0))
    await asyncio.sleep(0.05)
    pool.wake()
    await asyncio.sleep(0)
    await pool.close()

    with pytest.raises(Unavailable):
        await working
    await until(lambda: workers_now() == 0 and not tasks())


async def test_who_waited_for_a_turn_starts_nothing_after_the_end() -> None:
    """Closing with callers in the queue leaves no process behind, and they are told."""
    pool = Workers(1)
    first = asyncio.create_task(busy(pool, 30.0))
    await until(lambda: workers_now() == 1)
    waiting = [asyncio.create_task(busy(pool)) for _ in range(5)]
    await asyncio.sleep(0)
    await pool.close()
    ended = await asyncio.gather(first, *waiting, return_exceptions=True)
    assert all(isinstance(one, Unavailable) for one in ended)
    assert workers_now() == 0
    with pytest.raises(Unavailable):
        await busy(pool)
    pool.wake()
    assert tasks() == set()


async def test_what_a_worker_refuses_is_said_in_its_words() -> None:
    """An unknown kind of job is a fault of this one job; the worker stays."""
    pool = Workers(1)
    with pytest.raises(Invalid, match="KeyError"):
        await pool.run({"kind": "nothing"})
    await busy(pool)
    assert workers_now() == 1
    await pool.close()
