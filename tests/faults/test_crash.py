"""Power cuts, as far as a process can have them: SIGKILL at random instants, and nothing acknowledged is ever lost.

One to four senders at a time, each by another door in turn: C-STORE over TLS and in plain, and STOW-RS. Half of the
kills are of a node with one copy, half of one with three roots, of which two are durable before the answer.
Most starts are forked from a process that has the node's modules loaded. Every fifth is a process of its own, as a
service manager starts it, and the figures of a restart are theirs.
`ACCORD_CRASH_ROUNDS` raises the number of kills, `ACCORD_CRASH_SEED` repeats a run's decisions.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import secrets
import shutil
import ssl
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from statistics import median

import aiohttp
import pytest

from consent.errors import AccordError
from node.dicom.sender import Peer, send
from tests.faults.conftest import Counts
from tests.faults.examination import Findings, examine
from tests.faults.slices import Truth, outgoing
from tests.support.dicomweb import DicomWeb
from tests.support.nursery import Nursery
from tests.support.served import Served, make_node

ROUNDS = int(os.environ.get("ACCORD_CRASH_ROUNDS", "36")) // 2
"""Of each kind of node."""
MAX_SENDERS = 4
KILLED_BEFORE_AN_ANSWER = 0.2
KILL_AFTER_SECONDS = (0.0, 0.4)
FIRST_ANSWER_SECONDS = 10.0
SENDERS_END_SECONDS = 20.0
"""By when a sender has seen that its node is gone."""
KILLED_WHILE_STARTING = 0.2
START_KILLED_AFTER_SECONDS = (0.0, 1.0)
WHOLE_START_EVERY = 5
STORED_SEQUENCE, STORED_INSTANCE = "00081199", "00081155"

DOORS = ("tls", "stow", "plain", "tls")


@dataclass
class Trial:
    """One run: what it decides by, what was sent and acknowledged, and what did not end in its bound."""

    dice: random.Random
    truth: Truth = field(default_factory=Truth)
    kills: int = 0
    hung: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    ending: bool = False
    """The node is being killed or stopped: from now on a sender may fail."""
    acknowledged_by: Counter[str] = field(default_factory=Counter)
    restarts: list[float] = field(default_factory=list)
    restarts_cpu: list[float] = field(default_factory=list)
    doors: Iterator[str] = field(default_factory=lambda: cycle(DOORS))

    def acknowledge(self, uid: str, door: str) -> None:
        self.truth.acknowledged.add(uid)
        self.acknowledged_by[door] += 1


@pytest.mark.slow
@pytest.mark.journey
@pytest.mark.requirement("F4", "C3", "V2")
@pytest.mark.timeout(120 + 10 * ROUNDS)
@pytest.mark.parametrize("roots", [1, 3], ids=["one-root", "three-roots-two-before-the-answer"])
async def test_nothing_acknowledged_is_lost_by_kill_9(tmp_path: Path, counts: Counts, roots: int) -> None:
    """Killed again and again while devices and programs send: what was acknowledged is there, exact and on record."""
    seed = int(os.environ.get("ACCORD_CRASH_SEED", secrets.randbits(32)))
    trial = Trial(random.Random(seed))
    disks = [tmp_path / f"disk{number}" / "packs" for number in range(roots)] if roots > 1 else []
    node = await make_node(tmp_path / "node", roots=disks)
    async with Nursery() as nursery:
        try:
            for number in range(ROUNDS):
                await _one_round(node, nursery, trial, whole=number % WHOLE_START_EVERY == 0)
            await _stopped_while_sending(node, nursery, trial)
            await _one_round(node, nursery, trial, whole=True)
        finally:
            if node.alive:
                await node.kill()
    less = await _without_one_of(disks, node, trial) if disks else Findings()
    findings = _both(less, await examine(node.folder, trial.truth))
    _tell(counts, trial, findings, seed)
    assert findings.clean, (seed, findings)
    assert not trial.hung, (seed, trial.hung)
    assert not trial.refused, (seed, trial.refused)
    assert len(trial.truth.acknowledged) > ROUNDS, "too little was sent to prove anything"
    assert set(trial.acknowledged_by) == {"tls", "plain", "stow"} or ROUNDS < 10


async def _one_round(node: Served, nursery: Nursery, trial: Trial, *, whole: bool) -> None:
    """Perhaps a start that is killed, then one that comes up, and a kill while devices send."""
    dice = trial.dice
    if dice.random() < KILLED_WHILE_STARTING:
        await node.start(nursery, wait=False)
        await asyncio.sleep(dice.uniform(*START_KILLED_AFTER_SECONDS))
        await node.kill()
        trial.kills += 1
    if not await _started(node, None if whole else nursery, trial):
        return
    senders = _senders(node, trial)
    if dice.random() >= KILLED_BEFORE_AN_ANSWER:
        await _until_acknowledged(trial)
    await asyncio.sleep(dice.uniform(*KILL_AFTER_SECONDS))
    trial.ending = True
    await node.kill()
    trial.kills += 1
    await _ended(senders, trial)


async def _stopped_while_sending(node: Served, nursery: Nursery, trial: Trial) -> None:
    """The last end is in good order, with everybody still sending: it has a bound as well."""
    if not await _started(node, nursery, trial):
        return
    senders = _senders(node, trial)
    await _until_acknowledged(trial)
    trial.ending = True
    try:
        assert await node.stop() == 0, node.said()
    except AssertionError as error:
        trial.hung.append(f"stop: {error}")
    await _ended(senders, trial)


async def _started(node: Served, nursery: Nursery | None, trial: Trial) -> bool:
    """Whether it was ready within its bound. One that ends by itself fails the test at once."""
    try:
        seconds = await node.start(nursery)
    except TimeoutError:
        trial.hung.append(f"start after {trial.kills} kills: {node.said()[-500:]}")
        await node.kill()
        return False
    if nursery is None:
        trial.restarts.append(seconds)
        trial.restarts_cpu.append(node.cpu_seconds())
    return True


def _senders(node: Served, trial: Trial) -> list[asyncio.Task[None]]:
    """One to four senders, each with a study, by the doors in turn."""
    dice, truth = trial.dice, trial.truth
    trial.ending = False
    count = dice.randint(1, MAX_SENDERS)
    first = len(truth.numbers) + 1
    together = dice.random() < 0.5  # several senders of one study meet in one group commit
    old = list(truth.numbers)
    studies = [first if together else first + place for place in range(count)]
    if old and dice.random() < 0.4:
        studies[0] = dice.choice(old)  # a pack that went through crashes grows on
    return [
        asyncio.create_task(_send(node, study, trial, next(trial.doors), random.Random(dice.random())))
        for study in studies
    ]


async def _ended(senders: list[asyncio.Task[None]], trial: Trial) -> None:
    done, waiting = await asyncio.wait(senders, timeout=SENDERS_END_SECONDS)
    for task in waiting:
        task.cancel()
        trial.hung.append("a sender waits for a node that has ended")
    for task in done:
        task.result()


async def _until_acknowledged(trial: Trial) -> None:
    before = len(trial.truth.acknowledged)
    try:
        async with asyncio.timeout(FIRST_ANSWER_SECONDS):
            while len(trial.truth.acknowledged) == before:
                await asyncio.sleep(0.001)
    except TimeoutError:
        trial.hung.append(f"no answer after {trial.kills} kills")


async def _send(node: Served, study: int, trial: Trial, door: str, dice: random.Random) -> None:
    """Send slices of a study through a door, association after association or request after request, until the node is gone."""
    try:
        if door == "stow":
            await _by_stow(node, study, trial, dice)
        else:
            await _by_c_store(node.secure() if door == "tls" else node.plain(), study, trial, door, dice)
    except (AccordError, aiohttp.ClientError, ConnectionError, ssl.SSLError) as error:
        if not trial.ending:
            trial.refused.append(f"{door}, by a node that runs: {error!r}")


async def _by_c_store(peer: Peer, study: int, trial: Trial, door: str, dice: random.Random) -> None:
    while True:
        batch = [trial.truth.next(study) for _ in range(dice.randint(1, 120))]
        async for sent in send(peer, [outgoing(instance) for instance in batch]):
            if sent.ok:
                trial.acknowledge(sent.sop_instance_uid, door)
            elif not trial.ending:
                trial.refused.append(f"{door}: {sent}")


async def _by_stow(node: Served, study: int, trial: Trial, dice: random.Random) -> None:
    """What the answer lists as stored is acknowledged, and only that (PS3.18 Table I.2-1)."""
    async with DicomWeb(node.web, node.token, node.web_context()) as web:
        while True:
            batch = [trial.truth.next(study) for _ in range(dice.randint(1, 30))]
            status, body = await web.store(batch)
            answer = json.loads(body) if status in (200, 202) else {}
            for item in answer.get(STORED_SEQUENCE, {"Value": ()})["Value"]:
                trial.acknowledge(item[STORED_INSTANCE]["Value"][0], "stow")
            if status != 200 and not trial.ending:
                trial.refused.append(f"stow: {status} {body!r}")


async def _without_one_of(disks: list[Path], node: Served, trial: Trial) -> Findings:
    """What is found while one root is gone, straight after a kill: the others must have everything."""
    there = trial.dice.choice(disks)
    away = there.rename(there.with_suffix(".away"))
    findings = await examine(node.folder, trial.truth)
    if there.exists():
        shutil.rmtree(there)
    away.rename(there)
    return findings


def _both(one: Findings, other: Findings) -> Findings:
    return Findings(
        read=max(one.read, other.read),
        lost=sorted({*one.lost, *other.lost}),
        corrupt=sorted({*one.corrupt, *other.corrupt}),
        unlogged=sorted({*one.unlogged, *other.unlogged}),
        log_entries=max(one.log_entries, other.log_entries),
        log_faults=one.log_faults + other.log_faults,
    )


def _tell(counts: Counts, trial: Trial, findings: Findings, seed: int) -> None:
    counts(
        acknowledged=len(trial.truth.acknowledged),
        lost=len(findings.lost),
        corrupt=len(findings.corrupt),
        hung=len(trial.hung),
        kills=trial.kills,
        sent=len(trial.truth.sent),
        read=findings.read,
        **{f"by_{door}": number for door, number in sorted(trial.acknowledged_by.items())},
        log_entries=findings.log_entries,
        restart_p50_seconds=round(median(trial.restarts or [0]), 2),
        restart_max_seconds=round(max(trial.restarts, default=0), 2),
        restart_p50_cpu_seconds=round(median(trial.restarts_cpu or [0]), 2),
        load=round(os.getloadavg()[0] / (os.cpu_count() or 1), 1),
        seed=seed,
    )
