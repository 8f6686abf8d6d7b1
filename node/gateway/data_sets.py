"""Taking: data sets, frames and values as they are stored. The opening must be a DOWNLOAD.

Bytes go out once they were proved to be those that arrived; how much went is counted for the end of the visit.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence

from consent.errors import Invalid
from node.gateway.reading import MAX_WHOLE_BYTES, Reading
from node.gateway.visits import Visits
from node.imaging.frames import element_value, encapsulated_frame, native_range
from node.index import InstanceRow
from node.openings import InstanceBytes, Opening, Visit

MAX_AT_ONCE_BYTES = 512 * 1024 * 1024
READ_AHEAD = 3


class DataSets:
    """Hands over what an opening may take."""

    def __init__(self, visits: Visits, reading: Reading) -> None:
        self._visits = visits
        self._reading = reading

    async def instance(self, opening: Opening, sop_uid: str) -> InstanceBytes:
        """A data set as it arrived. The opening must be a DOWNLOAD."""
        visit = await self._visits.taking(opening)
        row, _ = await self._reading.row(visit, sop_uid)
        if row.size_bytes > MAX_AT_ONCE_BYTES:
            raise Invalid("This instance is too large to be handed over at once.", mend="Stream it.")
        data = await self._reading.read(visit, row)
        _count(visit, row)
        return InstanceBytes(data, row.sop_class_uid, sop_uid, row.transfer_syntax_uid)

    async def stream(
        self, opening: Opening, rows: Sequence[InstanceRow]
    ) -> AsyncGenerator[tuple[InstanceRow, AsyncIterator[bytes]], None]:
        """Data sets one after the other, each in pieces that were verified; the next are read meanwhile.

        Decides again as it goes. A failure ends the stream: what was sent before was good.
        """
        waiting: deque[tuple[InstanceRow, asyncio.Task[bytes] | None]] = deque()
        left = deque(rows)
        try:
            while left or waiting:
                while left and len(waiting) < READ_AHEAD:
                    row = left.popleft()
                    whole = row.size_bytes <= MAX_WHOLE_BYTES
                    visit = await self._visits.taking(opening)
                    task = asyncio.create_task(self._reading.read(visit, row)) if whole else None
                    waiting.append((row, task))
                row, task = waiting.popleft()
                visit = await self._visits.taking(opening)
                yield row, self._reading.pieces(visit, row) if task is None else _single(await task)
                _count(visit, row)
        finally:
            for _, task in waiting:
                if task is not None:
                    task.cancel()
            await asyncio.gather(*(task for _, task in waiting if task), return_exceptions=True)

    async def stored_frames(self, opening: Opening, sop_uid: str, numbers: Iterable[int]) -> list[bytes]:
        """Frames as they are stored, not decoded. The opening must be a DOWNLOAD.

        At the first touch the whole instance is verified; after that the chunks that hold the frame are.
        """
        visit = await self._visits.taking(opening)
        row, _ = await self._reading.row(visit, sop_uid)
        if row.pixel is None:
            raise Invalid("This instance has no pixels that can be cut out.", mend="Retrieve the instance.")
        first = (sop_uid, 0) not in visit.seen
        if first or row.pixel["encapsulated"]:
            data = await self._reading.read(visit, row)
            visit.seen.add((sop_uid, 0))
            frames = [_cut(data, row, number) for number in numbers]
        else:
            places = [
                native_range(row.pixel, row.rows, row.columns, row.frames, number) for number in numbers
            ]
            frames = [await self._reading.read_range(visit, row, *place) for place in places]
        visit.pictures += len(frames)
        visit.sent_bytes += sum(map(len, frames))
        return frames

    async def bulk(self, opening: Opening, sop_uid: str, tag: str) -> bytes:
        """The value of one top-level element, as stored. The opening must be a DOWNLOAD. Raises NotFound, Invalid."""
        visit = await self._visits.taking(opening)
        row, _ = await self._reading.row(visit, sop_uid)
        if row.size_bytes > MAX_AT_ONCE_BYTES:
            raise Invalid("This instance is too large for this.", mend="Retrieve it.")
        value = element_value(await self._reading.read(visit, row), row.transfer_syntax_uid, int(tag, 16))
        visit.sent_bytes += len(value)
        return value


def _count(visit: Visit, row: InstanceRow) -> None:
    visit.instances += 1
    visit.sent_bytes += row.size_bytes


def _cut(data: bytes, row: InstanceRow, number: int) -> bytes:
    assert row.pixel is not None
    if row.pixel["encapsulated"]:
        return encapsulated_frame(data, row.pixel["offset"], row.frames, number)
    offset, length = native_range(row.pixel, row.rows, row.columns, row.frames, number)
    return data[offset : offset + length]


async def _single(data: bytes) -> AsyncIterator[bytes]:
    yield data
