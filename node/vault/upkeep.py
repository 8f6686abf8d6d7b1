"""Keeping the copies of packs alike: bringing level after a crash, healing, and bringing a root back.

Holds what is done to one pack, or to one root, and in which order. Leaves what is right to `reconcile`, who is in sync to
`quorum`. Blocking.

Invariants: an unfinished tail is cut only while the caller keeps writers away; a root is taken in only when every
pack on it is what the roots in sync say, while nobody writes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

from consent.errors import AccordError, Corrupt, Invalid, NotFound, Unavailable
from node.vault.blobs import FileAppendable, FileBlobs
from node.vault.lanes import Root
from node.vault.pack import last_base, study_of, survey
from node.vault.quorum import nothing_to_read
from node.vault.reconcile import (
    LAST_GROUP,
    WINDOW_BYTES,
    Copy,
    Merged,
    Pace,
    Piece,
    alike,
    carry,
    merge,
    unhurried,
)

N = TypeVar("N", bound="Numbered")

MAX_ROUNDS = 20
"""How often a root that comes back follows what arrived meanwhile, before the rest is brought while everybody waits."""
LOOK_BYTES = 64 * 1024
FEW = 16
"""So many changed packs are brought level while everybody waits."""


class Numbered(Protocol):
    """What names the place of a copy."""

    @property
    def id(self) -> str: ...

    @property
    def number(self) -> int: ...


@dataclass(frozen=True)
class OnlyRoot:
    """The folder of an archive that has one."""

    id: str = "only"
    number: int = 1


@dataclass(frozen=True)
class Healed:
    """What became of a pack's copies: bytes replaced, by number of the root, and places where no copy is sound.

    `strangers` are copies that are another file than the others, with their lengths; nothing was done about these.
    """

    bytes_by_root: Mapping[int, int] = field(default_factory=dict)
    strangers: Mapping[int, int] = field(default_factory=dict)
    lost: tuple[Piece, ...] = ()
    words: str = ""


def bring_level(name: str, files: Mapping[Root, FileAppendable]) -> dict[Root, AccordError]:
    """Make all copies of a pack alike, cutting unfinished tails; return the roots on which that failed, and why.

    The caller has the pack's turn. Raises Corrupt when there is no telling what is right.
    """
    left, failed, bad = dict(files), dict[Root, AccordError](), dict[Root, AccordError]()
    while left:
        unreadable: dict[Root, AccordError] = {}
        try:
            _level(name, left, failed, unreadable)
        except Unavailable:
            if not unreadable:
                raise
            bad |= unreadable
            left = {root: file for root, file in left.items() if root not in bad}
        else:
            for root in bad:  # perhaps other places of its disk can be written
                if (error := _written_anew(name, left, root)) is not None:
                    failed[root] = error
            return failed
    return bad


def heal(
    name: str,
    copies: Mapping[N, FileAppendable],
    *,
    expected: Mapping[int, bytes] | None = None,
    pace: Pace = unhurried,
) -> Healed:
    """Read every byte of every copy and replace what is damaged from a good one. Cuts nothing.

    Writers may go on: only what was there when the files were opened is looked at.
    """
    study = study_of(name)
    bad: dict[N, AccordError] = {}
    read_copies = [_copy(root, file, bad) for root, file in copies.items()]
    try:
        merged = merge(study, read_copies, expected=expected, pace=pace)
    except (Corrupt, Invalid) as error:
        return Healed(words=error.message)
    except Unavailable as error:
        if not bad or len(bad) == len(copies):
            if error.code == "stopping":
                raise
            return Healed(words=error.message)
        readable = {root: file for root, file in copies.items() if root not in bad}
        found = heal(name, readable, expected=expected, pace=pace)
        sizes = {root.number: copies[root].size() for root in bad}
        return replace(found, strangers={**found.strangers, **sizes})
    written: dict[int, int] = {}
    strangers: dict[int, int] = {}
    words = ""
    for (root, file), copy in zip(copies.items(), read_copies, strict=True):
        if root.id not in merged.same_file:
            strangers[root.number] = copy.size
            continue
        try:
            if count := carry(study, merged, read_copies, copy, file, cut=False, faithful=False, pace=pace):
                written[root.number] = count
        except Corrupt as error:
            words = error.message
        except Unavailable as error:
            if error.code == "stopping":
                raise
            words = error.message
    return Healed(written, strangers, (*merged.lost, *_contradicted(merged, expected or {})), words)


def bring_back(
    name: str, sources: Sequence[Root], target: Root, pace: Pace = unhurried, *, sure: bool = True
) -> int:
    """Make the copy on `target` what the roots in sync say; return how many bytes were carried.

    `sure`: the caller keeps writers away. Raises Unavailable, also when no source can be read.
    """
    study = study_of(name)
    with ExitStack() as stack:
        copies = _copies(name, sources, stack)
        if not copies:
            if sure:  # nobody in sync has it: it was deleted
                target.blobs.delete(name)
            return 0
        target.require_present()
        own_file = stack.enter_context(closing(target.blobs.append(name)))
        own = Copy(target.id, own_file.read, own_file.size())
        if _seems_alike(copies, own):
            return 0
        try:
            merged = merge(study, copies, led=[own], bodies_from=LAST_GROUP, pace=pace)
        except (Corrupt, Invalid):
            return _replace(target.blobs, name, lambda new: _copy_bytes(copies, new, pace))
        if target.id in merged.same_file:
            return carry(study, merged, copies, own, own_file, cut=True, pace=pace)
        empty = Copy(target.id, _nothing, 0)
        return _replace(
            target.blobs, name, lambda new: carry(study, merged, copies, empty, new, cut=False, pace=pace)
        )


def _copies(name: str, sources: Sequence[Root], stack: ExitStack) -> list[Copy]:
    """The copies that can be opened; none only when every source is there and has none. Raises Unavailable."""
    copies: list[Copy] = []
    refusal: AccordError | None = None if sources else nothing_to_read()
    for root in sources:
        try:
            try:
                file = stack.enter_context(closing(root.blobs.existing(name)))
                copies.append(Copy(root.id, file.read, file.size()))
            except NotFound:
                root.require_present()  # a folder that was taken away has no packs either
        except Unavailable as error:
            refusal = error
    if refusal is not None and not copies:
        raise refusal
    return copies


def _level(
    name: str,
    files: Mapping[Root, FileAppendable],
    failed: dict[Root, AccordError],
    bad: dict[Root, AccordError],
) -> None:
    study = study_of(name)
    copies = {root: _copy(root, file, bad) for root, file in files.items()}
    everyone = list(copies.values())
    try:
        found = survey(everyone[0].read, everyone[0].size, study)
        start = None if found.damages else last_base(found)
    except (Corrupt, Invalid):
        start = 0
    if start is not None and alike(everyone, start):
        return
    merged = merge(study, everyone, bodies_from=LAST_GROUP)
    for root, file in files.items():
        try:
            if root.id in merged.same_file:
                carry(study, merged, everyone, copies[root], file, cut=True)
            else:
                empty = Copy(root.id, _nothing, 0)
                _replace(
                    root.blobs,
                    name,
                    lambda new, empty=empty: carry(study, merged, everyone, empty, new, cut=False),  # type: ignore[misc]
                )
        except Unavailable as error:
            failed[root] = error


def _written_anew(name: str, files: Mapping[Root, FileAppendable], root: Root) -> AccordError | None:
    """Give a root whose copy cannot be read another file; return why that failed."""
    study = study_of(name)
    copies = [Copy(one.id, file.read, file.size()) for one, file in files.items()]
    try:
        merged = merge(study, copies, bodies_from=LAST_GROUP)
        empty = Copy(root.id, _nothing, 0)
        _replace(root.blobs, name, lambda new: carry(study, merged, copies, empty, new, cut=False))
    except (Corrupt, Invalid, Unavailable) as error:
        return error
    return None


def _copy(root: N, file: FileAppendable, bad: dict[N, AccordError]) -> Copy:
    """A copy whose failures to read are put down to its root."""

    def read(offset: int, length: int) -> bytes:
        try:
            return file.read(offset, length)
        except Unavailable as error:
            bad[root] = error
            raise

    return Copy(root.id, read, file.size())


def _seems_alike(copies: Sequence[Copy], own: Copy) -> bool:
    """Whether a copy that was left alone is a good copy still: same length, head and end. A scrub reads the rest."""
    reference = max(copies, key=lambda copy: copy.size)
    if own.size != reference.size:
        return False
    tail = max(0, own.size - LOOK_BYTES)
    return all(own.read(at, LOOK_BYTES) == reference.read(at, LOOK_BYTES) for at in {0, tail})


def _contradicted(merged: Merged, expected: Mapping[int, bytes]) -> list[Piece]:
    """Objects that the index names and that are not there."""
    there = {
        piece.span.stored.offset: piece.span.stored.blake3
        for piece in merged.pieces
        if piece.span is not None and piece.span.stored is not None
    }
    return [
        Piece(offset, offset, frozenset())
        for offset, digest in expected.items()
        if there.get(offset) != digest
    ]


def _replace(blobs: FileBlobs, name: str, fill: Callable[[FileAppendable], int]) -> int:
    new = blobs.prepare(name)
    try:
        written = fill(new)
        new.sync()
        blobs.install(name)
    except BaseException:
        with suppress(Unavailable):
            blobs.discard(name)
        raise
    finally:
        new.close()
    return max(1, written)


def _copy_bytes(copies: Sequence[Copy], new: FileAppendable, pace: Pace) -> int:
    """Byte for byte from the longest copy: what no head explains is kept as it is, for whoever can."""
    source = max(copies, key=lambda copy: copy.size)
    for at in range(0, source.size, WINDOW_BYTES):
        pace(WINDOW_BYTES)
        new.write([source.read(at, min(WINDOW_BYTES, source.size - at))], at)
    return source.size


def _nothing(_offset: int, _length: int) -> bytes:
    return b""
