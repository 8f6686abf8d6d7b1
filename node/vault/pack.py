"""The study pack: all sealed objects of one study in one file that only grows.

Holds the format (head, records, void and padding records), the walk over a pack that tells a torn tail from
corruption, the writer of one group, and the keyless check. Leaves sealing to `seal`, scheduling to `vault`, and bytes
on disk to `blobs`. Blocking.

Invariants: what was made durable is never cut off or written over; damage is named by study and offset; a record
counts only where it was written, for the study it was written for. Format: docs/formats/study-pack.md.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from blake3 import blake3

from consent.errors import Corrupt, Invalid
from consent.signed import Json, canonical_json, parse_json
from consent.vocabulary import Grade
from node.vault.blobs import BLOCK_BYTES, BlobStore, Read
from node.vault.seal import (
    ObjectHeader,
    check_study_id,
    sealed_length,
)

MAGIC, RECORD_MAGIC = b"ACCORDPK", b"ACRD"
VERSION, SUITE = 1, 1
PACK_SUFFIX = ".pack"
MAX_HEADER_BYTES = 4096
MAX_DAMAGES = 1000
MAX_PADDING_BYTES = 2 * BLOCK_BYTES
_HEAD = struct.Struct(">8sHHI")
_FRAME = struct.Struct(">4sIQQ")
CHECK_BYTES = 16
HEAD_BYTES = _HEAD.size + CHECK_BYTES
FRAME_BYTES = _FRAME.size + CHECK_BYTES
_LOOK_BYTES = 1024  # a frame and a usual header in one read
_WINDOW_BYTES = 1024 * 1024


@dataclass(frozen=True)
class StoredObject:
    """One object in a pack: `offset` and `length` (bytes) of its sealed body, BLAKE3 of that body (32 bytes)."""

    object_id: str
    kind: str
    offset: int
    length: int
    plain_length: int
    blake3: bytes
    grade: Grade
    created: datetime
    sealed_digest: bytes | None = None

    def header(self, study: str) -> ObjectHeader:
        """The clear header that the object was sealed with."""
        return ObjectHeader(study, self.object_id, self.kind, self.grade)


@dataclass(frozen=True)
class Damage:
    """A stretch without a valid record. `settled`: it was durable once, so this is corruption."""

    offset: int
    end: int
    torn: bool
    settled: bool


@dataclass(frozen=True)
class Span:
    """A record whose frame and header are in order: from its frame to the end of its body. `stored` is None: void."""

    start: int
    end: int
    base: int
    stored: StoredObject | None


@dataclass
class Survey:
    """What a walk found. `end` is where the next record belongs: the length without a torn tail.

    `generation`: which file of the pack it was, when the walk began at its head.
    """

    spans: list[Span] = field(default_factory=list)
    damages: list[Damage] = field(default_factory=list)
    end: int = 0
    generation: int = 0

    @property
    def objects(self) -> list[StoredObject]:
        """The objects in their order."""
        return [span.stored for span in self.spans if span.stored is not None]

    @property
    def first_of_each(self) -> list[StoredObject]:
        """The objects in their order; of an id that occurs twice the first."""
        first: dict[str, StoredObject] = {}
        for stored in self.objects:
            first.setdefault(stored.object_id, stored)
        return list(first.values())

    def require_sound(self, study: str) -> None:
        """Raise Corrupt, naming study and offset, when durable bytes were changed."""
        for damage in self.damages:
            if damage.settled:
                raise corrupt_pack(study, f"no valid record at byte {damage.offset}")


def pack_name(study: str) -> str:
    """The blob that holds a study; raises Invalid for anything but a study pseudonym."""
    return check_study_id(study) + PACK_SUFFIX


def study_of(name: str) -> str:
    """The study that a pack is of, by the blob's name."""
    return name.removesuffix(PACK_SUFFIX)


