"""TLS between members: our own short-lived leaf, and contexts that trust exactly the roster in force.

As a server, every listed member's authority is trusted; which of them a certificate belongs to, and whether that
member is active, is asked of `Members.identify` afterwards. As a client, exactly the called member's authority is trusted, and the leaf must
bear its node id. A new roster makes new contexts; connections that are open already are asked
again at every request.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from datetime import datetime, timedelta

from federation.members import Members
from federation.roster import Member
from node.clock import Clock
from node.identity import LEAF_DAYS, Identity, KeyPair, client_context, server_context

MAX_CONTEXTS = 1024


class Channel:
    """Makes and keeps the contexts. `hosts` are the names and addresses by which members reach this node."""

    def __init__(self, *, identity: Identity, members: Members, hosts: Sequence[str], clock: Clock) -> None:
        self._identity = identity
        self._members = members
        self._hosts = tuple(hosts)
        self._clock = clock
        self._leaf: KeyPair | None = None
        self._renew_at: datetime | None = None
        self._servers: dict[tuple[int, bool, KeyPair], ssl.SSLContext] = {}
        self._clients: dict[tuple[str, KeyPair], ssl.SSLContext] = {}

    def leaf(self) -> KeyPair:
        """Our certificate and key, renewed at half of its life."""
        now = self._clock.now()
        if self._leaf is None or self._renew_at is None or now >= self._renew_at:
            self._leaf = self._identity.leaf(self._hosts, now)
            self._renew_at = now + timedelta(days=LEAF_DAYS / 2)
        return self._leaf

    def server_context(self, *, strangers: bool = False) -> ssl.SSLContext:
        """For the peer listener. With `strangers` a client may also show no certificate at all (to join)."""
        key = (self._members.version, strangers, self.leaf())
        if key not in self._servers:
            authorities = [member.tls_ca for member in self._members.listed()]
            # Our own authority keeps the context mutual while the roster lists nobody else.
            context = server_context(self.leaf(), [*authorities, self._identity.authority_pem])
            if strangers:
                context.verify_mode = ssl.CERT_OPTIONAL
            self._servers = {other: kept for other, kept in self._servers.items() if other[0] == key[0]}
            self._servers[key] = context
        return self._servers[key]

    def client_context(self, member: Member) -> ssl.SSLContext:
        """For calling one member; the caller gives the member's id as the server name to check."""
        key = (member.tls_ca, self.leaf())
        if key not in self._clients:
            if len(self._clients) >= MAX_CONTEXTS:
                self._clients.clear()
            self._clients[key] = client_context([member.tls_ca], self.leaf())
        return self._clients[key]
