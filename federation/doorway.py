"""Who comes to the peer door: a TLS certificate becomes a member of the roster in force, or is refused on record.

The listener's TLS lets in only what a pinned authority issued; this looks again at every request, because a
connection may be older than a suspension. Refusals are logged, at most one entry a minute for each address, with how
many there were, so that a scan cannot flood the log. An unknown caller may be a member that joined since this node last asked the hub, so
one now and then makes the node ask again at once.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from consent.errors import AccordError, Denied, Unavailable
from consent.vocabulary import EventKind, Outcome
from federation.keys import DOORWAY
from federation.members import Members
from federation.protocol import PREFIX
from federation.roster import Member
from node.audit.event import Event
from node.audit.log import Log
from node.clock import Clock

PEER: web.RequestKey[Member] = web.RequestKey("peer", Member)
JOIN_PATH = f"{PREFIX}/join"
ROSTER_PATH = f"{PREFIX}/roster"
REPEAT_SECONDS = 60
MAX_ADDRESSES = 1024
HURRY_SECONDS = 10
"""How often at most an unknown caller makes this node fetch the roster."""
UNKNOWN = frozenset({"peer-unlisted", "peer-handshake"})

logger = structlog.get_logger("peers")


@dataclass
class _Refused:
    """Refusals of one address since its last entry in the log."""

    logged: datetime
    unlogged: int = 0


class Doorway:
    """Identifies members and puts refusals on record."""

    def __init__(self, *, members: Members, log: Log, clock: Clock) -> None:
        self._members = members
        self._log = log
        self._clock = clock
        self._refused: OrderedDict[str, _Refused] = OrderedDict()
        self._writing: set[asyncio.Task[None]] = set()
        self._refetch: Callable[[], None] | None = None
        self._hurried: datetime | None = None

    def hold(self, refetch: Callable[[], None]) -> None:
        """Take what wakes the duty that fetches the roster; it is called when somebody unknown has come."""
        self._refetch = refetch

    async def admit(self, request: web.Request) -> Member:
        """As `identify`, after another look at the database where another process may have changed the roster.

        That is while there is none, and when this node's own certificate comes: its command line asks whether the
        running node knows what it wrote.
        """
        try:
            member = self.identify(request)
        except Unavailable:
            await self._members.look_again()
            return self.identify(request)
        if member.id == self._members.node_id:
            await self._members.look_again()
            return self.identify(request)
        return member

    def identify(self, request: web.Request) -> Member:
        """The member that this request comes from. Raises Denied."""
        tls = request.transport.get_extra_info("ssl_object") if request.transport else None
        certificate = tls.getpeercert(binary_form=True) if tls is not None else None
        if not certificate:
            raise Denied(
                "This door is for members of the region.",
                mend="Join first: ask the hub's operator for an invitation.",
                code="peer-unknown",
            )
        return self._members.identify(certificate)

    async def refuse(self, address: str, error: AccordError) -> None:
        """Put a refusal on record."""
        now = self._clock.now()
        if error.code in UNKNOWN:
            self._hurry(now)
        known = self._refused.get(address)
        if known is not None and now - known.logged < timedelta(seconds=REPEAT_SECONDS):
            known.unlogged += 1
            return
        earlier = known.unlogged if known else 0
        self._refused[address] = _Refused(now)
        self._refused.move_to_end(address)
        while len(self._refused) > MAX_ADDRESSES:
            self._refused.popitem(last=False)
        await self._log.record(
            Event(
                EventKind.PEER_REFUSED,
                "system",
                outcome=Outcome.REFUSED,
                address=address,
                reason=error.message,
                detail={
                    "direction": "incoming",
                    "code": error.code,
                    "roster": self._members.version,
                    "unlogged_before": earlier,
                },
            )
        )

    def _hurry(self, now: datetime) -> None:
        if self._refetch is None:
            return
        if self._hurried is None or now - self._hurried >= timedelta(seconds=HURRY_SECONDS):
            self._hurried = now
            self._refetch()

    def handshake_failed(self, address: str, error: Exception) -> None:
        """For the listener: a TLS handshake that ended badly. A certificate that nobody pinned is a refusal."""
        if not isinstance(error, ssl.SSLError):
            return  # gone away or too slow: nobody claimed to be anybody
        refusal = Denied(
            "Its certificate is not under the authority of any member."
            if isinstance(error, ssl.SSLCertVerificationError)
            else "Its TLS handshake failed.",
            code="peer-handshake",
        )
        task = asyncio.get_running_loop().create_task(self._refuse_quietly(address, refusal))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def _refuse_quietly(self, address: str, error: AccordError) -> None:
        try:
            await self.refuse(address, error)
        except AccordError as failure:
            logger.error("a refusal could not be logged", reason=failure.message)


@web.middleware
async def peers_only(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Let members in, as `request[PEER]`; strangers only to the door of joining."""
    doorway = request.app[DOORWAY]
    if request.path != JOIN_PATH:
        try:
            request[PEER] = await doorway.admit(request)
        except AccordError as error:
            # A suspended member may still read the roster: that is how its node learns it, and sheds its copies.
            if (request.path, error.code) != (ROSTER_PATH, "peer-suspended"):
                await doorway.refuse(request.remote or "", error)
                raise
    return await handler(request)


def peer_of(request: web.Request) -> Member:
    """The member that was identified."""
    return request[PEER]
