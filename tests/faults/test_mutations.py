"""Good conversations, instances and requests with a few bytes changed: each ends, and what was acknowledged is exact.

Whoever sends them waits for the node to end the conversation, up to the node's own deadline: one that does not end is
counted as hung. `ACCORD_HOSTILE_CASES` raises the number of mutations of each kind.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import ssl
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import pytest

from node.dicom.gate import Limits
from node.dicom.pdu import encode
from node.dicom.sender import Outgoing, send
from node.web.limits import Limits as HttpLimits
from tests.faults.conftest import Counts
from tests.faults.peers import MEMORY_BYTES, SERVED_SECONDS, new_address, refusals_from, serves
from tests.faults.slices import slice_of
from tests.node.dicom.raw import request, store_message
from tests.support.dicom import pydicom_samples
from tests.support.dicomweb import DicomWeb
from tests.support.served import AE, DIGITISER, Served

CASES = int(os.environ.get("ACCORD_HOSTILE_CASES", "300"))
pytestmark = [
    pytest.mark.timeout(120 + CASES),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.journey,
    pytest.mark.slow,
    pytest.mark.requirement("F4"),
]
LEFT_OPEN = CASES // 500
"""Conversations that the peer never ends, so that the node must by itself; each takes a minute, so none in a short run."""
AT_ONCE = 12
BATCH = 100
BATCH_SECONDS = 60.0
ANSWER_SECONDS = 0.3
"""How long a peer waits for an answer before it goes on; a mutation may leave the node waiting for more."""
MARGIN_SECONDS = 10.0
ENDED_SECONDS = Limits().artim_seconds + MARGIN_SECONDS
"""By when the node has ended a conversation that its peer half-closed (PS3.8 §9.1.5)."""
ENDED_BY_ITSELF_SECONDS = Limits().idle_seconds + Limits().artim_seconds + MARGIN_SECONDS
REQUEST_ENDED_SECONDS = HttpLimits().header_deadline_seconds + MARGIN_SECONDS
AS_STORED = 'multipart/related; type="application/dicom"; transfer-syntax=*'
ACCEPTED, DATA, NOTHING = 2, 4, -1
"""PDU types (PS3.8 §9.3), and that none came in time; 0 is the end of the connection."""
SUCCESS = b"\x00\x00\x00\x09\x02\x00\x00\x00\x00\x00"
"""The element Status (0000,0900) of a response (PS3.7 §C.1)."""


async def test_mutated_conversations(node: Served, counts: Counts) -> None:
    """Mutations of a good DICOM conversation: each is ended by the node, which serves others during and after."""
    dice, before = random.Random(20260301), node.resident_peak_bytes()
    addresses = [new_address() for _ in range(30)]
    turns = asyncio.Semaphore(AT_ONCE)
    outcomes: Counter[str] = Counter()
    good = await _converse(node.plain_port, *_conversation(0), new_address(), patience=SERVED_SECONDS)
    assert good == "stored"

    async def one(number: int, *, half_closes: bool) -> None:
        said, message = _conversation(number)
        if dice.random() < 0.4:
            said = _mutated(said, dice)
        else:
            message = _mutated(message, dice)
        address = addresses[number % len(addresses)]
        if half_closes:
            async with turns:
                outcomes[await _converse(node.plain_port, said, message, address)] += 1
        else:
            outcomes[await _converse(node.plain_port, said, message, address, half_closes=False)] += 1

    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(one(number + 1, half_closes=number >= LEFT_OPEN)) for number in range(CASES)
        ]
        while not all(task.done() for task in tasks):
            await serves(node)
            await asyncio.sleep(0.5)
    await serves(node)
    told = {name: outcomes[name] for name in ("stored", "refused", "closed")}
    counts(hung=outcomes["hung"], conversations=CASES, left_open=LEFT_OPEN, **told)
    assert sum(outcomes.values()) == CASES
    assert not outcomes["hung"]
    assert all(told.values()), "mutations of one kind only prove little"
    assert node.resident_peak_bytes() - before < MEMORY_BYTES
    assert [entry for address in addresses for entry in await refusals_from(node, address)]


def _conversation(number: int) -> tuple[bytes, bytes]:
    """An association request, and an instance to store once it is accepted."""
    said = encode(request(called=AE, calling=DIGITISER))
    return said, store_message(slice_of(2, number), piece=4000)


async def _converse(
    port: int,
    said: bytes,
    message: bytes,
    address: str,
    *,
    half_closes: bool = True,
    patience: float = ANSWER_SECONDS,
) -> str:
    """Say both, the second after an answer to the first; then wait for the node's end: `stored`, `refused`, `closed`, `hung`."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0))
    try:
        outcome = "closed"
        writer.write(said)
        kind, _ = await _pdu(reader, patience)
        if kind in (ACCEPTED, NOTHING):
            writer.write(message)
            kind, body = await _pdu(reader, patience)
            outcome = "stored" if kind == DATA and SUCCESS in body else outcome
        if kind > 0 and outcome != "stored":
            outcome = "refused"
        if half_closes:
            writer.write_eof()
        ended = await _ended(reader, ENDED_SECONDS if half_closes else ENDED_BY_ITSELF_SECONDS)
        return outcome if ended else "hung"
    except ConnectionError:
        return outcome
    finally:
        writer.transport.abort()


