"""Appending to all copies of one blob at once: what `Replicas` hands out to writers.

Holds one blob's lanes. Leaves the roots and their standing to `replicas`.

Invariants: `sync` returns only when a quorum has everything; after a failed `sync` and `truncate` every root in
sync has been cut, or is out of sync.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic
from typing import TYPE_CHECKING

from consent.errors import AccordError, Unavailable
from node.vault.arena import Arena
from node.vault.blobs import FileAppendable
from node.vault.lanes import ANSWER_SECONDS, Lane, Vote
from node.vault.quorum import not_enough, nothing_to_read
from node.vault.seal import Buffer

if TYPE_CHECKING:
    from node.vault.replicas import Replicas


class ReplicaAppendable:
    """An `Appendable` over a copy on each root in sync. One thread at a time."""

    def __init__(self, replicas: Replicas, name: str, lanes: list[Lane]) -> None:
        self._replicas = replicas
        self._name = name
        self._lanes = lanes
        self._version = replicas.quorum.version
        self._writes: list[tuple[Sequence[Buffer], int]] = []
        self._locked = False
        self._memory: Arena | None = None

    def memory(self, own: Arena) -> Arena:
        """See `Appendable.memory`: a root that is slower than the quorum reads on when the answer is given."""
        self._memory = self._replicas.spare_memory()
        return self._memory

    def lock(self) -> None:
        """See `Appendable.lock`."""
        self._replicas.turns.take(self._name)
        try:
            self._replicas.quorum.require_open()
            self._refresh()
            self._locked = True
            for lane in self._lanes:
                if lane.works:
                    lane.file.lock()
        except BaseException:
            self.unlock()
            raise

    def unlock(self) -> None:
        """See `Appendable.unlock`."""
        try:
            if self._locked:
                self._locked = False
                self._push()
                for lane in self._lanes:
                    lane.file.unlock()
        finally:
            self._replicas.turns.give_back(self._name)

    @property
    def gone(self) -> bool:
        """See `Appendable.gone`: also when a root has lost its copy, or too few are left; opening it anew brings them level."""
        working = [lane for lane in self._lanes if lane.works]
        return len(working) < self._replicas.quorum.need or any(lane.file.gone for lane in working)

    def size(self) -> int:
        """See `Appendable.size`."""
        self._push()
        return max(lane.file.size() for lane in self._best())

    def read(self, offset: int, length: int) -> bytes:
        """See `Appendable.read`."""
        self._push()
        refusal: AccordError | None = None
        for lane in sorted(self._best(), key=lambda lane: -lane.file.size()):
            try:
                return lane.file.read(offset, length)
            except Unavailable as error:
                refusal = error
        raise refusal or nothing_to_read()

    def write(self, parts: Sequence[Buffer], offset: int) -> None:
        """See `Appendable.write`: on its way with the next `sync`, or when somebody looks."""
        self._writes.append((parts, offset))

    def sync(self) -> None:
        """See `Appendable.sync`: when a quorum has it. Raises Unavailable when none can be had."""
        writes, self._writes = self._writes, []
        vote = self._send(writes, sync=True)
        if self._memory is not None:
            self._replicas.keep_memory(self._memory, vote)
            self._memory = None
        if not vote.wait(self._replicas.quorum.need):
            raise not_enough(vote.failures)

    def truncate(self, size: int) -> None:
        """See `Appendable.truncate`: on every root in sync, or that root is out of sync (rule 3). Raises Unavailable."""
        self._push()
        self._replicas.changed(self._name, {})
        cuts = [(lane, lane.cut(size)) for lane in self._lanes]
        until = monotonic() + ANSWER_SECONDS
        failures = []
        for lane, done in cuts:
            try:
                done.result(max(0.0, until - monotonic()))
            except AccordError as error:
                failures.append((lane, error))
            except TimeoutError:
                failures.append((lane, Unavailable("A storage root does not answer.", code="storage")))
            else:
                if lane.works:
                    lane.root.lagging.discard(self._name)
        in_sync = self._replicas.quorum.in_sync
        for lane, reason in failures:
            if lane.root in in_sync:
                self._replicas.must_lose(lane.root, reason)
        if len(self._working()) < self._replicas.quorum.need:
            raise not_enough([error for _, error in failures])

    def close(self) -> None:
        """See `Appendable.close`."""
        self._push()
        lanes, self._lanes = self._lanes, []
        for lane in lanes:
            lane.then(lane.file.close)

    def _best(self) -> list[Lane]:
        """The copies that work; when none does, whatever is left of them."""
        return [lane for lane in self._lanes if lane.works] or self._lanes

    def _working(self) -> list[Lane]:
        working = [lane for lane in self._lanes if lane.works]
        if not working:
            raise not_enough([lane.error for lane in self._lanes if lane.error])
        return working

    def _refresh(self) -> None:
        """Follow what has changed since: roots that are in sync now, and those that are no more."""
        version = self._replicas.quorum.version
        if version == self._version:
            return
        in_sync = self._replicas.quorum.in_sync
        for lane in [lane for lane in self._lanes if not lane.works or lane.root not in in_sync]:
            self._lanes.remove(lane)
            lane.then(lane.file.close)
        self._lanes += self._replicas.open_more(self._name, self._lanes)
        self._version = version

    def _push(self) -> None:
        """Let everybody see what was written and not synced."""
        if self._writes:
            writes, self._writes = self._writes, []
            self._send(writes, sync=False).wait_all()

    def _send(self, writes: list[tuple[Sequence[Buffer], int]], *, sync: bool) -> Vote:
        lanes = self._working()
        self._replicas.changed(self._name, {})
        vote = self._replicas.ballot([lane.root for lane in lanes])
        for lane in sorted(lanes, key=lambda lane: lane.root.owed_bytes):  # a slow one keeps no other waiting
            lane.write(writes, vote, sync=sync)
        return vote


class Fan:
    """What `rewritten` hands out: one file for several, not yet in anybody's place."""

    def __init__(self, files: list[FileAppendable]) -> None:
        self._files = files

    def memory(self, own: Arena) -> Arena:
        return own

    def write(self, parts: Sequence[Buffer], offset: int) -> None:
        for file in self._files:
            file.write(parts, offset)

    def size(self) -> int:
        return self._files[0].size()

    def read(self, offset: int, length: int) -> bytes:
        return self._files[0].read(offset, length)

    def truncate(self, size: int) -> None:
        for file in self._files:
            file.truncate(size)

    def sync(self) -> None:
        """Done by the caller, on all roots at once."""

    def lock(self) -> None:
        """Nobody else knows of these files."""

    unlock = close = lock
    gone = False
