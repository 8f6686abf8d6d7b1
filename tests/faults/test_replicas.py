"""A storage root is lost under a running node: nothing acknowledged is lost, nothing stops, and it comes back in sync."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pytest

from consent.vocabulary import Action, EventKind, Role
from node.dicom.sender import Outgoing, send
from node.rebuilding import Rebuilding
from tests.faults.conftest import Counts
from tests.faults.examination import Findings, all_entries, examine
from tests.faults.slices import Truth, outgoing, study_uid
from tests.support.cli import accord
from tests.support.dicom import ct_slice
from tests.support.dicomweb import DicomWeb
from tests.support.node import small_node
from tests.support.served import Served, make_node

OUT_OF_RESOURCES = 0xA700
IN_SYNC_SECONDS = 20.0
INDEXED_SECONDS = 10.0
STUDIES = 3
INSTANCES = 12


@dataclass
class Rooted:
    """A running node with three roots."""

    node: Served
    roots: list[Path]

    def aside(self, number: int) -> Path:
        return self.roots[number].with_suffix(".out")


@asynccontextmanager
async def rooted(folder: Path) -> AsyncIterator[Rooted]:
    roots = [folder / f"disk{number}" / "packs" for number in range(3)]
    node = await make_node(folder / "node", roots=roots)
    await node.start()
    try:
        yield Rooted(node, roots)
    finally:
        if node.alive:
            await node.kill()


def remove(one: Rooted, number: int) -> None:
    """The folder is gone, with everything in it."""
    shutil.rmtree(one.roots[number])


def take_away(one: Rooted, number: int) -> None:
    """The disk is pulled out; whoever has its files open writes into the void."""
    one.roots[number].rename(one.aside(number))


def put_empty(one: Rooted, number: int) -> None:
    """An empty folder takes its place in the middle of everything."""
    one.roots[number].rename(one.aside(number))
    one.roots[number].mkdir()


def forbid(one: Rooted, number: int) -> None:
    """The file system refuses every write, as one does that has met an error."""
    if os.geteuid() != 0:
        for path in [*one.roots[number].rglob("*"), one.roots[number]]:
            path.chmod(0o500 if path.is_dir() else 0o400)
        return
    bound = subprocess.run(["mount", "--bind", one.roots[number], one.roots[number]], capture_output=True)
    if bound.returncode:
        pytest.skip("making a mount read-only needs more rights than this test has")
    subprocess.run(["mount", "-o", "remount,ro,bind", one.roots[number]], check=True)


def allow(one: Rooted, number: int) -> None:
    if os.geteuid() != 0:
        one.roots[number].chmod(0o700)
        for path in one.roots[number].rglob("*"):
            path.chmod(0o700 if path.is_dir() else 0o600)
        return
    subprocess.run(["umount", "-l", one.roots[number]], check=True)


def put_back(one: Rooted, number: int) -> None:
    if one.roots[number].exists():
        shutil.rmtree(one.roots[number])
    one.aside(number).rename(one.roots[number])


def make_anew(one: Rooted, number: int) -> None:
    one.roots[number].mkdir(exist_ok=True)


FAULTS: dict[str, tuple[Callable[[Rooted, int], None], Callable[[Rooted, int], None]]] = {
    "removed": (remove, make_anew),
    "away and stale": (take_away, put_back),
    "replaced by an empty one": (put_empty, make_anew),
    "read-only": (forbid, allow),
}


@pytest.mark.slow
@pytest.mark.journey
@pytest.mark.requirement("V2", "F4")
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("number", [0], ids=["the-root-that-is-read-first"])
async def test_losing_a_root_in_the_middle_stops_nothing_and_loses_nothing(
    tmp_path: Path,
    counts: Counts,
    number: int,
    fault: tuple[Callable[[Rooted, int], None], Callable[[Rooted, int], None]],
) -> None:
    """Every C-STORE succeeds and every read is exact throughout; afterwards three equal copies hold everything."""
    break_it, mend_it = fault
    truth = Truth()
    async with rooted(tmp_path) as one:
        web = DicomWeb(one.node.web, one.node.token, one.node.web_context())
        async with web:
            senders = [asyncio.create_task(_send(one.node, truth, study)) for study in range(1, STUDIES + 1)]
            await _until(lambda: len(truth.acknowledged) >= STUDIES * INSTANCES // 4)
            break_it(one, number)
            senders.append(asyncio.create_task(_send(one.node, truth, STUDIES + 1)))  # a pack that is new now
            for _ in range(4):
                await _read_everything(web, truth)
            await asyncio.gather(*senders)
            await _read_everything(web, truth)
            assert len(truth.acknowledged) == len(truth.sent) == (STUDIES + 1) * INSTANCES
            mend_it(one, number)
            await _until_in_sync(one.node)
            await _read_everything(web, truth)
        assert await one.node.stop() == 0, one.node.said()
        copies = [_files(root) for root in one.roots]
        assert copies[0] == copies[1] == copies[2]
        assert len(copies[0]) == STUDIES + 1
        findings = await examine(one.node.folder, truth)
        kinds = [entry.event.kind for entry in await all_entries(one.node.folder)]
    _tell(counts, truth, findings)
    assert findings.clean, findings
    assert findings.read == (STUDIES + 1) * INSTANCES
    assert EventKind.REPLICA_DEGRADED in kinds
    assert EventKind.REPLICA_HEALED in kinds


@pytest.mark.slow
@pytest.mark.journey
@pytest.mark.requirement("V2", "F4")
async def test_below_the_quorum_nothing_is_acknowledged_and_a_later_try_heals(
    tmp_path: Path, counts: Counts
) -> None:
    """Two of three roots away: A700 in words, reading goes on; one back, and the same instance is taken."""
    truth = Truth()
    async with rooted(tmp_path) as one:
        await _send(one.node, truth, 1, count=4)
        take_away(one, 0)
        take_away(one, 2)
        refused = truth.next(1)
        answers = [sent async for sent in send(one.node.plain(), [outgoing(refused)])]
        assert [sent.status for sent in answers] == [OUT_OF_RESOURCES]
        web = DicomWeb(one.node.web, one.node.token, one.node.web_context())
        async with web:
            status, answer = await web.store([truth.next(1)])
            assert status in (503, 507), answer
            await _read_everything(web, truth)
        put_back(one, 2)
        await _until_taken(one.node, outgoing(refused), truth)
        put_back(one, 0)
        await _until_in_sync(one.node)
        assert await one.node.stop() == 0, one.node.said()
        findings = await examine(one.node.folder, truth)
        copies = [_files(root) for root in one.roots]
    _tell(counts, truth, findings)
    assert findings.clean, findings
    assert copies[0] == copies[1] == copies[2]


@pytest.mark.slow
@pytest.mark.journey
@pytest.mark.requirement("V2", "F4")
async def test_killed_while_a_root_is_refilled_it_goes_on(tmp_path: Path, counts: Counts) -> None:
    """SIGKILL in the middle of a refill, again and again: the root is whole in the end, and nothing is lost."""
    truth = Truth()
    async with rooted(tmp_path) as one:
        for study in range(1, STUDIES + 1):
            await _send(one.node, truth, study, count=12, side=256)
        for pause in (0.05, 0.4):
            if one.roots[1].exists():
                shutil.rmtree(one.roots[1])
            one.roots[1].mkdir()
            await asyncio.sleep(1.2 + pause)
            await _send(one.node, truth, STUDIES, count=2)
            await one.node.kill()
            await one.node.start()
        await _until_in_sync(one.node)
        assert await one.node.stop() == 0, one.node.said()
        copies = [_files(root) for root in one.roots]
        findings = await examine(one.node.folder, truth)
    _tell(counts, truth, findings)
    assert copies[0] == copies[1] == copies[2]
    assert findings.clean, findings


COMPACTING = """
import asyncio, sys
from pathlib import Path
from tests.support.node import small_node

