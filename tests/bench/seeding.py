"""A node's own ingest, in this process and without a door: fills an archive fast, and shows what a new study costs.

Every study is one small instance that goes the whole way: parsed, decided, sealed under a key of its own, durable in a pack of
its own, indexed, described and on record in the log. Nothing is written past `Ingest.receive`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from consent.principals import Principal
from consent.vocabulary import Role
from node.ingest import Arrival, Ingest, Source
from ops.foundation import opened
from ops.lock import sole_user
from ops.storage import build_archive
from tests.bench.nodes import Node
from tests.bench.workload import tiny_study
from tests.support.dicom import Instance

AT_ONCE = 32
CHUNK = 200
WINDOW = 100
"""So many new studies make one measurement of the rate."""


@dataclass(frozen=True)
class Pace:
    """What WINDOW new studies took, until their rows were committed."""

    studies_a_second: float
    cpu_seconds: float


def seed(node: Node, already: int, until: int, *, windows: int = 0) -> list[Pace]:
    """Bring the tiny studies `already` … `until - 1` into a node that does not run; time the last `windows` windows."""
    return asyncio.run(_seed(node, already, until, windows))


async def _seed(node: Node, already: int, until: int, windows: int) -> list[Pace]:
    async with opened(node.folder) as foundation:
        with sole_user(foundation.settings.folder):
            archive = await build_archive(foundation)
            importer = Principal("import", Role.JOB, "system:bench", foundation.identity.node_id)
            source = Source(importer, "import", "local")
            timed = max(already, until - windows * WINDOW)
            async with archive.running():
                for start in range(already, timed, CHUNK):
                    await _receive(archive.ingest, source, _tiny(start, min(start + CHUNK, timed)))
                await archive.ingest.flushed()
                return [
                    await _timed(archive.ingest, source, _tiny(start, min(start + WINDOW, until)))
                    for start in range(timed, until, WINDOW)
                ]


def _tiny(start: int, end: int) -> list[Instance]:
    return [tiny_study(number) for number in range(start, end)]


async def _timed(ingest: Ingest, source: Source, instances: Sequence[Instance]) -> Pace:
    wall, cpu = time.perf_counter(), time.process_time()
    await _receive(ingest, source, instances)
    await ingest.flushed()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Pace(len(instances) / wall, cpu)


async def _receive(ingest: Ingest, source: Source, instances: Sequence[Instance]) -> None:
    waiting = iter(instances)

    async def work() -> None:
        for one in waiting:
            arrival = Arrival.of(one.sop_class_uid, one.sop_instance_uid, one.transfer_syntax_uid, one.data)
            await ingest.receive(arrival, source)

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(work())
