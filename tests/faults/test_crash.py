"""Power cuts, as far as a process can have them: SIGKILL at random instants, and nothing acknowledged is ever lost.

Most starts are forked from a process that has the node's modules loaded. Every fifth is a process of its own, as a
service manager starts it, and the figures of a restart are theirs.
`ACCORD_CRASH_ROUNDS` raises the number of kills, `ACCORD_CRASH_SEED` repeats a run's decisions.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest

from consent.errors import AccordError
from node.dicom.sender import Peer, send
from tests.faults.examination import examine
from tests.faults.slices import Truth, outgoing
from tests.support.nursery import Nursery
from tests.support.served import Served, make_node

ROUNDS = int(os.environ.get("ACCORD_CRASH_ROUNDS", "50"))
MAX_SENDERS = 4
KILLED_BEFORE_AN_ANSWER = 0.2
KILL_AFTER_SECONDS = (0.0, 0.4)
FIRST_ANSWER_SECONDS = 10.0
KILLED_WHILE_STARTING = 0.2
START_KILLED_AFTER_SECONDS = (0.0, 1.0)
WHOLE_START_EVERY = 5


@pytest.mark.slow
@pytest.mark.journey
@pytest.mark.requirement("F4", "C3")
@pytest.mark.timeout(120 + 10 * ROUNDS)
async def test_nothing_acknowledged_is_lost_by_kill_9(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], record_property: Callable[[str, object], None]
) -> None:
    """The node is killed again and again while devices send; what it acknowledged is there, exact and on record."""
    seed = int(os.environ.get("ACCORD_CRASH_SEED", secrets.randbits(32)))
    dice, truth, kills = random.Random(seed), Truth(), 0
    restarts, restarts_cpu = list[float](), list[float]()
    node = await make_node(tmp_path / "node")
    async with Nursery() as nursery:
        try:
            for number in range(ROUNDS):
                if dice.random() < KILLED_WHILE_STARTING:
                    await node.start(nursery, wait=False)
                    await asyncio.sleep(dice.uniform(*START_KILLED_AFTER_SECONDS))
                    await node.kill()
                    kills += 1
                if number % WHOLE_START_EVERY:
                    await node.start(nursery)
                else:
                    restarts.append(await node.start())
                    restarts_cpu.append(node.cpu_seconds())
                await _killed_while_sending(node, truth, dice)
                kills += 1
            await node.start(nursery)
            assert await node.stop() == 0, node.said()
        finally:
            if node.alive:
                await node.kill()
    findings = await examine(node.folder, truth)
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    report = {
        "kills": kills,
        "sent": len(truth.sent),
        "acknowledged": len(truth.acknowledged),
        "read": findings.read,
        "lost": len(findings.lost),
        "corrupt": len(findings.corrupt),
        "log_entries": findings.log_entries,
        "restart_p50_seconds": round(median(restarts), 2),
        "restart_max_seconds": round(max(restarts), 2),
        "restart_p50_cpu_seconds": round(median(restarts_cpu), 2),
        "load": round(load, 1),
        "seed": seed,
    }
    for name, value in report.items():
        record_property(name, value)
    with capsys.disabled():
        print(f"\ncrash test: {' '.join(f'{name}={value}' for name, value in report.items())}")
    assert findings.clean, (seed, findings)
    assert len(truth.acknowledged) > ROUNDS, "too little was sent to prove anything"


async def _killed_while_sending(node: Served, truth: Truth, dice: random.Random) -> None:
    """One to four devices send, each on associations of its own; then the node dies under them."""
    count = dice.randint(1, MAX_SENDERS)
    first = len(truth.numbers) + 1
    together = dice.random() < 0.5  # several senders of one study meet in one group commit
    old = list(truth.numbers)
    studies = [first if together else first + place for place in range(count)]
    if old and dice.random() < 0.4:
        studies[0] = dice.choice(old)  # a pack that went through crashes grows on
    senders = [
        asyncio.create_task(
            _send(node.secure() if place % 2 else node.plain(), study, truth, random.Random(dice.random()))
        )
        for place, study in enumerate(studies)
    ]
    if dice.random() >= KILLED_BEFORE_AN_ANSWER:
        await _until_acknowledged(truth, len(truth.acknowledged))
    await asyncio.sleep(dice.uniform(*KILL_AFTER_SECONDS))
    await node.kill()
    await asyncio.gather(*senders)


async def _until_acknowledged(truth: Truth, before: int) -> None:
    async with asyncio.timeout(FIRST_ANSWER_SECONDS):
        while len(truth.acknowledged) == before:
            await asyncio.sleep(0.001)


async def _send(peer: Peer, study: int, truth: Truth, dice: random.Random) -> None:
    """Send slices of a study, association after association, until the node is gone."""
    while True:
        batch = [truth.next(study) for _ in range(dice.randint(1, 120))]
        try:
            async for sent in send(peer, [outgoing(instance) for instance in batch]):
                assert sent.ok, sent
                truth.acknowledged.add(sent.sop_instance_uid)
        except AccordError:
            return
