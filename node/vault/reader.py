"""The reading side of a folder of packs. Only the gateway may import this module.

Opens objects with keys that the caller brings: derived from the archive's study keys, or leased for a copy that another
hospital shared. So one reader serves both, and holds no key itself. Also what needs no key: listing, checking, the
bytes of a pack for a peer, and the signed manifest.

Invariants: bytes that are returned were proved, or (for `pack_bytes`) are still sealed; a pack that was changed raises Corrupt.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from consent.errors import Conflict, Corrupt, Invalid, NotFound
from consent.signed import Signed, sign
from consent.vocabulary import Grade
from node.vault.blobs import BlobStore, Read
from node.vault.manifest import Manifest, ManifestEntry
from node.vault.pack import StoredObject, Survey, check_bodies, corrupt_pack, head_of, pack_name, surveyed
from node.vault.seal import keep_freed_memory, open_digest, open_range, open_sealed

__all__ = ["Fault", "Reader", "StoredObject"]

MAX_PACK_READ_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class Fault:
    """Something in a pack that is not what was written. `object_id` is empty when a stretch of the pack is meant."""

    study: str
    object_id: str
    offset: int
    what: str


class Reader:
    """Reads the packs in one `BlobStore`: the archive's, or the copies held of one other node."""

    def __init__(self, blobs: BlobStore) -> None:
        keep_freed_memory()
        self._blobs = blobs

    async def read(
        self, study: str, stored: StoredObject, key: bytes, expected: bytes | None = None
    ) -> bytes:
        """Open one object whole with its object key. Raises Corrupt, also when its SHA-256 is not `expected`, or NotFound."""
        return await asyncio.to_thread(self._open, study, stored, key, expected)

    async def read_several(
        self, study: str, wanted: Sequence[tuple[StoredObject, bytes, bytes | None]]
    ) -> list[bytes | Corrupt | NotFound]:
        """Open objects whole, each with its key and its expected SHA-256 (or None), in one hop to a thread.

        The answers are in order; the first failure is the last of them.
        """
        return await asyncio.to_thread(self._open_several, study, wanted)

    async def read_range(
        self, study: str, stored: StoredObject, key: bytes, offset: int, length: int
    ) -> bytes:
        """Open `length` bytes of the payload from `offset`, reading only what covers them."""
        return await asyncio.to_thread(self._open_range, study, stored, key, offset, length)

    async def digest(self, study: str, stored: StoredObject, key: bytes) -> bytes | None:
        """The SHA-256 (32 bytes) of the payload as it first arrived, or None when none was taken."""
        if stored.sealed_digest is None:
            return None
        return open_digest(stored.sealed_digest, key, stored.header(study))

    async def objects(self, study: str) -> list[StoredObject]:
        """Every object of the pack in order; of an id that occurs twice the first. Raises Corrupt, NotFound."""
        found = await asyncio.to_thread(self._survey, study)
        found.require_sound(study)
        return found.first_of_each

    async def verify(
        self, study: str, expected: Manifest | Sequence[StoredObject] | None = None
    ) -> list[Fault]:
        """Read the whole pack, without any key, and return what is not as it was written.

        `expected` (a manifest, or the index's rows) also finds objects that are missing or were put elsewhere.
        """
        return await asyncio.to_thread(self._verify, study, expected)

    async def pack_size(self, study: str) -> int:
        """Length of the pack in bytes, without an unfinished tail. Raises NotFound."""
        return (await asyncio.to_thread(self._survey, study)).end

    async def pack_bytes(self, study: str, offset: int, length: int, generation: int | None = None) -> bytes:
        """Sealed bytes of the pack as they lie on the disk, for a peer; fewer at its end.

        Raises Conflict when they would not be of the file of that `generation`: what came before is of no use.
        """
        if offset < 0 or not 0 <= length <= MAX_PACK_READ_BYTES:
            raise Invalid(f"Ask for at most {MAX_PACK_READ_BYTES} bytes at once.", code="range")
        return await asyncio.to_thread(self._pack_bytes, study, offset, length, generation)

    async def manifest(
        self,
        study: str,
        *,
        home: str,
        keys: Mapping[str, bytes],
        signing_key: Ed25519PrivateKey,
        now: datetime,
        expires: datetime | None = None,
    ) -> Signed[Manifest]:
        """Describe the pack as it is now and sign it as `home`.

        `keys` are object keys: the SHA-256 of a payload is listed for the objects whose key is given.
        """
        found = await asyncio.to_thread(self._survey, study)
        found.require_sound(study)
        entries = tuple(_entry(study, stored, keys) for stored in found.first_of_each)
        grade = max((entry.grade for entry in entries), default=Grade.ORDINARY)
        body = Manifest(study, home, grade, len(entries), found.end, entries, found.generation)
        return sign(
            body,
            record_id=secrets.token_hex(16),
            issuer=home,
            key=signing_key,
            issued=now,
            expires=expires,
        )

    def _open(self, study: str, stored: StoredObject, key: bytes, expected: bytes | None) -> bytes:
        def use(read: Read, at: StoredObject) -> bytes:
            return _proved(read(at.offset, at.length), study, at, key, expected)

        return self._where_it_lies(study, stored, use)

    def _where_it_lies(
        self, study: str, stored: StoredObject, use: Callable[[Read, StoredObject], bytes]
    ) -> bytes:
        """What `use` makes of an object where it was said to lie, or else where its sealed bytes lie now. Raises Corrupt."""
        name = pack_name(study)
        try:
            return self._blobs.proved(name, lambda read, _size: use(read, stored))
        except Corrupt:
            moved = self._moved(study, stored)
            if moved is None:
                raise
            return self._blobs.proved(name, lambda read, _size: use(read, moved))

    def _moved(self, study: str, stored: StoredObject) -> StoredObject | None:
        """Where the same sealed bytes lie now, when the pack was written anew since `stored` was read."""
        try:
            with self._blobs.opened(pack_name(study)) as read:
                head = head_of(read, study)
            if head is None or not head.generation:
                return None
            found = self._survey(study)
        except (Corrupt, NotFound):
            return None
        name = (stored.object_id, stored.length, stored.blake3)
        now = (one for one in found.objects if (one.object_id, one.length, one.blake3) == name)
        return next((one for one in now if one.offset != stored.offset), None)

    def _open_several(
        self, study: str, wanted: Sequence[tuple[StoredObject, bytes, bytes | None]]
    ) -> list[bytes | Corrupt | NotFound]:
        found: list[bytes | Corrupt | NotFound] = []
        try:
            with self._blobs.opened(pack_name(study)) as read:
                for stored, key, expected in wanted:
                    try:
                        body = read(stored.offset, stored.length)
                        found.append(_proved(body, study, stored, key, expected))
                    except Corrupt:
                        found.append(self._open(study, stored, key, expected))
        except (Corrupt, NotFound) as error:
            found.append(error)
        return found

    def _open_range(self, study: str, stored: StoredObject, key: bytes, offset: int, length: int) -> bytes:
        def use(read: Read, at: StoredObject) -> bytes:
            return open_range(
                lambda start, count: read(at.offset + start, count),
                at.length,
                key,
                at.header(study),
                offset,
                length,
            )

        return self._where_it_lies(study, stored, use)

    def _pack_bytes(self, study: str, offset: int, length: int, generation: int | None) -> bytes:
        with self._blobs.opened(pack_name(study)) as read:
            head = head_of(read, study) if generation is not None else None
            if head is not None and head.generation != generation:
                raise Conflict(
                    "This pack was written anew since its manifest was signed.",
                    mend="Start over: ask for the study again.",
                    code="pack-changed",
                )
            return read(offset, length)

    def _survey(self, study: str) -> Survey:
        return surveyed(self._blobs, study)

    def _verify(self, study: str, expected: Manifest | Sequence[StoredObject] | None) -> list[Fault]:
        try:
            found = self._survey(study)
        except (Corrupt, Invalid, NotFound) as error:
            return [Fault(study, "", 0, error.message)]
        faults = [
            Fault(study, "", damage.offset, "no valid record here")
            for damage in found.damages
            if not damage.torn or damage.settled
        ]
        with self._blobs.opened(pack_name(study)) as read:
            broken = check_bodies(read, found.objects)
        places = {stored.object_id: stored.offset for stored in found.objects}
        faults += [Fault(study, name, places[name], "the bytes of the object changed") for name in broken]
        return faults + _missing(study, found.objects, expected)


