"""Calls other members over mutual TLS: pinned, bounded, with deadlines, and with errors in our own families.

A member's problem document becomes the same family of error here, so a refusal at A reads at B as A worded it.
A member that does not answer is Unavailable, never a hang. Holds no meaning of any message.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from consent.errors import AccordError, Conflict, Corrupt, Denied, Invalid, NotFound, Sentence, Unavailable
from consent.signed import Json, parse_json
from consent.vocabulary import EventKind, Outcome
from federation.channel import Channel
from federation.members import Members
from federation.protocol import MAX_BODY_BYTES, MAX_RANGE_BYTES, PREFIX
from federation.roster import Member
from node.audit.event import Event
from node.audit.log import Log
from node.identity import client_context

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 30.0
READ_GAP_SECONDS = 20.0
CONNECTIONS_PER_MEMBER = 8
CHUNK_BYTES = 256 * 1024

FAMILIES: Mapping[int, type[AccordError]] = {
    400: Invalid,
    403: Denied,
    404: NotFound,
    409: Conflict,
    413: Invalid,
    422: Corrupt,
}

Addresses = Callable[[Member], Sequence[str]]
"""Further base URLs that a member may answer at: hints, tried when the roster's URL does not connect."""


class PeerClient:
    """One pool of connections to all members. Close it with `close()`."""

    def __init__(
        self, *, members: Members, channel: Channel, log: Log, hints: Addresses = lambda _member: ()
    ) -> None:
        self._members = members
        self._channel = channel
        self._log = log
        self._hints = hints
        self._session: aiohttp.ClientSession | None = None

    async def get(self, member_id: str, path: str, *, limit: int = MAX_BODY_BYTES) -> Json:
        """GET a JSON object of at most `limit` bytes."""
        return await self._json(member_id, "GET", path, None, limit)

    async def post(self, member_id: str, path: str, body: Json, *, limit: int = MAX_BODY_BYTES) -> Json:
        """POST a JSON object and return the answer's."""
        return await self._json(member_id, "POST", path, body, limit)

    async def post_text(self, member_id: str, path: str, body: str, *, limit: int) -> tuple[int, str]:
        """POST text and return status and text, whatever the status: for the C2SP witness protocol."""
        headers = {"Content-Type": "text/plain; charset=utf-8"}
        async with self._calling(member_id, "POST", path, data=body.encode(), headers=headers) as response:
            raw = await _bounded(response, limit)
            return response.status, raw.decode("utf-8", "replace")

    async def stream(self, member_id: str, path: str, *, offset: int, length: int) -> AsyncIterator[bytes]:
        """GET `length` bytes from `offset` in pieces.

        Raises Unavailable when the connection is cut: what came before has been yielded and may be kept.
        """
        length = min(length, MAX_RANGE_BYTES)
        headers = {"Range": f"bytes={offset}-{offset + length - 1}"}
        async with self._calling(member_id, "GET", path, headers=headers) as response:
            await _raise_problem(response, member_id)
            expected = f"bytes {offset}-{offset + length - 1}/"
            if response.status != 206 or not response.headers.get("Content-Range", "").startswith(expected):
                raise Invalid(
                    Sentence("%(member)s answered another range than was asked for.", member=member_id),
                    code="bad-range",
                )
            left = length
            async for piece in response.content.iter_chunked(CHUNK_BYTES):
                left -= len(piece)
                if left < 0:
                    raise Invalid(
                        Sentence("%(member)s sent more than was asked for.", member=member_id),
                        code="bad-range",
                    )
                yield piece
            if left:
                raise Unavailable(
                    Sentence("%(member)s stopped in the middle of a transfer.", member=member_id),
                    code="peer-cut",
                )

    async def join(self, hub_url: str, hub_ca: str, body: Json) -> Json:
        """POST to a hub that this node does not have in a roster yet: its authority is pinned by invitation."""
        session = self._opened()
        try:
            async with session.post(
                f"{hub_url}{PREFIX}/join",
                json=body,
                ssl=_without_host_check(client_context([hub_ca])),
                allow_redirects=False,
            ) as response:
                await _raise_problem(response, "the hub")
                return parse_json(await _bounded(response, 16 * MAX_BODY_BYTES))
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise _unreachable("the hub", error) from error

    async def close(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _json(self, member_id: str, method: str, path: str, body: Json | None, limit: int) -> Json:
        async with self._calling(member_id, method, path, json=body) as response:
            await _raise_problem(response, member_id)
            return parse_json(await _bounded(response, limit))

    @asynccontextmanager
    async def _calling(
        self, member_id: str, method: str, path: str, **options: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        member = self._members.member(member_id)
        try:
            response = await self._connect(member, method, path, options)
        except aiohttp.ClientConnectorCertificateError as error:
            await self._record_refusal(member, error)
            raise Denied(
                Sentence(
                    "What answers at %(url)s is not %(member)s: its certificate is not under the "
                    "authority that the roster pins.",
                    url=member.url,
                    member=member.id,
                ),
                mend="Check the address; if it is right, call that hospital before anything else.",
                code="peer-certificate",
            ) from error
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise _unreachable(member_id, error) from error
        try:
            yield response
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise _unreachable(member_id, error) from error
        finally:
            response.release()

    async def _connect(
        self, member: Member, method: str, path: str, options: dict[str, Any]
    ) -> aiohttp.ClientResponse:
        session = self._opened()
        context = self._channel.client_context(member)
        addresses = (member.url, *self._hints(member))
        for base in addresses[:-1]:
            try:
                return await self._send(session, context, member, method, base + path, options)
            except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
                continue
        return await self._send(session, context, member, method, addresses[-1] + path, options)

    @staticmethod
    async def _send(
        session: aiohttp.ClientSession,
        context: ssl.SSLContext,
        member: Member,
        method: str,
        url: str,
        options: dict[str, Any],
    ) -> aiohttp.ClientResponse:
        return await session.request(
            method, url, ssl=context, server_hostname=member.id, allow_redirects=False, **options
        )

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=64, limit_per_host=CONNECTIONS_PER_MEMBER),
                timeout=aiohttp.ClientTimeout(
                    total=None,
                    connect=ANSWER_SECONDS,
                    sock_connect=CONNECT_SECONDS,
                    sock_read=READ_GAP_SECONDS,
                ),
                auto_decompress=False,
                trust_env=False,
                headers={"Accept": "application/json", "Accept-Encoding": "identity"},
                json_serialize=lambda value: json.dumps(value, ensure_ascii=False),
            )
        return self._session

    async def _record_refusal(self, member: Member, error: Exception) -> None:
        await self._log.record(
            Event(
                EventKind.PEER_REFUSED,
                actor=f"member:{member.id}",
                outcome=Outcome.REFUSED,
                address=urlsplit(member.url).hostname,
                reason="The certificate that answered is not under the authority that the roster pins.",
                detail={"direction": "outgoing", "error": type(error).__name__},
            )
        )


