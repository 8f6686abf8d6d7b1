"""Bytes of an opened study, proved: the only module that reads the vault.

Knows from which shelf a visit reads (this node's archive, or the copy of another hospital's study), and puts on
record when something is not what arrived. Decides nothing: callers have asked `visits` before.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from hashlib import sha256
from typing import TypeVar

from consent.errors import Corrupt, NotFound, Sentence
from consent.principals import Principal
from consent.vocabulary import Grade
from node import deeds
from node.audit.log import Log
from node.copies import Copies, HeldCopies, ObjectKeys
from node.facts import FactFinder
from node.index import Index, InstanceRow
from node.index.rows import MetadataPlace
from node.openings import Contents, Visit
from node.shelves import Archive, Shelf, stored_object
from node.vault.blobs import BlobStore
from node.vault.keys import KeyRing, object_key
from node.vault.reader import Reader
from node.vault.vault import METADATA

V = TypeVar("V")

MAX_WHOLE_BYTES = 64 * 1024 * 1024
"""Data sets up to this size are read at once; larger ones in pieces, twice: to verify, then to send."""
PIECE_BYTES = 4 * 1024 * 1024
"""What is read at a time to verify."""


class Reading:
    """Reads what a visit may see. `packs` is the vault's reading side over this node's own packs."""

    def __init__(
        self, *, node_id: str, blobs: BlobStore, keys: KeyRing, index: Index, facts: FactFinder, log: Log
    ) -> None:
        self.packs = Reader(blobs)
        self._keys = keys
        self._log = log
        self._archive = Archive(node_id, self.packs, keys, index, facts)
        self._held: tuple[HeldCopies, ObjectKeys] | None = None

    def hold(self, copies: HeldCopies, keys: ObjectKeys) -> None:
        """Let copies of other nodes' studies be opened too, with keys that their homes release."""
        self._held = (copies, keys)

    def shelf(self, home: str) -> Shelf:
        """Where studies of `home` lie here; "" is this node. Raises NotFound."""
        if not home:
            return self._archive
        if self._held is None:
            raise NotFound("No copies of other hospitals' studies are held here.")
        copies, keys = self._held
        return Copies(home, Reader(copies.blobs(home)), copies, keys)

    async def ended(self, home: str, study: str, who: Principal) -> str:
        """With which words the last grant of a copy ended for this person; "" when there was none."""
        return "" if self._held is None else await self._held[0].ended(home, study, who)

    def let_go(self, opening_id: str) -> None:
        """Forget the keys that other hospitals released for an opening."""
        if self._held is not None:
            self._held[1].close_opening(opening_id)

    async def contents(self, visit: Visit) -> Contents:
        """Series and instances; of this node's own studies as they are now."""
        if visit.contents is None:
            contents = await self.proved(visit, self.shelf(visit.opening.home).contents(visit))
            if not visit.opening.home:
                return contents
            visit.contents = contents
        return visit.contents

    async def row(self, visit: Visit, sop_uid: str) -> tuple[InstanceRow, Contents]:
        """One instance. Raises NotFound."""
        contents = await self.contents(visit)
        row = contents.instances.get(sop_uid)
        if row is None:
            raise NotFound("There is no such instance in this study.")
        return row, contents

    async def read(self, visit: Visit, row: InstanceRow) -> bytes:
        """A data set whole, verified. Raises Corrupt once that is on record."""
        shelf = self.shelf(visit.opening.home)

        async def reading(row: InstanceRow) -> bytes:
            return await shelf.read(visit, row)

        return await self.proved(visit, self._where_it_lies(visit, row, reading))

    async def read_several(self, visit: Visit, rows: Sequence[InstanceRow]) -> list[bytes]:
        """Data sets whole, verified, read in one go; of those before a failure at least one, else it is raised."""
        found = await self.shelf(visit.opening.home).read_several(visit, rows)
        good = [one for one in found if isinstance(one, bytes)]
        return good or [await self.read(visit, rows[0])]

    async def read_range(self, visit: Visit, row: InstanceRow, offset: int, length: int) -> bytes:
        """Part of a data set, its tags verified."""
        shelf = self.shelf(visit.opening.home)

        async def reading(row: InstanceRow) -> bytes:
            return await shelf.read_range(visit, row, offset, length)

        return await self.proved(visit, self._where_it_lies(visit, row, reading))

    async def _where_it_lies(
        self, visit: Visit, row: InstanceRow, reading: Callable[[InstanceRow], Awaitable[bytes]]
    ) -> bytes:
        """Read; when that fails and the bytes were moved since the row was read, read where they are now."""
        try:
            return await reading(row)
        except (Corrupt, NotFound) as error:
            try:
                now = await self.shelf(visit.opening.home).present(visit, row)
            except NotFound:  # nor does the index know it any more
                raise error from None
            if now.data_set == row.data_set:
                raise
            return await reading(now)

    async def pieces(self, visit: Visit, row: InstanceRow, piece_bytes: int) -> AsyncIterator[bytes]:
        """A large data set: read through once to verify its digest, then again to hand it over."""
        await self.require_digest(visit, row)
        for start in range(0, row.size_bytes, piece_bytes):
            yield await self.read_range(visit, row, start, min(piece_bytes, row.size_bytes - start))

    async def require_digest(self, visit: Visit, row: InstanceRow) -> None:
        """Read a data set through, piece by piece. Raises Corrupt, on record, when it is not what arrived."""
        hasher = sha256()
        for start in range(0, row.size_bytes, PIECE_BYTES):
            piece = await self.read_range(visit, row, start, min(PIECE_BYTES, row.size_bytes - start))
            await asyncio.to_thread(hasher.update, piece)
        if hasher.digest() != row.sha256:
            raise await self._integrity_failed(visit, Corrupt("An instance is not what arrived."))

    async def kept_metadata(self, visit: Visit, place: MetadataPlace) -> bytes:
        """The DICOM JSON of a series that was made before."""
        study = visit.opening.study
        stored = stored_object(place.object_id, METADATA, place.placement)
        key = await self._archive.key(study, stored)
        return await self.proved(visit, self.packs.read(study, stored, key))

    async def object_keys(self, study: str, object_ids: Sequence[str]) -> Mapping[str, bytes]:
        """The keys of single objects of a study of this node, never the study key. Raises NotFound."""
        grades = {stored.object_id: stored.grade for stored in await self.packs.objects(study)}
        if missing := [name for name in object_ids if name not in grades]:
            raise NotFound(Sentence("%(count)s of these objects are not in this study.", count=len(missing)))
        study_keys: dict[Grade, bytes] = {}
        for grade in {grades[name] for name in object_ids}:
            study_keys[grade] = await self._keys.study_key(None, study, grade)
        return {name: object_key(study_keys[grades[name]], name) for name in object_ids}

    async def proved(self, visit: Visit, reading: Awaitable[V]) -> V:
        """Await a read; when the bytes are not what was written, that is on record before it is told."""
        try:
            return await reading
        except Corrupt as error:
            raise await self._integrity_failed(visit, error) from error
        except NotFound as error:
            # What the index knows and the archive lacks was taken away, unless its keys were destroyed on purpose.
            if visit.opening.home or error.code == "no-study-key":
                raise
            raise await self._integrity_failed(visit, Corrupt("The pack is missing.")) from error

    async def _integrity_failed(self, visit: Visit, error: Corrupt) -> Corrupt:
        await self._log.record(deeds.integrity_failed(visit, error.message))
        return Corrupt(
            "This image is not what arrived and is not shown.",
            mend="The security officer has been told; restore the study from a good copy.",
            code=error.code,
        )
