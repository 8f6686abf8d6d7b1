"""The reading side: ranges, keyless checks, the manifest, and copies that another node holds."""

from __future__ import annotations

import os
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from consent.errors import Corrupt, Invalid, NotFound
from consent.signed import verify
from consent.vocabulary import Grade
from node.vault.blobs import FileBlobs
from node.vault.keys import object_keys
from node.vault.manifest import Manifest
from node.vault.pack import pack_name
from node.vault.reader import Reader
from node.vault.vault import ATTRIBUTES, INSTANCE, NewObject
from tests.node.vault.conftest import STUDY, Rig

PIXELS = os.urandom(100_000)


@pytest.fixture
async def keys(rig: Rig) -> dict[str, bytes]:
    """Two instances with their attributes in the archive; the object keys of all four."""
    for number in (1, 2):
        payload = bytes([number]) + PIXELS
        await rig.vault.append(
            STUDY,
            Grade.ORDINARY if number == 1 else Grade.SENSITIVE,
            [
                NewObject(f"in_{number}.a", ATTRIBUTES, b'{"attributes":{}}'),
                NewObject(f"in_{number}", INSTANCE, payload, sha256(payload).digest()),
            ],
        )
    derived: dict[str, bytes] = {}
    for stored in await rig.reader.objects(STUDY):
        study_key = await rig.keys.study_key(None, STUDY, stored.grade)
        derived |= object_keys(study_key, [stored.object_id])
    return derived


