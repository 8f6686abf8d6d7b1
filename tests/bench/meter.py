"""What a server costs: CPU seconds, resident and peak memory of its whole process tree, from /proc."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
QUIET_SECONDS = 2.0
"""A server that did next to nothing for so long is done: ours describes series when none has come for 1.5 s."""
QUIET_SHARE = 0.1
POLL_SECONDS = 0.25
SETTLE_SECONDS = 60.0


@dataclass
class Cost:
    """CPU seconds (user and system, children that ended included) and the sum of peak resident sizes."""

    cpu_seconds: float = 0.0
    peak_bytes: int = 0


@dataclass(frozen=True)
class Resident:
    """Memory that a tree holds now: the sum of its processes' resident sizes, and with what they share counted once."""

    bytes: int
    shared_once_bytes: int


@contextmanager
def metered(pid: int, *, after: bool = False) -> Iterator[Cost]:
    """Measure what the process `pid` and its descendants use inside the block; `after`: and until they are quiet again."""
    cost = Cost()
    for process in tree(pid):
        with suppress(OSError):
            Path(f"/proc/{process}/clear_refs").write_text("5")  # resets the peak
    before = cpu_seconds(pid)
    yield cost
    if after:
        settle(pid)
    cost.cpu_seconds = cpu_seconds(pid) - before
    cost.peak_bytes = 1024 * sum(_kilobytes(process, "status", "VmHWM") for process in tree(pid))


def settle(pid: int) -> bool:
    """Wait until the tree is quiet; return whether it became so within SETTLE_SECONDS."""
    deadline = time.monotonic() + SETTLE_SECONDS
    quiet, before = 0.0, cpu_seconds(pid)
    while quiet < QUIET_SECONDS and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        now = cpu_seconds(pid)
        quiet = quiet + POLL_SECONDS if now - before <= QUIET_SHARE * POLL_SECONDS else 0.0
        before = now
    return quiet >= QUIET_SECONDS


def resident(pid: int) -> Resident:
    """What the tree holds now."""
    processes = tree(pid)
    return Resident(
        sum(_kilobytes(process, "status", "VmRSS") for process in processes) * 1024,
        sum(_kilobytes(process, "smaps_rollup", "Pss") for process in processes) * 1024,
    )


def tree(pid: int) -> list[int]:
    """The process and its descendants."""
    found, waiting = [], [pid]
    while waiting:
        process = waiting.pop()
        found.append(process)
        for children in Path(f"/proc/{process}/task").glob("*/children"):
            with suppress(OSError):
                waiting += [int(child) for child in children.read_text().split()]
    return found


def cpu_seconds(pid: int) -> float:
    """CPU seconds that the tree has used so far."""
    total = 0
    for process in tree(pid):
        with suppress(OSError):
            fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
            total += sum(int(field) for field in fields[11:15])
    return total / TICKS


def _kilobytes(process: int, file: str, name: str) -> int:
    try:
        text = Path(f"/proc/{process}/{file}").read_text()
    except OSError:
        return 0
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) if found else 0
