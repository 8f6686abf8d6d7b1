"""Hostile and broken peers at the real doors of a real node: it refuses, says so in the log, and serves the next one.

Every attack comes from a loopback address of its own, because the log tells one kind of refusal per address and
minute. `ACCORD_HOSTILE_CASES` raises the number of mutations.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import ssl
import struct
import time
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from consent.errors import AccordError
from consent.vocabulary import EventKind
from node.audit.log import Entry
from node.dicom.negotiation import VERIFICATION
from node.dicom.pdu import Proposal, encode
from node.dicom.sender import Outgoing, send
from node.vault.blobs import NAME_PATTERN
from tests.faults.examination import all_entries
from tests.faults.slices import Truth, outgoing, slice_of
from tests.node.dicom.raw import Raw, data_pdu, request, store_command, store_message
from tests.support.dicom import (
    DEFLATED,
    EXPLICIT,
    Instance,
    ct_slice,
    element,
    instance,
    nested_sequences,
    pydicom_samples,
)
from tests.support.dicomweb import DicomWeb
from tests.support.served import AE, DIGITISER, Served, make_node

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.journey,
    pytest.mark.slow,
    pytest.mark.requirement("F4"),
]
CASES = int(os.environ.get("ACCORD_HOSTILE_CASES", "300"))
BATCH = 100
AS_STORED = 'multipart/related; type="application/dicom"; transfer-syntax=*'
CT = "1.2.840.10008.5.1.4.1.1.2"
BOMB_BYTES = 512 * 1024 * 1024
MEMORY_BYTES = 200 * 1024 * 1024
"""What the node may grow by while it is attacked."""
SERVED_SECONDS = 5.0
"""The longest that a good client waits for a store and its answer, on a machine with other work."""
CUT_SECONDS = 25.0
REFUSALS = {EventKind.INPUT_REFUSED, EventKind.INSTANCE_REFUSED, EventKind.ASSOCIATION_REFUSED}
_addresses = (f"127.7.{number // 250}.{number % 250 + 1}" for number in count())
_truth = Truth()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    """One node for all attacks: it has to survive them together."""
    made = await make_node(tmp_path_factory.mktemp("hostile") / "node")
    await made.start()
    first = made.process
    try:
        yield made
        assert made.alive and made.process is first, made.said()
        assert "Traceback" not in made.output.read_text("utf-8"), made.said()
        assert await made.stop() == 0, made.said()
    finally:
        if made.alive:
            await made.kill()


class From(Raw):
    """A raw DICOM peer that calls from an address of its own."""

    def __init__(self, port: int, address: str) -> None:
        super().__init__(port)
        self.address = address

    async def __aenter__(self) -> From:
        self.reader, self.writer = await asyncio.open_connection(
            "127.0.0.1", self.port, local_addr=(self.address, 0)
        )
        return self


async def serves(node: Served) -> float:
    """A good device stores an instance; return the seconds that it took."""
    began = time.perf_counter()
    async with asyncio.timeout(SERVED_SECONDS):
        sent = [one async for one in send(node.plain(), [outgoing(_truth.next(1))])]
    assert [one.ok for one in sent] == [True], sent
    assert node.alive, node.said()
    return time.perf_counter() - began


async def refusals_from(node: Served, address: str) -> list[Entry]:
    """What the log says about an address."""
    return [
        entry
        for entry in await all_entries(node.folder)
        if entry.event.kind in REFUSALS and entry.event.address == address
    ]


def _data_set(*extra: bytes, **more: object) -> bytes:
    """A small CT's data set up to (0020,0013), with elements inserted in its middle."""
    whole = ct_slice(size=8, study="hostile", **more).data  # type: ignore[arg-type]
    at = whole.index(struct.pack("<HH", 0x0028, 0x0002))
    return whole[:at] + b"".join(extra) + whole[at:]


