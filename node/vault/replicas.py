"""The archive on several roots: a `BlobStore` that is answered for when a quorum has it, and read from whichever is right.

Holds writing to all roots in sync, failing over in reading, bringing single packs level, healing, and refilling a root.
Leaves who is in sync to `quorum`, the order of writes to `lanes`, what is right to `reconcile`. Blocking.

Invariants: rules 1 to 5 of docs/decisions/0010-replicas.md. Whoever changes a pack's file holds its turn; a root is taken
in while nobody holds any.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from threading import Lock
from time import monotonic
from typing import TypeVar

from consent.errors import AccordError, Conflict, Corrupt, Invalid, NotFound, Sentence, Unavailable
from consent.vocabulary import EventKind
from node.vault.appending import Fan, ReplicaAppendable
from node.vault.arena import Arena
from node.vault.blobs import Appendable, FileAppendable, Read, check_name
from node.vault.failover import Failover
from node.vault.lanes import ANSWER_SECONDS, Lane, Root, Vote
from node.vault.pack import study_of
from node.vault.quorum import News, Quorum, below_quorum, not_enough, nothing_to_read
from node.vault.reconcile import Pace, unhurried
from node.vault.seal import Buffer
from node.vault.turns import Turns
from node.vault.upkeep import FEW, MAX_ROUNDS, Healed, bring_back, bring_level, heal

MAX_SUSPECTS = 1000
MAX_SPARE = 8
"""Pieces of memory for groups that are kept: as many as may be on their way at once, and as many again."""

T = TypeVar("T")


def _untold(_done: int, _of: int) -> None:
    """Nobody asked."""


class Replicas:
    """See `BlobStore`. `start` before use, `watch` every second, `close` at the end."""

    def __init__(self, quorum: Quorum) -> None:
        self.quorum = quorum
        self.turns = Turns()
        self.suspects: OrderedDict[str, None] = OrderedDict()
        """Names of packs of which a reader met a bad copy, for `healing`."""
        self.dirty: set[str] | None = None
        """While a root is brought back: names of the packs that were changed meanwhile."""
        self._votes: set[Vote] = set()
        self._spare: list[tuple[Arena, Vote]] = []
        self._guard = Lock()

    # Beginning, and what is looked after

    def start(self) -> None:
        """Find the roots, bring those in sync level, and begin to take writes. Raises Conflict for a wrong configuration."""
        self.quorum.begin()
        self._open_if_enough()

    def watch(self) -> None:
        """Look at the roots: bring level what lags, put out of sync what is gone, begin again when enough are back."""
        quorum = self.quorum
        quorum.look()
        for root in quorum.in_sync:
            if root.stands_still:
                self._put_out_if(root, "it does not answer")
            for name in sorted(root.lagging):
                if not self._catch_up(root, name):
                    break
        for root_id in quorum.missing:
            row = quorum.membership.root(root_id)
            words = (
                quorum.slots[row.number - 1].found.words if row and row.number <= len(quorum.slots) else ""
            )
            with suppress(Unavailable):
                quorum.put_out(root_id, words or "it was away", settled=self._voted)
        if quorum.missing or quorum.why_closed:
            self._open_if_enough()

    def close(self) -> None:
        """End every thread, after what is on its way."""
        for root in self.quorum.readable:
            root.close()

    # The seam

    def append(self, name: str) -> ReplicaAppendable:
        """See `BlobStore.append`. Raises Unavailable below the quorum."""
        check_name(name)
        self.quorum.require_open()
        with self.turns.of(name):
            return ReplicaAppendable(self, name, self._open_level(name))

    def put(self, name: str, parts: Sequence[Buffer]) -> None:
        """See `BlobStore.put`."""
        check_name(name)
        self.quorum.require_open()
        with self.turns.of(name):
            roots = self.quorum.in_sync
            if any(_holds(root, name) for root in roots):
                raise Conflict(Sentence("%(name)s is kept already.", name=name), code="blob-exists")
            done, failed = self.everywhere(roots, lambda root: root.blobs.put(name, parts))
            if len(done) < self.quorum.need:
                for root in done:
                    root.blobs.delete(name)
                raise not_enough(failed.values())
            self.changed(name, failed)

    def read(self, name: str, offset: int, length: int) -> bytes:
        """See `BlobStore.read`."""
        with self.opened(name) as read:
            return read(offset, length)

    @contextmanager
    def opened(self, name: str) -> Iterator[Read]:
        """See `BlobStore.opened`. A copy that cannot be read, or ends too early, is left for another one."""
        with ExitStack() as stack:
            reading = Failover(self, name, stack)
            reading.open()
            yield reading.read

    def proved(self, name: str, use: Callable[[Read, int], T]) -> T:
        """See `BlobStore.proved`. Tried on roots in sync first; who turns out to have a bad copy is healed."""
        check_name(name)
        first: AccordError | None = None
        for root in self.reading_order(name):
            try:
                result = root.blobs.proved(name, use)
            except (Corrupt, NotFound, Unavailable) as error:
                if isinstance(error, Unavailable):
                    root.trouble = error.message
                if first is None or (isinstance(first, NotFound) and not isinstance(error, NotFound)):
                    first = error
                continue
            if first is not None:
                self.suspect(name)
            return result
        if isinstance(first, Corrupt):
            self.suspect(name)
        raise first or nothing_to_read()

    def rewritten(self, name: str, make: Callable[[Read, int, Appendable], None]) -> None:
        """See `BlobStore.rewritten`. Every root in sync has the new file, synced, before the first gives up the old."""
        check_name(name)
        self.quorum.require_open()
        with self.turns.of(name):
            self.size(name)
            lanes = self._open_level(name)
            roots = [lane.root for lane in lanes]
            try:
                new, failed = self.everywhere(roots, lambda root: root.blobs.prepare(name))
                try:
                    self._put_out_all(failed)
                    make(lanes[0].file.read, lanes[0].file.size(), Fan(list(new.values())))
                    _, failed = self.everywhere(list(new), lambda root: new[root].sync())
                    self._put_out_all(failed)
                    kept = [root for root in new if root not in failed]
                finally:
                    for file in new.values():
                        file.close()
                _, failed = self.everywhere(kept, lambda root: root.blobs.install(name))
                self.changed(name, failed)
                self._put_out_all(failed)
            finally:
                for lane in lanes:
                    lane.file.close()
                for root in roots:
                    with suppress(Unavailable):
                        root.blobs.discard(name)

    def tidy(self, name: str) -> None:
        """See `BlobStore.tidy`. A root in sync that cannot is put out of sync; else it raises Unavailable."""
        check_name(name)
        with self.turns.of(name):
            _, failed = self.everywhere(self.quorum.in_sync, lambda root: root.blobs.tidy(name))
            self._put_out_all(failed)

    def size(self, name: str) -> int:
        """See `BlobStore.size`: of the longest copy in sync."""
        check_name(name)
        sizes: list[int] = []
        missing: AccordError | None = None
        for root in self._telling():
            try:
                sizes.append(root.blobs.size(name))
            except NotFound as error:
                missing = error
            except Unavailable as error:
                missing = missing or error
        if not sizes:
            raise missing or nothing_to_read()
        return max(sizes)

    def delete(self, name: str) -> None:
        """See `BlobStore.delete`. A root in sync that cannot is put out of sync; else it raises Unavailable: do it again."""
        check_name(name)
        with self.turns.of(name):
            for root_id in self.quorum.missing:
                self.quorum.put_out(root_id, "it was away", settled=self._voted)
            self.changed(name, {})
            _, failed = self.everywhere(self.quorum.in_sync, lambda root: root.blobs.delete(name))
            for root in [*self.quorum.back, *self.quorum.others]:  # compared later, but the sooner the better
                with suppress(AccordError):
                    root.blobs.delete(name)
            self._put_out_all(failed)

    def names(self) -> Iterator[tuple[str, int]]:
        """See `BlobStore.names`: what any root in sync has, with the length of its longest copy."""
        sizes: dict[str, int] = {}
        for root in self._telling():
            try:
                for name, size in root.blobs.names():
                    sizes[name] = max(size, sizes.get(name, 0))
            except Unavailable as error:
                root.trouble = error.message
        yield from sizes.items()

    # Upkeep

    def heal(self, name: str, expected: Mapping[int, bytes] | None = None, pace: Pace = unhurried) -> Healed:
        """Read every copy of a pack in sync whole and replace what is damaged; see `upkeep.heal`."""
        check_name(name)
        self.size(name)  # raises NotFound
        result = self._heal(name, expected, pace)
        if result.strangers:  # another generation, or no pack at all: brought level as a whole
            with self.turns.of(name):
                self._bring_level(name)
            again = self._heal(name, expected, pace)
            return replace(again, bytes_by_root={**result.strangers, **again.bytes_by_root})
        return result

    def _heal(self, name: str, expected: Mapping[int, bytes] | None, pace: Pace) -> Healed:
        with self.turns.of(name):  # nobody is in the middle of a group when the files are opened
            files, failed = self.everywhere(self.quorum.in_sync, lambda root: root.blobs.append(name))
            for root, error in failed.items():
                self.fell_behind(root, name, error)
        try:
            return heal(name, files, expected=expected, pace=pace)
        finally:
            for file in files.values():
                file.close()

    def restore(self, root: Root, pace: Pace = unhurried, told: Callable[[int, int], None] = _untold) -> int:
        """Bring a root back in sync; return how many bytes were carried. `told(done, of)` hears of packs.

        Ingest goes on meanwhile. Raises Unavailable when it cannot be done now.
        """
        self.quorum.require_sources()
        with self._guard:
            self.dirty = set()
        with self.turns.everybody():
            pass  # whoever was at it has ended; whoever comes now is noted
        try:
            carried = self._bring_all(root, pace, told)
            for _ in range(MAX_ROUNDS):
                names = self._take_dirty()
                for name in names:
                    carried += self._bring_one(name, root, pace)
                if len(names) <= FEW:
                    break
            with self.turns.everybody():
                self.quorum.require_sources()
                for name in self._take_dirty():
                    carried += bring_back(name, self.quorum.in_sync, root)
                self.quorum.take_in(root)
            return carried
        finally:
            with self._guard:
                self.dirty = None

    # For `ReplicaAppendable` and for upkeep

    def everywhere(
        self, roots: Sequence[Root], do: Callable[[Root], T]
    ) -> tuple[dict[Root, T], dict[Root, AccordError]]:
        """Do something on several roots at once; return what came of it, and what failed."""
        asked: dict[Root, Future[T]] = {}
        done: dict[Root, T] = {}
        failed: dict[Root, AccordError] = {}
        for root in roots:
            try:
                asked[root] = root.submit(partial(_present, root, do))
            except Unavailable as error:
                failed[root] = error
        until = monotonic() + ANSWER_SECONDS
        for root, future in asked.items():
            try:
                done[root] = future.result(max(0.0, until - monotonic()))
            except AccordError as error:
                failed[root] = error
            except TimeoutError:
                failed[root] = Unavailable(
                    Sentence("Storage root %(number)s does not answer.", number=root.number), code="storage"
                )
        return done, failed

    def suspect(self, name: str) -> None:
        """Have a pack's copies compared soon."""
        with self._guard:
            self.suspects[name] = None
            while len(self.suspects) > MAX_SUSPECTS:
                self.suspects.popitem(last=False)

    def next_suspect(self) -> str | None:
        """Take the oldest suspect; None without one."""
        with self._guard:
            return self.suspects.popitem(last=False)[0] if self.suspects else None

    def changed(self, name: str, failed: dict[Root, AccordError]) -> None:
        """Note that a pack was changed, and where it could not be."""
        with self._guard:
            if self.dirty is not None:
                self.dirty.add(name)
        for root, error in failed.items():
            self.fell_behind(root, name, error)

    def fell_behind(self, root: Root, name: str, error: AccordError) -> None:
        """Note that a root lacks something of this pack."""
        root.trouble = error.message
        root.lagging.add(name)

    def ballot(self, voters: Iterable[Root]) -> Vote:
        """A vote that whoever puts a root out of sync waits for."""
        vote = Vote(voters)
        with self._guard:
            self._votes = {one for one in self._votes if not one.wait_all(seconds=0)}
            self._votes.add(vote)
        return vote

    def spare_memory(self) -> Arena:
        """Memory that no root reads from any more, or new memory."""
        with self._guard:
            for place, (arena, vote) in enumerate(self._spare):
                if vote.ended:
                    del self._spare[place]
                    return arena
        return Arena()

    def keep_memory(self, arena: Arena, vote: Vote) -> None:
        """Use memory again once everybody has voted on what is in it."""
        with self._guard:
            if len(self._spare) < MAX_SPARE:
                self._spare.append((arena, vote))

    def lane(self, root: Root, name: str, file: FileAppendable) -> Lane:
        """A lane to one copy, whose failures are noted."""
        return Lane(root, file, lambda root, error: self.fell_behind(root, name, error))

    def open_more(self, name: str, lanes: list[Lane]) -> list[Lane]:
        """Lanes to roots in sync that `lanes` lack or have lost, as far as their copies are level. The caller has the turn."""
        size = max((lane.file.size() for lane in lanes if lane.works), default=0)
        works = {lane.root for lane in lanes if lane.works}
        more = []
        for root in self.quorum.in_sync:
            if root in works or name in root.lagging:
                continue
            try:
                root.require_present()
                file = root.blobs.append(name)
            except AccordError as error:
                self.fell_behind(root, name, error)
                continue
            if file.size() == size:
                more.append(self.lane(root, name, file))
            else:
                file.close()
                root.lagging.add(name)
        return more

    def must_lose(self, root: Root, error: AccordError) -> None:
        """Put a root out of sync because it could not do what all must. Raises Unavailable when it cannot be spared."""
        self.quorum.put_out(root.id, error.message, settled=self._voted)

    def _open_level(self, name: str) -> list[Lane]:
        """Every copy in sync, opened and level; whoever is not is out of sync now (rule 3). The caller has the turn."""
        roots = self.quorum.in_sync
        files, failed = self.everywhere(roots, lambda root: root.blobs.append(name))
        try:
            self._put_out_all(failed)
            if self.quorum.missing:
                for root_id in self.quorum.missing:
                    self.quorum.put_out(root_id, "it was away", settled=self._voted)
            sizes, failed = self.everywhere(list(files), lambda root: files[root].size())
            self._put_out_all(failed)
            if any(sizes.values()):
                for root, error in bring_level(name, {root: files[root] for root in sizes}).items():
                    files.pop(root).close()
                    self.must_lose(root, error)
            for root in sizes:
                root.lagging.discard(name)
            if len(files) < self.quorum.need:
                raise not_enough(failed.values())
        except BaseException:
            for file in files.values():
                file.close()
            raise
        return [self.lane(root, name, file) for root, file in files.items()]

    def _bring_all(self, root: Root, pace: Pace, told: Callable[[int, int], None]) -> int:
        self.quorum.require_sources()
        names = sorted(set().union(*(one.listed() for one in self.quorum.in_sync)))
        for name in sorted(root.listed().keys() - set(names)):
            with self.turns.of(name):
                bring_back(name, self.quorum.in_sync, root)
        carried = 0
        for number, name in enumerate(names):
            told(number, len(names))
            carried += self._bring_one(name, root, pace)
        told(len(names), len(names))
        return carried

    def _bring_one(self, name: str, root: Root, pace: Pace) -> int:
        """First without keeping anybody waiting: most bytes are carried then. What changed meanwhile is dirty."""
        return bring_back(name, self.quorum.in_sync, root, pace, sure=False)

    def _take_dirty(self) -> list[str]:
        with self._guard:
            names, self.dirty = sorted(self.dirty or ()), set()
            return names

    def reading_order(self, name: str) -> list[Root]:
        return sorted(self.quorum.readable, key=lambda root: name in root.lagging)

    def _telling(self) -> list[Root]:
        """The roots whose word on what there is counts."""
        return self.quorum.in_sync or self.quorum.back or self.quorum.others

    def _put_out_all(self, failed: dict[Root, AccordError]) -> None:
        for root, error in failed.items():
            self.must_lose(root, error)

    def _put_out_if(self, root: Root, why: str) -> None:
        with suppress(Unavailable):
            self.quorum.put_out(root.id, why, settled=self._voted)

    def _voted(self, roots: Collection[Root]) -> None:
        """Return when everything that was answered for is on all of these roots."""
        with self._guard:
            votes = list(self._votes)
        until = monotonic() + ANSWER_SECONDS
        for vote in votes:
            if not vote.wait_all(roots, max(0.0, until - monotonic())):
                raise below_quorum("A storage root does not answer.")

    def _catch_up(self, root: Root, name: str) -> bool:
        """Bring one pack level; a root that cannot be is put out of sync. Return whether to go on with the next."""
        with self.turns.of(name):
            failed = self._bring_level(name)
        if root in failed:
            self._put_out_if(root, failed[root].message)
            return False
        root.lagging.discard(name)
        self.quorum.version += 1
        return True

    def _open_if_enough(self) -> None:
        """Bring the roots in sync level, put out those that are away, and take writes; or say why not."""
        quorum = self.quorum
        if not quorum.enough_to_level():
            quorum.close_writing(quorum.closed_words())
            return
        with self.turns.everybody():
            quorum.doubted -= {root.id for root in quorum.back}
            self._level_all()
        if not quorum.enough_in_sync():  # on some that were there it failed
            quorum.close_writing(quorum.closed_words())
            return
        for root_id in quorum.missing:
            with suppress(Unavailable):
                quorum.put_out(root_id, "it was away at the start")
        if quorum.missing or len(quorum.in_sync) < quorum.need:
            quorum.close_writing(quorum.closed_words())
        else:
            quorum.open_writing()

    def _level_all(self) -> None:
        """Bring level every pack whose copies differ in length. A root on which that fails stays doubted."""
        sizes: dict[Root, dict[str, int]] = {}
        for root in self.quorum.in_sync:  # of a large archive it may take longer than any answer
            try:
                sizes[root] = root.listed()
            except Unavailable as error:
                self._doubt({root: error})
        for name in sorted(set().union(*sizes.values())):
            if len({held.get(name) for held in sizes.values()}) > 1:
                self._doubt(self._bring_level(name))

    def _doubt(self, failed: dict[Root, AccordError]) -> None:
        for root, error in failed.items():
            self.quorum.doubted.add(root.id)
            root.trouble = error.message

    def _bring_level(self, name: str) -> dict[Root, AccordError]:
        """Make the copies in sync alike; a pack of which no copy is right is named. The caller has the turn."""
        files, failed = self.everywhere(self.quorum.in_sync, lambda root: root.blobs.append(name))
        try:
            return failed | bring_level(name, files)
        except (Corrupt, Invalid) as error:
            self.quorum.news.append(News(EventKind.INTEGRITY_FAILED, error.message, study_of(name)))
            return failed
        finally:
            for file in files.values():
                file.close()


def _present(root: Root, do: Callable[[Root], T]) -> T:
    root.require_present()
    return do(root)


def _holds(root: Root, name: str) -> bool:
    try:
        root.blobs.size(name)
    except NotFound:
        return False
    return True
