"""How an edge agent finds its node: DICOM's own service announcement by mDNS (PS3.15 Annex F, `_dicom-tls._tcp`).

Opt-in at both ends, on one named interface. The announcement carries the fingerprint of the authority under which the node's
certificate is; the agent looks for that one and then checks TLS as always, so a false announcement leads to a connection that
fails. A hint, never trust.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from hashlib import sha256
from types import TracebackType
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from zeroconf import IPVersion, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

SERVICE = "_dicom-tls._tcp.local."
NAME_CHARACTERS = 32
FIND_SECONDS = 3.0
RESOLVE_MILLISECONDS = 2000
MAX_ANSWERS = 256


class Announcement:
    """Says on one interface where this node's DICOM TLS is, between `start` and `stop`."""

    def __init__(self, *, interface: str, authority: str, port: int) -> None:
        self._interface = interface
        self._fingerprint = fingerprint_of(authority)
        self._port = port
        self._zeroconf: AsyncZeroconf | None = None

    async def start(self) -> Self:
        """Announce."""
        self._zeroconf = AsyncZeroconf(interfaces=[self._interface], ip_version=IPVersion.V4Only)
        name = self._fingerprint[:NAME_CHARACTERS]
        info = AsyncServiceInfo(
            SERVICE,
            f"{name}.{SERVICE}",
            parsed_addresses=[self._interface],
            port=self._port,
            properties={"fp": self._fingerprint},
            server=f"{name}.local.",
        )
        await (await self._zeroconf.async_register_service(info))
        return self

    async def stop(self) -> None:
        """Withdraw it."""
        if self._zeroconf is not None:
            await self._zeroconf.async_unregister_all_services()
            await self._zeroconf.async_close()
            self._zeroconf = None

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()


async def find(authority: str, *, interface: str, seconds: float = FIND_SECONDS) -> tuple[str, int] | None:
    """Host and port of whoever announces the authority's (PEM) fingerprint; None when nobody does in time."""
    wanted = fingerprint_of(authority)
    zeroconf = AsyncZeroconf(interfaces=[interface], ip_version=IPVersion.V4Only)
    names: asyncio.Queue[str] = asyncio.Queue(MAX_ANSWERS)

    def changed(zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        if state_change is not ServiceStateChange.Removed:
            with suppress(asyncio.QueueFull):
                names.put_nowait(name)

    browser = AsyncServiceBrowser(zeroconf.zeroconf, SERVICE, handlers=[changed])
    try:
        async with asyncio.timeout(seconds):
            while True:
                info = AsyncServiceInfo(SERVICE, await names.get())
                if not await info.async_request(zeroconf.zeroconf, RESOLVE_MILLISECONDS):
                    continue
                addresses = info.parsed_addresses(IPVersion.V4Only)
                if info.properties.get(b"fp") == wanted.encode() and addresses and info.port:
                    return addresses[0], info.port
    except TimeoutError:
        return None
    finally:
        await browser.async_cancel()
        await zeroconf.async_close()


def fingerprint_of(authority: str) -> str:
    """SHA-256 of the certificate (PEM), hex."""
    certificate = x509.load_pem_x509_certificate(authority.encode())
    return sha256(certificate.public_bytes(Encoding.DER)).hexdigest()
