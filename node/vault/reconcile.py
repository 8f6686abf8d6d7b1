"""Copies of one pack, compared and brought to what is right. Needs no key.

Holds the merge (which bytes are right, and which copy has them) and the carrying over of what a copy lacks. Leaves to
`replicas` which copies count and when; to `pack` what a record is. Blocking.

Invariants: bytes that a copy holds soundly are never written over, but for what stands behind the end; what is carried was
proved by the BLAKE3 in its header as it was read; a place where no copy is sound is left as it is and named.
Format: docs/formats/replicas.md, "Merging copies".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from blake3 import blake3

from consent.errors import Corrupt, Unavailable
from node.vault.blobs import Appendable, Read
from node.vault.pack import (
    FRAME_BYTES,
    MAX_HEADER_BYTES,
    Head,
    Span,
    Survey,
    corrupt_pack,
    head_of,
    last_base,
    survey,
)

WINDOW_BYTES = 1024 * 1024
LAST_GROUP = -1
"""For `merge`: read the bodies of each copy's last group, and what other copies have behind that."""

Pace = Callable[[int], None]
"""Told of bytes before they are read or written; it may wait, so that others come first."""


def unhurried(_size: int) -> None:
    """A pace that never waits."""


@dataclass(frozen=True)
class Copy:
    """One copy of a pack as it lies on a root."""

    root: str
    read: Read
    size: int


@dataclass(frozen=True)
class Piece:
    """A stretch of the pack. `holders` have it soundly; without any, `raw` says whose bytes are left standing.

    `unfinished`: it lies in a group that may never have been answered for, and all copies get the same bytes.
    """

    start: int
    end: int
    holders: frozenset[str]
    span: Span | None = None
    raw: str = ""
    unfinished: bool = False

    @property
    def object_id(self) -> str:
        """The object that lies here, as far as a header tells."""
        return "" if self.span is None or self.span.stored is None else self.span.stored.object_id


@dataclass
class Merged:
    """What a pack is, put together from its copies."""

    pieces: list[Piece] = field(default_factory=list)
    end: int = 0
    generation: int = 0
    same_file: frozenset[str] = frozenset()
    """Copies whose head is the right one, or damaged: what they lack is patched. Others are replaced whole."""
    torn: bool = False
    """Whether what stands behind `end` on some copy is an unfinished tail."""

    @property
    def lost(self) -> list[Piece]:
        """Places where no copy is sound."""
        return [piece for piece in self.pieces if not piece.holders]

    def lacking(self, root: str, size: int) -> list[Piece]:
        """What a copy of `size` bytes must be given. Where no copy is sound, only one that ends before gets anything."""
        return [piece for piece in self.pieces if root not in piece.holders and _given(piece, root, size)]


@dataclass
class _Walked:
    copy: Copy
    believed: bool
    found: Survey
    spans: dict[int, Span]
    frames: dict[int, bytes] = field(default_factory=dict)
    checked: dict[int, bool] = field(default_factory=dict)

    def frame(self, span: Span) -> bytes:
        """Frame and header, which name the body by its digest."""
        at = span.start
        if at not in self.frames:
            stop = span.end if span.stored is None else span.stored.offset
            self.frames[at] = self.copy.read(at, min(stop - at, FRAME_BYTES + MAX_HEADER_BYTES))
        return self.frames[at]

    def sound(self, span: Span, bodies_from: int, pace: Pace) -> bool:
        """Whether the body is what the header names; bodies before `bodies_from` are taken for it."""
        if span.stored is None or span.start < bodies_from:
            return True
        if span.start not in self.checked:
            pace(span.end - span.start)
            self.checked[span.start] = _digest(self.copy.read, span) == span.stored.blake3
        return self.checked[span.start]


def _given(piece: Piece, root: str, size: int) -> bool:
    if piece.holders:
        return True
    return piece.raw not in ("", root) and (piece.unfinished or size < piece.end)


