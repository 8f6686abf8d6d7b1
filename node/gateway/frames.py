"""Single frames of an opened instance, without reading the others: for pictures and for frames as they are stored.

At its first touch in a visit an instance is read through and its digest verified; from then on the sealed chunks
that hold a frame are proved by their tags. Where frames lie is remembered for the instances used last.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

from consent.errors import Invalid
from node.gateway.reading import MAX_WHOLE_BYTES, Reading
from node.imaging.frames import FramePlaces, ReadRange, find_frames, native_frame_bytes
from node.index import InstanceRow
from node.openings import Visit

MAX_PLACES = 512
MAX_FRAMES_REMEMBERED = 100_000


class CutFrame(NamedTuple):
    """A frame as it is stored, and the data set before the pixels, which says what it is."""

    head: bytes
    stored: bytes


class Frames:
    """Cuts frames out of instances."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._places: OrderedDict[tuple[str, str], FramePlaces] = OrderedDict()

    async def cut(self, visit: Visit, row: InstanceRow, number: int) -> CutFrame:
        """Frame `number` (from 1). Raises NotFound, Invalid when frames cannot be told apart, Corrupt (on record)."""
        read, places = await self._of(visit, row)
        offset, length = places.range(number)
        return CutFrame(await read(0, places.head_size), places.stored(await read(offset, length)))

    async def stored(self, visit: Visit, row: InstanceRow, numbers: Iterable[int]) -> list[bytes]:
        """The stored bytes of frames alone; raises as `cut` does."""
        read, places = await self._of(visit, row)
        return [places.stored(await read(*places.range(number))) for number in numbers]

    async def verify(self, visit: Visit, row: InstanceRow) -> bytes | None:
        """See to it that the instance was verified whole in this visit; its bytes when they were read for that.

        Raises Corrupt (on record).
        """
        seen = (row.sop_instance_uid, 0)
        if seen in visit.seen:
            return None
        data = None
        if row.size_bytes <= MAX_WHOLE_BYTES:
            data = await self._reading.read(visit, row)
        else:
            await self._reading.require_digest(visit, row)
        visit.seen.add(seen)
        return data

    async def _of(self, visit: Visit, row: InstanceRow) -> tuple[ReadRange, FramePlaces]:
        if row.pixel is None:
            raise Invalid("This instance has no pixels that can be cut out.", mend="Retrieve the instance.")
        if not row.pixel["encapsulated"]:
            native_frame_bytes(row.pixel, row.rows, row.columns)
        read = self._reader(visit, row, await self.verify(visit, row))
        key = (visit.resource.id, row.instance)
        places = self._places.get(key)
        if places is None:
            places = await find_frames(read, row.pixel, row.transfer_syntax_uid, row.frames, row.size_bytes)
            self._remember(key, places)
        self._places.move_to_end(key)
        return read, places

    def _reader(self, visit: Visit, row: InstanceRow, data: bytes | None) -> ReadRange:
        async def read(offset: int, length: int) -> bytes:
            length = max(0, min(length, row.size_bytes - offset))
            if data is not None:
                return data[offset : offset + length]
            return await self._reading.read_range(visit, row, offset, length)

        return read

    def _remember(self, key: tuple[str, str], places: FramePlaces) -> None:
        self._places[key] = places
        while len(self._places) > MAX_PLACES or (
            sum(len(one.starts) for one in self._places.values()) > MAX_FRAMES_REMEMBERED
            and len(self._places) > 1
        ):
            self._places.popitem(last=False)
