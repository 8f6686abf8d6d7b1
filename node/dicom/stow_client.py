"""The user's side of STOW-RS (PS3.18 §10.5): DICOM files to a DICOMweb service, and its word on each instance.

Files go out as they lie, header and all, several in one request; of each no more than a block is in memory. An instance
counts as stored only when the service names it so. A redirect is not followed: the images would go to somebody
else. Whom to trust, and as whom to ask, comes in as a `Service`. Serves `accord send --web`.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

import aiohttp
from yarl import URL

from consent.errors import AccordError, Denied, Invalid, NotFound, Unavailable
from node.tls import DICOM_TLS12_SUITES, KeyPair, client_context, read_fingerprint

from .accept import DICOM, JSON
from .channel import ANSWER_SECONDS, SLOWEST_BYTES_PER_SECOND
from .multipart import MultipartWriter
from .requestor import CONNECT_SECONDS
from .sender import Outgoing, Sent, readable
from .stow_told import Told, problem_of, read_told

BLOCK_BYTES = 256 * 1024
REQUEST_BYTES = 64 * 1024 * 1024
"""How much goes in one request, unless one instance alone is more: a receiver may keep a request whole."""
REQUEST_INSTANCES = 500
MAX_ANSWER_BYTES = 4 * 1024 * 1024

_PER_INSTANCE = (200, 202, 409)
"""Statuses whose body says what became of each instance (PS3.18 Table 10.5.3-1)."""


@dataclass(frozen=True)
class Service:
    """A DICOMweb service: its base address, whom to trust there (None: plain HTTP), and the Authorization header."""

    url: URL
    trust: ssl.SSLContext | aiohttp.Fingerprint | None = None
    authorization: str = field(default="", repr=False)

    @property
    def studies(self) -> URL:
        """Where instances of any study are stored."""
        return self.url / "studies"


def service(
    address: str,
    trust: ssl.SSLContext | aiohttp.Fingerprint | None,
    *,
    authorization: str = "",
    plain: bool = False,
) -> Service:
    """The service at `address`, such as https://pacs.example/dicom-web.

    Raises Invalid when that is no such address, when nobody is named to trust at an https address, and for plain HTTP to
    another machine, which only `plain` allows.
    """
    try:
        url = URL(address)
    except ValueError as error:
        raise Invalid("This is no address of a DICOMweb service.", code="bad-address") from error
    if url.scheme not in ("http", "https") or not url.host or url.query or url.fragment:
        raise Invalid(
            "A DICOMweb service has an address such as https://pacs.example/dicom-web.", code="bad-address"
        )
    if url.user is not None or url.password is not None:
        raise Invalid(
            "A name or password does not belong into an address: whoever lists processes sees it.",
            mend="Write it into a file, and give that with --login-file.",
            code="bad-address",
        )
    if url.scheme == "https" and trust is None:
        raise Invalid(
            "Nobody is named who vouches for this service.",
            mend="Name its authority (PEM), or the SHA-256 of its certificate.",
            code="no-authority",
        )
    if url.scheme == "http" and not (plain or _is_here(url.host)):
        raise Invalid(
            "Plain HTTP would show the images to everybody on the way.",
            mend="Use an https address; or say --plain-http where the network is guarded otherwise.",
            code="plain-http",
        )
    if url.scheme == "http" and trust is not None:
        raise Invalid(
            "A certificate or an authority was named, and plain HTTP looks at none.",
            mend="Use an https address, or leave the TLS options out.",
            code="plain-http",
        )
    return Service(url, trust, authorization)


def trusting(authority: str, pair: KeyPair | None = None) -> ssl.SSLContext:
    """Trust certificates under `authority` (PEM) alone, for the name that is called; show `pair` when asked.

    TLS 1.2 with forward secrecy will do: archives of others are older than this node.
    """
    context = client_context([authority], pair)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(DICOM_TLS12_SUITES)
    return context


def pinned(fingerprint: str) -> aiohttp.Fingerprint:
    """Trust the one certificate whose DER has this SHA-256 (hex, colons allowed). Raises Invalid."""
    return aiohttp.Fingerprint(bytes.fromhex(read_fingerprint(fingerprint)))


async def store_files(to: Service, paths: Iterable[Path]) -> AsyncIterator[Sent]:
    """Store every DICOM file among `paths` and below them; yield what became of each.

    Raises before anything was stored: Unavailable when the service cannot be reached, Denied when it is another one or does
    not let us in, NotFound when there is no DICOMweb at this address. Later, what fails is said of each instance.
    """
    found: list[Outgoing] = []
    async for one in readable(paths):
        if isinstance(one, Sent):
            yield one
        else:
            found.append(one)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
    connector = aiohttp.TCPConnector(limit=1, ssl=True if to.trust is None else to.trust)
    async with aiohttp.ClientSession(
        connector=connector,
        timeout=timeout,
        trust_env=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,  # a little that was compressed is a lot before it can be counted
    ) as session:
        gone: AccordError | None = None
        for number, group in enumerate(_requests(found)):
            if gone is None:
                try:
                    for sent in await _store(session, to, group):
                        yield sent
                    continue
                except (Denied, NotFound, Unavailable) as error:
                    if number == 0:
                        raise
                    gone = error
            for one in group:
                yield _failed(one, str(gone))


def _requests(instances: Sequence[Outgoing]) -> Iterator[list[Outgoing]]:
    """Instances that go together: bounded in number and size, and none twice, since the answer names them by UID."""
    group: dict[str, Outgoing] = {}
    size = 0
    for one in instances:
        more = one.size_bytes
        full = len(group) == REQUEST_INSTANCES or size + more > REQUEST_BYTES
        if group and (full or one.sop_instance_uid in group):
            yield list(group.values())
            group, size = {}, 0
        group[one.sop_instance_uid] = one
        size += more
    if group:
        yield list(group.values())


async def _store(session: aiohttp.ClientSession, to: Service, group: Sequence[Outgoing]) -> list[Sent]:
    """One request; again without a file that cannot be read to its end."""
    lost: list[Sent] = []
    while group:
        body = _Body(group)
        try:
            status, answer = await _post(session, to, body)
        except _Unread as unread:
            lost.append(_failed(unread.one, str(unread)))
            group = [one for one in group if one is not unread.one]
            continue
        return lost + _outcome(to, group, status, answer)
    return lost


class _Unread(Exception):
    """A file that is not what it was when it was listed."""

    def __init__(self, one: Outgoing, why: str) -> None:
        super().__init__(f"It cannot be read: {why}.")
        self.one = one


class _Body:
    """The parts of one request. Its length is known before the first byte goes out."""

    def __init__(self, group: Sequence[Outgoing]) -> None:
        self._group = group
        self._writer = MultipartWriter(DICOM)
        self.content_type = self._writer.content_type
        self.unread: _Unread | None = None
        heads = sum(len(head) for head in map(self._head, range(len(group))))
        self.size = heads + sum(one.size_bytes for one in group) + len(self._writer.end())

    async def blocks(self) -> AsyncGenerator[bytes, None]:
        """All of it. What cannot be read is kept in `unread`, and ends the request unfinished."""
        for number, one in enumerate(self._group):
            yield self._head(number)
            try:
                async with aclosing(_blocks(one)) as blocks:
                    async for block in blocks:
                        yield block
            except _Unread as unread:
                self.unread = unread
                raise
        yield self._writer.end()

    def _head(self, number: int) -> bytes:
        return self._writer.head(DICOM, self._group[number].size_bytes, first=number == 0)


async def _blocks(one: Outgoing) -> AsyncGenerator[bytes, None]:
    """A file, as many bytes as it had when it was listed."""
    assert one.path is not None
    left = one.size_bytes
    try:
        with one.path.open("rb") as file:
            while left:
                block = await asyncio.to_thread(file.read, min(BLOCK_BYTES, left))
                if not block:
                    raise _Unread(one, "it became shorter meanwhile")
                left -= len(block)
                yield block
    except OSError as error:
        raise _Unread(one, error.strerror or "the disk failed") from error


async def _post(session: aiohttp.ClientSession, to: Service, body: _Body) -> tuple[int, bytes]:
    """Send one request; return status and body of the answer. Raises _Unread, Unavailable, Denied."""
    headers = {"Content-Type": body.content_type, "Content-Length": str(body.size), "Accept": JSON}
    headers["Accept-Encoding"] = "identity"
    if to.authorization:
        headers["Authorization"] = to.authorization
    try:
        async with (
            asyncio.timeout(ANSWER_SECONDS + body.size / SLOWEST_BYTES_PER_SECOND),
            # The session's writer ends what it reads from, perhaps a moment after the answer: nobody else may.
            session.post(to.studies, data=body.blocks(), headers=headers, allow_redirects=False) as response,
        ):
            return response.status, await _read(response)
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        if body.unread is not None:
            raise body.unread from error
        raise _unreachable(to, error) from error


async def _read(response: aiohttp.ClientResponse) -> bytes:
    answer = bytearray()
    async for part in response.content.iter_any():
        answer += part
        if len(answer) > MAX_ANSWER_BYTES:
            raise Unavailable("The service's answer is larger than any that is expected.", code="bad-answer")
    return bytes(answer)


def _outcome(to: Service, group: Sequence[Outgoing], status: int, answer: bytes) -> list[Sent]:
    """What an answer says of each instance. Raises Denied and NotFound for what concerns all requests alike."""
    if status in _PER_INSTANCE and (told := read_told(answer)) is not None:
        return [_sent(one, told) for one in group]
    said = problem_of(answer)
    words = f"The service answered {status}{': ' + said if said else ''}."
    if status in (401, 403, 407):
        raise Denied(words, mend="Check the token or login, and what it is allowed there.", code="not-let-in")
    if status in (404, 405):
        raise NotFound(
            f"There is no STOW-RS at {to.studies}: {words}",
            mend="Give the address of the DICOMweb service, such as https://pacs.example/dicom-web.",
            code="no-dicomweb",
        )
    if status in range(300, 400):
        raise NotFound(
            f"{to.studies} leads elsewhere ({status}), and images do not follow.",
            mend="Give the address itself.",
            code="redirected",
        )
    if status in _PER_INSTANCE:
        words = f"The service answered {status} and did not say what became of it."
    return [_failed(one, words) for one in group]


def _sent(one: Outgoing, told: Told) -> Sent:
    uid = one.sop_instance_uid
    if uid in told.stored and uid not in told.failed:  # who says both has promised nothing
        warning = told.stored[uid]
        return Sent(one.label, uid, True, warning, told.words(warning), one.size_bytes, one.sop_class_uid)
    if uid in told.failed:
        return _failed(one, told.words(told.failed[uid]), told.failed[uid])
    if told.others:
        reason = told.others[0]
        return _failed(one, told.words(reason), reason)
    return _failed(one, "The service did not say what became of it.")


def _failed(one: Outgoing, why: str, status: int | None = None) -> Sent:
    return Sent(one.label, one.sop_instance_uid, False, status, why, 0, one.sop_class_uid)


def _unreachable(to: Service, error: Exception) -> AccordError:
    where = f"{to.url.host} port {to.url.port}"
    if isinstance(error, aiohttp.ServerFingerprintMismatch):
        return Denied(
            f"{where} showed another certificate than the pinned one.",
            mend="Ask its owner for the SHA-256 of the present one.",
            code="peer-certificate",
        )
    return Unavailable(
        f"{where} cannot be reached, or broke off: {_words(error)}.",
        mend="Check the address, its certificate and that the service runs; what it named as stored is stored.",
        code="peer-unreachable",
    )


def _words(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        cause = error.certificate_error
        reason = getattr(cause, "verify_message", "") or "not valid"
        return f"its certificate is not trusted ({reason})"
    if isinstance(error, aiohttp.ClientConnectorSSLError):
        return "TLS failed"
    if isinstance(error, TimeoutError):
        return "it did not answer in time"
    return getattr(error, "strerror", None) or "the connection was cut"


def _is_here(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
