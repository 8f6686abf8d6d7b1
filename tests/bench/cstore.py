"""C-STORE ingest beside Orthanc and storescp: `storescu` from DCMTK sends, runs interleaved, medians.

    python -m tests.bench.cstore [--slices 200] [--runs 5] [--associations 1 4]

Only our node and Orthanc are durable when they answer, and only our node encrypts. On a machine with other work
trust the ratios inside one run and the CPU seconds more than the MB/s.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tests.bench.servers import AE_TITLES, Server, all_servers
from tests.bench.workload import SLICES, write_study


@dataclass(frozen=True)
class Measured:
    """One run against one server."""

    server: str
    associations: int
    size_bytes: int
    instances: int
    seconds: float
    cpu_seconds: float

    @property
    def megabytes_per_second(self) -> float:
        return self.size_bytes / self.seconds / 1e6


def measure(folder: Path, *, slices: int, runs: int, associations: Sequence[int]) -> list[Measured]:
    """Send a fresh study to every server in each run, in rotating order."""
    with all_servers(folder) as servers:
        found: list[Measured] = []
        number = 0
        for count in associations:
            for run in range(runs):
                paths = write_study(folder / "studies", number, slices=slices)
                number += 1
                for place in range(len(servers)):
                    found.append(_send(servers[(place + run) % len(servers)], paths, count))
                shutil.rmtree(paths[0].parent)
        return found


def table(found: Iterable[Measured]) -> str:
    """Markdown: medians with minimum and maximum, by associations and server."""
    rows = [
        "| server | associations | MB/s median | min | max | instances/s | CPU s per 100 MB |",
        "|" + " --- |" * 7,
    ]
    groups: dict[tuple[int, str], list[Measured]] = {}
    for one in found:
        groups.setdefault((one.associations, one.server), []).append(one)
    for (associations, server), runs in sorted(groups.items()):
        speeds = [one.megabytes_per_second for one in runs]
        per_second = median(one.instances / one.seconds for one in runs)
        cpu = median(one.cpu_seconds / one.size_bytes * 1e8 for one in runs)
        rows.append(
            f"| {server} | {associations} | {median(speeds):.0f} | {min(speeds):.0f} | {max(speeds):.0f} "
            f"| {per_second:.0f} | {cpu:.2f} |"
        )
    return "\n".join(rows)


def _send(server: Server, paths: list[Path], associations: int) -> Measured:
    before, started = server.cpu_seconds(), time.perf_counter()
    senders = [
        subprocess.Popen(
            ["storescu", "-q", "-aet", title, "-aec", server.ae_title, "127.0.0.1", str(server.port)]
            + [str(path) for path in paths[place::associations]],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "TCP_NODELAY": "1"},
        )
        for place, title in enumerate(AE_TITLES[:associations])
    ]
    said = [sender.communicate()[1] for sender in senders]
    seconds = time.perf_counter() - started
    if any(sender.returncode for sender in senders):
        raise RuntimeError(f"storescu to {server.name} failed: {b''.join(said)[-500:]!r}")
    size = sum(path.stat().st_size for path in paths)
    return Measured(server.name, associations, size, len(paths), seconds, server.cpu_seconds() - before)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--slices", type=int, default=SLICES)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--associations", type=int, nargs="+", default=[1, 4])
    given = parser.parse_args(arguments)
    if shutil.which("storescu") is None:
        sys.stdout.write("C-STORE is not measured: DCMTK's storescu is not installed.\n")
        return
    with tempfile.TemporaryDirectory(prefix="accord-bench-") as folder:
        found = measure(Path(folder), slices=given.slices, runs=given.runs, associations=given.associations)
    sys.stdout.write(table(found) + "\n")


if __name__ == "__main__":
    main()
