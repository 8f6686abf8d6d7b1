"""Writing a pack anew without what nothing refers to: void records, repeated ids, what the caller drops.

Bodies stay byte for byte what they were, so whoever knows an object's id and digest finds it in the new file; needs no key.
Leaves to `node.compaction` when, and what the index must be told. Blocking.

Invariants: the old file is only read; a body that is not what its header names is never carried into the new file.
Format: docs/formats/replicas.md, "Generations".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

from blake3 import blake3

from node.vault.blobs import Appendable, BlobStore, Read
from node.vault.pack import (
    FRAME_BYTES,
    Span,
    StoredObject,
    corrupt_pack,
    encode_frame,
    encode_head,
    head_of,
    pack_name,
    padding,
    survey,
)
from node.vault.seal import PIECE_BYTES


@dataclass(frozen=True)
class Waste:
    """What a compaction would give back of a pack, in bytes."""

    study: str
    size: int
    waste: int


def rewrite(
    blobs: BlobStore,
    study: str,
    now: datetime,
    *,
    keep: Callable[[StoredObject], bool] = lambda stored: True,
    prepared: Callable[[], None] = lambda: None,
) -> dict[str, StoredObject]:
    """Put a new file in the pack's place, its generation one higher; return where its objects lie, by id.

    Objects that `keep` says no to are left out; of an id that occurs twice the first stays. `prepared` is
    called when the new file is written and not yet in place. Raises Corrupt when the pack is damaged (heal it first), NotFound, Unavailable: then the old file stands.
    """
    places: dict[str, StoredObject] = {}

    def make(read: Read, size: int, new: Appendable) -> None:
        places.clear()
        head = head_of(read, study)
        if head is None:
            raise corrupt_pack(study, "its head is damaged")
        data = encode_head(study, now, head.generation + 1)
        new.write([data], 0)
        at = len(data)
        for span in kept(read, size, study, keep):
            at = _carry(read, study, span, new, at, places)
        new.write([padding(study, at)], at)
        prepared()

    blobs.rewritten(pack_name(study), make)
    return places


def kept(
    read: Read,
    size: int,
    study: str,
    keep: Callable[[StoredObject], bool] = lambda stored: True,
) -> list[Span]:
    """The records that a new file would have. Raises Corrupt."""
    found = survey(read, size, study)
    found.require_sound(study)
    first: dict[str, Span] = {}
    for span in found.spans:
        if span.stored is not None and keep(span.stored):
            first.setdefault(span.stored.object_id, span)
    return list(first.values())


def waste_of(
    read: Read, size: int, study: str, keep: Callable[[StoredObject], bool] = lambda stored: True
) -> Waste:
    """How much of a pack nothing refers to. Raises Corrupt."""
    return Waste(
        study, size, max(0, size - sum(span.end - span.start for span in kept(read, size, study, keep)))
    )


def _carry(
    read: Read, study: str, span: Span, new: Appendable, at: int, places: dict[str, StoredObject]
) -> int:
    """Write one record at `at`; return where it ends."""
    stored = span.stored
    assert stored is not None
    header = read(span.start + FRAME_BYTES, stored.offset - span.start - FRAME_BYTES)
    # `base` is its own offset: by the time this file is in place, everything in it is durable.
    frame = encode_frame(study, at, header, stored.length, at)
    new.write([frame], at)
    body, hasher = at + len(frame), blake3()
    for start in range(0, stored.length, PIECE_BYTES):
        piece = read(stored.offset + start, min(PIECE_BYTES, stored.length - start))
        hasher.update(piece)
        new.write([piece], body + start)
    if hasher.digest() != stored.blake3:
        raise corrupt_pack(study, f"the bytes of the object at {stored.offset} changed")
    places[stored.object_id] = replace(stored, offset=body)
    return body + stored.length
