"""Each file-system call of taking an instance in fails once, in turn: refused or stored, never half, and it goes on.

The calls of our own code fail by a shim in this process; those of SQLite by `strace -e inject`, where it is installed.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from consent.errors import AccordError, NotFound, Unavailable
from consent.vocabulary import Action, Role
from tests.faults.shim import ERRORS, failing
from tests.faults.slices import slice_of, study_uid
from tests.support.node import NodeFixture, arrival, small_node

pytestmark = [pytest.mark.requirement("F4"), pytest.mark.slow]
MAX_CALLS = 200
STRACE_TRIALS = int(os.environ.get("ACCORD_STRACE_TRIALS", "3"))
SQLITE_CALLS = ("pwrite64", "fdatasync", "ftruncate")


@pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize("grown", [False, True], ids=["new pack", "pack that grows"])
async def test_each_call_of_ingest_fails_in_turn(
    tmp_path: Path, error: int, grown: bool, record_property: Callable[[str, object], None]
) -> None:
    """Refused in words or stored whole; sent again it is taken; what was acknowledged is there after a restart."""
    acknowledged: dict[str, tuple[int, bytes]] = {}
    reached: set[str] = set()
    async with small_node(tmp_path) as node:
        for at in range(MAX_CALLS):
            study = 1 if grown else at + 1
            instance = slice_of(study, at + 1)
            with failing(at, error) as shim:
                try:
                    await node.ingest.receive(arrival(instance), node.source)
                except Unavailable as refused:
                    assert refused.mend
                    await_again = True
                else:
                    await_again = False
            if await_again:
                await node.ingest.receive(arrival(instance), node.source)
            acknowledged[instance.sop_instance_uid] = (study, bytes(instance.sha256))
            await node.ingest.flushed()
            reached |= set(shim.calls[: at + 1])
            if not shim.fired:
                break
        else:
            pytest.fail("the calls of one instance have no end")
        await _all_there(node, acknowledged)
    record_property("calls", at)
    assert {"pwritev", "fdatasync"} <= reached
    async with small_node(tmp_path) as again:
        await _all_there(again, acknowledged)
        assert (await again.log.verify()).faults == ()


async def _all_there(node: NodeFixture, acknowledged: dict[str, tuple[int, bytes]]) -> None:
    chief = await node.person(Role.CHIEF_PHYSICIAN)
    found: dict[str, bytes] = {}
    for study in {study for study, _ in acknowledged.values()}:
        name = node.index.pseudonyms.study(study_uid(study))
        opening = await node.gateway.open(chief, name, action=Action.DOWNLOAD)
        for row in await node.gateway.rows(opening):
            data = (await node.gateway.instance(opening, row.sop_instance_uid)).data
            found[row.sop_instance_uid] = sha256(data).digest()
        await node.gateway.close_opening(opening)
    assert found == {uid: digest for uid, (_, digest) in acknowledged.items()}


_SCRIPT = """
import asyncio, sys
from pathlib import Path
from consent.errors import AccordError
from tests.faults.shim import ERRORS, failing
from tests.faults.slices import slice_of
from tests.support.node import arrival, small_node

async def main():
    async with small_node(Path(sys.argv[1])) as node:
        print("ready", flush=True)
        for number in range(1, 6):
            try:
                await node.ingest.receive(arrival(slice_of(int(sys.argv[2]), number)), node.source)
                print("stored", number, flush=True)
                await node.ingest.flushed()
            except AccordError as error:
                print("refused", number, type(error).__name__, flush=True)

try:
    asyncio.run(main())
except AccordError as error:
    print("ended", type(error).__name__, flush=True)
"""


@pytest.mark.timeout(60 + 30 * STRACE_TRIALS)
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_calls_of_the_database_fail_too(tmp_path: Path) -> None:
    """A failing write or sync below SQLite: what was acknowledged is found at the next start, the log is whole."""
    node, trace = tmp_path / "node", tmp_path / "trace"
    node.mkdir()
    asyncio.run(_look(node, {}))  # what makes a node is not what fails
    said, reached = _traced(trace, node, 1, "trace=" + ",".join(SQLITE_CALLS)), _most_of_a_thread(trace)
    assert _numbers(said) == set(range(1, 6)), said
    stored, injected = {1: _numbers(said)}, 0
    for trial in range(STRACE_TRIALS):
        study = trial + 2
        call = SQLITE_CALLS[trial % len(SQLITE_CALLS)]
        error = ("ENOSPC", "EIO")[trial % 2]
        at = 1 + reached[call] * (trial + 1) // (STRACE_TRIALS + 1)
        said = _traced(trace, node, study, f"trace={call}", f"inject={call}:error={error}:when={at}")
        stored[study] = _numbers(said)
        injected += "(INJECTED)" in trace.read_text()
        assert said.startswith(("ready", "ended")) and "Traceback" not in said, said
    assert injected > STRACE_TRIALS // 2, "too few calls failed to prove anything"
    asyncio.run(_look(node, stored))


def _traced(trace: Path, folder: Path, study: int, *expressions: str) -> str:
    """Store five instances in a process of its own under strace; what it said.

    strace stops at the calls of the expressions only: a start makes tens of thousands of others.
    """
    told = [word for expression in expressions for word in ("-e", expression)]
    strace = ["strace", "-f", "--seccomp-bpf", "-o", str(trace), *told]
    command = [*strace, sys.executable, "-c", _SCRIPT, str(folder), str(study)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return process.stdout + process.stderr


def _numbers(said: str) -> set[int]:
    """The instances that were acknowledged."""
    return {int(line.split()[1]) for line in said.splitlines() if line.startswith("stored")}


def _most_of_a_thread(trace: Path) -> dict[str, int]:
    """How often the thread that makes a call most often made it: strace counts `when` for each thread."""
    made = Counter(re.findall(r"^(\d+) +(\w+)\(", trace.read_text(), re.MULTILINE))
    return {call: max(count for (_, name), count in made.items() if name == call) for call in SQLITE_CALLS}


async def _look(folder: Path, stored: dict[int, set[int]]) -> None:
    async with small_node(folder) as node:
        chief = await node.person(Role.CHIEF_PHYSICIAN)
        for study, numbers in stored.items():
            name = node.index.pseudonyms.study(study_uid(study))
            try:
                opening = await node.gateway.open(chief, name, action=Action.DOWNLOAD)
            except NotFound:
                assert not numbers, f"study {study} is lost"
                continue
            rows = await node.gateway.rows(opening)
            for row in rows:
                await node.gateway.instance(opening, row.sop_instance_uid)
            assert len(rows) >= len(numbers)
            await node.gateway.close_opening(opening)
        verified = await node.log.verify()
        assert verified.faults == ()


def test_the_shim_lets_the_chosen_call_fail(tmp_path: Path) -> None:
    """A check of the check: without it every trial would pass."""
    with failing(1, errno.EIO) as shim:
        descriptor = os.open(tmp_path / "x", os.O_CREAT | os.O_WRONLY)
        with pytest.raises(OSError, match="Input/output"):
            os.fdatasync(descriptor)
        os.fdatasync(descriptor)
    os.close(descriptor)
    assert shim.fired
    assert shim.calls == ["open", "fdatasync", "fdatasync"]
    assert not issubclass(OSError, AccordError)