def merge(
    study: str,
    copies: Sequence[Copy],
    *,
    led: Sequence[Copy] = (),
    bodies_from: int = 0,
    expected: Mapping[int, bytes] | None = None,
    pace: Pace = unhurried,
) -> Merged:
    """Put the pack of `study` together from its copies, the preferred one first.

    `bodies_from` is the offset from which bodies are read and held against their digest, or LAST_GROUP. `expected`
    names digests by the offset of a body, from the index: another record there does not count. `led` are copies that
    are held against the others and not believed. Raises Corrupt when no
    copy has a head in order, or one is another study's.
    """
    head = _head(study, copies)
    if head is None:
        return _without_head(study, copies)
    everybody = [*((copy, True) for copy in copies), *((copy, False) for copy in led)]
    walked = [
        _walk(study, copy, len(head.data), believed)
        for copy, believed in everybody
        if _same_file(study, copy, head)
    ]
    walked = _akin(walked, head)
    same = [one.copy for one in walked]
    level = bodies_from == LAST_GROUP
    if level:
        bodies_from = min((last_base(one.found) for one in walked if one.found.spans), default=0)
    holders = frozenset(copy.root for copy in same if copy.read(0, len(head.data)) == head.data)
    merged = Merged(
        [Piece(0, len(head.data), holders)], len(head.data), head.generation, frozenset(c.root for c in same)
    )
    _put_together(merged, walked, bodies_from, expected or {}, pace)
    if level:
        merged.pieces = [
            replace(piece, unfinished=True) if not piece.holders and piece.start >= bodies_from else piece
            for piece in merged.pieces
        ]
    return merged


def carry(
    study: str,
    merged: Merged,
    sources: Sequence[Copy],
    target: Copy,
    into: Appendable,
    *,
    cut: bool,
    faithful: bool = True,
    pace: Pace = unhurried,
) -> int:
    """Give `target` what it lacks, durably; return how many bytes that were.

    With `cut` also what stands behind the end is taken away. Where no source has a body as its header names it,
    `faithful` carries the bytes all the same, so that all copies are alike; else it raises Corrupt. Raises Unavailable when
    a disk fails: what was written until then is right.
    """
    by_root = {copy.root: copy for copy in sources}
    written = 0
    for piece in merged.lacking(target.root, target.size):
        names = [root for root in by_root if root in piece.holders] or [piece.raw]
        given = [by_root[name] for name in names if name in by_root]
        written += _carry_piece(study, piece, given, into, faithful, pace)
    if cut and into.size() > merged.end:
        into.truncate(merged.end)
        written += 1
    if written:
        into.sync()
    return written


def alike(copies: Sequence[Copy], start: int = 0) -> bool:
    """Whether all copies have the same length and the same bytes from `start` on."""
    sizes = {copy.size for copy in copies}
    if len(sizes) != 1:
        return False
    (size,) = sizes
    for at in range(start, size, WINDOW_BYTES):
        first, *others = (copy.read(at, min(WINDOW_BYTES, size - at)) for copy in copies)
        if any(data != first for data in others):
            return False
    return True


def _head(study: str, copies: Sequence[Copy]) -> Head | None:
    """The right head: the highest generation, then the one that most copies have, then the first."""
    found: list[Head] = []
    refusal: Exception | None = None
    for copy in copies:
        try:
            head = head_of(copy.read, study)
        except (Corrupt, Unavailable) as error:
            refusal = error
            continue
        if head is not None:
            found.append(head)
    if not found and refusal is not None:
        raise refusal
    counted = {head.data: sum(other == head for other in found) for head in found}
    return max(found, key=lambda head: (head.generation, counted[head.data]), default=None)


def _same_file(study: str, copy: Copy, head: Head) -> bool:
    try:
        own = head_of(copy.read, study)
    except (Corrupt, Unavailable):
        return False
    if own is not None:
        return own == head
    # A damaged head: the records tell whether this is the same file, for their checks bind them to study and place.
    return copy.size == 0 or copy.size > len(head.data)


def _without_head(study: str, copies: Sequence[Copy]) -> Merged:
    """No copy has a head in order: torn while the pack was made everywhere, or damaged everywhere."""
    for copy in copies:
        survey(copy.read, copy.size, study)  # raises Corrupt for anything but a torn beginning
    return Merged([], 0, 0, frozenset(copy.root for copy in copies), torn=any(copy.size for copy in copies))


def _walk(study: str, copy: Copy, start: int, believed: bool) -> _Walked:
    found = survey(copy.read, copy.size, study, start) if copy.size > start else Survey(end=start)
    return _Walked(copy, believed, found, {span.start: span for span in found.spans})


def _akin(walked: list[_Walked], head: Head) -> list[_Walked]:
    """Leave out copies with a damaged head whose first record is another one: they are another generation."""
    whole = [one for one in walked if one.copy.read(0, len(head.data)) == head.data]
    first = {one.frame(one.found.spans[0]) for one in whole if one.found.spans}
    return [
        one
        for one in walked
        if one in whole or not first or not one.found.spans or one.frame(one.found.spans[0]) in first
    ]


