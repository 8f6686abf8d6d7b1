"""Peers that are slow, idle, half-open or too many, up to the caps: they are cut in time, and a good client keeps its latency.

The good client stores by C-STORE and searches by QIDO-RS from an address of its own, first alone, then while the caps of
the others' addresses are full. What it may take meanwhile is bounded by what it took alone, in the same run.
`ACCORD_SLOW_PEERS=full` also waits for those deadlines of the node that are a minute long.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, field
from statistics import median, quantiles

import aiohttp
import pytest

from consent.errors import AccordError
from node.dicom.gate import Limits
from node.dicom.negotiation import VERIFICATION
from node.dicom.pdu import Proposal, encode
from node.dicom.sender import send
from node.gateway.held import HELD_BYTES
from node.web.limits import Limits as HttpLimits
from tests.faults.conftest import Counts
from tests.faults.peers import SERVED_SECONDS, From, new_address, refusals_from, serves
from tests.faults.slices import outgoing, slice_of, study_uid
from tests.node.dicom.raw import request
from tests.support.dicomweb import DicomWeb
from tests.support.served import AE, DIGITISER, Served

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.journey,
    pytest.mark.slow,
    pytest.mark.requirement("F4"),
]
FULL = os.environ.get("ACCORD_SLOW_PEERS") == "full"
DICOM, HTTP = Limits(), HttpLimits()
GOOD = "127.0.0.2"
TRICKLING, NOT_READING = 16, 16
DRIPPING = HTTP.connections_per_peer - TRICKLING - NOT_READING
MARGIN_SECONDS = 15.0
CUT_SECONDS = max(HTTP.header_deadline_seconds, DICOM.artim_seconds) + MARGIN_SECONDS
STALLED_SECONDS = HTTP.stalled_write_seconds + MARGIN_SECONDS
TRICKLE_SECONDS = 12.0
"""How long a slow body takes: longer than the deadlines of those that say nothing, which it must outlive."""
ALONE = 15
P50_TIMES, P50_SECONDS = 4, 0.3
P95_SECONDS = 1.5
"""The good client's median may be so many times that of its time alone, or so many seconds, whichever is more."""
BIG_STUDY, SLOW_STUDY, SIDE, BIG_SLICES = 900, 901, 512, 40
"""Forty slices of half a MiB: more than all buffers between the node and a client that does not read."""
RECEIVE_BUFFER_BYTES = 16 * 1024
GROWTH_BYTES = 1024 * 1024
"""What the node may hold for each slow peer, beside what is opened ahead for all together."""


@dataclass
class Latency:
    """Seconds of one kind of request."""

    seconds: list[float] = field(default_factory=list)

    @property
    def p50(self) -> float:
        return median(self.seconds)

    @property
    def p95(self) -> float:
        return quantiles(self.seconds, n=20)[-1]

    def bounded_by(self, alone: Latency) -> bool:
        """Whether slow peers did not slow it: generous to a busy machine, too little for a node that waits for them."""
        return self.p50 <= max(P50_TIMES * alone.p50, P50_SECONDS) and self.p95 <= max(
            P50_TIMES * alone.p95, P95_SECONDS
        )


