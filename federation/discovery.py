"""Finding members on the local network by mDNS: a hint about an address, never a reason to trust.

Opt-in, on one configured interface. What is announced is the fingerprint of our TLS authority and a port: no name of a
hospital, no id. A hint is used only for a member whose pinned authority has that fingerprint, and the call then
checks TLS as always; so the worst that a false announcement does is a failed connection.
"""

from __future__ import annotations

from collections import OrderedDict

from federation.roster import Member
from node.mdns import Announced, LocalNetwork

SERVICE = "_accord-peer._tcp.local."
FORMAT = "1"
MAX_HINTS = 1024


class Discovery(LocalNetwork):
    """Announces this node and collects hints, between `start` and `stop`."""

    def __init__(self, *, interface: str, fingerprint: str, port: int) -> None:
        own = Announced(fingerprint, interface, port)
        super().__init__(SERVICE, interface=interface, own=own, properties={"v": FORMAT}, heard=self._keep)
        self._fingerprint = fingerprint
        self._hints: OrderedDict[str, str] = OrderedDict()

    def addresses(self, member: Member) -> tuple[str, ...]:
        """Where a member may answer on this network, besides the roster's URL."""
        hint = self._hints.get(member.fingerprint)
        return (hint,) if hint else ()

    def _keep(self, one: Announced) -> None:
        if one.fingerprint == self._fingerprint:
            return
        self._hints[one.fingerprint] = f"https://{one.host}:{one.port}"
        self._hints.move_to_end(one.fingerprint)
        while len(self._hints) > MAX_HINTS:
            self._hints.popitem(last=False)
