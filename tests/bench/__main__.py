"""Speed beside Orthanc and storescp in one run: servers take turns, medians, ratios run by run.

    python -m tests.bench [--runs 5] [--slices 200] [--studies 2000] [--only cstore wado …] [--report FILE]

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
from collections.abc import Sequence
from pathlib import Path

from tests.bench import ingest, retrieve
from tests.bench.results import Results
from tests.bench.rewrap import rewrap
from tests.bench.servers import Stage, find, stage
from tests.bench.workload import SLICES, write_tiny

SECTIONS = ("cstore", "stow", "wado", "metadata", "rendered", "qido")
ALONE = "rewrap"
"""Measured without any server, and only when it is named: it is the node's own work."""
PARALLEL = 4


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, write the report."""
    given = _parser().parse_args(arguments)
    if ALONE in given.only:
        with tempfile.TemporaryDirectory(prefix="accord-bench-", dir=given.folder) as folder:
            sys.stdout.write(rewrap(Path(folder), Results(), keys=given.keys) + "\n")
        if given.only == [ALONE]:
            return
    if shutil.which("storescu") is None:
        sys.stdout.write("Nothing is measured: DCMTK's storescu is not installed.\n")
        return
    before = os.getloadavg()[0]
    results = Results()
    with (
        tempfile.TemporaryDirectory(prefix="accord-bench-", dir=given.folder) as folder,
        stage(Path(folder)) as running,
    ):
        _measure(running, Path(folder), results, given)
    lines = [
        results.table(),
        "",
        f"{os.cpu_count()} processors, {platform.machine()}, Python {platform.python_version()}; "
        f"load average {before:.1f} before, {os.getloadavg()[0]:.1f} after (the benchmark itself makes about 2).",
    ]
    lines += [
        f"{program} is not installed: left out." for program in ("Orthanc", "storescp") if not find(program)
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    if given.report:
        given.report.write_text(json.dumps({"load_before": before, "results": results.document()}, indent=1))


def _measure(running: Stage, folder: Path, results: Results, given: argparse.Namespace) -> None:
    studies = ingest.Studies(folder / "studies", given.slices)
    if "cstore" in given.only:
        ingest.cstore(running, studies, results, runs=given.runs, associations=(1, PARALLEL))
    if "stow" in given.only:
        ingest.stow(running, studies, results, runs=given.runs, parallel=(1, PARALLEL))
    if {"wado", "metadata", "rendered"} & set(given.only):
        _everywhere(running, studies)
        retrieve.wait_until_indexed(running, studies.last, given.slices)
    if "wado" in given.only:
        retrieve.wado(running, studies.last, results, runs=given.runs, parallel=PARALLEL)
    if "metadata" in given.only:
        retrieve.metadata(running, studies.last, results, count=4 * given.runs)
    if "rendered" in given.only:
        retrieve.rendered(running, studies.last, given.slices, results, count=12 * given.runs)
    if "qido" in given.only:
        paths = write_tiny(folder, given.studies)
        for server in running.with_web():
            door = server.plain or server.tls
            assert door is not None
            ingest.send(door, paths, running.keys)
        retrieve.qido(running, results, studies=given.studies, count=24 * given.runs)


def _everywhere(running: Stage, studies: ingest.Studies) -> None:
    """One study in every server that speaks DICOMweb."""
    with studies.fresh() as paths:
        for server in running.with_web():
            door = server.plain or server.tls
            assert door is not None
            ingest.send(door, paths, running.keys)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--runs", type=int, default=5, help="how often each throughput is measured")
    parser.add_argument("--slices", type=int, default=SLICES, help="512×512 slices in a CT study")
    parser.add_argument("--studies", type=int, default=2000, help="small studies for the searches")
    parser.add_argument("--only", nargs="+", choices=(*SECTIONS, ALONE), default=list(SECTIONS))
    parser.add_argument("--keys", type=int, default=1_000_000, help="study keys to rewrap")
    parser.add_argument(
        "--folder", type=Path, help="where the servers keep their data; the disk that is tested"
    )
    parser.add_argument("--report", type=Path, help="write every single value as JSON")
    return parser


if __name__ == "__main__":
    main()
