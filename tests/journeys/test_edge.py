"""An edge agent beside a modality, in real processes: DCMTK sends to it in plain, the node takes over mutual TLS."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from node.dicom.sender import Outgoing, Peer, outgoing, send
from node.dicom.statuses import OUT_OF_RESOURCES
from node.ports import free_ports
from ops.demo.studies import sample_files
from tests.support.cli import Said, accord
from tests.support.dicom import study
from tests.support.served import AE, SCANNER, Served, make_node

pytestmark = pytest.mark.requirement("C2")
READY_SECONDS = 60.0
ARRIVES_SECONDS = 40.0
MIB = 1024 * 1024


@dataclass
class Edge:
    """The agent's folder and, while it runs, its process."""

    folder: Path
    port: int
    key: str
    process: asyncio.subprocess.Process | None = field(default=None, repr=False)

    @property
    def peer(self) -> Peer:
        return Peer("127.0.0.1", self.port, "EDGE", "MODALITY")

    async def start(self) -> None:
        """Start it and wait for its `ready` line."""
        output = self.folder.with_suffix(".log")
        at = output.stat().st_size if output.exists() else 0
        with output.open("ab") as out:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "ops", "edge", "serve", str(self.folder),
                stdin=asyncio.subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        async with asyncio.timeout(READY_SECONDS):
            while not re.search(rb"^ready\b", output.read_bytes()[at:], re.MULTILINE):
                assert self.process.returncode is None, output.read_text()[-2000:]
                await asyncio.sleep(0.02)

    async def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """SIGTERM, or another signal."""
        if self.process is not None and self.process.returncode is None:
            os.kill(self.process.pid, number)
            await self.process.wait()

    async def waiting(self, count: int, *, committed: int = 0) -> dict[str, Any]:
        """Wait until its status, a second old at most, says that so many instances wait, and the node has so many or more."""
        async with asyncio.timeout(ARRIVES_SECONDS):
            while True:
                status = json.loads((self.folder / "status.json").read_text())
                if status["waiting"] == count and status["committed"] >= committed:
                    return dict(status)
                await asyncio.sleep(0.1)


async def command(*words: object) -> Said:
    """One command, apart from the test's own event loop."""
    return await asyncio.to_thread(accord, *words)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Served]:
    """A node that is not running yet."""
    made = await make_node(tmp_path / "node")
    yield made
    if made.alive:
        await made.kill()


@pytest.fixture
async def edge(tmp_path: Path, node: Served) -> AsyncIterator[Edge]:
    """An agent for the node's scanner, not running yet; the node knows of it."""
    agent = await make_edge(tmp_path, node)
    yield agent
    await agent.end(signal.SIGKILL)


@pytest.fixture
async def small_edge(tmp_path: Path, node: Served) -> AsyncIterator[Edge]:
    """The same with the smallest spool that there is: 1 MiB."""
    agent = await make_edge(tmp_path, node, "--max-gib", 1 / 1024)
    yield agent
    await agent.end(signal.SIGKILL)


async def make_edge(tmp_path: Path, node: Served, *more: object) -> Edge:
    """By commands, as in the manual."""
    keys = tmp_path / "ct1"
    keys.mkdir()
    (keys / "CT1.crt").write_bytes(node.scanner.certificate)
    (keys / "CT1.key").write_bytes(node.scanner.key)
    (keys / "ca.crt").write_text(node.authority_pem)
    (port,) = free_ports(1)
    made = await command(
        "edge", "init", tmp_path / "edge", "--ae-title", SCANNER, "--node", f"127.0.0.1:{node.tls_port}",
        "--called", AE, "--certificate", keys / "CT1.crt", "--key", keys / "CT1.key",
        "--authority", keys / "ca.crt", "--listen-port", port, "--listen-ae-title", "EDGE", "--json", *more,
    )  # fmt: skip
    agent = Edge(tmp_path / "edge", port, made.value["agent"])
    await command("device", "set-agent", node.folder, "--ae-title", SCANNER, "--agent", agent.key, "--json")
    return agent


async def stored(edge: Edge, files: list[Path]) -> int:
    """Send files to the agent as the modality; how many it acknowledged."""
    answers = [one async for one in send(edge.peer, [outgoing(file) for file in files])]
    assert all(one.ok for one in answers), answers
    return len(answers)