def survey(read: Read, size: int, study: str, start: int = 0) -> Survey:
    """Walk the records of a pack of `size` bytes from `start` (0, or where an earlier walk ended).

    Raises Corrupt when the file is no pack of this study. Bodies are not read.
    """
    found = Survey(end=start)
    if start == 0:
        if size == 0:
            return found
        head = _read_head(read, size, study)
        if head is None:  # torn while it was made: nothing in it was ever durable
            found.damages.append(Damage(0, size, torn=True, settled=False))
            return found
        found.end, found.generation = len(head.data), head.generation
    broken: list[tuple[int, int]] = []
    at, torn = found.end, False
    while at < size:
        record = _record_at(read, size, study, at)
        if record is not None and record.end <= size:
            found.spans.append(record)
            at = record.end
            continue
        following = _next_record(read, size, study, at + 1)
        if following is None:
            torn = record is not None or _is_torn(read, size, at)
            broken.append((at, size))
            break
        broken.append((at, following))
        at = following
        if len(broken) > MAX_DAMAGES:
            raise corrupt_pack(study, f"more than {MAX_DAMAGES} damaged places")
    found.end = broken[-1][0] if torn else size
    newest_base, later = 0, len(found.spans)
    for place, end in reversed(broken):
        while later and found.spans[later - 1].start > place:
            later -= 1
            newest_base = max(newest_base, found.spans[later].base)
        is_tail = torn and end == size
        found.damages.insert(0, Damage(place, end, torn=is_tail, settled=newest_base > place))
    return found


def surveyed(blobs: BlobStore, study: str, start: int = 0) -> Survey:
    """Walk the pack of `study` in a store, from the longest sound copy of it.

    A damaged copy is passed over for another one; where there is none, the damage is in what is returned. Raises
    Corrupt when the file is no pack of this study or ends before `start`, NotFound.
    """
    name = pack_name(study)
    length = blobs.size(name)
    damaged: list[Survey] = []

    def use(read: Read, size: int) -> Survey:
        if size < max(start, length):
            raise corrupt_pack(study, f"it was cut off at byte {size}")
        found = survey(read, size, study, start)
        if any(damage.settled for damage in found.damages):
            damaged.append(found)
        found.require_sound(study)
        return found

    try:
        return blobs.proved(name, use)
    except Corrupt:
        if damaged:
            return damaged[0]
        raise


def padded(end: int) -> int:
    """Where the pack ends after a group whose last object ends at `end`."""
    return end + _padding(end)


def padding(study: str, end: int) -> bytes:
    """The padding record behind what ends at `end`; nothing when that is the end of a block."""
    size = _padding(end)
    return encode_frame(study, end, b"", size - FRAME_BYTES, end) + bytes(size - FRAME_BYTES) if size else b""


def _padding(end: int) -> int:
    """Bytes of the padding record behind a group that ends at `end`; 0 when that is the end of a block already."""
    rest = -end % BLOCK_BYTES
    return rest if rest == 0 or rest >= FRAME_BYTES else rest + BLOCK_BYTES


def last_base(found: Survey) -> int:
    """Where the last group begins: whatever comes before was durable when that was begun."""
    return next((span.base for span in reversed(found.spans) if span.stored is not None), 0)


def unfinished(read: Read, found: Survey) -> list[Damage]:
    """Records of the last group whose frame reached the disk and whose body did not: a power cut leaves such."""
    base = last_base(found)
    last = [span for span in found.spans if span.stored is not None and span.start >= base]
    broken = set(check_bodies(read, [span.stored for span in last if span.stored is not None]))
    return [
        Damage(span.start, span.end, torn=False, settled=False)
        for span in last
        if span.stored is not None and span.stored.object_id in broken
    ]


def check_bodies(read: Read, objects: Sequence[StoredObject]) -> list[str]:
    """Read every body and compare its BLAKE3; return the ids of the objects that differ. Needs no key."""
    faults = []
    for stored in objects:
        hasher = blake3()
        for offset in range(stored.offset, stored.offset + stored.length, _WINDOW_BYTES):
            hasher.update(read(offset, min(_WINDOW_BYTES, stored.offset + stored.length - offset)))
        if hasher.digest() != stored.blake3:
            faults.append(stored.object_id)
    return faults


