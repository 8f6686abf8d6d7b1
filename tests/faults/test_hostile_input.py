"""Hostile data sets at the real doors of a real node: it refuses, says so in the log, and serves the next one.

Every attack comes from a loopback address of its own, because the log tells one kind of refusal per address and
minute. What is random rather than thought out is in `test_mutations`, what is slow in `test_slow_peers`.
"""

from __future__ import annotations

import asyncio
import random
import struct
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from node.dicom.pdu import Proposal
from node.vault.blobs import NAME_PATTERN
from tests.faults.peers import MEMORY_BYTES, SERVED_SECONDS, From, new_address, refusals_from, serves
from tests.node.dicom.raw import data_pdu, store_command, store_message
from tests.support.dicom import (
    DEFLATED,
    EXPLICIT,
    Instance,
    ct_slice,
    element,
    instance,
    nested_sequences,
)
from tests.support.dicomweb import DicomWeb
from tests.support.served import AE, DIGITISER, Served

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.journey,
    pytest.mark.slow,
    pytest.mark.requirement("F4"),
]
CT = "1.2.840.10008.5.1.4.1.1.2"
BOMB_BYTES = 512 * 1024 * 1024


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
    bad, before, address = DATA_SETS[name](), node.resident_peak_bytes(), new_address()
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