@cache
def _bomb() -> bytes:
    """A deflated data set that grows a thousandfold."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    head = _data_set()
    out = packer.compress(head[: head.index(struct.pack("<HH", 0x7FE0, 0x0010))])
    out += packer.compress(element(0x7FE00010, b"OW", b"", length=BOMB_BYTES))
    zeros = bytes(1024 * 1024)
    for _ in range(BOMB_BYTES // len(zeros)):
        out += packer.compress(zeros)
    out += packer.flush()
    return out + b"\0" * (len(out) % 2)


def _made(data: bytes, syntax: str = EXPLICIT, uid: str = "2.25.4711") -> Instance:
    return Instance(CT, uid, syntax, data)


def _with_uid(uid: str) -> Instance:
    """The data set and the command both name `uid`, whatever it is."""
    made = ct_slice(size=8, study="hostile")
    padded = uid.encode() + b"\0" * (len(uid) % 2)
    old = made.sop_instance_uid.encode()
    old += b"\0" * (len(old) % 2)
    data = made.data.replace(
        struct.pack("<HH2sH", 0x0008, 0x0018, b"UI", len(old)) + old,
        struct.pack("<HH2sH", 0x0008, 0x0018, b"UI", len(padded)) + padded,
    )
    return Instance(CT, uid, EXPLICIT, data)


_WHOLE = ct_slice(size=8, study="hostile")
DATA_SETS: dict[str, Callable[[], Instance]] = {
    "a deflated data set of half a GiB": lambda: _made(_bomb(), DEFLATED, _WHOLE.sop_instance_uid),
    "400 nested sequences": lambda: _made(_data_set(nested_sequences(400)), uid=_WHOLE.sop_instance_uid),
    "400 nested sequences of defined length": lambda: _made(
        _data_set(nested_sequences(400, undefined=False)), uid=_WHOLE.sop_instance_uid
    ),
    "20,000 nested sequences": lambda: _made(nested_sequences(20_000), uid=_WHOLE.sop_instance_uid),
    "an element of 4 GiB": lambda: _made(
        _data_set(element(0x00281200, b"OW", b"", length=0xFFFFFFF0)), uid=_WHOLE.sop_instance_uid
    ),
    "pixels that are not there": lambda: _made(_WHOLE.data[:-100], uid=_WHOLE.sop_instance_uid),
    "half a data set": lambda: _made(_WHOLE.data[: len(_WHOLE.data) // 3], uid=_WHOLE.sop_instance_uid),
    "no data set": lambda: _made(b"", uid=_WHOLE.sop_instance_uid),
    "random bytes": lambda: _made(random.Random(1).randbytes(10_000)),
    "random bytes, deflated": lambda: _made(random.Random(2).randbytes(10_000), DEFLATED),
    "a UID that climbs": lambda: _with_uid("../../../../etc/cron.d/x"),
    "a UID with a slash": lambda: _with_uid("1.2.3/4"),
    "a UID with a zero byte": lambda: _with_uid("1.2.3\x004"),
    "a UID of 200 characters": lambda: _with_uid("1." * 100),
    "another instance than announced": lambda: _made(_WHOLE.data, uid="2.25.1"),
    "65,535 rows in nothing": lambda: instance(_huge()),
}
MAY_BE_KEPT = {"a deflated data set of half a GiB", "pixels that are not there", "65,535 rows in nothing"}
"""Sealed as they came and never inflated or drawn by the node itself."""


def _huge():  # type: ignore[no-untyped-def]
    ds = ct_slice(size=8, study="huge").dataset()
    ds.Rows = ds.Columns = 65535
    return ds


@pytest.mark.requirement("C3", "C1")
@pytest.mark.parametrize("name", DATA_SETS, ids=lambda name: name.replace(" ", "-"))
@pytest.mark.parametrize("door", ["dicom", "dicomweb"])
async def test_bad_data_sets(node: Served, door: str, name: str) -> None:
    """A data set that is none is refused at either door, in bounded memory, on record; the next device is served."""
    bad, before, address = DATA_SETS[name](), node.resident_peak_bytes(), next(_addresses)
    stored = await (_by_dicom if door == "dicom" else _by_web)(node, bad, address)
    assert not stored or name in MAY_BE_KEPT
    assert node.resident_peak_bytes() - before < MEMORY_BYTES
    await serves(node)
    assert stored or await refusals_from(node, address)
    _nothing_strange(node.folder)


async def _by_dicom(node: Served, bad: Instance, address: str) -> bool:
    """Send as a raw peer; whether it was answered with success."""
    async with From(node.plain_port, address) as peer:
        syntax = (Proposal(1, CT, (bad.transfer_syntax_uid,)),)
        answer = await peer.associate(called=AE, calling=DIGITISER, contexts=syntax)
        assert type(answer).__name__ == "AssociateAc", answer
        try:
            peer.send(store_message(bad) if bad.data else _store_of_nothing(bad))
            await peer.writer.drain()
            async with asyncio.timeout(SERVED_SECONDS):
                kind, body = await peer.receive()
        except ConnectionError:
            return False
        if kind != 4:
            return False  # aborted: the message itself could not be read
        return b"\x00\x00\x00\x09\x02\x00\x00\x00\x00\x00" in body


def _store_of_nothing(bad: Instance) -> bytes:
    command = data_pdu(1, store_command(bad), command=True, last=True)
    return command + data_pdu(1, b"", command=False, last=True)


async def _by_web(node: Served, bad: Instance, address: str) -> bool:
    async with DicomWeb(node.web, node.token, node.web_context(), address) as web:
        status, answer = await web.store([bad])
    assert status in (200, 400, 409, 413), (status, answer)
    return status == 200


def _nothing_strange(folder: Path) -> None:
    """Whatever names came in, the packs' folder has only names that the vault makes."""
    packs = folder / "packs"
    for path in packs.rglob("*"):
        assert path.is_dir() or NAME_PATTERN.fullmatch(path.name), path
    assert not (folder.parent / "etc").exists()


