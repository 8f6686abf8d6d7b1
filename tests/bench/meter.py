"""What a server costs while something runs: CPU seconds and peak memory of its whole process tree, from /proc."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Cost:
    """CPU seconds (user and system, children that ended included) and the sum of peak resident sizes."""

    cpu_seconds: float = 0.0
    peak_bytes: int = 0


@contextmanager
def metered(pid: int) -> Iterator[Cost]:
    """Measure what the process `pid` and its descendants use inside the block."""
    cost = Cost()
    for process in tree(pid):
        with suppress(OSError):
            Path(f"/proc/{process}/clear_refs").write_text("5")  # resets the peak
    before = cpu_seconds(pid)
    yield cost
    cost.cpu_seconds = cpu_seconds(pid) - before
    cost.peak_bytes = sum(_peak_bytes(process) for process in tree(pid))


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


def _peak_bytes(pid: int) -> int:
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0