def instances(node: Served) -> int:
    """How many instances lie in the stopped node's index."""
    import sqlite3

    with sqlite3.connect(node.folder / "accord.db") as database:
        return int(database.execute("select count(*) from index_instance").fetchone()[0])


@pytest.mark.requirement("C1")
async def test_what_the_modality_sent_outlives_node_outage_and_crash_and_reaches_the_node(
    node: Served, edge: Edge
) -> None:
    """Node away, agent killed: nothing is lost, all of it arrives once, the spool is empty, the device can be wiped."""
    files = list(sample_files())[:12]
    await edge.start()
    taken = await stored(edge, files[:8])
    await edge.end(signal.SIGKILL)
    await edge.start()
    taken += await stored(edge, files[8:])
    await edge.waiting(taken)
    for file in (edge.folder / "spool").rglob("*.pack"):
        assert b"DICM" not in file.read_bytes()
    await node.start()
    status = await edge.waiting(0)
    assert status["committed"] == taken
    assert status["not_taken"] == {}
    assert list((edge.folder / "spool").rglob("*.pack")) == []
    await node.stop()
    assert instances(node) == taken
    await edge.end()
    refused = await command(
        "device", "set-state", node.folder, "--ae-title", SCANNER, "--state", "retired", "--json"
    )
    assert refused.code == 3
    wiped = (await command("edge", "wipe", edge.folder, "--json")).value
    assert not list((edge.folder / "keys").glob("*.key"))
    left = await command(
        "device", "set-state", node.folder, "--ae-title", SCANNER, "--state", "retired", "--reason", "sold",
        "--wipe-certificate", wiped["certificate"], "--json",
    )  # fmt: skip
    assert left.code == 0, left.err
    shown = (await command("device", "list", node.folder, "--json")).value
    assert {device["ae_title"]: device["state"] for device in shown["devices"]}[SCANNER] == "retired"


async def test_full_spool_is_out_of_resources_and_nothing_of_it_is_lost(
    node: Served, small_edge: Edge
) -> None:
    """The modality is told A700 and keeps what it was told so of; with the node back it sends again, and all of it arrives."""
    edge, made = small_edge, study(name="edge/full", slices=12, size=256)
    waiting = [
        Outgoing("", one.sop_class_uid, one.sop_instance_uid, one.transfer_syntax_uid, data=one.data)
        for one in made
    ]
    await edge.start()
    first = [one async for one in send(edge.peer, waiting)]
    assert {one.status for one in first} == {0, OUT_OF_RESOURCES}
    taken = {one.sop_instance_uid for one in first if one.ok}
    status = await edge.waiting(len(taken))
    assert status["spool_bytes"] <= status["spool_max_bytes"] == MIB
    assert sum(file.stat().st_size for file in (edge.folder / "spool").rglob("*.pack")) <= MIB
    refused = [one for one in waiting if one.sop_instance_uid not in taken]
    again = [one async for one in send(edge.peer, refused)]
    assert {one.status for one in again} == {OUT_OF_RESOURCES}
    await node.start()
    await edge.waiting(0)
    async with asyncio.timeout(ARRIVES_SECONDS):
        while refused:
            answers = [one async for one in send(edge.peer, refused)]
            assert {one.status for one in answers} <= {0, OUT_OF_RESOURCES}
            refused = [one for one, answer in zip(refused, answers, strict=True) if not answer.ok]
    status = await edge.waiting(0, committed=len(made))
    assert status["not_taken"] == {}
    await node.stop()
    assert instances(node) == len(made)


@pytest.mark.skipif(shutil.which("storescu") is None, reason="DCMTK is not installed")
async def test_dcmtk_sends_to_the_agent_on_loopback(edge: Edge) -> None:
    """A modality of another maker is answered success; a wrong AE title is not let in."""
    await edge.start()
    file = str(next(iter(sample_files())))

    async def storescu(called: str) -> int:
        process = await asyncio.create_subprocess_exec(
            "storescu", "-aet", "MODALITY", "-aec", called, "127.0.0.1", str(edge.port), file,
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        return await process.wait()

    assert await storescu("EDGE") == 0
    assert await storescu("NOBODY") != 0
    await edge.waiting(1)
    status = (await command("edge", "status", edge.folder, "--json")).value
    assert status["node_reached"] is None
    refused = await command("edge", "wipe", edge.folder, "--json")
    assert refused.code == 5  # it runs
