"""Sealing a pack anew: large objects piece by piece, digests kept, metadata left out, the same on every storage root."""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path

import pytest

from consent.errors import Corrupt, NotFound
from consent.vocabulary import Grade
from node.vault.blobs import BlobStore
from node.vault.pack import pack_name
from node.vault.reader import Reader
from node.vault.reseal import contents, generation_of, grades_in, reseal
from node.vault.seal import object_key
from node.vault.vault import NewObject, Vault
from tests.node.vault.conftest import STUDY, Rig
from tests.support.rack import Rack

PAYLOADS = {
    "in_one": os.urandom(3 * 1024 * 1024 + 5),
    "in_two": b"",
    "in_three": os.urandom(16384),
    "in_four": b"x",
}


async def filled(rig: Rig, blobs: BlobStore) -> Vault:
    vault = Vault(blobs, rig.keys, rig.clock)
    for name, payload in PAYLOADS.items():
        objects = [NewObject(name, "instance", payload, sha256(payload).digest())]
        await vault.append(STUDY, Grade.ORDINARY, objects)
    await vault.append(STUDY, Grade.ORDINARY, [NewObject("se_one.m.4", "metadata", b"[]")])
    await vault.close()
    return vault


async def resealed(rig: Rig, blobs: BlobStore) -> bytes:
    old = await rig.keys.study_key(None, STUDY, Grade.ORDINARY)
    new = await rig.keys.study_key(None, STUDY, Grade.RESTRICTED, create=True)
    keys, now = {Grade.ORDINARY: old, Grade.RESTRICTED: new}, rig.clock.now()
    reseal(blobs, STUDY, keys, Grade.RESTRICTED, generation=1, now=now, prepared=lambda: None)
    return new


async def opened(blobs: BlobStore, key: bytes) -> dict[str, bytes]:
    reader = Reader(blobs)
    found = {}
    for stored in contents(blobs, STUDY):
        one = object_key(key, stored.object_id)
        assert await reader.digest(STUDY, stored, one) == sha256(PAYLOADS[stored.object_id]).digest()
        found[stored.object_id] = await reader.read(STUDY, stored, one)
    assert await reader.verify(STUDY) == []
    return found


@pytest.mark.requirement("V1", "C3")
async def test_every_object_opens_under_the_new_key_with_its_digest(rig: Rig) -> None:
    """Of any size; pre-made metadata is made again later; the pack is a file with the next generation and sound."""
    await filled(rig, rig.blobs)
    before = {stored.object_id: stored.created for stored in contents(rig.blobs, STUDY)}
    key = await resealed(rig, rig.blobs)
    assert await opened(rig.blobs, key) == PAYLOADS
    assert grades_in(rig.blobs, STUDY) == {Grade.RESTRICTED}
    assert generation_of(rig.blobs, STUDY) == 1
    after = contents(rig.blobs, STUDY)
    assert {stored.object_id: stored.created for stored in after}.items() <= before.items()
    with pytest.raises(NotFound):
        generation_of(rig.blobs, "st_none0")


@pytest.mark.requirement("V1", "V2")
async def test_every_storage_root_gets_the_same_file(rig: Rig, tmp_path: Path) -> None:
    """The three copies stay byte for byte alike, and what is appended afterwards lies on all of them."""
    with Rack(tmp_path) as rack:
        replicas = rack.start()
        await filled(rig, replicas)
        key = await resealed(rig, replicas)
        assert await opened(replicas, key) == PAYLOADS
        vault = Vault(replicas, rig.keys, rig.clock)
        await vault.append(STUDY, Grade.RESTRICTED, [NewObject("in_five", "instance", b"five")])
        await vault.close()
    copies = {rack.file(number, pack_name(STUDY)).read_bytes() for number in range(3)}
    assert len(copies) == 1
    assert rack.in_sync() == [0, 1, 2]


@pytest.mark.requirement("C3")
async def test_a_truncated_body_is_never_sealed_anew(rig: Rig) -> None:
    """An object whose last piece is gone is corrupt, however many pieces before it were good; the old file stands."""
    await filled(rig, rig.blobs)
    first = contents(rig.blobs, STUDY)[0]
    data = bytearray(rig.pack().read_bytes())
    data[first.offset + first.length - 1] ^= 1
    rig.pack().write_bytes(data)
    with pytest.raises(Corrupt):
        await resealed(rig, rig.blobs)
    assert rig.pack().read_bytes() == bytes(data)
    assert generation_of(rig.blobs, STUDY) == 0
