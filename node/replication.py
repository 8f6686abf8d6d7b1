"""The roots of the archive, watched: who is in sync, what is brought back, what the log and an operator are told.

Runs what `vault.replicas` must do every second in a thread, brings roots back one at a time at a bounded pace, has
packs scrubbed of which a reader met a bad copy, and answers for the state of all of it. With one root there is little to
watch: its place and its room.

Invariants: what happens to a root is in the log; nothing here decides what is right.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import structlog
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from consent.errors import AccordError, Unavailable
from consent.vocabulary import EventKind, Outcome
from node.audit.log import Event, Log
from node.vault.blobs import FileBlobs
from node.vault.lanes import Root
from node.vault.pack import study_of
from node.vault.quorum import Slot
from node.vault.replicas import Replicas
from node.vault.roots import Found, Membership, Place, look_at
from node.vault.throttle import Throttle

ACTOR = "system"
RETRY_SECONDS = 10.0
IN_SYNC, RESTORING, BEHIND, WAITING = "in-sync", "restoring", "behind", "waiting"
STATES = (IN_SYNC, RESTORING, BEHIND, WAITING, Place.AWAY.value, Place.FOREIGN.value)

logger = structlog.get_logger()


@dataclass(frozen=True)
class RootStatus:
    """One root as an operator sees it. `state` is one of STATES; `words` say what is wrong; sizes in bytes."""

    number: int
    path: str
    state: str
    words: str
    since: datetime | None
    free_bytes: int | None
    total_bytes: int | None
    lagging_packs: int = 0
    owed_bytes: int = 0
    restored_packs: int = 0
    restored_of: int = 0


@dataclass(frozen=True)
class StorageStatus:
    """All roots. `writing` is false while nothing can be taken in; `words` say why."""

    roots: tuple[RootStatus, ...]
    quorum: int
    writing: bool
    words: str

    @property
    def in_sync(self) -> int:
        """How many roots have everything."""
        return sum(root.state == IN_SYNC for root in self.roots)


class Replication:
    """Watches the roots of one node."""

    def __init__(self, blobs: FileBlobs | Replicas, *, log: Log, pace: Throttle) -> None:
        self._blobs = blobs
        self._log = log
        self._pace = pace
        self._restoring: tuple[Root, asyncio.Task[None]] | None = None
        self._restored = (0, 0)
        self._failed_at: dict[str, float] = {}
        self._examine: Callable[[str], Awaitable[object]] | None = None
        self.seen: StorageStatus | None = None
        """How the roots were when `watch` last looked: for who must not wait for a disk."""

    @property
    def replicas(self) -> Replicas | None:
        """The replicas, when there are several roots."""
        return self._blobs if isinstance(self._blobs, Replicas) else None

    def examine_with(self, examine: Callable[[str], Awaitable[object]]) -> None:
        """Have suspect packs looked at by `examine(study)`."""
        self._examine = examine

    async def watch(self) -> None:
        """A job, every second."""
        replicas = self.replicas
        if replicas is not None:
            await asyncio.to_thread(replicas.watch)
            await self.tell()
            self._bring_back(replicas)
        self.seen = await asyncio.to_thread(self.status)

    async def examine(self) -> None:
        """A job, beside `watch`: look at the packs of which a reader met a bad copy, whatever time that takes."""
        replicas = self.replicas
        while replicas is not None and self._examine is not None and (name := replicas.next_suspect()):
            await self._examine(study_of(name))

    async def tell(self) -> None:
        """Put on record what happened to the roots."""
        replicas = self.replicas
        while replicas is not None and replicas.quorum.news:
            news = replicas.quorum.news.popleft()
            good = news.kind is EventKind.REPLICA_HEALED
            await self._log.record(
                Event(
                    news.kind,
                    ACTOR,
                    Outcome.DONE if good else Outcome.FAILED,
                    study=news.study,
                    reason=news.words,
                    detail=news.detail,
                )
            )

    async def restored(self) -> None:
        """Bring back every root that can be, and return when that is done or has failed: for the command line."""
        replicas = self.replicas
        if replicas is None:
            return
        await asyncio.to_thread(replicas.watch)
        self._failed_at.clear()
        while True:
            self._bring_back(replicas)
            if self._restoring is None:
                break
            await self._restoring[1]
        await self.tell()

    async def close(self) -> None:
        """Stop bringing back, and tell what is left to tell."""
        self._pace.stop()
        if self._restoring is not None:
            await asyncio.wait([self._restoring[1]])
        with suppress(Unavailable):
            await self.tell()

    def closed(self) -> str:
        """Why no images can be taken in, in words; empty when they can."""
        return "" if self.replicas is None else self.replicas.quorum.why_closed

    def status(self) -> StorageStatus:
        """How every root is. Blocking: looks at the disks."""
        replicas = self.replicas
        if replicas is None:
            assert isinstance(self._blobs, FileBlobs)
            root = self._blobs.root
            free, total = _room(root)
            state = IN_SYNC if root.is_dir() or root.parent.is_dir() else Place.AWAY.value
            one = RootStatus(1, str(root), state, "", None, free, total)
            return StorageStatus((one,), 1, True, "")
        quorum = replicas.quorum
        roots = tuple(self._root(replicas, slot) for slot in quorum.slots)
        return StorageStatus(roots, quorum.need, not quorum.why_closed, quorum.why_closed)

    def _root(self, replicas: Replicas, slot: Slot) -> RootStatus:
        quorum, root = replicas.quorum, slot.root
        free, total = _room(slot.path)
        rows = [row for row in quorum.membership.roots if row.number == slot.number]
        since = next((row.since for row in rows if root is None or row.id == root.id), None)
        if root is None:
            place = slot.found.place if slot.found.place is Place.FOREIGN else Place.AWAY
            return RootStatus(slot.number, str(slot.path), place.value, slot.found.words, since, free, total)
        busy = self._restoring is not None and self._restoring[0] is root
        state = BEHIND
        if root in quorum.in_sync:
            state = IN_SYNC
        elif root in quorum.back:
            state = WAITING
        elif busy:
            state = RESTORING
        done, of = self._restored if busy else (0, 0)
        words = "" if state == IN_SYNC and not root.lagging else root.trouble
        return RootStatus(
            slot.number,
            str(slot.path),
            state,
            words,
            since,
            free,
            total,
            len(root.lagging),
            root.owed_bytes,
            done,
            of,
        )

    def _bring_back(self, replicas: Replicas) -> None:
        """Begin with the next root that is there and behind."""
        if self._restoring is not None and not self._restoring[1].done():
            return
        self._restoring = None
        now = asyncio.get_running_loop().time()
        for root in replicas.quorum.others:
            if now - self._failed_at.get(root.id, -RETRY_SECONDS) >= RETRY_SECONDS:
                self._restored = (0, 0)
                self._restoring = (root, asyncio.create_task(self._restore(replicas, root)))
                return

    async def _restore(self, replicas: Replicas, root: Root) -> None:
        def told(done: int, of: int) -> None:
            self._restored = (done, of)

        try:
            carried = await asyncio.to_thread(replicas.restore, root, self._pace, told)
            logger.info("storage root in sync", root=root.number, bytes=carried)
        except AccordError as error:
            root.trouble = error.message
            self._failed_at[root.id] = asyncio.get_running_loop().time()
            if error.code != "stopping":
                logger.warning("storage root not brought back", root=root.number, error=error.message)


def standing(paths: Sequence[Path], node: str, membership: Membership) -> list[RootStatus]:
    """What can be said of the roots from outside: by their paths, and by what is remembered of them. Blocking."""
    found = []
    for number, path in enumerate(paths, 1):
        free, total = _room(path)
        row = next((row for row in membership.roots if row.number == number), None)
        since = None if row is None else row.since
        if len(paths) == 1:
            state, words = (IN_SYNC, "") if path.is_dir() else (Place.AWAY.value, "The folder is not there.")
        else:
            stands = look_at(path, node, was_mounted=row is not None and row.mounted)
            state, words = _outside(stands, membership)
        found.append(RootStatus(number, str(path), state, words, since, free, total))
    return found


def _outside(stands: Found, membership: Membership) -> tuple[str, str]:
    if stands.place is Place.EMPTY or (stands.place is Place.ROOT and stands.identity is None):
        return BEHIND, "It is empty."
    if stands.place is not Place.ROOT or stands.identity is None:
        return stands.place.value, stands.words
    return (IN_SYNC if stands.identity.id in membership.in_sync else BEHIND), ""


class StorageMetrics(Collector):
    """Gauges of the roots for Prometheus: by number, never a path."""

    def __init__(self, replication: Replication) -> None:
        self._replication = replication

    def collect(self) -> Iterable[Metric]:
        """See `Collector.collect`. As `watch` last saw it: this is asked for on the event loop."""
        status = self._replication.seen
        if status is None:
            return ()
        state = GaugeMetricFamily(
            "accord_storage_root", "1 for the state a root is in.", labels=("root", "state")
        )
        room = GaugeMetricFamily(
            "accord_storage_root_free_bytes", "Free bytes on a root's disk.", labels=("root",)
        )
        lag = GaugeMetricFamily(
            "accord_storage_root_lagging_packs", "Packs that lack something on a root.", labels=("root",)
        )
        for root in status.roots:
            for name in STATES:
                state.add_metric((str(root.number), name), float(root.state == name))
            room.add_metric((str(root.number),), float(root.free_bytes or 0))
            lag.add_metric((str(root.number),), float(root.lagging_packs))
        writing = GaugeMetricFamily(
            "accord_storage_writing", "1 while images can be taken in.", value=float(status.writing)
        )
        return (state, room, lag, writing)


def _room(path: Path) -> tuple[int | None, int | None]:
    try:
        usage = shutil.disk_usage(path)
    except OSError:
        return None, None
    return usage.free, usage.total
