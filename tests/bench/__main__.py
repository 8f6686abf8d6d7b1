"""Speed beside Orthanc and storescp in one run: servers take turns, medians, ratios run by run.

    python -m tests.bench [--runs 5] [--slices 200] [--roots 1] [--scale 2000 20000 100000] [--only cstore …] [--report FILE]

On a machine with other work trust the ratios and the CPU seconds more than the MB/s; the load average before and
after is printed. `docs/performance.md` says how to read the table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.bench import ingest, report, retrieve
from tests.bench.memory import AFTER, IDLE, memory
from tests.bench.mixed import mixed
from tests.bench.nodes import Node, make, serving
from tests.bench.results import Results
from tests.bench.rewrap import rewrap
from tests.bench.rivals import rivals, wire
from tests.bench.scale import scale
from tests.bench.servers import Server, Stage, find
from tests.bench.workload import SLICES

TOGETHER = ("memory", "cstore", "stow", "wado", "metadata", "rendered", "mixed")
"""Measured at servers that run side by side, in this order."""
GROWING = "scale"
ALONE = "rewrap"
"""Measured without any server, and only when it is named: it is the node's own work."""
PARALLEL = 4


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, write the report."""
    given = _parser().parse_args(arguments)
    if shutil.which("storescu") is None and given.only != [ALONE]:
        sys.stdout.write("Nothing is measured: DCMTK's storescu is not installed.\n")
        return
    before, began, results, words = os.getloadavg()[0], time.time(), Results(), list[str]()
    try:
        with tempfile.TemporaryDirectory(prefix="accord-bench-", dir=given.folder) as name:
            _everything(Path(name), given, results, words)
    finally:  # what was measured before something failed took long, too
        words.append(
            f"{os.cpu_count()} processors, {platform.machine()}, Python {platform.python_version()}; load average "
            f"{before:.1f} before, {os.getloadavg()[0]:.1f} after (the benchmark itself makes about 2); "
            f"{(time.time() - began) / 60:.0f} minutes."
        )
        words += [f"{one} is not installed: left out." for one in ("Orthanc", "storescp") if not find(one)]
        text = "\n".join([report.table(results), "", report.verdict(results), "", *words]) + "\n"
        sys.stdout.write(text)
        if given.report:
            _write(given, results, text, before)


def _everything(folder: Path, given: argparse.Namespace, results: Results, words: list[str]) -> None:
    if ALONE in given.only:
        _say(ALONE)
        words.append(rewrap(folder, results, keys=given.keys))
    if set(TOGETHER) & set(given.only):
        with _nodes(folder, given.roots) as nodes, _stage(folder, nodes) as running:
            _measure(running, folder, results, given)
            words += [f"{node.name}: {node.copies()} packs on its roots." for node in nodes]
    if GROWING in given.only:
        studies = ingest.Studies(folder / "for-the-growing", given.slices)
        scale(folder, studies, results, given.scale, runs=given.runs, say=_say)


def _say(what: str) -> None:
    """Tell whoever waits where it is."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {what}\n")


def _write(given: argparse.Namespace, results: Results, text: str, before: float) -> None:
    document = {
        "arguments": {name: value for name, value in vars(given).items() if name not in ("folder", "report")},
        "load_before": before,
        "load_after": os.getloadavg()[0],
        "results": report.document(results),
        "table": text,
    }
    given.report.write_text(json.dumps(document, indent=1, ensure_ascii=False), encoding="utf-8")


@contextmanager
def _nodes(folder: Path, roots: Sequence[int]) -> Iterator[list[Node]]:
    """A node for each number of roots. After good measurements, every root of each must hold packs."""
    nodes = [make(folder / f"accord-{count}", roots=count) for count in sorted(set(roots))]
    yield nodes
    for node in nodes:
        node.require_copies()


@contextmanager
def _stage(folder: Path, nodes: Sequence[Node]) -> Iterator[Stage]:
    """Everything that is installed, running."""
    with ExitStack() as stack:
        ours = [stack.enter_context(serving(node)) for node in nodes]
        yield Stage([*ours, *stack.enter_context(rivals(folder, nodes[0].keys))], nodes[0].keys)


@contextmanager
def _floors(folder: Path) -> Iterator[list[Server]]:
    """What C-STORE costs us at least."""
    with ExitStack() as stack:
        yield [stack.enter_context(wire(folder, kind)) for kind in ("wire", "sealed")]


def _measure(running: Stage, folder: Path, results: Results, given: argparse.Namespace) -> None:
    studies, runs = ingest.Studies(folder / "studies", given.slices), given.runs
    if "memory" in given.only:
        memory(running.ours(), results, IDLE)
    if "cstore" in given.only:
        _say("cstore")
        with _floors(folder) as floors:
            beside = Stage([*running.servers, *floors], running.keys)
            ingest.cstore(beside, studies, results, runs=runs, associations=(1, PARALLEL))
    if "stow" in given.only:
        _say("stow")
        ingest.stow(running, studies, results, runs=runs, parallel=(1, PARALLEL))
    _everywhere(running, studies)
    read = studies.last
    retrieve.wait_until_indexed(running, read, given.slices)
    for what, work in _readings(running, studies, results, given, read).items():
        if what in given.only:
            _say(what)
            work()
    if "memory" in given.only:
        memory(running.ours(), results, AFTER)


def _readings(
    running: Stage, studies: ingest.Studies, results: Results, given: argparse.Namespace, read: int
) -> dict[str, Callable[[], None]]:
    """What is measured of the study `read`, which every server has, in this order."""
    runs, slices = given.runs, given.slices
    return {
        "wado": lambda: retrieve.wado(running, read, results, runs=runs, parallel=PARALLEL),
        "metadata": lambda: retrieve.metadata(running, read, results, count=4 * runs),
        "rendered": lambda: retrieve.rendered(running, read, slices, results, count=12 * runs),
        "mixed": lambda: mixed(running, studies, read, slices, results, runs=runs, associations=PARALLEL),
    }


def _everywhere(running: Stage, studies: ingest.Studies) -> None:
    """One study in every server that speaks DICOMweb."""
    with studies.fresh() as paths:
        for server in running.with_web():
            ingest.send(server.door, paths)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--runs", type=int, default=5, help="how often each throughput is measured")
    parser.add_argument("--slices", type=int, default=SLICES, help="512×512 slices in a CT study")
    parser.add_argument(
        "--roots", type=int, nargs="+", choices=(1, 3), default=[1, 3],
        help="storage roots of our node; with '1 3' two nodes take turns with the others",
    )  # fmt: skip
    parser.add_argument(
        "--scale", type=int, nargs="+", default=[2000, 20_000, 100_000],
        help="numbers of studies at which a growing node is searched",
    )  # fmt: skip
    parser.add_argument(
        "--only", nargs="+", choices=(*TOGETHER, GROWING, ALONE), default=[*TOGETHER, GROWING]
    )
    parser.add_argument("--keys", type=int, default=1_000_000, help="study keys to rewrap")
    parser.add_argument(
        "--folder", type=Path, help="where the servers keep their data; the disk that is tested"
    )
    parser.add_argument("--report", type=Path, help="write every single value as JSON")
    return parser


if __name__ == "__main__":
    main()
