"""Spools in a folder, and instances to put into them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from node.arrival import Arrival
from node.edge.spool import Spool
from node.identity import Identity
from node.tls import KeyPair
from node.vault.blobs import FileBlobs
from tests.support.clock import FakeClock
from tests.support.dicom import ct_slice
from tests.support.node import arrival
from tests.support.seeds import seeds

KEY = bytes(range(32))
ROOM = 64 * 1024 * 1024


def instance(number: int = 1, *, patient: str = "Planted^Name") -> Arrival:
    """A small instance; the number makes its UID."""
    return arrival(ct_slice(number=number, patient_name=patient, size=16))


async def device(ae_title: str = "CT1") -> tuple[KeyPair, bytes]:
    """A device's certificate and key, and the authority (PEM) that issued it."""
    identity = await Identity.load_or_create(seeds("edge"), "a-general", "General Hospital")
    pair = identity.issue_device_certificate(ae_title, FakeClock().now())
    return pair, identity.authority_pem.encode()


@asynccontextmanager
async def spool(folder: Path, *, key: bytes = KEY, max_bytes: int = ROOM) -> AsyncIterator[Spool]:
    """The spool in `folder`, as an agent opens it at its start."""
    opened = Spool(FileBlobs(folder), key, FakeClock(), max_bytes=max_bytes)
    await opened.load()
    try:
        yield opened
    finally:
        await opened.close()
