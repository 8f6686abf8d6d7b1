"""Timed duties run, fail alone, are shown, and stop."""

from __future__ import annotations

import asyncio

import pytest

from consent.errors import Conflict, Invalid, NotFound, Unavailable
from node.jobs import Job, Jobs
from tests.support.clock import FakeClock


async def _until(condition: object, seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.002)


async def test_a_job_runs_again_and_again_until_its_owner_leaves() -> None:
    """It repeats at its interval, and not once after the block has ended."""
    runs: list[int] = []

    async def duty() -> None:
        runs.append(len(runs))

    jobs = Jobs([Job("sweep", 0.01, duty)], FakeClock())
    async with jobs.running():
        await _until(lambda: len(runs) >= 3)
    done = len(runs)
    await asyncio.sleep(0.05)
    assert len(runs) == done
    assert jobs.status()[0].runs == done


async def test_a_failing_job_is_shown_tried_again_and_stops_no_other() -> None:
    """Its last error stands in the status until a run goes well."""
    tries: list[int] = []
    other: list[int] = []

    async def failing() -> None:
        tries.append(1)
        if len(tries) < 3:
            raise Unavailable("The peer is away.")

    async def duty() -> None:
        other.append(1)

    jobs = Jobs([Job("report", 0.01, failing), Job("sweep", 0.01, duty)], FakeClock())
    async with jobs.running():
        await _until(lambda: jobs.status()[0].failures == 1)
        assert jobs.status()[0].error == "The peer is away."
        await _until(lambda: len(tries) >= 4 and len(other) >= 4)
        assert jobs.status()[0].error == ""
        assert jobs.status()[0].failures == 2


async def test_an_unexpected_error_is_named_by_type_and_place_without_its_words(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A fault in our own code does not end the job either; what it says may hold a patient's data."""

    async def broken() -> None:
        raise KeyError("Zhang^San")

    jobs = Jobs([Job("rotate", 60, broken)], FakeClock())
    error = (await jobs.run_now("rotate")).error
    assert error.startswith("KeyError at ") and "test_jobs.py" in error and error.endswith(" broken")
    assert "Zhang" not in error + "".join(capsys.readouterr())


async def test_a_job_never_runs_beside_itself() -> None:
    """`run_now` waits for the run that is under way."""
    at_once, most = 0, 0

    async def duty() -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.005)
        at_once -= 1

    jobs = Jobs([Job("scrub", 0.01, duty)], FakeClock())
    async with jobs.running():
        await asyncio.gather(*(jobs.run_now("scrub") for _ in range(5)))
    assert most == 1


async def test_wake_runs_a_job_before_its_interval_is_over() -> None:
    """A withdrawal need not wait for the next sweep."""
    runs: list[int] = []

    async def duty() -> None:
        runs.append(1)

    jobs = Jobs([Job("sweep", 3600, duty)], FakeClock())
    async with jobs.running():
        await _until(lambda: len(runs) == 1)
        jobs.wake("sweep")
        await _until(lambda: len(runs) == 2)
        next_due = jobs.status()[0].next_due
        assert next_due is not None and next_due > FakeClock().now()


async def test_leaving_cancels_a_run_under_way_and_waits_for_its_clean_up() -> None:
    """Nothing of a job runs on after its owner has gone."""
    cleaned: list[str] = []

    async def long() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.01)
            cleaned.append("done")

    jobs = Jobs([Job("backup", 60, long)], FakeClock())
    async with jobs.running():
        await _until(lambda: jobs.status()[0].running)
    assert cleaned == ["done"]
    assert not jobs.status()[0].running


def test_a_wrong_interval_an_unknown_name_and_a_taken_name_are_refused() -> None:
    """Each with words that name the job."""

    async def duty() -> None:
        pass

    with pytest.raises(Invalid, match="sweep"):
        Job("sweep", 0, duty)
    jobs = Jobs([Job("sweep", 1, duty)], FakeClock())
    with pytest.raises(NotFound, match="backup"):
        jobs.wake("backup")
    with pytest.raises(Conflict, match="sweep"):
        jobs.add(Job("sweep", 1, duty))
