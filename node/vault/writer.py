"""Writing to a study pack: one group of objects sealed where it lies, made durable, or taken back.

Holds drafts and the writer of one pack. Leaves the format to `pack`, scheduling to `commit`, and bytes on disk to `blobs`. Blocking.

Invariant: what was made durable is never cut off or written over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from blake3 import blake3

from consent.errors import Invalid, Unavailable
from consent.vocabulary import Grade
from node.vault.arena import Arena
from node.vault.blobs import Appendable
from node.vault.pack import (
    FRAME_BYTES,
    StoredObject,
    corrupt_pack,
    encode_frame,
    encode_head,
    encode_header,
    padded,
    padding,
    survey,
    unfinished,
)
from node.vault.seal import (
    Buffer,
    ObjectHeader,
    Payload,
    payload_bytes,
    plain_length,
    seal,
    seal_digest,
    seal_into,
    sealed_length,
)

DIGEST_BYTES = 32
_NO_DIGEST = bytes(DIGEST_BYTES)


@dataclass(frozen=True)
class Draft:
    """An object on its way into a pack; `key` is its object key, `digest` the SHA-256 of its payload or None.

    It is sealed where it is written, unless it was `sealed` before. The payload must not change until it is written.
    """

    header: ObjectHeader
    payload: Payload = field(repr=False)
    key: bytes = field(repr=False)
    digest: bytes | None = None
    body: Buffer | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.digest is not None and len(self.digest) != DIGEST_BYTES:
            raise Invalid("A SHA-256 digest has 32 bytes.", code="digest")

    def sealed(self) -> Draft:
        """The same with its body made now."""
        return replace(self, body=seal(self.payload, self.key, self.header))

    @property
    def size_bytes(self) -> int:
        """The length of the payload. Raises Invalid when it is more than one object holds."""
        return payload_bytes(self.payload)


class PackGone(Exception):
    """The pack was deleted while it was open."""


class PackWriter:
    """Appends groups to the pack of one study through an `Appendable`, which it owns."""

    def __init__(self, study: str, blob: Appendable) -> None:
        self.study = study
        self._blob = blob
        self._end: int | None = None  # the durable length, once a group has been written or the pack surveyed
        self._uncut: tuple[int, int] | None = None  # after a failure: durable length, length that was left

    def append(
        self, drafts: Sequence[Draft], now: datetime, arena: Arena | None = None
    ) -> tuple[StoredObject, ...]:
        """Seal one group in `arena` (or in memory of its own), write it and make it durable; return where its objects lie.

        Raises Corrupt when durable bytes of the pack were changed, Unavailable when the disk fails (then nothing of
        the group counts and the pack is as before), PackGone when the pack was deleted: open it anew.
        """
        self._blob.lock()
        try:
            if self._blob.gone:
                raise PackGone
            base = self._recover()
            group, stored = self._lay_out(drafts, now, base, self._blob.memory(arena or Arena()))
            try:
                self._blob.write([group], base)
                self._blob.sync()
            except BaseException:
                self._cut_back(base)
                raise
            self._end = base + len(group)
            return stored
        finally:
            self._blob.unlock()

    def settle(self) -> None:
        """Mend what a crash left of an unfinished group, before anybody reads it as if it were whole."""
        self._blob.lock()
        try:
            if not self._blob.gone:
                self._recover()
        finally:
            self._blob.unlock()

    def close(self) -> None:
        """Release the file."""
        self._blob.close()

    def _lay_out(
        self, drafts: Sequence[Draft], now: datetime, base: int, arena: Arena
    ) -> tuple[memoryview, tuple[StoredObject, ...]]:
        """The bytes of the group, sealed where they lie: records one after another, then room to the next block."""
        head = encode_head(self.study, now) if base == 0 else b""
        written = [_Writing.of(draft, now) for draft in drafts]
        size = len(head) + sum(one.size for one in written)
        group = arena.take(padded(base + size) - base)
        group[: len(head)] = head
        at = len(head)
        stored = []
        for one in written:
            stored.append(one.into(group[at : at + one.size], self.study, base + at, base))
            at += one.size
        group[size:] = padding(self.study, base + size)
        return group, tuple(stored)

    def _recover(self) -> int:
        """The durable length; after a crash, a failure or another process's writing, found by a walk."""
        size = self._blob.size()
        if self._uncut is not None:
            base, left = self._uncut
            if size == left:  # nobody has appended since
                self._blob.truncate(base)
                size = base
            self._uncut = None
        if self._end == size:
            return size
        if self._end is not None and size < self._end:
            raise corrupt_pack(self.study, f"it was cut off at byte {size}")
        found = survey(self._blob.read, size, self.study, self._end or 0)
        found.require_sound(self.study)
        found.damages += unfinished(self._blob.read, found)
        if found.end < size:
            self._blob.truncate(found.end)
        for damage in found.damages:
            if not damage.torn:
                length = damage.end - damage.offset - FRAME_BYTES
                self._blob.write([encode_frame(self.study, damage.offset, b"", length, 0)], damage.offset)
        if found.damages:
            self._blob.sync()
        self._end = found.end
        return found.end

    def _cut_back(self, base: int) -> None:
        self._end = base
        try:
            self._blob.truncate(base)
        except Unavailable:  # the disk refuses even this: the next group tries again before it writes
            self._uncut = (base, self._blob.size())


@dataclass(frozen=True)
class _Writing:
    """A record that is about to be written: everything about it but its place and the digest of its body."""

    draft: Draft
    sealed_digest: bytes | None
    header: bytes
    """The header with a stand-in of the same length where BLAKE3 goes."""
    body_bytes: int
    created: datetime

    @classmethod
    def of(cls, draft: Draft, now: datetime) -> _Writing:
        digest = None if draft.digest is None else seal_digest(draft.digest, draft.key, draft.header)
        plain = draft.size_bytes
        header = encode_header(draft.header, _NO_DIGEST, digest, plain, now)
        return cls(draft, digest, header, sealed_length(plain), now.astimezone(UTC).replace(microsecond=0))

    @property
    def size(self) -> int:
        return FRAME_BYTES + len(self.header) + self.body_bytes

    def into(self, room: memoryview, study: str, at: int, base: int) -> StoredObject:
        """Seal the object into its room, which begins at byte `at` of the pack."""
        named = self.draft.header
        start = FRAME_BYTES + len(self.header)
        body = room[start:]
        if self.draft.body is None:
            seal_into(body, self.draft.payload, self.draft.key, named)
        else:
            body[:] = self.draft.body
        digest: bytes = blake3(body).digest()
        header = self.header.replace(_NO_DIGEST.hex().encode(), digest.hex().encode(), 1)
        room[:start] = encode_frame(study, at, header, self.body_bytes, base)
        return StoredObject(
            named.object_id,
            named.kind,
            at + start,
            self.body_bytes,
            plain_length(self.body_bytes),
            digest,
            Grade(named.grade),
            self.created,
            self.sealed_digest,
        )
