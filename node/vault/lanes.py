"""How one group reaches several roots at once: a root's threads, a lane to each copy, and the vote that ends the wait.

Holds the order of what is written to one copy, and the bounds of what may still be on its way when a group has
been answered for. Leaves to `replicas` which copies there are and what a failure means.

Invariants: what is given to a lane is done in order, or, after the first failure, not at all; a root owes at most
`MAX_OWED_BYTES`, and one that does not work them off in time is left behind rather than waited for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Condition, Lock
from time import monotonic
from typing import TypeVar

from consent.errors import AccordError, NotFound, Sentence, Unavailable
from node.vault.blobs import FileAppendable, FileBlobs, disk_errors
from node.vault.roots import IDENTITY_NAME
from node.vault.seal import Buffer

ROOT_THREADS = 4
MAX_OWED_BYTES = 64 * 1024 * 1024
CATCH_UP_SECONDS = 2.0
"""How long a group waits for room at a slow root before that root falls behind."""
ANSWER_SECONDS = 30.0
"""How long a disk may take before it counts as failed."""

T = TypeVar("T")


class Root:
    """A root that is there: its folder, its threads, and what it still owes."""

    def __init__(self, root_id: str, number: int, path: Path) -> None:
        self.id = root_id
        self.number = number
        self.path = path
        self.blobs = FileBlobs(path, make_root=False)
        self.lagging: set[str] = set()
        """Names of packs that lack something here which was answered for, as far as is known."""
        self.trouble = ""
        """What went wrong here last, in words."""
        self.abandoned = False
        self._owed = 0
        self._owing = Condition()
        self._moved = monotonic()
        self._threads = ThreadPoolExecutor(ROOT_THREADS, thread_name_prefix=f"root-{number}")
        self._folder = self._mark()

    def require_present(self) -> None:
        """Raise Unavailable when the folder is not the one that was found: removed, replaced, not mounted."""
        with disk_errors("reach a storage root"):
            if self._mark() != self._folder:
                raise Unavailable(
                    Sentence("Storage root %(number)s was replaced.", number=self.number),
                    mend="Look at its folder.",
                    code="storage",
                )

    def listed(self) -> dict[str, int]:
        """Every pack here with its length in bytes. Raises Unavailable, also when the folder went away meanwhile."""
        found = dict(self.blobs.names())
        self.require_present()
        return found

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Do something in one of this root's threads. Raises Unavailable when it was let go of."""
        try:
            return self._threads.submit(work)
        except RuntimeError as error:
            raise Unavailable(
                Sentence("Storage root %(number)s is gone.", number=self.number), code="storage"
            ) from error

    def take_on(self, size: int) -> bool:
        """Note that `size` more bytes are on their way; False when too much is, and stays so."""
        until = monotonic() + CATCH_UP_SECONDS
        with self._owing:
            while self._owed and self._owed + size > MAX_OWED_BYTES:
                if not self._owing.wait(until - monotonic()):
                    return False
            if not self._owed:
                self._moved = monotonic()
            self._owed += size
            return True

    def worked_off(self, size: int) -> None:
        """Note that they are written, or given up."""
        with self._owing:
            self._owed -= size
            self._moved = monotonic()
            self._owing.notify_all()

    @property
    def owed_bytes(self) -> int:
        """How many bytes are on their way to this root."""
        return self._owed

    @property
    def stands_still(self) -> bool:
        """Whether it owes something and has done nothing about it for longer than a disk may take."""
        return self._owed > 0 and monotonic() - self._moved > ANSWER_SECONDS

    def close(self) -> None:
        """End its threads, after what is on its way."""
        self._threads.shutdown()

    def abandon(self) -> None:
        """Let its threads end by themselves: the disk may never answer again."""
        self.abandoned = True
        self._threads.shutdown(wait=False)

    def _mark(self) -> tuple[int, int]:
        # A folder that was emptied, or removed and made again (it may get the same inode), has no identity file.
        (self.path / IDENTITY_NAME).stat()
        status = self.path.stat()
        return status.st_dev, status.st_ino