def _put_together(
    merged: Merged, walked: Sequence[_Walked], bodies_from: int, expected: Mapping[int, bytes], pace: Pace
) -> None:
    believed = [one for one in walked if one.believed]
    starts = sorted({start for one in believed for start in one.spans})
    ends = max((one.copy.size for one in believed), default=0)
    at = merged.end
    while at < ends:
        piece = _best(at, walked, bodies_from, expected, pace)
        if piece is None:
            following = next((start for start in starts if start > at), None)
            if following is None:
                break
            raw = next((one.copy.root for one in believed if one.copy.size >= following), "")
            piece = Piece(at, following, frozenset(), raw=raw)
        merged.pieces.append(piece)
        at = piece.end
    merged.end = at
    longer = [one for one in believed if one.copy.size > at]
    if not longer:
        return
    if all(any(damage.torn for damage in one.found.damages) or one.found.end <= at for one in longer):
        merged.torn = True
        return
    # Damage inside an unfinished group: not ours to judge. Every copy gets the same bytes, and the writer voids them.
    longest = max(longer, key=lambda one: one.copy.size)
    merged.pieces.append(Piece(at, longest.copy.size, frozenset(), raw=longest.copy.root))
    merged.end = longest.copy.size


def _best(
    at: int, walked: Sequence[_Walked], bodies_from: int, expected: Mapping[int, bytes], pace: Pace
) -> Piece | None:
    """What stands at `at`: the record to believe, and who has it. None when no copy has a record here."""
    groups: dict[bytes, list[tuple[_Walked, Span]]] = {}
    for one in walked:
        if (span := one.spans.get(at)) is not None:
            groups.setdefault(one.frame(span), []).append((one, span))
    judged = []
    for members in groups.values():
        span = members[0][1]
        if not any(one.believed for one, _ in members):
            continue
        holders = frozenset(one.copy.root for one, own in members if one.sound(own, bodies_from, pace))
        wanted = expected.get(span.stored.offset) if span.stored else None
        named = wanted is not None and span.stored is not None and wanted == span.stored.blake3
        votes = sum(one.believed for one, _ in members if one.copy.root in holders)
        holders = holders if votes and (named or wanted is None) else frozenset()
        piece = Piece(at, span.end, holders, span)
        judged.append((named, bool(holders), span.stored is not None, votes, piece))
    if not judged:
        return None
    *_, piece = max(judged, key=lambda item: item[:4])
    if not piece.holders:
        return Piece(piece.start, piece.end, frozenset(), piece.span, raw=_standing(piece, walked))
    return piece


def _standing(piece: Piece, walked: Sequence[_Walked]) -> str:
    standing = (one for one in walked if one.believed and one.spans.get(piece.start) == piece.span)
    return next((one.copy.root for one in standing), "")


def _carry_piece(
    study: str, piece: Piece, sources: Sequence[Copy], into: Appendable, faithful: bool, pace: Pace
) -> int:
    reason: Exception | None = None
    spoilt: Copy | None = None
    for source in sources:
        try:
            if not _proves(source, piece, pace):
                spoilt = spoilt or source
                continue
            return _carry_bytes(source, piece, into, pace)
        except Unavailable as error:
            reason = error
    if spoilt is not None and faithful:
        return _carry_bytes(spoilt, piece, into, pace)
    raise reason or corrupt_pack(study, f"no copy has the bytes at {piece.start}")


def _proves(source: Copy, piece: Piece, pace: Pace) -> bool:
    """Whether the body is what the header names; what has no body that counts is what it is."""
    if not piece.holders or piece.span is None or piece.span.stored is None:
        return True
    pace(piece.end - piece.start)
    return _digest(source.read, piece.span) == piece.span.stored.blake3


def _carry_bytes(source: Copy, piece: Piece, into: Appendable, pace: Pace) -> int:
    for at in range(piece.start, piece.end, WINDOW_BYTES):
        data = source.read(at, min(WINDOW_BYTES, piece.end - at))
        pace(len(data))
        into.write([data], at)
    return piece.end - piece.start


def _digest(read: Read, span: Span) -> bytes:
    assert span.stored is not None
    hasher = blake3()
    for at in range(span.stored.offset, span.end, WINDOW_BYTES):
        hasher.update(read(at, min(WINDOW_BYTES, span.end - at)))
    digest: bytes = hasher.digest()
    return digest
