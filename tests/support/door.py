"""The plain DICOM door of a small node on loopback, watched, and devices that call it with pynetdicom.

`async with dicom_door(node) as door:` opens it; `await door.call("CT1", address="127.0.0.9")` is one association from
that address, refused or open. Everything is real but the clock.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.sop_class import CTImageStorage, Verification  # type: ignore[attr-defined]

from node.access.live import LiveDevice
from node.dicom.gate import Gate, Limits
from node.dicom.listener import Listener
from node.dicom.services import Services
from node.dicom.watch import DeviceWatch
from tests.support.dicom import Instance
from tests.support.node import NodeFixture

OWN_AE = "ACCORD"
PATIENCE_SECONDS = 5.0


@dataclass
class Door:
    """An open door and who watches it."""

    node: NodeFixture
    gate: Gate
    watch: DeviceWatch
    listener: Listener
    calls: list[Association] = field(default_factory=list)

    async def call(self, calling: str, *, called: str = OWN_AE, address: str = "127.0.0.1") -> Association:
        """Ask for an association; the answer is in `is_established`."""
        client = AE(calling)
        client.add_requested_context(Verification)
        client.add_requested_context(CTImageStorage)
        client.acse_timeout = client.dimse_timeout = client.network_timeout = PATIENCE_SECONDS
        association = await asyncio.to_thread(
            client.associate, "127.0.0.1", self.listener.port, ae_title=called, bind_address=(address, 0)
        )
        self.calls.append(association)
        return association

    async def refused(self, calling: str, **how: str) -> None:
        """A call that must not get in; returns when the log has it, or it was counted."""
        before = self.counted
        assert not (await self.call(calling, **how)).is_established
        async with asyncio.timeout(PATIENCE_SECONDS):
            while self.counted == before:
                await asyncio.sleep(0.005)
        for _turn in range(3):  # the entry of the log follows the answer
            await asyncio.sleep(0)
        await self.node.log.close()

    @property
    def counted(self) -> float:
        """Refusals that the gate has counted so far."""
        families = self.gate.metrics.refused.collect()
        return sum(one.value for family in families for one in family.samples if one.name.endswith("_total"))

    async def store(self, association: Association, instances: Iterable[Instance]) -> list[int]:
        """C-STORE them; return the statuses (-1: no answer) once what was stored is in the log."""
        statuses = []
        for one in instances:
            statuses.append(await asyncio.to_thread(_stored, association, one))
        await self.node.ingest.flushed()
        return statuses

    async def release(self, association: Association) -> None:
        """End it, and wait until the node knows."""
        await asyncio.to_thread(association.release)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while self.gate.associations:
                await asyncio.sleep(0.005)

    async def live(self, ae_title: str) -> LiveDevice:
        """What is known of a device, after a look."""
        await self.watch.look()
        return next(one for one in await self.watch.live() if one.device.ae_title == ae_title)


def _stored(association: Association, one: Instance) -> int:
    try:
        status = association.send_c_store(one.dataset())
    except RuntimeError:  # the association is over
        return -1
    return int(status.Status) if "Status" in status else -1


def watching(node: NodeFixture) -> tuple[Gate, DeviceWatch]:
    """A gate and its watch, as a start of the node makes them."""
    gate = Gate(node.registry, Services(node.ingest, node.log), node.clock, OWN_AE, Limits(stop_seconds=2.0))
    watch = DeviceWatch(
        database=node.database, log=node.log, clock=node.clock, registry=node.registry, gate=gate
    )
    return gate, watch


@asynccontextmanager
async def dicom_door(node: NodeFixture) -> AsyncIterator[Door]:
    """Open the door; at the end every association is ended and the door is shut."""
    gate, watch = watching(node)
    async with AsyncExitStack() as stack:
        listener = await stack.enter_async_context(Listener(gate, node.log, "127.0.0.1", 0))
        door = Door(node, gate, watch, listener)
        try:
            yield door
        finally:
            for association in door.calls:
                if association.is_established:
                    await asyncio.to_thread(association.abort)
