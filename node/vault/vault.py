"""The vault: objects go in, sealed and durable, or they are refused.

`append` is the procedure: key → seal → group commit → answer. Holds what ingest needs, also after a crash
(which studies, which objects, the attributes of an object). Leaves reading images to `reader`, which only the
gateway may use, keys to `keys`, and bytes to `pack` and `blobs`.

Invariants: nothing reaches the disk in clear; `append` returns only after an fdatasync that covers every object; what
it refused never counts. Several tasks and several processes may append to one study.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from consent.errors import Conflict, Corrupt, Invalid
from consent.vocabulary import Grade
from node.clock import Clock
from node.database import Tx
from node.vault.blobs import BlobStore, Read
from node.vault.commit import GroupCommit
from node.vault.gates import Gates
from node.vault.keys import KeyRing
from node.vault.pack import PACK_SUFFIX, StoredObject, Survey, pack_name, study_of, surveyed
from node.vault.seal import (
    ObjectHeader,
    Payload,
    digest_of_sealed,
    keep_freed_memory,
    object_key,
    open_digest,
    open_sealed,
)
from node.vault.writer import Draft, PackWriter

__all__ = ["ATTRIBUTES", "INSTANCE", "METADATA", "NewObject", "StoredObject", "Vault"]

INSTANCE, ATTRIBUTES, METADATA = "instance", "attributes", "metadata"
INLINE_BYTES = 1024 * 1024
"""Sealing this much takes some 0.2 ms: a thread that takes turns with the loop for it costs both more."""
MAX_RAISED = 1024


@dataclass(frozen=True)
class NewObject:
    """What is to be kept. `payload` must not change until `append` has returned; `sha256` is of the payload (32 bytes)."""

    object_id: str
    kind: str
    payload: Payload
    sha256: bytes | None = None


class Vault:
    """The writing side of the archive of one node."""

    def __init__(self, blobs: BlobStore, keys: KeyRing, clock: Clock) -> None:
        keep_freed_memory()
        self._blobs = blobs
        self._keys = keys
        self._commit = GroupCommit(blobs, clock)
        self._gates = Gates()
        self._raised: OrderedDict[str, Grade] = OrderedDict()

    async def append(
        self, study: str, grade: Grade, objects: Sequence[NewObject]
    ) -> tuple[StoredObject, ...]:
        """Seal and keep `objects`; return where they lie, in the same order, once they are durable.

        All of them are kept or none is. Raises Invalid (ids, sizes), Unavailable (disk full or failing; send again
        later), Corrupt (the study's pack was changed), Conflict (the study was destroyed meanwhile). Call outside a
        write transaction.
        """
        if len({new.object_id for new in objects}) != len(objects):
            raise Invalid("Two objects have the same id.", code="object-id")
        if not objects:
            return ()
        await self._commit.room()
        await self._gates.enter(study)
        try:
            return await self._append(study, grade, objects)
        finally:
            self._gates.leave(study)

    async def _append(
        self, study: str, grade: Grade, objects: Sequence[NewObject]
    ) -> tuple[StoredObject, ...]:
        grade = max(grade, self._raised.get(study, grade))
        headers = [ObjectHeader(study, new.object_id, new.kind, grade) for new in objects]
        shreds = self._keys.shreds(study)
        study_key = await self._keys.study_key(None, study, grade, create=True)
        drafts = [
            Draft(header, new.payload, object_key(study_key, new.object_id), new.sha256)
            for new, header in zip(objects, headers, strict=True)
        ]
        if sum(draft.size_bytes for draft in drafts) <= INLINE_BYTES:
            drafts = [draft.sealed() for draft in drafts]
        stored = await self._commit.append(study, drafts)
        if self._keys.shreds(study) != shreds:
            raise Conflict("This study was destroyed while the object arrived.", code="shredded")
        return stored

    @asynccontextmanager
    async def alone(self, study: str) -> AsyncIterator[BlobStore]:
        """Keep appends to `study` waiting, and its pack closed, while it is written anew. Raises Conflict."""
        async with self._gates.alone(study):
            await self._commit.release(study)
            yield self._blobs

    def raise_grade(self, study: str, grade: Grade) -> None:
        """Seal under `grade` at least what was graded before the study was regraded and comes only now."""
        self._raised[study] = grade
        self._raised.move_to_end(study)
        while len(self._raised) > MAX_RAISED:
            self._raised.popitem(last=False)

    async def studies(self) -> list[tuple[str, int]]:
        """Every study that has a pack, with the pack's length in bytes."""
        names = await asyncio.to_thread(lambda: list(self._blobs.names()))
        return [(study_of(name), size) for name, size in names if name.endswith(PACK_SUFFIX)]

    async def objects(self, study: str, start: int = 0) -> Survey:
        """What lies in the pack of `study` from byte `start` (0, or the `end` of an earlier call).

        Raises Corrupt when durable bytes were changed, NotFound when there is no pack.
        """
        return await asyncio.to_thread(self._survey, study, start)

    async def attributes(self, study: str, stored: StoredObject) -> bytes:
        """Open an object of kind `attributes`: how ingest rebuilds the index after a crash. No other kind opens here."""
        if stored.kind != ATTRIBUTES:
            raise Invalid("Only attributes are read back here; images leave through the gateway.")
        study_key = await self._keys.study_key(None, study, stored.grade)
        key = object_key(study_key, stored.object_id)

        def use(read: Read, _size: int) -> bytes:
            return open_sealed(read(stored.offset, stored.length), key, stored.header(study))

        return await asyncio.to_thread(self._blobs.proved, pack_name(study), use)

    async def require_digest(self, study: str, stored: StoredObject, sha256: bytes) -> None:
        """Open an object and hold it against the SHA-256 of what arrived; nothing of it leaves here. Raises Corrupt.

        The digest that lies sealed in its record must be the same. Raises NotFound (no key), Unavailable (a locked grade).
        """
        key = object_key(await self._keys.study_key(None, study, stored.grade), stored.object_id)
        await asyncio.to_thread(self._require_digest, study, stored, key, sha256)

    async def settle(self, study: str) -> None:
        """Mend what a crash left of an unfinished group, on every copy. Raises Corrupt, NotFound, Unavailable."""
        await asyncio.to_thread(self._settle, study)

    async def shred(self, tx: Tx, study: str) -> int:
        """Destroy the keys of `study` in the caller's transaction; return how many there were.

        After the commit call `erase`, which also removes the ciphertext.
        """
        return await self._keys.shred(tx, study)

    async def erase(self, study: str) -> None:
        """After the commit of `shred`: purge the journal, overwrite and remove the pack. May be repeated."""
        name = pack_name(study)
        await self._keys.purge_journal()
        await self._commit.release(study)
        await asyncio.to_thread(self._blobs.delete, name)

    async def close(self) -> None:
        """Finish what is on its way and close every file."""
        await self._commit.close()

    def _survey(self, study: str, start: int) -> Survey:
        found = surveyed(self._blobs, study, start)
        found.require_sound(study)
        return found

    def _require_digest(self, study: str, stored: StoredObject, key: bytes, digest: bytes) -> None:
        header = stored.header(study)
        if stored.sealed_digest is not None and open_digest(stored.sealed_digest, key, header) != digest:
            raise Corrupt(
                "The digest of an instance is not the one that was taken as it arrived.", code="digest"
            )

        def use(read: Read, _size: int) -> None:
            found = digest_of_sealed(
                lambda at, length: read(stored.offset + at, length), stored.length, key, header
            )
            if found != digest:
                raise Corrupt("An instance is not what arrived.", code="digest")

        self._blobs.proved(pack_name(study), use)

    def _settle(self, study: str) -> None:
        name = pack_name(study)
        self._blobs.size(name)  # what is not there stays so: an empty pack would hide that it is lost
        writer = PackWriter(study, self._blobs.append(name))
        try:
            writer.settle()
        finally:
            writer.close()
