"""Timed duties: what runs on an interval, one run at a time per job, and how its last run went.

Holds no duty itself. A job that fails is written to the operator's log, shown in `status`, and tried again
after its interval; it never stops another job. The owner starts all of them with `running()` and, leaving the block,
stops them all.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from time import perf_counter
from typing import Any

import structlog

from consent.errors import AccordError, Conflict, Invalid, NotFound
from node.clock import Clock
from node.web.problems import where

JITTER = 0.1
MIN_INTERVAL_SECONDS = 0.01
MAX_ERROR_CHARACTERS = 500

logger = structlog.get_logger()


@dataclass(frozen=True)
class Job:
    """A duty: `run` is awaited every `interval_seconds`, first `delay_seconds` after the start."""

    name: str
    interval_seconds: float
    run: Callable[[], Awaitable[None]]
    delay_seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.interval_seconds < MIN_INTERVAL_SECONDS:
            raise Invalid(f"Job {self.name!r} needs an interval of {MIN_INTERVAL_SECONDS} s or more.")


@dataclass(frozen=True)
class JobStatus:
    """How a job is doing. `error` is the last run's, empty when it went well."""

    name: str
    interval_seconds: float
    running: bool = False
    runs: int = 0
    failures: int = 0
    last_started: datetime | None = None
    last_seconds: float | None = None
    next_due: datetime | None = None
    error: str = ""


class Jobs:
    """All jobs of a node."""

    def __init__(self, jobs: Iterable[Job], clock: Clock) -> None:
        self._jobs = {job.name: job for job in jobs}
        self._clock = clock
        self._status = {name: JobStatus(name, job.interval_seconds) for name, job in self._jobs.items()}
        self._turns = {name: asyncio.Lock() for name in self._jobs}
        self._wakes = {name: asyncio.Event() for name in self._jobs}

    def add(self, job: Job) -> None:
        """Take on another job, before `running()`. Raises Conflict when the name is taken."""
        if job.name in self._jobs:
            raise Conflict(f"There is a job named {job.name!r} already.")
        self._jobs[job.name] = job
        self._status[job.name] = JobStatus(job.name, job.interval_seconds)
        self._turns[job.name] = asyncio.Lock()
        self._wakes[job.name] = asyncio.Event()

    def status(self) -> tuple[JobStatus, ...]:
        """Every job's state, by name."""
        return tuple(self._status[name] for name in sorted(self._status))

    def wake(self, name: str) -> None:
        """Let a job run as soon as it can, instead of waiting for its interval. Raises NotFound."""
        self._known(name)
        self._wakes[name].set()

    async def run_now(self, name: str) -> JobStatus:
        """Run a job once, after a run that is under way; return how it went. Raises NotFound."""
        await self._run(self._known(name))
        return self._status[name]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Jobs]:
        """Run every job until the block ends; then cancel them and wait until all have stopped."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._repeat(job), name=job.name) for job in self._jobs.values()]
            try:
                yield self
            finally:
                for task in tasks:
                    task.cancel()

    async def _repeat(self, job: Job) -> None:
        await self._wait(job, job.delay_seconds)
        while True:
            await self._run(job)
            await self._wait(job, job.interval_seconds)

    async def _wait(self, job: Job, seconds: float) -> None:
        # Jitter keeps the nodes of a region, restarted together, from calling the hub at one instant.
        seconds *= 1 + random.uniform(-JITTER, JITTER)  # noqa: S311 - no secret
        self._show(job, next_due=self._clock.now() + timedelta(seconds=seconds))
        wake = self._wakes[job.name]
        try:
            async with asyncio.timeout(seconds):
                await wake.wait()
        except TimeoutError:
            pass
        wake.clear()

    async def _run(self, job: Job) -> None:
        async with self._turns[job.name]:
            self._show(job, running=True, last_started=self._clock.now())
            started, error = perf_counter(), ""
            try:
                await job.run()
            except Exception as failure:
                error = _words(failure)
                logger.warning("job failed", job=job.name, error=error)
            finally:
                was = self._status[job.name]
                self._show(
                    job,
                    running=False,
                    runs=was.runs + 1,
                    failures=was.failures + bool(error),
                    last_seconds=perf_counter() - started,
                    error=error,
                )

    def _show(self, job: Job, **changes: Any) -> None:
        self._status[job.name] = replace(self._status[job.name], **changes)

    def _known(self, name: str) -> Job:
        job = self._jobs.get(name)
        if job is None:
            raise NotFound(f"There is no job named {name!r}.")
        return job


def _words(failure: Exception) -> str:
    """Our own words for our own errors; of any other its type and place, for its text may hold a patient's data."""
    known = isinstance(failure, AccordError)
    words = str(failure) if known else f"{type(failure).__name__} at {where(failure)}"
    return words[:MAX_ERROR_CHARACTERS]
