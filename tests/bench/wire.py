"""The floors under C-STORE: our own upper layer in front of nothing, or of nothing but sealing and a durable pack.

`wire` receives, takes the SHA-256 and answers; `sealed` also encrypts each instance and waits until it is on the disk. No
device register, no rules, no index, no log, no metadata, one key. What our node takes longer than this is what those cost.
`python -m tests.bench.wire wire|sealed PORT FOLDER` serves it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from consent.principals import Principal
from consent.vocabulary import Role
from node.arrival import Arrival, Source
from node.audit.event import Event
from node.clock import TrustedClock
from node.dicom.gate import Gate, Limits
from node.dicom.listener import Listener
from node.dicom.services import Services
from node.vault.blobs import FileBlobs
from node.vault.commit import GroupCommit
from node.vault.seal import ObjectHeader
from node.vault.vault import INSTANCE
from node.vault.writer import Draft
from tests.bench.servers import AE

STUDY = "st_benchmark"


class Nothing:
    """Takes what comes and keeps none of it; also writes no log, and lets everybody in."""

    async def receive(self, arrival: Arrival, source: Source) -> None:
        """Done."""

    async def record(self, event: Event) -> None:
        """Done."""

    async def admit_device(
        self, calling_ae: str, called_ae: str, address: str, certificate_der: bytes | None, tls: bool
    ) -> Principal:
        """Everybody."""
        return Principal(calling_ae, Role.DEVICE, calling_ae, "bench")


class Sealed(Nothing):
    """Seals what comes into one pack, and returns when it is durable."""

    def __init__(self, commit: GroupCommit) -> None:
        self._commit = commit
        self._key = os.urandom(32)
        self._number = 0

    async def receive(self, arrival: Arrival, source: Source) -> None:
        """Durable."""
        self._number += 1
        header = ObjectHeader(STUDY, f"in_{self._number}", INSTANCE, 1)
        await self._commit.append(STUDY, [Draft(header, arrival.data, self._key, arrival.sha256)])


async def serve(kind: str, port: int, folder: Path) -> None:
    """Serve until ended."""
    folder.mkdir()
    clock = TrustedClock()
    commit = GroupCommit(FileBlobs(folder), clock)
    store = Sealed(commit) if kind == "sealed" else Nothing()
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    gate = Gate(store, Services(store, store), clock, AE, Limits(stop_seconds=1.0))
    async with Listener(gate, store, "127.0.0.1", port):
        await ended.wait()
    await commit.close()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])))