async def _pdu(reader: asyncio.StreamReader, seconds: float) -> tuple[int, bytes]:
    """The next PDU's type and body, if it comes within `seconds`."""
    try:
        async with asyncio.timeout(seconds):
            head = await reader.readexactly(6)
            return head[0], await reader.readexactly(int.from_bytes(head[2:], "big"))
    except TimeoutError:
        return NOTHING, b""
    except (asyncio.IncompleteReadError, ConnectionError):
        return 0, b""


async def _ended(reader: asyncio.StreamReader, seconds: float, said: bytearray | None = None) -> bool:
    """Whether the node ends the connection within `seconds`; what it says before is added to `said`."""
    try:
        async with asyncio.timeout(seconds):
            while data := await reader.read(65536):
                if said is not None:
                    said += data
    except TimeoutError:
        return False
    except (ConnectionError, ssl.SSLError):
        pass
    return True


@pytest.mark.requirement("C3", "F5")
async def test_mutated_instances(node: Served, counts: Counts) -> None:
    """Data sets of every kind with bytes changed: each is answered, and what was acknowledged is kept bit for bit."""
    dice, before = random.Random(20260303), node.resident_peak_bytes()
    samples = [one for one in pydicom_samples() if len(one.data) < 200_000]
    sent: dict[str, bytes] = {}
    kept: dict[str, bytes] = {}
    hung = 0
    for start in range(0, CASES, BATCH):
        batch = []
        for number in range(start, min(start + BATCH, CASES)):
            name, one = str(number), dice.choice(samples)
            uid = f"2.25.5{number:0{len(one.sop_instance_uid) - 6}d}"
            data = _mutated(one.data.replace(one.sop_instance_uid.encode(), uid.encode()), dice)
            sent[uid] = data
            batch.append(Outgoing(name, one.sop_class_uid, uid, one.transfer_syntax_uid, data))
        answers = []
        try:
            async with asyncio.timeout(BATCH_SECONDS):
                async for answer in send(node.plain(), batch):
                    answers.append(answer)
        except TimeoutError:
            hung += len(batch) - len(answers)
        kept |= {answer.sop_instance_uid: sent[answer.sop_instance_uid] for answer in answers if answer.ok}
    await serves(node)
    grown = node.resident_peak_bytes() - before
    lost, corrupt, broken = await _differing(node, kept)
    counts(
        acknowledged=len(kept), lost=len(lost), corrupt=len(corrupt), hung=hung, sent=len(sent), undescribed=len(broken)
    )  # fmt: skip
    assert (lost, corrupt, broken, hung) == ([], [], [], 0)
    assert grown < MEMORY_BYTES
    assert 0 < len(kept) < len(sent)


async def _differing(node: Served, kept: Mapping[str, bytes]) -> tuple[list[str], list[str], list[str]]:
    """Which do not come back by WADO-RS, which as other bytes, and which break what is made of them."""
    lost, corrupt, broken = [], [], []
    async with DicomWeb(node.web, node.token, node.web_context()) as web:
        for uid, data in kept.items():
            if (path := await _path_of(web, uid)) is None:
                lost.append(uid)
                continue
            status, body, _ = await web.request("GET", path, accept=AS_STORED)
            described, _, _ = await web.request("GET", f"{path}/metadata")
            drawn, _, _ = await web.request("GET", f"{path}/rendered", accept="image/jpeg")
            if status != 200 or data not in body:
                corrupt.append(f"{uid}: {status}")
            if described != 200 or drawn >= 500:
                broken.append(f"{uid}: {described} {drawn}")
    return lost, corrupt, broken


async def _path_of(web: DicomWeb, uid: str) -> str | None:
    """Where QIDO-RS finds an instance, whose rows follow within a second; None when it does not."""
    for _ in range(50):
        _, body, _ = await web.request("GET", f"/instances?SOPInstanceUID={uid}")
        matches: list[Any] = json.loads(body or b"[]")
        if matches:
            (match,) = matches
            names = (("studies", "0020000D"), ("series", "0020000E"), ("instances", "00080018"))
            return "".join(f"/{kind}/{match[tag]['Value'][0]}" for kind, tag in names)
        await asyncio.sleep(0.1)
    return None


