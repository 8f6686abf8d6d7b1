"""How fast instances go in: C-STORE by DCMTK's `storescu`, plain and mutual TLS, and STOW-RS. Fresh studies each run."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from tests.bench.client import Client
from tests.bench.meter import metered
from tests.bench.results import Results
from tests.bench.servers import Door, Server, Stage, plain_title, tls_title
from tests.bench.workload import write_study

BOUNDARY = "a-boundary-of-the-benchmark"
ALL_STORED = (200, 202)
T = TypeVar("T")


class Studies:
    """CT studies on the disk, each used in one run, so that nothing is sent twice to anybody."""

    def __init__(self, folder: Path, slices: int) -> None:
        self._folder = folder
        self._slices = slices
        self.last = -1
        """The number of the study that every server was sent last."""

    @contextmanager
    def fresh(self) -> Iterator[list[Path]]:
        """The files of a new study, in the page cache."""
        self.last += 1
        paths = write_study(self._folder, self.last, slices=self._slices)
        try:
            yield paths
        finally:
            shutil.rmtree(paths[0].parent)


def cstore(
    stage: Stage, studies: Studies, results: Results, *, runs: int, associations: Sequence[int]
) -> None:
    """C-STORE into every server, in an order that turns with each run."""
    for tls in (False, True):
        doors = [(server, door) for server in stage.servers if (door := server.tls if tls else server.plain)]
        for count in associations:
            what = f"C-STORE{' mutual TLS' if tls else ''}, {count} association{'s' if count > 1 else ''}"
            for run in range(runs):
                with studies.fresh() as paths:
                    size = sum(path.stat().st_size for path in paths)
                    for server, door in turned(doors, run):
                        with metered(server.pid, after=True) as cost:
                            seconds = send(door, paths, count)
                        results.add(
                            what, server.name, "MB/s", size / seconds / 1e6,
                            cpu_seconds=cost.cpu_seconds / size * 1e8, peak_bytes=cost.peak_bytes,
                        )  # fmt: skip


def send(door: Door, paths: Sequence[Path], associations: int = 1) -> float:
    """Send files over so many associations at once with `storescu`; return the seconds. Raises RuntimeError."""
    return send_each(door, [paths[number::associations] for number in range(associations)])


def send_each(door: Door, shares: Sequence[Sequence[Path]]) -> float:
    """Send each share over an association of its own, all at once; return the seconds. Raises RuntimeError."""
    began = time.perf_counter()
    senders = [_storescu(door, number, share) for number, share in enumerate(shares)]
    said = [sender.communicate()[0] for sender in senders]
    seconds = time.perf_counter() - began
    if any(sender.returncode for sender in senders):
        raise RuntimeError(f"storescu to port {door.port} failed: {b''.join(said)[-500:]!r}")
    return seconds


def _storescu(door: Door, number: int, paths: Sequence[Path]) -> subprocess.Popen[bytes]:
    title = tls_title(number) if door.tls else plain_title(number)
    command = ["storescu", "-q", "-aet", title, "-aec", door.ae_title]
    if door.tls:
        certificate, key = door.tls.client(number)
        command += ["+tls", str(key), str(certificate), "+cf", str(door.tls.authority)]
    return subprocess.Popen(
        [*command, "127.0.0.1", str(door.port), *map(str, paths)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "TCP_NODELAY": "1"},
    )


def stow(stage: Stage, studies: Studies, results: Results, *, runs: int, parallel: Sequence[int]) -> None:
    """STOW-RS of whole studies: one request, or several at once."""
    for count in parallel:
        what = f"STOW-RS, {count} request{'s' if count > 1 else ''}"
        for run in range(runs):
            with studies.fresh() as paths:
                files = [path.read_bytes() for path in paths]
                for server in turned(stage.with_web(), run):
                    size = sum(map(len, files))
                    with metered(server.pid, after=True) as cost:
                        seconds = _post(server, [files[number::count] for number in range(count)])
                    results.add(
                        what, server.web_name, "MB/s", size / seconds / 1e6,
                        cpu_seconds=cost.cpu_seconds / size * 1e8, peak_bytes=cost.peak_bytes,
                    )  # fmt: skip


def _post(server: Server, shares: Sequence[Sequence[bytes]]) -> float:
    bodies = [_multipart(share) for share in shares]
    statuses = [0] * len(bodies)
    assert server.web is not None
    clients = [Client(server.web) for _ in bodies]
    for client in clients:
        client.connect()
    content_type = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'

    def post(number: int) -> None:
        statuses[number] = clients[number].post("/studies", content_type, bodies[number]).status

    seconds = at_once([partial(post, number) for number in range(len(bodies))])
    for client in clients:
        client.close()
    if any(status not in ALL_STORED for status in statuses):
        raise RuntimeError(f"STOW-RS to {server.name} was answered {statuses}")
    return seconds


def _multipart(files: Sequence[bytes]) -> list[bytes]:
    head = f"--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    pieces: list[bytes] = []
    for file in files:
        pieces += (head, file, b"\r\n")
    return [*pieces, f"--{BOUNDARY}--\r\n".encode()]


def at_once(works: Sequence[Callable[[], object]]) -> float:
    """Run callables in threads at the same time; return the seconds until all are done."""
    threads = [threading.Thread(target=work) for work in works]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began


def turned(things: Sequence[T], run: int) -> list[T]:
    """The same things, beginning with another one in each run."""
    start = run % len(things)
    return [*things[start:], *things[:start]]
