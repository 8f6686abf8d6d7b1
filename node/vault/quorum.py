"""Who is in sync: found at the start, changed only durably, and asked before anything is answered for.

Holds the membership in memory and rules 2 and 3 of docs/decisions/0010-replicas.md. Leaves the packs to `replicas`.

Invariants: never fewer roots in sync than the quorum; what is said here is in the ledger first; while `open` is not
set nothing is written.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from os.path import ismount
from pathlib import Path
from threading import RLock
from typing import Any

from consent.errors import AccordError, Conflict, Corrupt, Sentence, Sentences, Unavailable
from consent.vocabulary import EventKind
from node.clock import Clock
from node.vault.lanes import Root
from node.vault.roots import (
    MAX_ROOTS,
    Found,
    Ledger,
    Membership,
    Place,
    RootRow,
    look_at,
    new_identity,
    stamp,
    write_identity,
)

MAX_NEWS = 1000


@dataclass(frozen=True)
class News:
    """Something that the log should say."""

    kind: EventKind
    words: str
    study: str | None = None
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass
class Slot:
    """A configured path, what stands there, and the root when it may be used."""

    number: int
    path: Path
    found: Found = field(default_factory=lambda: Found(Place.AWAY))
    root: Root | None = None


class Quorum:
    """The roots of one node. Blocking; called from threads."""

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        node: str,
        clock: Clock,
        ledger: Ledger,
        membership: Membership,
        quorum: int = 0,
    ) -> None:
        if not 1 <= len(paths) <= MAX_ROOTS or len({path.absolute() for path in paths}) != len(paths):
            raise Conflict(
                Sentence(
                    "There can be 1 to %(most)s storage roots, each a folder of its own.", most=MAX_ROOTS
                ),
                mend="Correct storage.roots in node.toml.",
                code="bad-setting",
            )
        self.slots = [Slot(number, path) for number, path in enumerate(paths, 1)]
        self.wanted = quorum or len(paths) // 2 + 1
        if self.wanted > len(paths):
            raise Conflict(
                Sentence(
                    "A quorum of %(quorum)s cannot be had from %(roots)s storage roots.",
                    quorum=self.wanted,
                    roots=len(paths),
                ),
                mend="Correct storage.quorum in node.toml.",
                code="bad-setting",
            )
        self.membership = membership
        self.changing = RLock()
        self.version = 0
        """Raised whenever copies must be opened anew: who is in sync has changed, or a copy was brought level."""
        self.why_closed: str = Sentence("The storage roots have not been looked at yet.")
        self._told_closed = False
        self.news: deque[News] = deque(maxlen=MAX_NEWS)
        self.doubted: set[str] = set()
        """Ids of roots in sync that were away: what they missed is not known. They count as missing."""
        self._node = node
        self._clock = clock
        self._ledger = ledger

    @property
    def need(self) -> int:
        """How many roots must have a group before it is answered for."""
        return max(1, self.membership.quorum)

    @property
    def in_sync(self) -> list[Root]:
        """The roots in sync that are there, in their order."""
        members = self.membership.in_sync - self.doubted
        return [slot.root for slot in self.slots if slot.root is not None and slot.root.id in members]

    @property
    def others(self) -> list[Root]:
        """Roots that are there and not in sync."""
        members = self.membership.in_sync
        return [slot.root for slot in self.slots if slot.root is not None and slot.root.id not in members]

    @property
    def back(self) -> list[Root]:
        """Roots in sync that were away and are there again."""
        members = self.membership.in_sync & self.doubted
        return [slot.root for slot in self.slots if slot.root is not None and slot.root.id in members]

    @property
    def readable(self) -> list[Root]:
        """Every root that is there, the best first."""
        return [*self.in_sync, *self.back, *self.others]

    @property
    def missing(self) -> frozenset[str]:
        """Ids of roots in sync that are not there, or were away."""
        return self.membership.in_sync - {root.id for root in self.in_sync}

    def look(self) -> None:
        """See what stands at every path now."""
        with self.changing:
            for slot in self.slots:
                row = next((row for row in self.membership.roots if row.number == slot.number), None)
                slot.found = look_at(slot.path, self._node, was_mounted=row is not None and row.mounted)
                self._settle_slot(slot)

    def begin(self) -> None:
        """The first look; makes or adopts roots when none are remembered. Raises Conflict, Unavailable."""
        with self.changing:
            self.look()
            if not self.membership.roots:
                self._first_time()
            self._require_newest()
            self.doubted = set(self.membership.in_sync)

    def require_open(self) -> None:
        """Raise Unavailable, in words, while nothing may be written."""
        if self.why_closed:
            raise below_quorum(self.why_closed)

    def enough_to_level(self) -> bool:
        """Whether the roots that are there surely have among them everything that was answered for."""
        return len(self.in_sync) + len(self.back) >= self._sources

    def enough_in_sync(self) -> bool:
        """The same of those that were there all the time, or have been brought level."""
        return len(self.in_sync) >= self._sources

    def require_sources(self) -> None:
        """Raise Unavailable unless `enough_in_sync`."""
        if not self.enough_in_sync():
            raise below_quorum(self.closed_words())

    def put_out(
        self, root_id: str, why: str, *, settled: Callable[[Collection[Root]], None] = lambda rest: None
    ) -> None:
        """Put a root out of sync, durably: what is answered for from now on, it lacks.

        `settled` returns when everything answered for is on all the others. Raises Unavailable when that would leave fewer
        than the quorum, or cannot be written down.
        """
        with self.changing:
            row = self.membership.root(root_id)
            if row is None or not row.in_sync:
                return
            rest = [root for root in self.in_sync if root.id != root_id]
            if len(rest) < self.need:
                raise below_quorum(self._lack(len(rest)))
            if any(root.lagging for root in rest):
                raise below_quorum("Another storage root is being brought level first.")
            settled(rest)
            replaced = any(
                slot.root and slot.root.id != root_id for slot in self.slots if slot.number == row.number
            )
            rows = [one for one in self.membership.roots if one.id != root_id]
            if not replaced:
                rows.append(replace(row, in_sync=False, since=self._clock.now()))
            self._save(replace(self.membership, roots=tuple(sorted(rows, key=_number))))
            self.doubted.discard(root_id)
            self._tell(
                EventKind.REPLICA_DEGRADED,
                row.number,
                f"Storage root {row.number} is out of sync: {why}",
                why,
            )

    def take_in(self, root: Root) -> None:
        """Count a root as in sync that was brought level just now; the caller keeps everybody from writing meanwhile."""
        with self.changing:
            rows = [
                row
                for row in self.membership.roots
                if row.id != root.id and (row.in_sync or row.number != root.number)
            ]
            row = self._row(root, in_sync=True)
            members = sum(one.in_sync for one in rows) + 1
            quorum = max(self.membership.quorum, min(self.wanted, members))
            self._save(
                replace(self.membership, quorum=quorum, roots=tuple(sorted([*rows, row], key=_number)))
            )
            root.lagging.clear()
            self._tell(EventKind.REPLICA_HEALED, root.number, f"Storage root {root.number} is in sync.", "")

    def close_writing(self, why: str) -> None:
        """Take no writes until `open_writing`."""
        if self.why_closed != why:
            self.why_closed = why
            self._told_closed = True
            self.news.append(News(EventKind.REPLICA_DEGRADED, why, detail={"writing": False}))

    def open_writing(self) -> None:
        """Take writes."""
        if self._told_closed:
            detail = {"writing": True, "in_sync": len(self.membership.in_sync), "of": len(self.slots)}
            self.news.append(News(EventKind.REPLICA_HEALED, "Images are taken in again.", detail=detail))
        self._told_closed = False
        self.why_closed = ""

    def closed_words(self) -> str:
        """Why the roots that are there do not suffice."""
        return self._lack(len(self.in_sync))

    def _settle_slot(self, slot: Slot) -> None:
        """Let go of a root that is not at its path any more; take the one that is there."""
        identity = slot.found.identity if slot.found.place is Place.ROOT else None
        if slot.root is not None:
            try:
                slot.root.require_present()
                same = identity is not None and identity.id == slot.root.id
            except AccordError as error:
                same = False
                slot.found = replace(slot.found, words=slot.found.words or error.message)
            if same:
                return
            if slot.root.id in self.membership.in_sync:
                self.doubted.add(slot.root.id)
            slot.root.abandon()
            slot.root = None
            self.version += 1
        if slot.found.place is Place.EMPTY and self.membership.roots:
            try:
                identity = new_identity(self._node, self._clock.now())
                write_identity(slot.path, identity)
                slot.found = Found(Place.ROOT, identity)
            except AccordError as error:
                slot.found = Found(Place.AWAY, words=error.message)
                return
        if identity is not None and all(one.root is None or one.root.id != identity.id for one in self.slots):
            slot.root = Root(identity.id, slot.number, slot.path)
            self.version += 1

    def _first_time(self) -> None:
        """Nothing is remembered: a new archive, one that had a single root, or one whose database is new."""
        known = [slot for slot in self.slots if slot.root is not None]
        if known:  # the database is new, the roots are not
            newest = max(slot.found.identity.epoch for slot in known if slot.found.identity)
            first = [slot for slot in known if slot.found.identity and slot.found.identity.epoch == newest]
            epoch = newest
        else:
            filled = [
                slot for slot in self.slots if slot.found.place is Place.FOREIGN and not slot.found.identity
            ]
            if len(filled) > 1:
                raise Conflict(
                    "Several storage roots hold packs, and none says to whom they belong.",
                    mend="Name the right one alone in storage.roots, start, then add the others empty.",
                    code="roots",
                )
            first, epoch = filled or self.slots, 0
            for slot in filled or self.slots:
                slot.path.mkdir(parents=True, exist_ok=True, mode=0o700)
                write_identity(slot.path, new_identity(self._node, self._clock.now()))
                slot.found = look_at(slot.path, self._node)
                self._settle_slot(slot)
            for slot in self.slots:
                slot.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        rows = tuple(self._row(slot.root, in_sync=True) for slot in first if slot.root is not None)
        self._save(Membership(epoch, min(self.wanted, len(rows)), rows))
        self.look()

    def _require_newest(self) -> None:
        """After the database was restored: the roots know of later changes than it does."""
        known = [slot for slot in self.slots if slot.root is not None and slot.found.identity is not None]
        newest = max((slot.found.identity.epoch for slot in known if slot.found.identity), default=0)
        if newest <= self.membership.epoch:
            return
        first = {
            slot.root.id
            for slot in known
            if slot.root and slot.found.identity and slot.found.identity.epoch == newest
        }
        rows = tuple(
            replace(row, in_sync=row.id in first, since=self._clock.now()) for row in self.membership.roots
        )
        new = tuple(
            self._row(slot.root, in_sync=slot.root.id in first)
            for slot in known
            if slot.root is not None and self.membership.root(slot.root.id) is None
        )
        count = min(self.membership.quorum, len(first))
        self._save(Membership(newest, count, tuple(sorted((*rows, *new), key=_number))))
        self._tell(
            EventKind.REPLICA_DEGRADED,
            0,
            "The database is older than the storage roots; only those that changed last count as in sync.",
            "",
        )

    def _row(self, root: Root, *, in_sync: bool) -> RootRow:
        return RootRow(root.id, root.number, str(root.path), in_sync, self._clock.now(), ismount(root.path))

    def _save(self, membership: Membership) -> None:
        membership = replace(membership, epoch=membership.epoch + 1)
        self._ledger.save(membership)
        self.membership = membership
        self.version += 1
        for root in self.in_sync:
            try:
                stamp(root.path, membership.epoch)
            except (
                Corrupt,
                Unavailable,
            ) as error:  # the database decides; this is for the day it is restored
                root.trouble = error.message

    @property
    def _sources(self) -> int:
        """How many roots in sync have among them, whichever they are, everything that was answered for."""
        return max(1, len(self.membership.in_sync) - self.need + 1)

    def _lack(self, there: int) -> str:
        needed = max(self.need, self._sources)
        return Sentence(
            "Only %(there)s of %(all)s storage roots can be used; %(needed)s are needed.",
            there=there,
            all=len(self.slots),
            needed=needed,
        )

    def _tell(self, kind: EventKind, number: int, words: str, why: str) -> None:
        detail: dict[str, Any] = {
            "root": number,
            "in_sync": len(self.membership.in_sync),
            "of": len(self.slots),
        }
        if why:
            detail["why"] = why
        self.news.append(News(kind, words, detail=detail))


def below_quorum(words: str) -> Unavailable:
    """The error while too few roots can be written."""
    return Unavailable(
        Sentence("%(why)s Nothing was stored.", why=words),
        mend=Sentence("Bring the missing storage roots back, then send again: accord replicas status DIR"),
        code="below-quorum",
    )


def not_enough(failures: Iterable[AccordError]) -> Unavailable:
    """The error when fewer roots than the quorum did what all should."""
    reasons = dict.fromkeys(error.message for error in failures)
    return below_quorum(Sentences(reasons) or Sentence("Too few storage roots can be written."))


def nothing_to_read() -> Unavailable:
    """The error when no root is there to read from."""
    return Unavailable(
        "No storage root can be read.",
        mend=Sentence("Bring a storage root back: accord replicas status DIR"),
        code="storage",
    )


def _number(row: RootRow) -> int:
    return row.number