@pytest.mark.timeout(300)
async def test_mutated_conversations(node: Served) -> None:
    """Some hundred mutations of a good DICOM conversation: each ends, and the node serves during and after."""
    dice, before = random.Random(20260301), node.resident_peak_bytes()
    addresses = [next(_addresses) for _ in range(30)]
    turns = asyncio.Semaphore(12)

    async def one(number: int) -> None:
        good = encode(request(called=AE, calling=DIGITISER)) + store_message(slice_of(2, number), piece=4000)
        async with turns:
            await _throw(node.plain_port, _mutated(good, dice), addresses[number % len(addresses)])

    async with asyncio.TaskGroup() as group:
        for number in range(CASES):
            group.create_task(one(number))
        for _ in range(5):
            await serves(node)
            await asyncio.sleep(0.2)
    await serves(node)
    assert node.resident_peak_bytes() - before < MEMORY_BYTES
    refused = [entry for address in addresses for entry in await refusals_from(node, address)]
    assert refused


@pytest.mark.requirement("C3", "F5")
@pytest.mark.timeout(120 + CASES)
async def test_mutated_instances(
    node: Served, capsys: pytest.CaptureFixture[str], record_property: Callable[[str, object], None]
) -> None:
    """Data sets of every kind with bytes changed: each is answered, and what was acknowledged is kept bit for bit."""
    dice, before = random.Random(20260303), node.resident_peak_bytes()
    samples = [one for one in pydicom_samples() if len(one.data) < 200_000]
    sent: dict[str, bytes] = {}
    kept: dict[str, bytes] = {}
    for start in range(0, CASES, BATCH):
        batch = []
        for number in range(start, min(start + BATCH, CASES)):
            name, one = str(number), dice.choice(samples)
            uid = f"2.25.5{number:0{len(one.sop_instance_uid) - 6}d}"
            data = _mutated(one.data.replace(one.sop_instance_uid.encode(), uid.encode()), dice)
            sent[uid] = data
            batch.append(Outgoing(name, one.sop_class_uid, uid, one.transfer_syntax_uid, data))
        answers = [answer async for answer in send(node.plain(), batch)]
        assert len(answers) == len(batch)
        kept |= {answer.sop_instance_uid: sent[answer.sop_instance_uid] for answer in answers if answer.ok}
    await serves(node)
    assert node.resident_peak_bytes() - before < MEMORY_BYTES
    wrong = await _differing(node, kept)
    report = {"sent": len(sent), "acknowledged": len(kept), "lost_or_corrupt": len(wrong)}
    for key, value in report.items():
        record_property(key, value)
    with capsys.disabled():
        print(f"\nmutated instances: {' '.join(f'{key}={value}' for key, value in report.items())}")
    assert wrong == []
    assert 0 < len(kept) < len(sent)


async def _found(web: DicomWeb, uid: str) -> list[Any]:
    _, body, _ = await web.request("GET", f"/instances?SOPInstanceUID={uid}")
    found: list[Any] = json.loads(body or b"[]")
    return found


async def _differing(node: Served, kept: Mapping[str, bytes]) -> list[str]:
    """Instances that do not come back by WADO-RS as they were sent, or that break what is made of them."""
    wrong = []
    async with DicomWeb(node.web, node.token, node.web_context()) as web:
        for uid, data in kept.items():
            async with asyncio.timeout(5):  # rows follow within a second
                while not (matches := await _found(web, uid)):
                    await asyncio.sleep(0.1)
            (match,) = matches
            path = "/".join(
                f"{kind}/{match[tag]['Value'][0]}"
                for kind, tag in (("studies", "0020000D"), ("series", "0020000E"), ("instances", "00080018"))
            )
            status, body, _ = await web.request("GET", f"/{path}", accept=AS_STORED)
            described, _, _ = await web.request("GET", f"/{path}/metadata")
            drawn, _, _ = await web.request("GET", f"/{path}/rendered", accept="image/jpeg")
            if status != 200 or data not in body or described != 200 or drawn >= 500:
                wrong.append(f"{uid}: {status} {described} {drawn}")
    return wrong


