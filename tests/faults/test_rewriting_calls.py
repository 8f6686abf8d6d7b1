"""Each file-system call of compaction and of a change of grade fails once, in turn, on one root and on three.

Old file or new one, never half; every instance opens bit for bit right after; the same asked again is done; a restart finds
nothing lost, nothing altered and nothing left over. `ACCORD_CALL_TRIALS` says how many calls of a sweep are tried.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from consent.errors import Unavailable
from consent.vocabulary import Role
from tests.faults.inspection import WAITS, faults_in, leftovers, losses_in, upkeep
from tests.faults.shim import ERRORS, chosen, failing
from tests.faults.works import Archive, Work, compact, regrade
from tests.support.node import small_node

TRIALS = int(os.environ.get("ACCORD_CALL_TRIALS", "1"))
pytestmark = [pytest.mark.requirement("V2", "F4"), pytest.mark.slow, pytest.mark.timeout(120 + TRIALS)]
NEVER = 100_000
FIRST = 999_999


@pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize("roots", [1, 3], ids=["one-root", "three-roots"])
@pytest.mark.parametrize("work", [compact, regrade])
async def test_each_call_of_writing_a_pack_anew_fails_in_turn(
    tmp_path: Path,
    work: Work,
    roots: int,
    error: int,
    record_property: Callable[[str, object], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Done or refused in words; all is there at once, the next instance is taken, and the same again succeeds."""
    monkeypatch.setattr("node.vault.keys.EXCHANGE_SECONDS", 0.05)  # nobody settles while the test reads
    archive, outcomes, reached = Archive(), Counter[str](), set[str]()
    async with small_node(tmp_path, roots=roots) as node:
        chief = await node.person(Role.CHIEF_PHYSICIAN)
        study = await archive.store(node, FIRST)
        with failing(NEVER, error) as undisturbed:
            await work(node, study)
        for number in chosen(undisturbed.calls, TRIALS):
            name = undisturbed.calls[number]
            at = undisturbed.calls[:number].count(name)
            # A new one each time: of the same size it takes the same calls.
            study = await archive.store(node, number)
            with failing(at, error, name) as shim:
                try:
                    await work(node, study)
                except Unavailable as refused:
                    assert refused.mend, refused
                    outcomes["refused"] += 1
                else:
                    outcomes["done" if shim.fired else "missed"] += 1
            where, kept = (name, at), archive.of(FIRST, number)
            reached |= {name} if shim.fired else set()
            losses = await losses_in(node, chief, kept)
            if work is regrade:  # until the duty has settled it, readers may be told to wait
                losses = [one for one in losses if not one.startswith(WAITS)]
            assert losses == [], where
            await upkeep(node)
            assert leftovers(node) == [], where
            await archive.store(node, number)
            await work(node, study)
            assert await losses_in(node, chief, archive.of(FIRST, number)) == [], where
        assert await faults_in(node, archive.kept) == []
    async with small_node(tmp_path, roots=roots) as again:
        await upkeep(again)
        assert await faults_in(again, archive.kept) == []
        assert leftovers(again) == []
    counts = {"acknowledged": len(archive.kept), "lost": 0, "corrupt": 0, "hung": 0}
    counts |= {"calls": len(undisturbed.calls), **outcomes}
    for name, value in {**counts, "failed": ", ".join(sorted(reached))}.items():
        record_property(name, value)
    assert outcomes["refused"] > outcomes["missed"]
    assert {"open", "pwritev", "fdatasync", "rename", "fsync"} <= reached
