"""Finding members on the local network by mDNS: a hint about an address, never a reason to trust.

Opt-in, on one configured interface. What is announced is the fingerprint of our TLS authority and a port: no name of a
hospital, no id. A hint is used only for a member whose pinned authority has that fingerprint, and the call then
checks TLS as always; so the worst that a false announcement does is a failed connection.
"""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from types import TracebackType
from typing import Self

from zeroconf import IPVersion, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from federation.roster import Member

SERVICE = "_accord-peer._tcp.local."
FORMAT = "1"
MAX_HINTS = 1024
RESOLVE_MILLISECONDS = 3000
NAME_CHARACTERS = 32
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


class Discovery:
    """Announces this node and collects hints, between `start` and `stop`."""

    def __init__(self, *, interface: str, fingerprint: str, port: int) -> None:
        self._interface = interface
        self._fingerprint = fingerprint
        self._port = port
        self._hints: OrderedDict[str, str] = OrderedDict()
        self._zeroconf: AsyncZeroconf | None = None
        self._browser: AsyncServiceBrowser | None = None
        self._resolving: set[asyncio.Task[None]] = set()

    def addresses(self, member: Member) -> tuple[str, ...]:
        """Where a member may answer on this network, besides the roster's URL."""
        hint = self._hints.get(member.fingerprint)
        return (hint,) if hint else ()

    async def start(self) -> Self:
        """Announce and listen, on the one interface only."""
        self._zeroconf = AsyncZeroconf(interfaces=[self._interface], ip_version=IPVersion.V4Only)
        info = AsyncServiceInfo(
            SERVICE,
            f"{self._fingerprint[:NAME_CHARACTERS]}.{SERVICE}",
            parsed_addresses=[self._interface],
            port=self._port,
            properties={"fp": self._fingerprint, "v": FORMAT},
            server=f"{self._fingerprint[:NAME_CHARACTERS]}.local.",
        )
        await (await self._zeroconf.async_register_service(info))
        self._browser = AsyncServiceBrowser(self._zeroconf.zeroconf, SERVICE, handlers=[self._changed])
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

    def _changed(
        self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange
    ) -> None:
        if state_change is ServiceStateChange.Removed or self._zeroconf is None:
            return
        if len(self._resolving) >= MAX_HINTS:
            return
        task = asyncio.get_running_loop().create_task(self._resolve(zeroconf, service_type, name))
        self._resolving.add(task)
        task.add_done_callback(self._resolving.discard)

    async def _resolve(self, zeroconf: Zeroconf, service_type: str, name: str) -> None:
        info = AsyncServiceInfo(service_type, name)
        if not await info.async_request(zeroconf, RESOLVE_MILLISECONDS):
            return
        fingerprint = (info.properties.get(b"fp") or b"").decode("ascii", "replace")
        addresses = info.parsed_addresses(IPVersion.V4Only)
        if not _FINGERPRINT.fullmatch(fingerprint) or not addresses or not info.port:
            return
        if fingerprint == self._fingerprint:
            return
        self._hints[fingerprint] = f"https://{addresses[0]}:{info.port}"
        self._hints.move_to_end(fingerprint)
        while len(self._hints) > MAX_HINTS:
            self._hints.popitem(last=False)
