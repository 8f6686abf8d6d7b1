"""System calls of rotation, compaction and a change of grade fail below SQLite too, or are where SIGKILL strikes.

Done or refused in words, the same again is done; after a restart nothing is lost, altered, under a dead key or left over.
`ACCORD_STRACE_TRIALS` says how many faults there are in a test, evenly over the calls: with enough, every one.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from consent.vocabulary import Grade
from tests.faults.inspection import faults_in, leftovers, upkeep
from tests.faults.tracing import Say, Traced, needs_strace, traced, until_done
from tests.faults.works import Archive, Work, compact, regrade, rotate
from tests.support.node import small_node

TRIALS = int(os.environ.get("ACCORD_STRACE_TRIALS", "3"))
pytestmark = [
    pytest.mark.requirement("V1", "V2", "F4"),
    pytest.mark.slow,
    pytest.mark.timeout(60 + 5 * TRIALS),
    needs_strace,
]
CHANGES = ("pwrite64", "pwritev", "fdatasync", "fsync", "ftruncate")
NAMES = ("rename", "renameat", "renameat2", "unlink", "unlinkat", "mkdir", "openat")
STUDY, OTHER_KEYS = 1, 10
WORKS = [
    pytest.param(rotate, 1, id="rotation"),
    pytest.param(compact, 1, id="compaction"),
    pytest.param(compact, 3, id="compaction-on-three-roots"),
    pytest.param(regrade, 1, id="change-of-grade"),
    pytest.param(regrade, 3, id="change-of-grade-on-three-roots"),
]
Property = Callable[[str, object], None]


@pytest.mark.parametrize(("work", "roots"), WORKS)
def test_each_call_below_the_database_fails_in_turn(
    tmp_path: Path, work: Work, roots: int, record_property: Property
) -> None:
    """ENOSPC or EIO: refused in words or done, and done when it is asked again."""
    trial = Trials(tmp_path, work, roots)
    undisturbed = trial.traced("")
    assert undisturbed.said == "done\n"
    faults = [
        f"{call}:error={error}:when={at}"
        for call, count in undisturbed.reached().items()
        for at in range(1, count + 1)
        for error in ("ENOSPC", "EIO")
    ]
    for inject in evenly(faults):
        done = trial.traced(inject)
        assert done.code == 0, (inject, done.said)
        assert done.said.splitlines()[-1] in ("done", "ended Unavailable"), (inject, done.said)
        assert "done" in done.said, (inject, done.said)
        trial.look(inject)
    trial.put_on_record(record_property, len(faults))
    trial.require_proof()


@pytest.mark.parametrize(("work", "roots"), WORKS)
def test_killed_at_each_call_in_turn(
    tmp_path: Path, work: Work, roots: int, record_property: Property
) -> None:
    """SIGKILL as a call is made: the next start finds the one or the other, whole, and the same again is done."""
    trial = Trials(tmp_path, work, roots, NAMES)
    faults = [
        f"{call}:signal=KILL:when={at}"
        for call, count in trial.traced("").reached().items()
        for at in range(1, count + 1)
    ]
    for inject in evenly(faults):
        assert trial.traced(inject).code in (0, -signal.SIGKILL), inject
        trial.look(inject)
        assert trial.traced("").said == "done\n", inject
    trial.put_on_record(record_property, len(faults))
    trial.require_proof()


class Trials:
    """A node's folder, the work that is done there again and again, and what came of it."""

    def __init__(self, folder: Path, work: Work, roots: int, names: tuple[str, ...] = ()) -> None:
        self.outcomes = Counter[str]()
        self._folder, self._work, self._roots = folder / "node", work, roots
        self._trace, self._calls = folder / "trace", (*CHANGES, *names)
        self._archive = Archive()
        self._folder.mkdir()
        self._study = asyncio.run(self._made())

    def traced(self, inject: str) -> Traced:
        """Do the work in a process of its own, until it is done."""
        done = traced(self._trace, self._process, self._calls, inject)
        assert "Traceback" not in done.said, (inject, done.said)
        if inject:
            self.outcomes["tried"] += 1
            self.outcomes["injected"] += done.injected
            self.outcomes["refused"] += done.said.count("refused")
        return done

    def look(self, inject: str) -> None:
        """As after a restart: everything is there, and nothing else."""
        assert asyncio.run(self._looked()) == [], inject

    def require_proof(self) -> None:
        """Not every run makes as many calls as the first; most of them must have met a fault, or next to nothing was tried."""
        assert self.outcomes["injected"] > self.outcomes["tried"] // 3, self.outcomes

    def put_on_record(self, record_property: Property, calls: int) -> None:
        """For the table of the faults."""
        counts = {
            "acknowledged": len(self._archive.kept),
            "lost": 0,
            "corrupt": 0,
            "hung": 0,
            "faults": calls,
        }
        for name, value in {**counts, **self.outcomes}.items():
            record_property(name, value)

    async def _process(self, look_on: Callable[[], None], say: Say) -> None:
        async with small_node(self._folder, roots=self._roots) as node:
            await upkeep(node)
            look_on()
            await until_done(partial(self._work, node, self._study), say)

    async def _made(self) -> str:
        async with small_node(self._folder, roots=self._roots) as node:
            study = await self._archive.store(node, STUDY)
            await self._archive.store(node, STUDY)
            for number in range(OTHER_KEYS):
                await node.keys.study_key(None, f"st_other{number:04}", Grade.ORDINARY, create=True)
            await upkeep(node)
        return study

    async def _looked(self) -> list[str]:
        async with small_node(self._folder, roots=self._roots) as node:
            await upkeep(node)
            return [*await faults_in(node, self._archive.kept), *leftovers(node)]


def evenly(faults: list[str]) -> list[str]:
    """So many of them as there are to be, from the first to the last."""
    return (
        [faults[number * len(faults) // TRIALS] for number in range(TRIALS)]
        if len(faults) > TRIALS
        else faults
    )
