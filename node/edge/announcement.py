"""How an edge agent finds its node: DICOM's own service announcement by mDNS (PS3.15 Annex F, `_dicom-tls._tcp`).

Opt-in at both ends. The announcement carries the fingerprint of the authority under which the node's certificate is; the agent
looks for that one, and takes who announces it for the node only when it proves to be: a false announcement, also of the true
fingerprint, leads nowhere and holds nobody up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from node.access.certificates import read_certificate
from node.mdns import Announced, LocalNetwork

SERVICE = "_dicom-tls._tcp.local."
FIND_SECONDS = 5.0
MAX_ANNOUNCERS = 64
"""So many addresses are tried for one authority; who floods the network with more keeps the node from being found: name its host."""

Proves = Callable[[str, int], Awaitable[bool]]
"""Whether who answers at a host and port is the node."""


def announcing(*, interface: str, authority: str, port: int) -> LocalNetwork:
    """Says on one interface where this node's DICOM TLS is, under an authority (PEM), while it is entered."""
    return LocalNetwork(SERVICE, interface=interface, own=Announced(_fingerprint(authority), interface, port))


async def find(
    authority: str, proves: Proves, *, interface: str, seconds: float = FIND_SECONDS
) -> tuple[str, int] | None:
    """Host and port of the first that announces the authority's (PEM) fingerprint and `proves` to be the node.

    None when nobody does in time. Raises Unavailable when the interface cannot be used.
    """
    wanted = _fingerprint(authority)
    found: asyncio.Future[tuple[str, int]] = asyncio.get_running_loop().create_future()
    trying: dict[tuple[str, int], asyncio.Task[None]] = {}

    async def attempt(host: str, port: int) -> None:
        if await proves(host, port) and not found.done():
            found.set_result((host, port))

    def heard(one: Announced) -> None:
        place = (one.host, one.port)
        if one.fingerprint == wanted and place not in trying and len(trying) < MAX_ANNOUNCERS:
            trying[place] = asyncio.create_task(attempt(*place))

    try:
        async with LocalNetwork(SERVICE, interface=interface, heard=heard):
            try:
                async with asyncio.timeout(seconds):
                    return await found
            except TimeoutError:
                return None
    finally:
        for task in trying.values():
            task.cancel()
        await asyncio.gather(*trying.values(), return_exceptions=True)


def _fingerprint(authority: str) -> str:
    return read_certificate(authority)[1]