def damage(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


async def test_object_and_range_open_with_the_object_key_alone(rig: Rig, keys: dict[str, bytes]) -> None:
    """The reader knows no key ring: the caller brings the key of the object."""
    stored = (await rig.reader.objects(STUDY))[1]
    assert await rig.reader.read(STUDY, stored, keys["in_1"]) == b"\x01" + PIXELS
    assert await rig.reader.read_range(STUDY, stored, keys["in_1"], 50_001, 1000) == PIXELS[50_000:51_000]
    assert await rig.reader.digest(STUDY, stored, keys["in_1"]) == sha256(b"\x01" + PIXELS).digest()
    assert await rig.reader.digest(STUDY, (await rig.reader.objects(STUDY))[0], keys["in_1.a"]) is None


@pytest.mark.requirement("C3")
async def test_object_read_as_another_is_corrupt(rig: Rig, keys: dict[str, bytes]) -> None:
    """A wrong key, another object's place, or another grade opens nothing."""
    one, two = [stored for stored in await rig.reader.objects(STUDY) if stored.kind == INSTANCE]
    for stored, key in (
        (one, keys["in_2"]),
        (replace(one, offset=two.offset), keys["in_1"]),
        (replace(one, grade=Grade.RESTRICTED), keys["in_1"]),
        (replace(one, length=one.length - 1), keys["in_1"]),
        (replace(one, offset=10**9), keys["in_1"]),
    ):
        with pytest.raises(Corrupt):
            await rig.reader.read(STUDY, stored, key)
        if stored.length == one.length:  # a range proves what it returns, not where the object ends
            with pytest.raises(Corrupt):
                await rig.reader.read_range(STUDY, stored, key, 0, 10)


@pytest.mark.requirement("C3")
async def test_flipped_byte_in_an_object_is_never_handed_out(rig: Rig, keys: dict[str, bytes]) -> None:
    """The read fails, the other objects still open, and the check names the object without a key."""
    one, two = [stored for stored in await rig.reader.objects(STUDY) if stored.kind == INSTANCE]
    damage(rig.pack(), one.offset + 40_000)
    with pytest.raises(Corrupt):
        await rig.reader.read(STUDY, one, keys["in_1"])
    assert await rig.reader.read(STUDY, two, keys["in_2"]) == b"\x02" + PIXELS
    (fault,) = await rig.reader.verify(STUDY)
    assert (fault.study, fault.object_id, fault.offset) == (STUDY, "in_1", one.offset)


async def test_sound_pack_has_no_faults(rig: Rig, keys: dict[str, bytes]) -> None:
    """Checked alone, against the index's rows, and against the manifest."""
    signed = await rig.reader.manifest(
        STUDY, home="a-general", keys=keys, signing_key=Ed25519PrivateKey.generate(), now=rig.clock.now()
    )
    assert await rig.reader.verify(STUDY) == []
    assert await rig.reader.verify(STUDY, await rig.reader.objects(STUDY)) == []
    assert await rig.reader.verify(STUDY, signed.body) == []


@pytest.mark.requirement("C3")
async def test_missing_end_shows_against_index_and_manifest(rig: Rig, keys: dict[str, bytes]) -> None:
    """A pack cut at a record boundary is sound in itself; only what was promised tells."""
    promised = await rig.reader.objects(STUDY)
    signed = await rig.reader.manifest(
        STUDY, home="a-general", keys=keys, signing_key=Ed25519PrivateKey.generate(), now=rig.clock.now()
    )
    data = rig.pack().read_bytes()
    os.truncate(rig.pack(), data.rindex(b"ACRD", 0, promised[3].offset))
    assert await rig.reader.verify(STUDY) == []
    for expected in (promised, signed.body):
        (fault,) = await rig.reader.verify(STUDY, expected)
        assert fault.object_id == "in_2"


async def test_damaged_frame_is_named_by_offset(rig: Rig, keys: dict[str, bytes]) -> None:
    """A listing refuses; the check goes on and names every fault."""
    one = (await rig.reader.objects(STUDY))[0]
    damage(rig.pack(), one.offset - 10)
    with pytest.raises(Corrupt):
        await rig.reader.objects(STUDY)
    faults = await rig.reader.verify(STUDY)
    assert [fault.object_id for fault in faults] == [""]
    rig.pack().write_bytes(b"something else entirely, and long enough to be no torn head")
    assert len(await rig.reader.verify(STUDY)) == 1
    rig.pack().unlink()
    assert len(await rig.reader.verify(STUDY)) == 1
    with pytest.raises(NotFound):
        await rig.reader.objects(STUDY)


@pytest.mark.requirement("E3", "T2")
async def test_manifest_is_signed_by_the_home_and_lists_every_object(
    rig: Rig, keys: dict[str, bytes]
) -> None:
    """Another node verifies it offline: places, ciphertext digests, payload digests, highest grade."""
    signing = Ed25519PrivateKey.generate()
    signed = await rig.reader.manifest(
        STUDY, home="a-general", keys=keys, signing_key=signing, now=rig.clock.now()
    )
    seen = verify(signed.token, Manifest, keys_of=lambda _: (signing.public_key(),), now=rig.clock.now())
    assert seen.body == signed.body
    assert (seen.issuer, seen.body.home, seen.body.study) == ("a-general", "a-general", STUDY)
    assert (seen.body.grade, seen.body.sequence) == (Grade.SENSITIVE, 4)
    assert seen.body.size == rig.pack().stat().st_size
    entry = seen.body.entry("in_2")
    assert entry is not None
    assert entry.sha256 == sha256(b"\x02" + PIXELS).hexdigest()
    with pytest.raises(Corrupt):
        verify(
            signed.token,
            Manifest,
            keys_of=lambda _: (Ed25519PrivateKey.generate().public_key(),),
            now=rig.clock.now(),
        )


@pytest.mark.requirement("E3", "E4")
async def test_held_copy_is_the_same_pack_read_with_leased_keys(rig: Rig, keys: dict[str, bytes]) -> None:
    """Pulled in ranges, checked without a key, held in another folder, opened with object keys that were handed over."""
    signed = await rig.reader.manifest(
        STUDY, home="a-general", keys=keys, signing_key=Ed25519PrivateKey.generate(), now=rig.clock.now()
    )
    await rig.vault.append(STUDY, Grade.ORDINARY, [NewObject("in_3", INSTANCE, b"arrived later")])
    waiting, held = FileBlobs(rig.folder / "waiting"), FileBlobs(rig.folder / "held" / "a-general")
    pulled = waiting.append(pack_name(STUDY))
    while (at := pulled.size()) < signed.body.size:
        step = min(64 * 1024, signed.body.size - at)
        pulled.write([await rig.reader.pack_bytes(STUDY, at, step)], at)
    pulled.sync()
    pulled.close()
    assert await Reader(waiting).verify(STUDY, signed.body) == []
    waiting.hand_over(pack_name(STUDY), held)
    reader = Reader(held)
    stored = (await reader.objects(STUDY))[3]
    leased = {"in_2": keys["in_2"]}
    assert await reader.read(STUDY, stored, leased["in_2"]) == b"\x02" + PIXELS
    held.delete(pack_name(STUDY))
    with pytest.raises(NotFound):
        await reader.read(STUDY, stored, leased["in_2"])


async def test_pack_ranges_are_bounded(rig: Rig, keys: dict[str, bytes]) -> None:
    """A peer asks for so much at once and no more; beyond the end there is nothing."""
    size = await rig.reader.pack_size(STUDY)
    assert len(await rig.reader.pack_bytes(STUDY, 0, 16 * 1024 * 1024)) == size
    assert await rig.reader.pack_bytes(STUDY, size, 10) == b""
    for offset, length in ((-1, 1), (0, -1), (0, 16 * 1024 * 1024 + 1)):
        with pytest.raises(Invalid):
            await rig.reader.pack_bytes(STUDY, offset, length)


async def test_id_that_occurs_twice_means_the_first(rig: Rig) -> None:
    """A repeated append cannot put another image in the place of the first."""
    await rig.vault.append(STUDY, Grade.ORDINARY, [NewObject("in_1", INSTANCE, b"first")])
    await rig.vault.append(STUDY, Grade.ORDINARY, [NewObject("in_1", INSTANCE, b"second")])
    (stored,) = await rig.reader.objects(STUDY)
    study_key = await rig.keys.study_key(None, STUDY, Grade.ORDINARY)
    assert await rig.reader.read(STUDY, stored, object_keys(study_key, ["in_1"])["in_1"]) == b"first"
