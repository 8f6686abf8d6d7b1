"""How an edge agent finds its node: DICOM's own service announcement by mDNS (PS3.15 Annex F, `_dicom-tls._tcp`).

Opt-in at both ends. The announcement carries the fingerprint of the authority under which the node's certificate is; the agent
looks for that one and then checks TLS as always, so a false announcement leads to a connection that fails.
"""

from __future__ import annotations

import asyncio

from node.access.certificates import read_certificate
from node.mdns import Announced, LocalNetwork

SERVICE = "_dicom-tls._tcp.local."
FIND_SECONDS = 3.0


def announcing(*, interface: str, authority: str, port: int) -> LocalNetwork:
    """Says on one interface where this node's DICOM TLS is, under an authority (PEM), while it is entered."""
    return LocalNetwork(SERVICE, interface=interface, own=Announced(_fingerprint(authority), interface, port))


async def find(authority: str, *, interface: str, seconds: float = FIND_SECONDS) -> tuple[str, int] | None:
    """Host and port of whoever announces the authority's (PEM) fingerprint; None when nobody does in time.

    Raises Unavailable when the interface cannot be used.
    """
    wanted = _fingerprint(authority)
    found: asyncio.Future[tuple[str, int]] = asyncio.get_running_loop().create_future()

    def heard(one: Announced) -> None:
        if one.fingerprint == wanted and not found.done():
            found.set_result((one.host, one.port))

    async with LocalNetwork(SERVICE, interface=interface, heard=heard):
        try:
            async with asyncio.timeout(seconds):
                return await found
        except TimeoutError:
            return None


def _fingerprint(authority: str) -> str:
    return read_certificate(authority)[1]
