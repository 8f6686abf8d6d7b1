"""Peers that are good and peers that are not, each at a loopback address of its own, and the node that they meet.

An address of its own, because the log tells one kind of refusal per address and minute, and caps are per address.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

from consent.vocabulary import EventKind
from node.audit.log import Entry
from node.dicom.sender import send
from tests.faults.examination import all_entries
from tests.faults.slices import Truth, outgoing
from tests.node.dicom.raw import Raw
from tests.support.served import Served, make_node

SERVED_SECONDS = 5.0
"""The longest that a good client waits for a store and its answer, on a machine with other work."""
MEMORY_BYTES = 200 * 1024 * 1024
"""What the node may grow by while it is attacked."""
REFUSALS = {EventKind.INPUT_REFUSED, EventKind.INSTANCE_REFUSED, EventKind.ASSOCIATION_REFUSED}
_addresses = (f"127.7.{number // 250}.{number % 250 + 1}" for number in count())
_truth = Truth()


def new_address() -> str:
    """A loopback address that nobody has called from."""
    return next(_addresses)


@asynccontextmanager
async def attacked_node(folder: Path) -> AsyncIterator[Served]:
    """A running node that must be alive, the same process, without a traceback, and end in good order afterwards."""
    made = await make_node(folder)
    await made.start()
    first = made.process
    try:
        yield made
        assert made.alive and made.process is first, made.said()
        assert "Traceback" not in made.output.read_text("utf-8"), made.said()
        assert await made.stop() == 0, made.said()
    finally:
        if made.alive:
            await made.kill()


class From(Raw):
    """A raw DICOM peer that calls from an address of its own."""

    def __init__(self, port: int, address: str) -> None:
        super().__init__(port)
        self.address = address

    async def __aenter__(self) -> From:
        self.reader, self.writer = await asyncio.open_connection(
            "127.0.0.1", self.port, local_addr=(self.address, 0)
        )
        return self


async def serves(node: Served) -> float:
    """A good device stores an instance; return the seconds that it took."""
    began = time.perf_counter()
    async with asyncio.timeout(SERVED_SECONDS):
        sent = [one async for one in send(node.plain(), [outgoing(_truth.next(1))])]
    assert [one.ok for one in sent] == [True], sent
    assert node.alive, node.said()
    return time.perf_counter() - began


async def refusals_from(node: Served, address: str) -> list[Entry]:
    """What the log says about an address."""
    return [
        entry
        for entry in await all_entries(node.folder)
        if entry.event.kind in REFUSALS and entry.event.address == address
    ]