async def _bounded(response: aiohttp.ClientResponse, limit: int) -> bytes:
    pieces: list[bytes] = []
    size = 0
    async with asyncio.timeout(ANSWER_SECONDS):
        async for piece in response.content.iter_chunked(CHUNK_BYTES):
            size += len(piece)
            if size > limit:
                raise Invalid(
                    Sentence("A member's answer is longer than %(limit)s bytes.", limit=limit),
                    code="too-large",
                )
            pieces.append(piece)
    return b"".join(pieces)


async def _raise_problem(response: aiohttp.ClientResponse, who: str) -> None:
    if response.status < 300:
        return
    try:
        document = parse_json(await _bounded(response, 64 * 1024))
    except Invalid:
        document = {}
    words = str(document.get("detail", ""))[:500] or Sentence(
        "%(member)s answered with status %(status)s.", member=who, status=response.status
    )
    code = str(document.get("type", "")).removeprefix("urn:accord:problem:")[:64] or "peer-problem"
    mend = str(document.get("mend", ""))[:500]
    family = FAMILIES.get(response.status, Unavailable)
    if family is Denied:
        listed = document.get("reasons")
        reasons = tuple(str(item)[:500] for item in listed[:16]) if isinstance(listed, list) else ()
        raise Denied(words, reasons=reasons or (words,), mend=mend, code=code)
    raise family(words, mend=mend, code=code)


def _unreachable(who: str, error: BaseException) -> Unavailable:
    if isinstance(error, aiohttp.ClientConnectorError | TimeoutError):
        return Unavailable(
            Sentence("%(member)s cannot be reached now.", member=who),
            mend="It is tried again by itself; if it lasts, check the network and that hospital's node.",
            code="peer-away",
        )
    # A server that refuses our certificate under TLS 1.3 can only say so by closing the connection.
    return Unavailable(
        Sentence("%(member)s closed the connection.", member=who),
        mend="If it lasts, ask the hub's operator whether this node is in the roster and active.",
        code="peer-closed",
    )


def _without_host_check(context: ssl.SSLContext) -> ssl.SSLContext:
    # The invitation pins the hub's own authority, under which nobody else can issue; its node id is not known yet.
    context.check_hostname = False
    return context
