"""The memory that STOW-RS requests hold: each its share of what all may, and bounds on what waits for the disk."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from consent.errors import Unavailable
from node.dicom.gate import Memory
from node.dicom.multipart import MAX_PART_BYTES

MAX_IN_FLIGHT_BYTES = 6 * 1024 * 1024
"""Of instances that wait for the disk, over all requests; one of each always may. More buys no speed: one sync covers them
all, and each byte is there twice until then, clear and sealed."""
MAX_IN_FLIGHT = 32
MEMORY_BYTES = MAX_PART_BYTES + 2 * 64 * 1024 * 1024
"""Of bodies, over all requests; the largest part always fits while nobody else sends."""
ROOM_SECONDS = 60.0
"""How long a request waits for others to give memory back."""


class InFlight:
    """What waits for the disk, of all requests."""

    def __init__(self) -> None:
        self._bytes = 0
        self._count = 0
        self._waiting: list[asyncio.Event] = []

    async def take(self, size: int, *, alone: Callable[[], bool]) -> None:
        """Wait until `size` more bytes fit; one that is `alone` with its request always does."""
        while not (alone() or self._fits(size)):
            changed = asyncio.Event()
            self._waiting.append(changed)
            await changed.wait()
        self._bytes += size
        self._count += 1

    def give_back(self, size: int, count: int) -> None:
        """Say that `count` are done, of together `size` bytes."""
        self._bytes -= size
        self._count -= count
        waiting, self._waiting = self._waiting, []
        for changed in waiting:
            changed.set()

    def _fits(self, size: int) -> bool:
        return self._bytes + size <= MAX_IN_FLIGHT_BYTES and self._count < MAX_IN_FLIGHT


MEMORY = Memory(MEMORY_BYTES)
IN_FLIGHT = InFlight()


class Room:
    """What one request holds: its share of the memory of all, and of what waits for the disk."""

    def __init__(self, memory: Memory, in_flight: InFlight) -> None:
        self._memory = memory
        self._in_flight = in_flight
        self._bytes = 0
        self._count = 0
        self._read = 0
        self._held = 0

    async def read(self, size: int) -> None:
        """Reserve `size` bytes of body that are being read. Raises Unavailable when others will not make room."""
        while not self._memory.reserve(self, size):
            free = asyncio.Event()
            if not self._memory.wait(self, free.set, busy=self._count > 0):
                raise _no_room()
            try:
                async with asyncio.timeout(ROOM_SECONDS):
                    await free.wait()
            except TimeoutError:
                raise _no_room() from None
            finally:
                self._memory.leave(self)
        self._read += size
        self._held += size

    def keep(self, size: int) -> None:
        """Give back what was reserved for reading beyond the `size` bytes that still wait for their part."""
        surplus = max(0, self._read - size)
        self._read -= surplus
        self._free(surplus)

    async def take(self, size: int) -> None:
        """Pass a part on from reading to the disk: wait until `size` more bytes fit there; one part always does."""
        await self._in_flight.take(size, alone=lambda: self._count == 0)
        self._bytes += size
        self._count += 1
        self._read -= size

    def give_back(self, size: int) -> None:
        """Say that a part is done."""
        self._free(size)
        self._bytes -= size
        self._count -= 1
        self._in_flight.give_back(size, 1)

    def close(self) -> None:
        """Give everything back: also for parts whose task was cancelled before it began."""
        self._free(self._held)
        self._in_flight.give_back(self._bytes, self._count)

    def _free(self, size: int) -> None:
        self._held -= size
        self._memory.release(self, size)


def _no_room() -> Unavailable:
    return Unavailable(
        "Other requests fill the memory for studies that come in.",
        mend="Send it again in a moment, or fewer studies at once.",
        code="no-room",
    )
