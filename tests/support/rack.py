"""Storage roots in folders, and their memory: what a test takes away, puts back, damages and restarts."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import TracebackType

from node.vault.blobs import FileBlobs
from node.vault.quorum import Quorum
from node.vault.replicas import Replicas
from node.vault.roots import Membership
from tests.support.clock import FakeClock

NODE = "a-general"


class Memory:
    """A ledger that survives the process in the way a database does: whole memberships, one after the other."""

    def __init__(self) -> None:
        self.membership = Membership()

    def save(self, membership: Membership) -> None:
        """See `Ledger.save`."""
        self.membership = membership


class Rack:
    """Roots `0`, `1`, … below a folder. `start` is a restart: the same folders, what the memory holds, nothing else."""

    def __init__(self, folder: Path, count: int = 3, quorum: int = 0) -> None:
        self.paths = [folder / f"root{number}" for number in range(count)]
        self.memory = Memory()
        self.clock = FakeClock()
        self._quorum = quorum
        self._running: list[Replicas] = []

    def start(self) -> Replicas:
        """Find the roots and begin."""
        quorum = Quorum(
            self.paths,
            node=NODE,
            clock=self.clock,
            ledger=self.memory,
            membership=self.memory.membership,
            quorum=self._quorum,
        )
        replicas = Replicas(quorum)
        self._running.append(replicas)
        replicas.start()
        return replicas

    def file(self, number: int, name: str) -> Path:
        """Where a blob lies on one root."""
        return FileBlobs(self.paths[number])._path(name)

    def take(self, number: int) -> None:
        """Pull a root out."""
        self.paths[number].rename(self._aside(number))

    def put_back(self, number: int) -> None:
        """Put it in again as it was."""
        self._aside(number).rename(self.paths[number])

    def blank(self, number: int) -> None:
        """Put an empty folder in its place."""
        if self.paths[number].exists():
            shutil.rmtree(self.paths[number])
        self.paths[number].mkdir()

    def in_sync(self) -> list[int]:
        """Numbers of the roots that the memory holds to be in sync."""
        return [root.number - 1 for root in self.memory.membership.roots if root.in_sync]

    def close(self) -> None:
        """End every thread."""
        for replicas in self._running:
            replicas.close()

    def __enter__(self) -> Rack:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def _aside(self, number: int) -> Path:
        return self.paths[number].with_suffix(".out")


def restore_all(replicas: Replicas) -> None:
    """Bring back every root that is there and not in sync."""
    replicas.watch()
    for root in replicas.quorum.others:
        replicas.restore(root)
    replicas.watch()