async def main():
    async with small_node(Path(sys.argv[1]), roots=3) as node:
        print("begins", flush=True)
        while True:
            await node.compaction.compact(sys.argv[2], "system")

asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.requirement("V2", "F4")
async def test_killed_while_packs_are_written_anew_nothing_is_lost(tmp_path: Path) -> None:
    """SIGKILL at random moments of compaction after compaction: old file or new one, alike on all roots, index in step."""
    async with small_node(tmp_path, roots=3) as node:
        slices = [ct_slice(size=64, StudyInstanceUID="1.2.3", SOPInstanceUID=f"1.2.3.{n}") for n in range(12)]
        (receipt, *_) = await node.store(*slices)
        study = receipt.study
        sent = {row.sop_instance_uid: row.sha256 for row in await node.index.instances(study)}
    for _ in range(3):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", COMPACTING, str(tmp_path), study, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        assert await process.stdout.readline() == b"begins\n"
        await asyncio.sleep(random.uniform(0.0, 0.15))
        process.kill()
        await process.wait()
    async with small_node(tmp_path, roots=3) as node:
        chief = await node.person(Role.CHIEF_PHYSICIAN)
        opening = await node.gateway.open(chief, study, action=Action.DOWNLOAD)
        for uid, digest in sent.items():
            assert sha256((await node.gateway.instance(opening, uid)).data).digest() == digest
        rebuilding = Rebuilding(node.vault, node.index, node.log, node.database)
        assert await rebuilding.one(study, mend=False) == (12, True)
        assert node.replicas is not None
        copies = {root.blobs.read(f"{study}.pack", 0, 2**30) for root in node.replicas.quorum.in_sync}
        assert len(copies) == 1
        assert len(node.replicas.quorum.in_sync) == 3


