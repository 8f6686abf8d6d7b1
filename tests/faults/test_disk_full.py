"""The disk fills up under a running node: refused in the protocols' own words, nothing half, and it goes on when there is room."""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from consent.errors import Denied
from node.dicom.sender import Sent, send
from tests.faults.conftest import Counts
from tests.faults.examination import examine
from tests.faults.slices import Truth, outgoing
from tests.support.dicomweb import DicomWeb
from tests.support.served import Served, make_node

OUT_OF_RESOURCES = 0xA700
DISK_BYTES = 48 * 1024 * 1024
ROOM_LEFT_BYTES = 1024 * 1024
FILE_LIMIT_BYTES = 8 * 1024 * 1024
RECOVERY_SECONDS = 10.0


@dataclass
class Tight:
    """A running node with little room, and what gives it more."""

    node: Served
    fill: Callable[[], None]
    free: Callable[[], None]


@asynccontextmanager
async def _small_disk(tmp_path: Path) -> AsyncIterator[Tight]:
    """The whole folder (packs, database, log) on a small tmpfs, which a ballast file fills."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a tmpfs needs root; the other variant ran")
    ballast = disk / "ballast"

    def fill() -> None:
        free = os.statvfs(disk)
        size = free.f_bavail * free.f_frsize - ROOM_LEFT_BYTES
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)

    try:
        async with _running(await make_node(disk / "node"), None) as node:
            yield Tight(node, fill, ballast.unlink)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@asynccontextmanager
async def _small_files(tmp_path: Path) -> AsyncIterator[Tight]:
    """No file may grow past a limit (RLIMIT_FSIZE), as a quota does it; the limit is lifted from outside."""
    node = await make_node(tmp_path / "node")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_LIMIT_BYTES, resource.RLIM_INFINITY))

    def lift() -> None:
        resource.prlimit(node.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    async with _running(node, limit):
        yield Tight(node, lambda: None, lift)


@asynccontextmanager
async def _running(node: Served, limits: Callable[[], None] | None) -> AsyncIterator[Served]:
    async with AsyncExitStack() as stack:
        await node.start(limits=limits)
        stack.push_async_callback(_ended, node)
        yield node


async def _ended(node: Served) -> None:
    if node.alive:
        await node.kill()


@pytest.mark.slow
@pytest.mark.journey
@pytest.mark.requirement("F4", "C3")
@pytest.mark.parametrize("room", [_small_disk, _small_files], ids=["disk", "file-limit"])
async def test_full_disk_refuses_and_recovers(
    tmp_path: Path, counts: Counts, room: Callable[[Path], Awaitable[Tight]]
) -> None:
    """A700 by DICOM and 503 by DICOMweb while full; what was acknowledged stays; freed, the next instance goes in."""
    truth = Truth()
    async with room(tmp_path) as tight:  # type: ignore[attr-defined]
        node = tight.node
        assert all(one.ok for one in await _send(node, truth, study=1, count=10))
        tight.fill()
        refused = await _until_refused(node, truth)
        assert refused.status == OUT_OF_RESOURCES and refused.reason
        web = DicomWeb(node.web, node.token, node.web_context())
        async with web:
            status, answer = await web.store([truth.next(2, side=256)])
            assert status in (503, 507), (status, answer)
            assert b"problem" in answer and b"disk" in answer.lower(), answer
        assert node.alive
        tight.free()
        await _until_taken(node, truth)
        assert all(one.ok for one in await _send(node, truth, study=3, count=20))
        assert await node.stop() == 0, node.said()
        findings = await examine(node.folder, truth)
    counts(
        acknowledged=len(truth.acknowledged), lost=len(findings.lost), corrupt=len(findings.corrupt), sent=len(truth.sent)
    )  # fmt: skip
    assert findings.clean, findings
    assert findings.read >= len(truth.acknowledged) > 30


async def _send(node: Served, truth: Truth, *, study: int, count: int, side: int = 64) -> list[Sent]:
    batch = [truth.next(study, side) for _ in range(count)]
    sent = [one async for one in send(node.plain(), [outgoing(instance) for instance in batch])]
    truth.acknowledged |= {one.sop_instance_uid for one in sent if one.ok}
    return sent


async def _until_taken(node: Served, truth: Truth) -> None:
    async with asyncio.timeout(RECOVERY_SECONDS):
        while True:
            with suppress(Denied):
                if (await _send(node, truth, study=2, count=1))[0].ok:
                    return
            await asyncio.sleep(0.2)


async def _until_refused(node: Served, truth: Truth) -> Sent:
    """Send until the node says that it cannot; the same association goes on meanwhile."""
    for _ in range(100):
        with suppress(Denied):  # "too busy now": not even the association fits into the log
            for one in await _send(node, truth, study=2, count=20, side=256):
                if not one.ok:
                    return one
    raise AssertionError("the disk never filled up")
