"""What a node holds in memory when nobody asks it anything: after its start, and after all the work.

The figure that is held against the goal is the sum of the resident sizes of all its processes; what they share is counted
for each of them, so the node never looks smaller than it is. The second row counts what is shared once.
"""

from __future__ import annotations

from collections.abc import Sequence

from tests.bench.meter import resident, settle
from tests.bench.results import Results
from tests.bench.servers import Server

MIB = 2**20
IDLE = "resident memory, idle"
AFTER = "resident memory, after everything"


def memory(servers: Sequence[Server], results: Results, what: str) -> None:
    """Wait until each server is quiet and put on record what it holds."""
    for server in servers:
        settle(server.pid)
        held = resident(server.pid)
        results.add(what, server.name, "MiB", held.bytes / MIB)
        results.add(f"{what}, shared pages once", server.name, "MiB", held.shared_once_bytes / MIB)
