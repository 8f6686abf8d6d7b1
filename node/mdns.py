"""Services on the local network by mDNS and DNS-SD (RFC 6762, RFC 6763): saying where this one is, hearing where others are.

Opt-in, on one named interface. What is announced is the fingerprint of an authority and a port: no name, no id. Who uses
an answer checks TLS as always, so the worst that a false announcement does is a failed connection: a hint, never trust.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from zeroconf import IPVersion, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from consent.errors import Unavailable

MAX_RESOLVING = 256
"""Names that are looked up at once; more are left until they are announced again."""
RESOLVE_MILLISECONDS = 3000
NAME_CHARACTERS = 32
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Announced:
    """Who is said to answer where: the SHA-256 of an authority's certificate (hex), an IPv4 address and a port."""

    fingerprint: str
    host: str
    port: int


class LocalNetwork:
    """One service on one interface, between `start` and `stop`: announces `own`, and calls `heard` for each answer.

    A name that does not answer holds no other up.
    """

    def __init__(
        self,
        service: str,
        *,
        interface: str,
        own: Announced | None = None,
        properties: Mapping[str, str] | None = None,
        heard: Callable[[Announced], None] | None = None,
    ) -> None:
        self._service = service
        self._interface = interface
        self._own = own
        self._properties = properties or {}
        self._heard = heard
        self._zeroconf: AsyncZeroconf | None = None
        self._browser: AsyncServiceBrowser | None = None
        self._resolving: set[asyncio.Task[None]] = set()

    async def start(self) -> Self:
        """Announce and listen, on the one interface only. Raises Unavailable when there is no such interface."""
        try:
            self._zeroconf = AsyncZeroconf(interfaces=[self._interface], ip_version=IPVersion.V4Only)
        except OSError as error:
            raise Unavailable(
                f"mDNS cannot be used on {self._interface}: {error.strerror or type(error).__name__}.",
                mend="Give the address of an interface of this machine.",
                code="mdns-interface",
            ) from error
        try:
            if self._own is not None:
                await (await self._zeroconf.async_register_service(self._info(self._own)))
        except BaseException:
            await self.stop()
            raise
        if self._heard is not None:
            self._browser = AsyncServiceBrowser(
                self._zeroconf.zeroconf, self._service, handlers=[self._changed]
            )
        return self

    async def stop(self) -> None:
        """Withdraw the announcement and stop listening."""
        if self._browser is not None:
            await self._browser.async_cancel()
            self._browser = None
        for task in self._resolving:
            task.cancel()
        await asyncio.gather(*self._resolving, return_exceptions=True)
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

    def _info(self, own: Announced) -> AsyncServiceInfo:
        name = own.fingerprint[:NAME_CHARACTERS]
        return AsyncServiceInfo(
            self._service,
            f"{name}.{self._service}",
            parsed_addresses=[own.host],
            port=own.port,
            properties={"fp": own.fingerprint, **self._properties},
            server=f"{name}.local.",
        )

    def _changed(
        self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange
    ) -> None:
        if state_change is ServiceStateChange.Removed or self._zeroconf is None:
            return
        if len(self._resolving) >= MAX_RESOLVING:
            return
        task = asyncio.get_running_loop().create_task(self._resolve(zeroconf, name))
        self._resolving.add(task)
        task.add_done_callback(self._resolving.discard)

    async def _resolve(self, zeroconf: Zeroconf, name: str) -> None:
        info = AsyncServiceInfo(self._service, name)
        if self._heard is None or not await info.async_request(zeroconf, RESOLVE_MILLISECONDS):
            return
        fingerprint = (info.properties.get(b"fp") or b"").decode("ascii", "replace")
        addresses = info.parsed_addresses(IPVersion.V4Only)
        if _FINGERPRINT.fullmatch(fingerprint) and addresses and info.port:
            self._heard(Announced(fingerprint, addresses[0], info.port))
