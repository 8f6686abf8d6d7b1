"""Peers that are slow, by HTTPS and by DICOM, up to the caps of their addresses: heads that drip, bodies that trickle, readers that stop.

Each knows how the node should end it, or how it ends itself, and waits no longer than a bound.
"""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import suppress

from node.dicom.gate import Limits
from node.dicom.pdu import encode
from node.web.limits import Limits as HttpLimits
from tests.faults.peers import SERVED_SECONDS, From, new_address
from tests.faults.slices import slice_of, study_uid
from tests.node.dicom.raw import request
from tests.support.served import AE, DIGITISER, Served

DICOM, HTTP = Limits(), HttpLimits()
TRICKLING, NOT_READING = 16, 16
DRIPPING = HTTP.connections_per_peer - TRICKLING - NOT_READING
MARGIN_SECONDS = 15.0
CUT_SECONDS = max(HTTP.header_deadline_seconds, DICOM.artim_seconds) + MARGIN_SECONDS
STALLED_SECONDS = HTTP.stalled_write_seconds + MARGIN_SECONDS
TRICKLE_SECONDS = 12.0
"""How long a slow body takes: longer than the deadlines of those that say nothing, which it must outlive."""
BIG_STUDY, SLOW_STUDY, SIDE, BIG_SLICES = 900, 901, 512, 40
"""Forty slices of half a MiB: more than all buffers between the node and a client that does not read."""
RECEIVE_BUFFER_BYTES = 16 * 1024


class Slow:
    """All slow peers: those by HTTPS share one address, whose cap they fill; those by DICOM have two, likewise."""

    def __init__(self, node: Served) -> None:
        self.node = node
        self.http, self.quiet, self.partial = new_address(), new_address(), new_address()
        self._cut: list[asyncio.Task[float]] = []
        self._trickling: list[asyncio.Task[int]] = []
        self._readers: list[_Reader] = []

    @classmethod
    async def begin(cls, node: Served) -> Slow:
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

    async def end(self, *, wait_for_cut: bool) -> tuple[list[int], list[bool], list[bool]]:
        """Let the others come to their ends: statuses of the stores (0: none), and which readers got everything.

        With `wait_for_cut` half of the readers never read on: also which of them the node cut.
        """
        answers = list(await asyncio.gather(*self._trickling))
        half = len(self._readers) // 2 if wait_for_cut else 0
        whole = list(await asyncio.gather(*(one.reads_on() for one in self._readers[half:])))
        stalled = list(await asyncio.gather(*(one.is_cut() for one in self._readers[:half])))
        return answers, whole, stalled


async def _https(node: Served, address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(
        "127.0.0.1", node.http_port, local_addr=(address, 0), ssl=node.web_context(), server_hostname="localhost"
    )  # fmt: skip


async def is_closed_at_once(node: Served, address: str) -> bool:
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