@pytest.mark.timeout(300)
async def test_mutated_requests(node: Served) -> None:
    """The same to HTTPS: heads, multipart bodies and JSON that are almost right."""
    dice, before = random.Random(20260302), node.resident_peak_bytes()
    turns = asyncio.Semaphore(8)

    async def one(number: int) -> None:
        async with turns:
            good = _requests(node)[number % 3]
            await _throw(node.http_port, _mutated(good, dice), next(_addresses), tls=node.web_context())

    async with asyncio.TaskGroup() as group:
        for number in range(CASES // 3):
            group.create_task(one(number))
        await serves(node)
    await serves(node)
    assert node.resident_peak_bytes() - before < MEMORY_BYTES
    async with DicomWeb(node.web, node.token, node.web_context()) as web:
        status, _, _ = await web.request("GET", "/studies?limit=1")
    assert status in (200, 204)


def _requests(node: Served) -> tuple[bytes, ...]:
    part = slice_of(3, 1).file()[:3000]
    body = b"--b\r\nContent-Type: application/dicom\r\n\r\n" + part + b"\r\n--b--\r\n"
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


async def _throw(port: int, data: bytes, address: str, *, tls: ssl.SSLContext | None = None) -> None:
    """Send bytes, take what comes for a moment, and go."""
    try:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, local_addr=(address, 0), ssl=tls, server_hostname="localhost" if tls else None
        )
    except OSError:
        return  # a cap; the good client's calls say whether that hurts
    try:
        writer.write(data)
        async with asyncio.timeout(0.3):
            await writer.drain()
            while await reader.read(65536):
                pass
    except (OSError, TimeoutError, ssl.SSLError):
        pass
    finally:
        writer.transport.abort()


@pytest.mark.timeout(180)
async def test_slow_peers(
    node: Served, capsys: pytest.CaptureFixture[str], record_property: Callable[[str, object], None]
) -> None:
    """Dozens that dribble heads, say nothing or stop in mid-PDU are cut off in time; a good device notices nothing."""
    alone = sorted([await serves(node) for _ in range(10)])
    http, quiet, partial = next(_addresses), next(_addresses), next(_addresses)
    tasks = [asyncio.create_task(_dribble(node, http)) for _ in range(40)]
    tasks += [asyncio.create_task(_wait_for_end(node.plain_port, b"", quiet)) for _ in range(20)]
    start = encode(request(called=AE, calling=DIGITISER))[:40]
    tasks += [asyncio.create_task(_wait_for_end(node.plain_port, start, partial)) for _ in range(20)]
    during = []
    while not all(task.done() for task in tasks):
        during.append(await serves(node))
        await asyncio.sleep(0.1)
    ended = await asyncio.gather(*tasks)
    assert max(ended) < CUT_SECONDS
    await serves(node)
    assert await refusals_from(node, quiet) and await refusals_from(node, partial)
    during.sort()
    figures = {
        "slow_peers": len(tasks),
        "cut_after_max_seconds": round(max(ended), 1),
        "good_p50_ms_alone": round(alone[len(alone) // 2] * 1e3),
        "good_p50_ms_during": round(during[len(during) // 2] * 1e3),
        "good_max_ms_during": round(during[-1] * 1e3),
    }
    for name, value in figures.items():
        record_property(name, value)
    with capsys.disabled():
        print(f"\nslow peers: {' '.join(f'{name}={value}' for name, value in figures.items())}")


async def _dribble(node: Served, address: str) -> float:
    """A request's head, a byte at a time; return the seconds until the node had enough."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1",
        node.http_port,
        local_addr=(address, 0),
        ssl=node.web_context(),
        server_hostname="localhost",
    )
    began = time.perf_counter()
    try:
        writer.write(b"GET / HTTP/1.1\r\nX-A: ")
        while not reader.at_eof():
            writer.write(b"a")
            async with asyncio.timeout(CUT_SECONDS):
                await writer.drain()
                try:
                    async with asyncio.timeout(1.0):
                        if not await reader.read(4096):
                            break
                except TimeoutError:
                    pass
    except (OSError, ssl.SSLError):
        pass
    finally:
        writer.transport.abort()
    return time.perf_counter() - began


async def _wait_for_end(port: int, start: bytes, address: str) -> float:
    """Send a beginning and nothing more; return the seconds until the node closed."""
    async with From(port, address) as peer:
        began = time.perf_counter()
        peer.send(start)
        async with asyncio.timeout(CUT_SECONDS):
            try:
                await peer.reader.read()
            except ConnectionError:
                pass
        return time.perf_counter() - began


@pytest.mark.requirement("C1")
async def test_idle_associations_up_to_the_caps(node: Served) -> None:
    """One address may hold 16 associations and all together 64: past that a clear rejection; others are served."""
    greedy, crowd = next(_addresses), [next(_addresses) for _ in range(3)]
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
    greedy = next(_addresses)
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
