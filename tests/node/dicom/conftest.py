"""A DICOM door of a node on loopback, with ingest, devices and log small enough to look into."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from hashlib import sha256

import pytest

from consent.errors import AccordError, Denied
from consent.principals import Principal
from consent.vocabulary import EventKind, Role
from node.audit.event import Event
from node.dicom.channel import Channel
from node.dicom.gate import Gate, Limits
from node.dicom.listener import Listener
from node.dicom.negotiation import Terms
from node.dicom.pdu import Buffer
from node.dicom.services import Services
from node.ingest import Arrival, Source
from tests.support.clock import FakeClock

NODE_AE = "NODE"
SERVICES = frozenset({"store", "commit", "query", "retrieve"})


@dataclass
class Shelf:
    """Takes instances in and keeps them in memory; fails or waits when told to."""

    arrivals: list[Arrival] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    error: Exception | None = None
    hold: asyncio.Event | None = None

    async def receive(self, arrival: Arrival, source: Source) -> None:
        if self.hold is not None:
            await self.hold.wait()
        if self.error is not None:
            raise self.error
        assert sha256(arrival.data).digest() == arrival.sha256
        self.arrivals.append(arrival)
        self.sources.append(source)


def still_channel(*, terms: Terms = Terms((), {})) -> Channel:
    """A channel of an association on which nothing has to be said."""

    async def write(parts: Sequence[Buffer]) -> None:
        raise AssertionError("nothing was to be said here")

    return Channel(terms, write, lambda: None)


@dataclass
class Journal:
    """Keeps events in memory."""

    events: list[Event] = field(default_factory=list)

    async def record(self, event: Event) -> None:
        self.events.append(event)

    def codes(self, kind: EventKind = EventKind.ASSOCIATION_REFUSED) -> list[object]:
        return [event.detail.get("code") for event in self.events if event.kind is kind]


@dataclass
class Doorkeeper:
    """Knows a few devices by AE title, and says who asked."""

    known: tuple[str, ...] = ("CT1", "STORESCU", "ECHOSCU", "PYNETDICOM", "MR1")
    certificates: list[bytes | None] = field(default_factory=list)
    error: AccordError | None = None

    async def admit_device(
        self, calling_ae: str, called_ae: str, address: str, certificate_der: bytes | None, tls: bool
    ) -> Principal:
        self.certificates.append(certificate_der)
        if self.error is not None:
            raise self.error
        if called_ae != NODE_AE:
            raise Denied("It called another AE title.", code="device-refused")
        if calling_ae not in self.known:
            raise Denied("No device with this AE title is registered here.", code="device-refused")
        return Principal(calling_ae, Role.DEVICE, calling_ae, "a-general", attributes=SERVICES)


@dataclass
class Door:
    """One running DICOM door and what stands behind it."""

    listener: Listener
    gate: Gate
    shelf: Shelf
    journal: Journal
    devices: Doorkeeper

    @property
    def port(self) -> int:
        return self.listener.port


OpenDoor = Callable[..., Awaitable[Door]]


@pytest.fixture
async def open_door() -> AsyncIterator[OpenDoor]:
    """Opens doors: `await open_door(limits=…, tls=…)`; closes them after the test."""
    async with AsyncExitStack() as stack:

        async def make(*, tls: ssl.SSLContext | None = None, **bounds: float) -> Door:
            shelf, journal, devices = Shelf(), Journal(), Doorkeeper()
            limits = Limits(**{"stop_seconds": 2.0, **bounds})  # type: ignore[arg-type]
            gate = Gate(devices, Services(shelf, journal), FakeClock(), NODE_AE, limits)
            listener = await stack.enter_async_context(Listener(gate, journal, "127.0.0.1", 0, tls=tls))
            return Door(listener, gate, shelf, journal, devices)

        yield make


@pytest.fixture
async def door(open_door: OpenDoor) -> Door:
    """A plain door with the usual bounds."""
    return await open_door()