def encode_head(study: str, now: datetime, generation: int = 0) -> bytes:
    """The head of a new pack, or of the `generation`th file that takes the place of one."""
    content: Json = {"created": int(now.timestamp()), "study": study}
    if generation:
        content["generation"] = generation
    text = canonical_json(content)
    fixed = _HEAD.pack(MAGIC, VERSION, SUITE, len(text))
    return fixed + _b16(fixed + text) + text


def encode_header(
    named: ObjectHeader, digest: bytes, sealed_digest: bytes | None, plain_bytes: int, now: datetime
) -> bytes:
    """The clear header of a record, canonical JSON; `digest` is BLAKE3 of the body (32 bytes)."""
    return canonical_json(
        {
            "blake3": digest.hex(),
            "created": int(now.timestamp()),
            "digest": None
            if sealed_digest is None
            else base64.urlsafe_b64encode(sealed_digest).rstrip(b"=").decode(),
            "grade": int(named.grade),
            "id": named.object_id,
            "kind": named.kind,
            "plain": plain_bytes,
            "suite": named.suite,
        }
    )


def corrupt_pack(study: str, why: str) -> Corrupt:
    """The error for a pack whose durable bytes were changed."""
    return Corrupt(
        f"The pack of study {study} is not what was written: {why}.",
        mend="Restore the pack from a replica; nothing was cut off it.",
        code="study-pack",
    )


@dataclass(frozen=True)
class Head:
    """The head of a pack: its bytes, and which file of this pack it is: 0, or how often it was compacted."""

    data: bytes
    generation: int


def head_of(read: Read, study: str) -> Head | None:
    """The head when it is in order; None when it is torn or damaged.

    Raises Corrupt for another study's pack, Invalid for a version or suite that this node does not know.
    """
    data = read(0, HEAD_BYTES + MAX_HEADER_BYTES)
    if len(data) < HEAD_BYTES or data[:8] != MAGIC:
        return None
    _, version, suite, length = _HEAD.unpack_from(data)
    text = data[HEAD_BYTES : HEAD_BYTES + length]
    if not len(text) == length <= MAX_HEADER_BYTES:
        return None
    if _b16(data[: _HEAD.size] + text) != data[_HEAD.size : HEAD_BYTES]:
        return None
    if (version, suite) != (VERSION, SUITE):
        raise Invalid(
            f"The pack of study {study} has version {version}, suite {suite}, unknown to this node.",
            mend="Upgrade this node.",
            code="suite",
        )
    content = parse_json(text)
    if content.get("study") != study:
        raise corrupt_pack(study, "it is the pack of another study")
    generation = content.get("generation", 0)
    return Head(data[: HEAD_BYTES + length], generation if isinstance(generation, int) else 0)


def _read_head(read: Read, size: int, study: str) -> Head | None:
    """The head; None when it was torn while the pack was made. Raises Corrupt."""
    head = head_of(read, study)
    if head is not None:
        return head
    data = read(0, HEAD_BYTES + MAX_HEADER_BYTES)
    torn = data[:8] == MAGIC[: len(data)] or _all_zero(read, 0, size)
    if len(data) >= HEAD_BYTES and data[:8] == MAGIC:
        *_, length = _HEAD.unpack_from(data)
        text = data[HEAD_BYTES : HEAD_BYTES + length]
        torn = len(text) < length or not any(text)
    if not torn or _next_record(read, size, study, 1) is not None:
        raise corrupt_pack(study, "its head is damaged, or it is no pack")
    return None