@pytest.mark.timeout(300)
async def test_slow_peers(node: Served, counts: Counts) -> None:
    """Heads that drip, bodies that trickle, readers that stop, silence and half PDUs, up to the caps of their addresses."""
    await _store_the_big_study(node)
    stored, searched = Latency(), Latency()
    async with DicomWeb(node.web, node.token, node.web_context(), GOOD) as web:
        for _ in range(ALONE):
            await _good(node, web, stored, searched)
        before = node.resident_peak_bytes()
        slow = await _Slow.begin(node)
        assert await _is_closed_at_once(node, slow.http), "the cap of connections of one address is not full"
        stored_during, searched_during = Latency(), Latency()
        async with DicomWeb(node.web, node.token, node.web_context(), GOOD) as fresh:  # it still gets in
            while not slow.cut_off:
                await _good(node, fresh, stored_during, searched_during)
                await asyncio.sleep(0.1)
        grown = node.resident_peak_bytes() - before
    answers, whole, stalled = await slow.end()
    await serves(node)
    hung = sum(seconds >= CUT_SECONDS for seconds in slow.ended()) + answers.count(0) + whole.count(False)
    counts(
        hung=hung + stalled.count(False),
        slow_peers=slow.number,
        cut_after_max_seconds=round(max(slow.ended()), 1),
        slow_stores_answered=answers.count(200),
        slow_readers_whole=whole.count(True),
        stalled_readers_cut=stalled.count(True),
        good=len(stored_during.seconds) + len(searched_during.seconds),
        store_p50_ms_alone=round(stored.p50 * 1e3),
        store_p50_ms_during=round(stored_during.p50 * 1e3),
        store_p95_ms_during=round(stored_during.p95 * 1e3),
        search_p50_ms_alone=round(searched.p50 * 1e3),
        search_p50_ms_during=round(searched_during.p50 * 1e3),
        search_p95_ms_during=round(searched_during.p95 * 1e3),
        grown_mib=grown >> 20,
    )
    assert max(slow.ended()) < CUT_SECONDS
    assert set(answers) == {200}, "a slow body that comes whole is stored"
    assert all(whole), "a reader that goes on gets the rest"
    assert all(stalled), "a reader that never goes on is cut"
    assert stored_during.bounded_by(stored), (stored_during, stored)
    assert searched_during.bounded_by(searched), (searched_during, searched)
    assert grown < HELD_BYTES + slow.number * GROWTH_BYTES
    assert await refusals_from(node, slow.quiet) and await refusals_from(node, slow.partial)


async def _store_the_big_study(node: Served) -> None:
    slices = [outgoing(slice_of(BIG_STUDY, number, SIDE)) for number in range(BIG_SLICES)]
    assert all([sent.ok async for sent in send(node.plain(), slices)])
    async with DicomWeb(node.web, node.token, node.web_context()) as web, asyncio.timeout(SERVED_SECONDS):
        while len((await web.retrieve(f"/studies/{study_uid(BIG_STUDY)}"))[1]) < BIG_SLICES:
            await asyncio.sleep(0.1)


async def _good(node: Served, web: DicomWeb, stored: Latency, searched: Latency) -> None:
    stored.seconds.append(await serves(node))
    began = time.perf_counter()
    async with asyncio.timeout(SERVED_SECONDS):
        status, _, _ = await web.request("GET", f"/studies?StudyInstanceUID={study_uid(BIG_STUDY)}")
    assert status == 200
    searched.seconds.append(time.perf_counter() - began)


class _Slow:
    """All slow peers: those by HTTPS share one address, whose cap they fill; those by DICOM have two, likewise."""

    def __init__(self, node: Served) -> None:
        self.node = node
        self.http, self.quiet, self.partial = new_address(), new_address(), new_address()
        self._cut: list[asyncio.Task[float]] = []
        self._trickling: list[asyncio.Task[int]] = []
        self._readers: list[_Reader] = []

    @classmethod
    async def begin(cls, node: Served) -> _Slow:
        """Everybody is connected and slow when this returns."""
        slow = cls(node)
        slow._readers = list(
            await asyncio.gather(*(_Reader.begin(node, slow.http) for _ in range(NOT_READING)))
        )
        bodies = [await _https(node, slow.http) for _ in range(TRICKLING)]
        slow._trickling = [
            asyncio.create_task(_trickle(node, number, *pair)) for number, pair in enumerate(bodies)
        ]
        heads = [await _https(node, slow.http) for _ in range(DRIPPING)]
        slow._cut = [asyncio.create_task(_drip(*pair)) for pair in heads]
        half = encode(request(called=AE, calling=DIGITISER))[:40]
        for address, start in ((slow.quiet, b""), (slow.partial, half)):
            for _ in range(DICOM.connections_per_peer):
                peer = await From(node.plain_port, address).__aenter__()
                slow._cut.append(asyncio.create_task(_until_cut(peer, start)))
        return slow

    @property
    def number(self) -> int:
        return len(self._cut) + len(self._trickling) + len(self._readers)

    @property
    def cut_off(self) -> bool:
        """Whether the node has ended those that never say enough."""
        return all(task.done() for task in self._cut)

    def ended(self) -> list[float]:
        """After how many seconds each of those was cut."""
        return [task.result() for task in self._cut]

    async def end(self) -> tuple[list[int], list[bool], list[bool]]:
        """Let the others come to their ends: statuses of the stores (0: none), readers that got everything, and at
        full length those who never read on, and whether the node cut them."""
        answers = list(await asyncio.gather(*self._trickling))
        half = len(self._readers) // 2 if FULL else 0
        whole = list(await asyncio.gather(*(one.reads_on() for one in self._readers[half:])))
        stalled = list(await asyncio.gather(*(one.is_cut() for one in self._readers[:half])))
        return answers, whole, stalled


