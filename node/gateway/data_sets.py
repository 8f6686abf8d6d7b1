"""Taking: data sets, frames and values, as they are stored or transcoded. The opening must be a DOWNLOAD.

Bytes go out once they were proved to be those that arrived; how much went is counted for the end of the visit.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from time import monotonic

from consent.errors import Invalid
from node.gateway.frames import Frames
from node.gateway.held import Held
from node.gateway.reading import MAX_WHOLE_BYTES, Reading
from node.gateway.visits import Visits
from node.imaging.attributes import read_attributes
from node.imaging.bulk import value_at
from node.imaging.frames import encapsulated_frame, native_range
from node.imaging.rendering import Renderer
from node.index import InstanceRow
from node.openings import InstanceBytes, Opening, Visit

MAX_AT_ONCE_BYTES = 512 * 1024 * 1024
BATCH_BYTES = 4 * 1024 * 1024
"""Data sets that are opened in one go: fewer hops between threads than one by one."""
READ_AHEAD_BYTES = 12 * 1024 * 1024
"""What waits, opened, while something is being sent; one data set always may."""
UNHELD_BYTES = 1024 * 1024
"""What a stream has opened at a time when all together hold as much as they may: a small data set, or a piece."""
ASK_SECONDS = 0.25
"""How often a stream asks whether it may still go on, at least."""


class DataSets:
    """Hands over what an opening may take."""

    def __init__(self, visits: Visits, reading: Reading, frames: Frames, renderer: Renderer) -> None:
        self._visits = visits
        self._reading = reading
        self._frames = frames
        self._renderer = renderer
        self._held = Held()

    async def instance(self, opening: Opening, sop_uid: str) -> InstanceBytes:
        """A data set as it arrived. The opening must be a DOWNLOAD."""
        visit = await self._visits.taking(opening)
        row, _ = await self._reading.row(visit, sop_uid)
        _require_room(row)
        data = await self._reading.read(visit, row)
        _count(visit, row)
        return InstanceBytes(data, row.sop_class_uid, sop_uid, row.transfer_syntax_uid)

    async def stream(
        self, opening: Opening, rows: Sequence[InstanceRow]
    ) -> AsyncGenerator[tuple[InstanceRow, AsyncIterator[bytes]], None]:
        """Data sets one after the other, each in pieces that were verified; the next are read meanwhile.

        Decides again as it goes. A failure ends the stream: what was sent before was good.
        """
        waiting: deque[_Batch] = deque()
        left = deque(_batches(rows))
        asked = 0.0
        try:
            while left or waiting:
                if not waiting:
                    waiting.append(await self._begin(opening, left.popleft()))
                batch = waiting[0]
                whole = await batch.task if batch.task is not None else []
                # Only now: the first one need not share the processor with those behind it.
                while left and self._may_read_ahead(waiting, left[0]):
                    waiting.append(await self._begin(opening, left.popleft()))
                for number, row in enumerate(batch.rows):
                    if monotonic() - asked > ASK_SECONDS or not number:
                        visit, asked = await self._visits.taking(opening), monotonic()
                    if number < len(whole):
                        yield row, _single(whole[number])
                    elif row.size_bytes > (MAX_WHOLE_BYTES if batch.held_bytes else UNHELD_BYTES):
                        yield row, self._reading.pieces(visit, row, UNHELD_BYTES)
                    else:
                        yield row, _single(await self._reading.read(visit, row))
                    _count(visit, row)
                self._held.give_back(waiting.popleft().held_bytes)
        finally:
            tasks = [batch.task for batch in waiting if batch.task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._held.give_back(sum(batch.held_bytes for batch in waiting))

    def _may_read_ahead(self, waiting: Sequence[_Batch], rows: Sequence[InstanceRow]) -> bool:
        """Whether `rows` may be opened while the first of `waiting` is being sent."""
        size = _size_of(rows)
        behind = sum(_size_of(batch.rows) for batch in waiting) - _size_of(waiting[0].rows)
        return behind + size <= READ_AHEAD_BYTES and self._held.has_room(size)

    async def _begin(self, opening: Opening, rows: Sequence[InstanceRow]) -> _Batch:
        """Begin to read a batch in the background; what is too large for that is read as it is sent."""
        visit = await self._visits.taking(opening)
        held = self._held.take(_size_of(rows)) if rows[0].size_bytes <= MAX_WHOLE_BYTES else 0
        if not held:
            return _Batch(rows, None)
        return _Batch(rows, asyncio.create_task(self._reading.read_several(visit, rows)), held)

    async def transcoded(self, opening: Opening, sop_uid: str, target: str) -> InstanceBytes:
        """A data set in another transfer syntax. The opening must be a DOWNLOAD. Raises Invalid when it cannot be."""
        visit = await self._visits.taking(opening)
        row, _ = await self._reading.row(visit, sop_uid)
        _require_room(row)
        data = await self._reading.read(visit, row)
        if row.transfer_syntax_uid != target:
            data = await self._renderer.transcode(data, row.transfer_syntax_uid, target)
        _count(visit, row)
        return InstanceBytes(data, row.sop_class_uid, sop_uid, target)

    async def part(self, opening: Opening, sop_uid: str, offset: int, length: int) -> bytes:
        """Bytes of a data set as it arrived. The opening must be a DOWNLOAD.

        At its first touch in a visit the whole instance is verified; after that the chunks that hold the part are.
        """
        visit = await self._visits.taking(opening)
        row, _ = await self._reading.row(visit, sop_uid)
        data = await self._frames.verify(visit, row)
        if data is None:
            data = await self._reading.read_range(visit, row, offset, length)
        else:
            data = data[offset : offset + length]
        visit.sent_bytes += len(data)
        return data

    async def stored_frames(self, opening: Opening, sop_uid: str, numbers: Iterable[int]) -> list[bytes]:
        """Frames as they are stored, not decoded. The opening must be a DOWNLOAD. Raises NotFound, Invalid."""
        visit = await self._visits.taking(opening)
        row, _ = await self._reading.row(visit, sop_uid)
        frames = await self._frames.stored(visit, row, numbers)
        return self._taken(visit, frames)

    async def transcoded_frames(
        self, opening: Opening, sop_uid: str, numbers: Sequence[int], target: str
    ) -> list[bytes]:
        """Frames in another transfer syntax. The opening must be a DOWNLOAD. Raises NotFound, Invalid."""
        visit = await self._visits.taking(opening)
        row, _ = await self._reading.row(visit, sop_uid)
        if row.pixel is None:  # deflated as a whole: nothing can be cut out before it is inflated
            _require_room(row)
            data = await self._reading.read(visit, row)
            whole = await self._renderer.transcode(data, row.transfer_syntax_uid, target)
            return self._taken(visit, await asyncio.to_thread(_cut, whole, target, row.frames, numbers))
        frames = []
        for number in numbers:
            head, stored = await self._frames.cut(visit, row, number)
            frames.append(await self._renderer.transcode_frame(head, stored, row.transfer_syntax_uid, target))
        return self._taken(visit, frames)

    async def bulk(self, opening: Opening, sop_uid: str, path: str) -> bytes:
        """The value of one element, as stored. The opening must be a DOWNLOAD. Raises NotFound, Invalid.

        `path` is that of a BulkDataURI behind `bulkdata/`: a tag, or tags and items of the sequences around it.
        """
        visit = await self._visits.taking(opening)
        row, _ = await self._reading.row(visit, sop_uid)
        _require_room(row)
        data = await self._reading.read(visit, row)
        value = await asyncio.to_thread(value_at, data, row.transfer_syntax_uid, path)
        visit.sent_bytes += len(value)
        return value

    @staticmethod
    def _taken(visit: Visit, frames: list[bytes]) -> list[bytes]:
        visit.pictures += len(frames)
        visit.sent_bytes += sum(map(len, frames))
        return frames


@dataclass(frozen=True)
class _Batch:
    """Data sets that are read together, and the task that reads them; None for those that are read as they are sent."""

    rows: Sequence[InstanceRow]
    task: asyncio.Task[list[bytes]] | None
    held_bytes: int = 0


def _batches(rows: Sequence[InstanceRow]) -> Iterator[list[InstanceRow]]:
    """The first alone, so that it goes out at once; then as many together as BATCH_BYTES hold."""
    batch: list[InstanceRow] = []
    size, limit = 0, 0
    for row in rows:
        if batch and size + row.size_bytes > limit:
            yield batch
            batch, size, limit = [], 0, BATCH_BYTES
        batch.append(row)
        size += row.size_bytes
    if batch:
        yield batch


def _size_of(rows: Sequence[InstanceRow]) -> int:
    return sum(row.size_bytes for row in rows)


def _count(visit: Visit, row: InstanceRow) -> None:
    visit.instances += 1
    visit.sent_bytes += row.size_bytes


def _cut(data: bytes, transfer_syntax: str, frames: int, numbers: Sequence[int]) -> list[bytes]:
    """Frames of a data set that is in memory."""
    attributes = read_attributes(data, transfer_syntax)
    if attributes.pixel_offset is None:
        raise Invalid("This instance has no pixels that can be cut out.", mend="Retrieve the instance.")
    if attributes.encapsulated:
        return [encapsulated_frame(data, attributes.pixel_offset, frames, number) for number in numbers]
    pixel = {
        "offset": attributes.pixel_offset,
        "length": attributes.pixel_length,
        "samples": attributes.samples,
        "bits_allocated": attributes.bits_allocated,
    }
    places = [native_range(pixel, attributes.rows, attributes.columns, frames, number) for number in numbers]
    return [data[offset : offset + length] for offset, length in places]


def _require_room(row: InstanceRow) -> None:
    if row.size_bytes > MAX_AT_ONCE_BYTES:
        raise Invalid(
            "This instance is too large to be handed over at once.", mend="Retrieve it as it is stored."
        )


async def _single(data: bytes) -> AsyncIterator[bytes]:
    yield data