def _tell(counts: Counts, truth: Truth, findings: Findings) -> None:
    counts(acknowledged=len(truth.acknowledged), lost=len(findings.lost), corrupt=len(findings.corrupt))


async def _send(node: Served, truth: Truth, study: int, *, count: int = INSTANCES, side: int = 64) -> None:
    for _ in range(0, count, 4):
        batch = [truth.next(study, side) for _ in range(min(4, count))]
        async for sent in send(node.secure(), [outgoing(instance) for instance in batch]):
            assert sent.ok, sent
            truth.acknowledged.add(sent.sop_instance_uid)


async def _until_taken(node: Served, one: Outgoing, truth: Truth) -> None:
    async with asyncio.timeout(IN_SYNC_SECONDS):
        while True:
            async for sent in send(node.plain(), [one]):
                if sent.ok:
                    truth.acknowledged.add(sent.sop_instance_uid)
                    return
                assert sent.status == OUT_OF_RESOURCES, sent
            await asyncio.sleep(0.2)


async def _read_everything(web: DicomWeb, truth: Truth) -> None:
    """Every instance acknowledged by now comes back byte for byte, as soon as it is indexed."""
    for study in sorted({truth.sent[uid][0] for uid in truth.acknowledged}):
        expected = {truth.sent[uid][1] for uid in truth.acknowledged if truth.sent[uid][0] == study}
        async with asyncio.timeout(INDEXED_SECONDS):
            while True:
                status, parts = await web.retrieve(f"/studies/{study_uid(study)}")
                assert status in (200, 404), parts
                if status == 200 and expected <= {sha256(_data_set(part)).digest() for part in parts}:
                    break
                await asyncio.sleep(0.1)


def _data_set(file: bytes) -> bytes:
    """A DICOM file without preamble and file meta information (PS3.10 §7.1)."""
    return file[144 + int.from_bytes(file[140:144], "little") :]


async def _until(ready: Callable[[], bool]) -> None:
    async with asyncio.timeout(IN_SYNC_SECONDS):
        while not ready():
            await asyncio.sleep(0.01)


async def _until_in_sync(node: Served) -> None:
    """As the command line says it, of the running node."""
    async with asyncio.timeout(2 * IN_SYNC_SECONDS):
        while (await asyncio.to_thread(accord, "replicas", "status", node.folder)).code:
            await asyncio.sleep(0.3)


def _files(root: Path) -> dict[str, str]:
    return {path.name: sha256(path.read_bytes()).hexdigest() for path in root.rglob("*.pack")}