async def _https(node: Served, address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(
        "127.0.0.1", node.http_port, local_addr=(address, 0), ssl=node.web_context(), server_hostname="localhost"
    )  # fmt: skip


async def _is_closed_at_once(node: Served, address: str) -> bool:
    """Whether one more connection of an address is not even greeted."""
    reader, writer = await asyncio.open_connection("127.0.0.1", node.http_port, local_addr=(address, 0))
    try:
        async with asyncio.timeout(SERVED_SECONDS):
            return await reader.read(1) == b""
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    finally:
        writer.transport.abort()


async def _drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> float:
    """A request's head, a byte a second; return the seconds until the node had enough, at most CUT_SECONDS."""
    began = time.perf_counter()
    with suppress(OSError):
        writer.write(b"GET / HTTP/1.1\r\nX-A: ")
        while time.perf_counter() - began < CUT_SECONDS:
            writer.write(b"a")
            with suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await writer.drain()
                    if not await reader.read(4096):
                        break
    writer.transport.abort()
    return time.perf_counter() - began


async def _until_cut(peer: From, start: bytes) -> float:
    """Send a beginning and nothing more; return the seconds until the node closed, at most CUT_SECONDS."""
    began = time.perf_counter()
    peer.send(start)
    with suppress(ConnectionError, TimeoutError):
        async with asyncio.timeout(CUT_SECONDS):
            await peer.reader.read()
    peer.writer.transport.abort()
    return time.perf_counter() - began


async def _trickle(
    node: Served, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> int:
    """STOW-RS of one instance in small pieces, with pauses; the status of the answer, 0 when none came in time."""
    body = b"--b\r\nContent-Type: application/dicom\r\n\r\n" + slice_of(SLOW_STUDY, number).file() + b"\r\n--b--\r\n"  # fmt: skip
    head = (
        f"POST /dicom-web/studies HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {node.token}\r\n"
        'Content-Type: multipart/related; type="application/dicom"; boundary=b\r\n'
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    pieces = int(TRICKLE_SECONDS / 0.5)
    size = len(body) // pieces + 1
    try:
        writer.write(head.encode())
        for start in range(0, len(body), size):
            writer.write(body[start : start + size])
            await writer.drain()
            await asyncio.sleep(0.5)
        async with asyncio.timeout(CUT_SECONDS):
            answer = await reader.readline()
        return int(answer.split()[1])
    except (OSError, IndexError):
        return 0
    finally:
        writer.transport.abort()


class _Reader:
    """Asks for a study by WADO-RS, takes the head of the answer, and reads no further until it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, length: int) -> None:
        self._reader, self._writer, self._length = reader, writer, length

    @classmethod
    async def begin(cls, node: Served, address: str) -> _Reader:
        connection = socket.socket()
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        connection.bind((address, 0))
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", node.http_port))
        reader, writer = await asyncio.open_connection(
            sock=connection, ssl=node.web_context(), server_hostname="localhost"
        )
        writer.write(
            f"GET /dicom-web/studies/{study_uid(BIG_STUDY)} HTTP/1.1\r\nHost: localhost\r\n"
            f"Authorization: Bearer {node.token}\r\nConnection: close\r\n"
            'Accept: multipart/related; type="application/dicom"; transfer-syntax=*\r\n\r\n'.encode()
        )
        async with asyncio.timeout(SERVED_SECONDS):
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
        assert head.startswith(b"http/1.1 200 "), head
        length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
        assert length > BIG_SLICES * SIDE * SIDE * 2
        return cls(reader, writer, length)

    async def reads_on(self) -> bool:
        """Whether the rest comes, all of it."""
        try:
            async with asyncio.timeout(CUT_SECONDS):
                return len(await self._reader.read(-1)) == self._length
        except OSError:
            return False
        finally:
            self._writer.transport.abort()

    async def is_cut(self) -> bool:
        """Whether the node gives up in its time: what comes after that is not the whole."""
        await asyncio.sleep(STALLED_SECONDS)
        return not await self.reads_on()


@pytest.mark.requirement("C1")
async def test_idle_associations_up_to_the_caps(node: Served) -> None:
    """One address may hold 16 associations and all together 64: past that a clear rejection; others are served."""
    greedy, crowd = new_address(), [new_address() for _ in range(3)]
    held: list[From] = []
    try:
        answers = [await _hold(node, greedy, held) for _ in range(20)]
        assert answers == ["AssociateAc"] * 16 + ["AssociateRj"] * 4
        for _ in range(5):
            await serves(node)
        for address in crowd:
            answers += [await _hold(node, address, held) for _ in range(16)]
        assert answers.count("AssociateAc") == 64
        with pytest.raises(AccordError, match="too many associations"):
            await serves(node)
        for peer in held[:8]:
            peer.writer.transport.abort()
        await _serves_again(node)
    finally:
        for peer in held:
            peer.writer.transport.abort()
    await _serves_again(node)
    assert {entry.event.detail["code"] for entry in await refusals_from(node, greedy)} == {
        "too-many-associations-of-peer"
    }


async def _serves_again(node: Served) -> None:
    """A good device is let in as soon as the node has seen that others have gone."""
    async with asyncio.timeout(SERVED_SECONDS):
        while True:
            with suppress(AccordError):
                await serves(node)
                return
            await asyncio.sleep(0.05)


async def _hold(node: Served, address: str, held: list[From]) -> str:
    peer = await From(node.plain_port, address).__aenter__()
    held.append(peer)
    verification = (Proposal(1, VERIFICATION, ("1.2.840.10008.1.2",)),)
    return type(await peer.associate(called=AE, calling=DIGITISER, contexts=verification)).__name__


async def test_flood_of_connections(node: Served) -> None:
    """One address that opens hundreds of connections is kept to its share; a device elsewhere is served meanwhile."""
    greedy = new_address()
    opened = await asyncio.gather(
        *(asyncio.open_connection("127.0.0.1", node.plain_port, local_addr=(greedy, 0)) for _ in range(300)),
        return_exceptions=True,
    )
    try:
        for _ in range(5):
            await serves(node)
    finally:
        for pair in opened:
            if not isinstance(pair, BaseException):
                pair[1].transport.abort()
    assert await refusals_from(node, greedy)
    await serves(node)


async def test_connections_of_https_up_to_the_caps(node: Served, counts: Counts) -> None:
    """One address may hold 128 connections and all together 1024: past that they are closed at once, and room is room again."""
    addresses = [new_address() for _ in range(HTTP.connections_total // HTTP.connections_per_peer)]
    held: list[asyncio.StreamWriter] = []
    try:
        for address in addresses:
            for _ in range(HTTP.connections_per_peer):
                _, writer = await asyncio.open_connection(
                    "127.0.0.1", node.http_port, local_addr=(address, 0)
                )
                held.append(writer)
            if address != addresses[-1]:
                assert await _is_closed_at_once(node, address)
                await _good_from(node)
        assert await _is_closed_at_once(node, GOOD), "all connections are taken, and one more was let in"
        await serves(node)  # the doors of DICOM are others
        for writer in held[: HTTP.connections_per_peer]:
            writer.transport.abort()
        async with asyncio.timeout(SERVED_SECONDS):
            while not await _is_let_in(node):
                await asyncio.sleep(0.05)
        counts(hung=0, connections=len(held))
    finally:
        for writer in held:
            writer.transport.abort()


async def _is_let_in(node: Served) -> bool:
    with suppress(aiohttp.ClientConnectionError):
        await _good_from(node)
        return True
    return False


async def _good_from(node: Served) -> None:
    async with (
        DicomWeb(node.web, node.token, node.web_context(), GOOD) as web,
        asyncio.timeout(SERVED_SECONDS),
    ):
        status, _, _ = await web.request("GET", "/studies?limit=1")
    assert status in (200, 204)
