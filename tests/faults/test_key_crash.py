"""SIGKILL and a full disk in the middle of rotation, rewrapping and regrading: every image still opens, nothing is half done.

The work runs in a forked process that the test kills at random moments; then the folder is opened as after a restart.
`ACCORD_KEY_CRASH_ROUNDS` raises the number of kills, `ACCORD_CRASH_SEED` repeats a run's decisions.
"""

from __future__ import annotations

import asyncio
import os
import random
import resource
import secrets
import signal
import time
import traceback
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from consent.errors import AccordError
from consent.vocabulary import Action, EventKind, Grade, Role
from node.regrading import Regrading
from node.rotation import Rotation
from node.vault.key_tables import vault_kek, vault_regrade, vault_study_key
from tests.faults.conftest import Counts
from tests.support.clock import FakeClock
from tests.support.dicom import Instance, study
from tests.support.node import NodeFixture, small_node

ROUNDS = int(os.environ.get("ACCORD_KEY_CRASH_ROUNDS", "3"))
KEYS = 100
CALM_SECONDS = 0.15
FAILED, REFUSED = 1, 3
"""How the process ends: of an error that nobody expected, of one in our words."""
Work = Callable[[NodeFixture], Coroutine[Any, Any, None]]


@dataclass
class Archive:
    """A folder with one study of known bytes, and study keys of others."""

    folder: Path
    name: str
    instances: tuple[Instance, ...]


def regrading_of(node: NodeFixture) -> Regrading:
    return Regrading(
        vault=node.vault, blobs=node.blobs, keys=node.keys, index=node.index, ingest=node.ingest,
        log=node.log, database=node.database, clock=node.clock,
    )  # fmt: skip


def rotation_of(node: NodeFixture) -> Rotation:
    return Rotation(node.keys, node.database, node.log, node.policies, node.clock)


async def make(folder: Path) -> Archive:
    instances = study(slices=4, size=256)
    async with small_node(folder) as node:
        name = (await node.store(*instances))[0].study
        async with node.database.write() as tx:
            for number in range(KEYS):
                await node.keys.study_key(tx, f"st_other{number:04}", Grade.ORDINARY, create=True)
    return Archive(folder, name, instances)


def killed(
    archive: Archive, work: Work, after_seconds: float, *, limits: Callable[[], None] | None = None
) -> int:
    """Do the work in a process of its own; kill it `after_seconds` after it has begun, if it still works. Its exit code."""
    ready, begun = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(ready)

            async def run() -> None:
                async with small_node(archive.folder, clock=FakeClock()) as node:
                    if limits is not None:
                        limits()
                    os.write(begun, b".")
                    await work(node)

            asyncio.run(run())
        except BaseException:
            traceback.print_exc()
            os._exit(FAILED)
        os._exit(0)
    os.close(begun)
    started = os.read(ready, 1)
    os.close(ready)
    deadline = time.monotonic() + after_seconds
    while started and time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert started, "the work did not begin"
    return code


async def examine(archive: Archive) -> tuple[int, int]:
    """Open the folder as after a restart: all keys open, all bytes are right.

    Returns the study's grade, and how much was left unfinished: a regrading, or study keys under an older version.
    """
    async with small_node(archive.folder) as node:
        behind = sum(one.behind for one in (await node.keys.status()).grades)
        unfinished = await regrading_of(node).recover() or behind
        await node.ingest.recover()
        async with node.database.read() as tx:
            assert (await tx.execute(select(vault_regrade))).first() is None
            keys = vault_study_key.c
            rows = (await tx.execute(select(keys.study, keys.grade))).all()
            actives = select(vault_kek.c.grade, func.count()).where(vault_kek.c.state == "active")
            assert all(count == 1 for _, count in await tx.execute(actives.group_by(vault_kek.c.grade)))
        for name, grade in rows:
            assert len(await node.keys.study_key(None, name, Grade(grade))) == 32
        assert len(rows) == KEYS + 1
        chief = replace(await node.person(Role.CHIEF_PHYSICIAN, secrets.token_hex(4)), second_factor=True)
        opening = await node.gateway.open(chief, archive.name, action=Action.DOWNLOAD)
        for one in archive.instances:
            assert (await node.gateway.instance(opening, one.sop_instance_uid)).data == one.data
        assert await node.events(EventKind.INTEGRITY_FAILED) == []
        assert [path.name for path in node.blobs.root.rglob("*.new")] in ([], [f".{archive.name}.pack.new"])
        return int((await node.index.study(archive.name)).grade), unfinished


async def rotate_and_rewrap(node: NodeFixture) -> None:
    rotation = rotation_of(node)
    while True:
        await rotation.rotate(Grade.ORDINARY, "system")
        await rotation.rewrap(batch=3)


async def regrade_up_and_down(node: NodeFixture) -> None:
    name = (await node.index.indexed_to()).popitem()[0]
    while True:
        for grade in (Grade.RESTRICTED, Grade.SENSITIVE, Grade.ORDINARY):
            if (await node.index.study(name)).grade is not grade:
                await regrading_of(node).regrade(name, grade, "system")


@pytest.mark.slow
@pytest.mark.requirement("V1", "F4")
@pytest.mark.timeout(120 + 10 * ROUNDS)
@pytest.mark.parametrize("work", [rotate_and_rewrap, regrade_up_and_down])
def test_no_key_and_no_image_is_lost_by_kill_9(tmp_path: Path, work: Work, counts: Counts) -> None:
    """Killed again and again at random moments: afterwards every study key opens and every byte is what was sent."""
    seed = int(os.environ.get("ACCORD_CRASH_SEED", secrets.randbits(32)))
    dice, seen = random.Random(seed), list[tuple[int, int]]()
    archive = asyncio.run(make(tmp_path))
    for _ in range(ROUNDS):
        assert killed(archive, work, dice.uniform(0.0, 2 * CALM_SECONDS)) == -signal.SIGKILL
        seen.append(asyncio.run(examine(archive)))
    counts(kills=ROUNDS, unfinished=sum(1 for _, left in seen if left), seed=seed)


@pytest.mark.requirement("V1", "F4")
@pytest.mark.parametrize("work", [rotate_and_rewrap, regrade_up_and_down])
def test_a_disk_that_fills_up_leaves_everything_readable(tmp_path: Path, work: Work) -> None:
    """No file may grow any more (RLIMIT_FSIZE, as a quota does it): the work fails, and what was there opens."""
    archive = asyncio.run(make(tmp_path))
    sizes = [path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()]

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        most = max(sizes) // 2
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    async def until_it_fails(node: NodeFixture) -> None:
        try:
            await work(node)
        except AccordError:
            os._exit(REFUSED)

    assert killed(archive, until_it_fails, 30.0, limits=limit) == REFUSED
    assert asyncio.run(examine(archive))[0] in (1, 2, 3)