class Vote:
    """Waits until enough roots have done something, or too many have failed."""

    def __init__(self, voters: Iterable[Root]) -> None:
        self._waited_for = set(voters)
        self._changed = Condition()
        self.done = 0
        self.failures: list[AccordError] = []

    def yes(self, root: Root) -> None:
        """One has done it."""
        with self._changed:
            self._waited_for.discard(root)
            self.done += 1
            self._changed.notify_all()

    def no(self, root: Root, error: AccordError) -> None:
        """One has failed."""
        with self._changed:
            self._waited_for.discard(root)
            self.failures.append(error)
            self._changed.notify_all()

    @property
    def ended(self) -> bool:
        """Whether nobody does anything about it any more, not even a root that was let go of."""
        return not self._waited_for

    def wait(self, needed: int, seconds: float = ANSWER_SECONDS) -> bool:
        """Whether `needed` roots have done it. Returns as soon as that is certain."""
        until = monotonic() + seconds
        with self._changed:
            while self.done < needed <= self.done + len(self._waited_for):
                if not self._changed.wait(until - monotonic()):
                    break
            return self.done >= needed

    def wait_all(self, roots: Collection[Root] | None = None, seconds: float = ANSWER_SECONDS) -> bool:
        """Whether all of these roots, or all there are, have voted in time; those that were let go of need not."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._pending(roots), seconds)

    def _pending(self, roots: Collection[Root] | None) -> bool:
        return any(not root.abandoned and (roots is None or root in roots) for root in self._waited_for)


class Lane:
    """What is to be written to one copy of one blob, in order."""

    def __init__(self, root: Root, file: FileAppendable, failed: Callable[[Root, AccordError], None]) -> None:
        self.root = root
        self.file = file
        self.error: AccordError | None = None
        self._failed = failed
        self._tasks: deque[Callable[[], None]] = deque()
        self._running = False
        self._turn = Lock()

    @property
    def works(self) -> bool:
        """Whether everything given to it so far went well, or may still."""
        return self.error is None

    def write(self, writes: Sequence[tuple[Sequence[Buffer], int]], vote: Vote, *, sync: bool) -> None:
        """Write, and make it durable with `sync`; vote at the end."""
        size = sum(len(part) for parts, _ in writes for part in parts)
        if self.works and not self.root.take_on(size):
            self._fail(
                Unavailable(
                    Sentence("Storage root %(number)s is too slow.", number=self.root.number),
                    mend="Look at its disk.",
                    code="storage",
                )
            )
        if not self.works:
            vote.no(self.root, self.error or _unforeseen(AssertionError()))
            return

        def work() -> None:
            try:
                self._write(writes, sync=sync)
            finally:
                self.root.worked_off(size)

        self._give(work, vote)

    def cut(self, size: int) -> Future[None]:
        """Cut the end off, also after a failure; what was on its way before is done first.

        A copy that ended before is behind and stays so; a longer one is in order again.
        """
        done: Future[None] = Future()

        def work() -> None:
            try:
                self.root.require_present()
                ends = self.file.size()
                if ends > size:
                    self.file.truncate(size)
                if ends >= size and not self.file.gone:
                    self.error = None
            except AccordError as error:
                done.set_exception(error)
                raise
            done.set_result(None)

        self._give(work, None, always=True)
        return done

    def then(self, work: Callable[[], None]) -> None:
        """Do something after all that was given before, whatever became of it."""
        self._give(work, None, always=True)

    def _write(self, writes: Sequence[tuple[Sequence[Buffer], int]], *, sync: bool) -> None:
        self.root.require_present()
        if writes and self.file.gone:
            raise NotFound("The pack was removed from this root.", code="blob")
        for parts, offset in writes:
            if offset > self.file.size():
                raise Unavailable(
                    "This copy ends too early.", mend="It is brought level.", code="copy-behind"
                )
            self.file.write(parts, offset)
        if sync:
            self.file.sync()

    def _give(self, work: Callable[[], None], vote: Vote | None, *, always: bool = False) -> None:
        def task() -> None:
            if self.error is not None and not always:
                if vote is not None:
                    vote.no(self.root, self.error)
                return
            try:
                work()
            except Exception as failure:
                error = failure if isinstance(failure, AccordError) else _unforeseen(failure)
                self._fail(error)
                if vote is not None:
                    vote.no(self.root, error)
            else:
                if vote is not None:
                    vote.yes(self.root)

        with self._turn:
            self._tasks.append(task)
            if self._running:
                return
            self._running = True
        try:
            self.root.submit(self._work_off)
        except Unavailable as error:  # what is left fails here, in its order
            self._fail(error)
            self._work_off()

    def _work_off(self) -> None:
        while True:
            with self._turn:
                if not self._tasks:
                    self._running = False
                    return
                task = self._tasks.popleft()
            task()

    def _fail(self, error: AccordError) -> None:
        if self.error is None:
            self.error = error
            self._failed(self.root, error)


def _unforeseen(failure: Exception) -> AccordError:
    """A thread that died of something else would leave everybody waiting."""
    return Unavailable(
        Sentence("A storage root could not be written (%(fault)s).", fault=type(failure).__name__),
        code="storage",
    )