def _record_at(read: Read, size: int, study: str, at: int) -> Span | None:
    """The record whose frame and header are in order at `at`; its body may end after `size`."""
    data = read(at, _LOOK_BYTES)
    if len(data) < FRAME_BYTES:
        return None
    magic, header_bytes, body_bytes, base = _FRAME.unpack_from(data)
    if magic != RECORD_MAGIC or header_bytes > MAX_HEADER_BYTES or at + FRAME_BYTES + header_bytes > size:
        return None
    if FRAME_BYTES + header_bytes > len(data):
        data = read(at, FRAME_BYTES + header_bytes)
    header = data[FRAME_BYTES : FRAME_BYTES + header_bytes]
    if _check(study, at, data[: _FRAME.size], header) != data[_FRAME.size : FRAME_BYTES]:
        return None
    offset = at + FRAME_BYTES + header_bytes
    if header:
        return Span(at, offset + body_bytes, base, _decode(study, header, offset, body_bytes))
    if base == at and (body_bytes >= MAX_PADDING_BYTES or any(read(offset, body_bytes))):
        return None
    return Span(at, offset + body_bytes, 0, None)


def _next_record(read: Read, size: int, study: str, start: int) -> int | None:
    """The first place from `start` on where a record is in order."""
    while start < size:
        window = read(start, _WINDOW_BYTES)
        hit = window.find(RECORD_MAGIC)
        while hit >= 0:
            if _record_at(read, size, study, start + hit) is not None:
                return start + hit
            hit = window.find(RECORD_MAGIC, hit + 1)
        if len(window) < _WINDOW_BYTES:
            return None
        start += len(window) - len(RECORD_MAGIC) + 1
    return None


def _is_torn(read: Read, size: int, at: int) -> bool:
    """Whether what lies from `at` to the end is the beginning of a record, or nothing but zeros."""
    data = read(at, _LOOK_BYTES)
    if len(data) < FRAME_BYTES:
        return True
    magic, header_bytes, _, _ = _FRAME.unpack_from(data)
    if magic == RECORD_MAGIC and header_bytes <= MAX_HEADER_BYTES:
        return at + FRAME_BYTES + int(header_bytes) > size
    return _all_zero(read, at, size)


def _all_zero(read: Read, start: int, size: int) -> bool:
    """What a file system may leave when a power cut came between making room and writing."""
    return not any(any(read(place, _WINDOW_BYTES)) for place in range(start, size, _WINDOW_BYTES))


def _decode(study: str, header: bytes, offset: int, body_bytes: int) -> StoredObject:
    try:
        fields = parse_json(header)
        named = ObjectHeader(study, fields["id"], fields["kind"], fields["grade"], fields["suite"])
        digest = fields["digest"]
        stored = StoredObject(
            object_id=named.object_id,
            kind=named.kind,
            offset=offset,
            length=body_bytes,
            plain_length=_plain(fields, body_bytes),
            blake3=_digest(fields["blake3"]),
            grade=Grade(named.grade),
            created=datetime.fromtimestamp(fields["created"], UTC),
            sealed_digest=None if digest is None else base64.urlsafe_b64decode(digest + "=="),
        )
    except (KeyError, TypeError, ValueError, OverflowError, OSError) as error:
        raise corrupt_pack(study, f"the record before byte {offset} is malformed") from error
    return stored


def _digest(text: str) -> bytes:
    digest = bytes.fromhex(text)
    if len(digest) != 32:
        raise ValueError("digest")
    return digest


def _plain(fields: Json, body_bytes: int) -> int:
    plain = fields["plain"]
    if not isinstance(plain, int) or plain < 0 or sealed_length(plain) != body_bytes:
        raise ValueError("length")
    return plain


def encode_frame(study: str, at: int, header: bytes, body_bytes: int, base: int) -> bytes:
    """Frame and header of a record that begins at `at`; an empty header makes it void."""
    fixed = _FRAME.pack(RECORD_MAGIC, len(header), body_bytes, base)
    return fixed + _check(study, at, fixed, header) + header


def _check(study: str, at: int, fixed: bytes, header: bytes) -> bytes:
    return _b16(b"accord/record/v1" + study.encode() + at.to_bytes(8, "big") + fixed + header)


def _b16(data: bytes) -> bytes:
    digest: bytes = blake3(data).digest(length=CHECK_BYTES)
    return digest
