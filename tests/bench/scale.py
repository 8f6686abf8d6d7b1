"""One node as it grows: searches, start and ingest with a thousand studies in it, and with a hundred thousand.

The node is filled by `seeding` while it does not run, then served, asked and sent to, then stopped and filled further. Up to
RIVAL_STUDIES Orthanc stands beside it, filled by its own door.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from tests.bench.ingest import Studies, send
from tests.bench.memory import IDLE, memory
from tests.bench.meter import metered, settle
from tests.bench.nodes import Node, make, serving
from tests.bench.results import Results
from tests.bench.retrieve import qido
from tests.bench.rivals import orthanc
from tests.bench.seeding import WINDOW, Pace, seed
from tests.bench.servers import Server, Stage, find
from tests.bench.workload import write_tiny

RATE_FROM = 1000
RIVAL_STUDIES = 2000
ASSOCIATIONS = 4


@dataclass
class _Rates:
    """What ingest did at one number of studies: by the door in MB/s, and new studies a second without one."""

    door: list[float] = field(default_factory=list)
    door_cpu: list[float] = field(default_factory=list)
    new: list[Pace] = field(default_factory=list)


def scale(
    folder: Path,
    studies: Studies,
    results: Results,
    points: Sequence[int],
    *,
    runs: int,
    say: Callable[[str], None],
) -> None:
    """Searches at each of `points`; ingest at RATE_FROM studies and at the last point, and the ratio."""
    points = sorted(set(points))
    ends = (RATE_FROM, points[-1]) if points[-1] > RATE_FROM else (points[-1],)
    node, rates, held = make(folder / "growing"), dict[int, _Rates](), 0
    for point in sorted({*points, *ends}):
        say(f"filling a node up to {point:,} studies")
        paces = seed(node, held, point, windows=runs if point in ends else 0)
        held = point
        say(f"scale: {point:,} studies")
        began = time.perf_counter()
        with ExitStack() as stack:
            server = stack.enter_context(serving(node))
            results.add(f"start with {point:,} studies", server.name, "s", time.perf_counter() - began)
            memory([server], results, f"{IDLE} with {point:,} studies")
            if point in points:
                _search(folder, stack, node, server, point, results, runs)
            if point in ends:
                rates[point] = _ingest(server, studies, results, point, paces, runs)
            memory([server], results, f"resident memory, after the work with {point:,} studies")
    if len(ends) == 2:
        _compare(results, node.name, rates, *ends)


def _search(
    folder: Path, stack: ExitStack, node: Node, server: Server, point: int, results: Results, runs: int
) -> None:
    servers = [server]
    if point <= RIVAL_STUDIES and find("Orthanc"):
        rival = stack.enter_context(orthanc(folder / f"orthanc-{point}", node.keys, secure=False))
        send(rival.door, write_tiny(folder / f"tiny-{point}", point), ASSOCIATIONS)
        servers.append(rival)
    for one in servers:
        settle(one.pid)
    qido(Stage(servers, node.keys), results, studies=point, count=24 * runs)


def _ingest(
    server: Server, studies: Studies, results: Results, point: int, paces: Sequence[Pace], runs: int
) -> _Rates:
    rates = _Rates(new=list(paces))
    for pace in paces:
        results.add(
            f"new studies in process, among {point:,} studies", server.name, "studies/s", pace.studies_a_second,
            cpu_seconds=pace.cpu_seconds / WINDOW,
        )  # fmt: skip
    for _ in range(runs):
        with studies.fresh() as paths:
            size = sum(path.stat().st_size for path in paths)
            with metered(server.pid, after=True) as cost:
                seconds = send(server.door, paths, ASSOCIATIONS)
        rates.door.append(size / seconds / 1e6)
        rates.door_cpu.append(cost.cpu_seconds / size * 1e8)
        results.add(
            f"C-STORE, {ASSOCIATIONS} associations, among {point:,} studies", server.name, "MB/s", rates.door[-1],
            cpu_seconds=rates.door_cpu[-1], peak_bytes=cost.peak_bytes,
        )  # fmt: skip
    return rates


def _compare(results: Results, name: str, rates: dict[int, _Rates], few: int, many: int) -> None:
    """Ratios of the medians: of the rates, and of the CPU seconds, which other work on the machine disturbs less."""
    at = f"ingest at {many:,} ÷ at {few:,} studies"
    low, high = rates[few], rates[many]
    results.add(f"{at}, C-STORE", name, "×", median(high.door) / median(low.door))
    results.add(f"{at}, C-STORE, by CPU", name, "×", median(low.door_cpu) / median(high.door_cpu))
    new_low, new_high = ([pace.studies_a_second for pace in one.new] for one in (low, high))
    results.add(f"{at}, new studies", name, "×", median(new_high) / median(new_low))
    cpu_low, cpu_high = ([pace.cpu_seconds for pace in one.new] for one in (low, high))
    results.add(f"{at}, new studies, by CPU", name, "×", median(cpu_low) / median(cpu_high))
