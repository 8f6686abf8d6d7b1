"""Sealing a study anew, under another grade: every object of its pack is opened and sealed again into another file.

For a change of grade only: rotation never comes here. Nothing leaves this module in clear: a piece of at most 1 MiB is opened,
hashed and sealed again, whatever the size of the object, and what had a digest must still have it. Pre-made metadata is left
out; it is made again when it is asked for. Blocking. Only `node.regrading` may import this.

Invariants: the old file is only read; a file that was not written to its end is never put in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from hashlib import sha256
from typing import Protocol

from blake3 import blake3
from cryptography.cobblestone import Cobblestone256Decryptor, Cobblestone256Encryptor
from cryptography.exceptions import InvalidTag

from consent.errors import Corrupt, NotFound
from consent.vocabulary import Grade
from node.vault.blobs import Appendable, BlobStore, Read
from node.vault.pack import (
    FRAME_BYTES,
    StoredObject,
    encode_frame,
    encode_head,
    encode_header,
    head_of,
    pack_name,
    survey,
)
from node.vault.seal import (
    PIECE_BYTES,
    ObjectHeader,
    object_key,
    open_digest,
    seal_digest,
    sealed_length,
)
from node.vault.vault import METADATA

_NO_DIGEST = bytes(32)


class _Hash(Protocol):
    def update(self, data: bytes, /) -> object: ...


def generation_of(blobs: BlobStore, study: str) -> int:
    """Which file of its pack lies there: 0, or how often it was written anew. Raises NotFound, Corrupt (no sound head)."""
    with blobs.opened(pack_name(study)) as read:
        head = head_of(read, study)
    if head is None:
        raise Corrupt(f"The pack of study {study} has a damaged head.", code="study-pack")
    return head.generation


def grades_in(blobs: BlobStore, study: str) -> frozenset[Grade]:
    """The grades whose keys the pack's objects are sealed under. Raises NotFound, Corrupt."""
    return frozenset(stored.grade for stored in contents(blobs, study))


def contents(blobs: BlobStore, study: str) -> list[StoredObject]:
    """The pack's objects; of an id that occurs twice the first. Raises NotFound, Corrupt."""
    name = pack_name(study)
    with blobs.opened(name) as read:
        return _contents(read, blobs.size(name), study)


def reseal(
    blobs: BlobStore,
    study: str,
    keys: Mapping[Grade, bytes],
    grade: Grade,
    *,
    generation: int,
    now: datetime,
    prepared: Callable[[], None],
) -> None:
    """Put in the pack's place a file with all its objects sealed under the study key of `grade`, which is in `keys`.

    `prepared` is called when the new file is written and not yet in place. Durable when it returns. Raises Corrupt when
    an object is not what arrived, NotFound, Unavailable (disk); the old file stands then.
    """
    if grade not in keys:
        raise NotFound("The key of the new grade is missing.", code="no-study-key")

    def make(read: Read, size: int, new: Appendable) -> None:
        head = encode_head(study, now, generation)
        new.write([head], 0)
        at = len(head)
        for stored in _contents(read, size, study):
            if stored.kind != METADATA:
                at = _reseal_object(read, study, stored, keys, grade, new, at)
        prepared()

    blobs.rewritten(pack_name(study), make)


def _contents(read: Read, size: int, study: str) -> list[StoredObject]:
    found = survey(read, size, study)
    found.require_sound(study)
    return found.first_of_each


def _reseal_object(
    read: Read,
    study: str,
    stored: StoredObject,
    keys: Mapping[Grade, bytes],
    grade: Grade,
    new: Appendable,
    at: int,
) -> int:
    """Write one record at `at`; return where it ends. The frame comes last: its header names the body's digest."""
    old = object_key(keys[stored.grade], stored.object_id)
    key = object_key(keys[grade], stored.object_id)
    named = replace(stored.header(study), grade=grade)
    digest = None
    if stored.sealed_digest is not None:
        digest = open_digest(stored.sealed_digest, old, stored.header(study))
    sealed_digest = None if digest is None else seal_digest(digest, key, named)
    size = sealed_length(stored.plain_length)
    length = len(encode_header(named, _NO_DIGEST, sealed_digest, stored.plain_length, stored.created))
    place = at + FRAME_BYTES + length
    hasher, body_digest = sha256(), blake3()
    for piece in _sealed_again(read, stored, old, stored.header(study), key, named, hasher):
        new.write([piece], place)
        body_digest.update(piece)
        place += len(piece)
    if digest is not None and hasher.digest() != digest:
        raise Corrupt("An object is not what arrived.", code="digest")
    header = encode_header(named, body_digest.digest(), sealed_digest, stored.plain_length, stored.created)
    # `base` is its own offset: by the time this file is in place, everything in it is durable.
    new.write([encode_frame(study, at, header, size, at)], at)
    return place


def _sealed_again(
    read: Read,
    stored: StoredObject,
    old: bytes,
    old_header: ObjectHeader,
    key: bytes,
    header: ObjectHeader,
    hasher: _Hash,
) -> Iterator[bytes]:
    """The object's new body in pieces; `hasher` is given what is in it. Raises Corrupt, perhaps only at the end."""
    opener = Cobblestone256Decryptor(old, old_header.context)
    sealer = Cobblestone256Encryptor(key, header.context)
    try:
        for start in range(0, stored.length, PIECE_BYTES):
            wanted = min(PIECE_BYTES, stored.length - start)
            sealed = read(stored.offset + start, wanted)
            if len(sealed) != wanted:
                raise _damaged()
            plain = opener.update(sealed)
            hasher.update(plain)
            yield sealer.update(plain)
        last = opener.finalize()
    except InvalidTag as error:
        raise _damaged() from error
    hasher.update(last)
    yield sealer.update(last) + sealer.finalize()


def _damaged() -> Corrupt:
    return Corrupt(
        "A sealed object is not what was written.",
        mend="Restore the pack from a replica; the study keeps its grade until then.",
        code="sealed-object",
    )