def _proved(body: bytes, study: str, stored: StoredObject, key: bytes, expected: bytes | None) -> bytes:
    """The payload of a body that was read; raises Corrupt."""
    if len(body) != stored.length:
        raise corrupt_pack(study, f"it ends before byte {stored.offset + stored.length}")
    data = open_sealed(body, key, stored.header(study))
    if expected is not None and sha256(data).digest() != expected:
        raise Corrupt("An instance is not what arrived.", code="digest")
    return data


def _missing(
    study: str, found: Sequence[StoredObject], expected: Manifest | Sequence[StoredObject] | None
) -> list[Fault]:
    if expected is None:
        return []
    there = {(stored.object_id, stored.offset, stored.length, stored.blake3.hex()) for stored in found}
    if isinstance(expected, Manifest):
        wanted = [(entry.object_id, entry.offset, entry.length, entry.blake3) for entry in expected.objects]
    else:
        wanted = [
            (stored.object_id, stored.offset, stored.length, stored.blake3.hex()) for stored in expected
        ]
    return [
        Fault(study, object_id, offset, "the object is missing or is not the one that was promised")
        for object_id, offset, length, digest in wanted
        if (object_id, offset, length, digest) not in there
    ]


def _entry(study: str, stored: StoredObject, keys: Mapping[str, bytes]) -> ManifestEntry:
    key = keys.get(stored.object_id)
    digest = None
    if key is not None and stored.sealed_digest is not None:
        digest = open_digest(stored.sealed_digest, key, stored.header(study)).hex()
    return ManifestEntry(
        stored.object_id,
        stored.kind,
        stored.grade,
        stored.offset,
        stored.length,
        stored.blake3.hex(),
        digest,
    )