async def test_mutated_requests(node: Served, counts: Counts) -> None:
    """The same to HTTPS: heads, multipart bodies and JSON that are almost right; none is an error of the node's own."""
    dice, before = random.Random(20260302), node.resident_peak_bytes()
    turns = asyncio.Semaphore(AT_ONCE)
    outcomes: Counter[str] = Counter()
    good = _requests(node)
    for number, one_good in enumerate(good):
        answered = await _ask(node, one_good, new_address(), patience=SERVED_SECONDS)
        assert answered == ("2xx", "2xx", "4xx")[number]

    async def one(number: int) -> None:
        async with turns:
            outcomes[await _ask(node, _mutated(good[number % 3], dice), new_address())] += 1

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(number)) for number in range(CASES)]
        while not all(task.done() for task in tasks):
            await serves(node)
            await asyncio.sleep(0.5)
    await serves(node)
    told = {f"answered_{name}": outcomes[name] for name in ("2xx", "4xx", "5xx")}
    counts(hung=outcomes["hung"], requests=CASES, **told, closed=outcomes["closed"])
    assert sum(outcomes.values()) == CASES
    assert not outcomes["hung"] and not outcomes["5xx"]
    assert outcomes["4xx"], "no mutation was refused"
    assert node.resident_peak_bytes() - before < MEMORY_BYTES
    async with DicomWeb(node.web, node.token, node.web_context()) as web:
        status, _, _ = await web.request("GET", "/studies?limit=1")
    assert status in (200, 204)


async def _ask(node: Served, data: bytes, address: str, *, patience: float = ANSWER_SECONDS) -> str:
    """Send a request, take the answer that comes, half-close, and wait for the end: `2xx` and so on, `closed`, `hung`."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", node.http_port, local_addr=(address, 0), ssl=node.web_context(), server_hostname="localhost"
    )  # fmt: skip
    try:
        writer.write(data)
        answer = b""
        try:
            async with asyncio.timeout(patience):
                answer = await reader.read(65536)
        except TimeoutError:
            pass  # it waits for more of the request, or is at work: the end of the connection tells it
        except (ConnectionError, ssl.SSLError):
            return "closed"
        # Below TLS: asyncio's TLS cannot half-close, and a peer that has gone does not say farewell either.
        with suppress(OSError):  # it has closed already
            writer.get_extra_info("socket").shutdown(socket.SHUT_WR)
        said = bytearray(answer)
        if not await _ended(reader, REQUEST_ENDED_SECONDS, said):
            return "hung"
        return f"{said[9:10].decode()}xx" if said.startswith(b"HTTP/1.") else "closed"
    except OSError:
        return "closed"
    finally:
        writer.transport.abort()


def _requests(node: Served) -> tuple[bytes, ...]:
    """A search, a store and a sign-in with a wrong password."""
    body = b"--b\r\nContent-Type: application/dicom\r\n\r\n" + slice_of(3, 1).file() + b"\r\n--b--\r\n"
    head = f"Host: localhost\r\nAuthorization: Bearer {node.token}\r\n".encode()
    return (
        b"GET /dicom-web/studies?limit=5 HTTP/1.1\r\n" + head + b"Accept: application/dicom+json\r\n\r\n",
        b"POST /dicom-web/studies HTTP/1.1\r\n" + head
        + b'Content-Type: multipart/related; type="application/dicom"; boundary=b\r\n'
        + f"Content-Length: {len(body)}\r\n\r\n".encode() + body,
        b"POST /api/v1/session HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b'Content-Length: 36\r\n\r\n{"login": "admin", "password": "xx"}',
    )  # fmt: skip


def _mutated(good: bytes, dice: random.Random) -> bytes:
    """One to four changes: a byte, a length-like word, a cut, a repeated or an inserted stretch."""
    data = bytearray(good)
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(min(len(data), dice.choice((80, 600, len(data)))) or 1)
        match dice.randrange(6):
            case 0:
                data[at : at + 1] = bytes([dice.randrange(256)])
            case 1:
                data[at : at + 4] = dice.choice(
                    (b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\x7f\xff\xff\xff")
                )
            case 2:
                del data[at:]
            case 3:
                del data[at : at + dice.randint(1, 40)]
            case 4:
                data[at:at] = data[at : at + dice.randint(1, 400)]
            case _:
                data[at:at] = dice.randbytes(dice.randint(1, 60))
        if not data:
            break
    return bytes(data)
