"""Study packs: vectors, recovery after a crash, failures of the disk."""

from __future__ import annotations

import errno
import os
from base64 import b64decode
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consent.errors import Corrupt, Invalid, Unavailable
from node.vault.blobs import BLOCK_BYTES, FileBlobs
from node.vault.pack import FRAME_BYTES, StoredObject, Survey, check_bodies, pack_name, survey
from node.vault.seal import ObjectHeader, object_key, open_digest, open_sealed
from node.vault.writer import Draft, PackGone, PackWriter
from tests.node.vault.test_blobs import largest_file
from tests.node.vault.vectors import load, names

VECTORS = load("study-pack")
STUDY = "st_" + "a" * 26
NOW = datetime(2026, 11, 22, 9, 0, tzinfo=UTC)
KEY = bytes(range(32))


def drafts(*ids: str, size: int = 300) -> list[Draft]:
    made = []
    for name in ids:
        header = ObjectHeader(STUDY, name, "instance", 1)
        made.append(Draft(header, name.encode().ljust(size, b"."), object_key(KEY, name)))
    return made


def writer(folder: Path) -> PackWriter:
    return PackWriter(STUDY, FileBlobs(folder).append(pack_name(STUDY)))


def look(folder: Path) -> Survey:
    data = path_of(folder).read_bytes()
    return survey(lambda offset, length: data[offset : offset + length], len(data), STUDY)


def path_of(folder: Path) -> Path:
    return folder / STUDY[-2:] / pack_name(STUDY)


def ids(found: Survey) -> list[str]:
    return [stored.object_id for stored in found.objects]


def frame_of(stored: StoredObject, data: bytes) -> int:
    """Where the record of `stored` starts."""
    return data.rindex(b"ACRD", 0, stored.offset)


@pytest.mark.requirement("V1", "C3")
@pytest.mark.parametrize("case", VECTORS["cases"], ids=names(VECTORS["cases"]))
def test_frozen_pack_is_surveyed_as_written_down(case: dict[str, Any]) -> None:
    """Each way of failing has its own frozen pack, made without the product's code."""
    data = b64decode(case["pack"])

    def read(offset: int, length: int) -> bytes:
        return data[offset : offset + length]

    if case["error"] in ("corrupt-head", "invalid-head"):
        with pytest.raises(Corrupt if case["error"] == "corrupt-head" else Invalid):
            survey(read, len(data), VECTORS["study"])
        return
    found = survey(read, len(data), VECTORS["study"])
    assert ids(found) == case["objects"]
    assert found.end == case["end"]
    assert [[damage.offset, damage.torn, damage.settled] for damage in found.damages] == case["damages"]
    assert check_bodies(read, found.objects) == case["bad_bodies"]
    if case["error"] == "corrupt":
        with pytest.raises(Corrupt) as refused:
            found.require_sound(VECTORS["study"])
        assert f"byte {case['damages'][0][0]}" in refused.value.message
    else:
        found.require_sound(VECTORS["study"])


def test_frozen_objects_open_with_the_frozen_key() -> None:
    """The whole chain, study key to payload and digest, is as written down."""
    data = b64decode(VECTORS["cases"][0]["pack"])
    found = survey(lambda offset, length: data[offset : offset + length], len(data), VECTORS["study"])
    for stored in found.objects:
        key = object_key(bytes.fromhex(VECTORS["study_key"]), stored.object_id)
        header = stored.header(VECTORS["study"])
        plain = open_sealed(data[stored.offset : stored.offset + stored.length], key, header)
        assert len(plain) == stored.plain_length
        assert stored.sealed_digest is not None
        assert len(open_digest(stored.sealed_digest, key, header)) == 32


@pytest.mark.requirement("F4")
@pytest.mark.parametrize(
    "case",
    [case for case in VECTORS["cases"] if case["error"] is None and case["damages"]],
    ids=lambda case: case["name"],
)
def test_writer_mends_what_a_crash_left_and_goes_on(case: dict[str, Any], tmp_path: Path) -> None:
    """A torn tail is cut off, an unfinished stretch is voided, sound records stay, and appending works."""
    packs = FileBlobs(tmp_path)
    packs.put(pack_name(STUDY), [b64decode(case["pack"])])
    appending = writer(tmp_path)
    appending.append(drafts("in_new"), NOW)
    found = look(tmp_path)
    assert ids(found) == [*case["objects"], "in_new"]
    assert found.damages == []
    appending.append(drafts("in_newer"), NOW)
    appending.close()
    assert ids(look(tmp_path)) == [*case["objects"], "in_new", "in_newer"]


@pytest.mark.parametrize(
    "case", [case for case in VECTORS["cases"] if case["error"]], ids=lambda case: case["name"]
)
def test_writer_refuses_a_corrupt_pack_and_leaves_it_alone(case: dict[str, Any], tmp_path: Path) -> None:
    """What was durable is never cut away: the file keeps every byte for whoever repairs it."""
    data = b64decode(case["pack"])
    FileBlobs(tmp_path).put(pack_name(STUDY), [data])
    appending = writer(tmp_path)
    with pytest.raises((Corrupt, Invalid)):
        appending.append(drafts("in_new"), NOW)
    appending.close()
    assert path_of(tmp_path).read_bytes() == data


@pytest.mark.requirement("F4")
def test_pack_cut_at_any_byte_keeps_every_whole_record(tmp_path: Path) -> None:
    """Whatever the length at which a crash stopped the write, complete records before it count."""
    appending = writer(tmp_path)
    appending.append(drafts("in_one", "in_two"), NOW)
    durable = path_of(tmp_path).stat().st_size
    appending.append(drafts("in_three", "in_four"), NOW)
    appending.close()
    whole = path_of(tmp_path).read_bytes()
    for cut in range(durable, len(whole), 13):
        path_of(tmp_path).write_bytes(whole[:cut])
        again = writer(tmp_path)
        again.append(drafts("in_after"), NOW)
        again.close()
        found = look(tmp_path)
        assert ids(found)[:2] == ["in_one", "in_two"]
        assert ids(found)[-1] == "in_after"
        assert found.damages == []


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_changed_byte_of_an_earlier_group_goes_unnoticed(
    data: st.DataObject, tmp_path_factory: Any
) -> None:
    """Frames by their check, bodies by their BLAKE3: each byte of a durable group is covered by one of them."""
    folder = tmp_path_factory.mktemp("pack")
    appending = writer(folder)
    appending.append(drafts("in_one", "in_two"), NOW)
    durable = path_of(folder).stat().st_size
    appending.append(drafts("in_three"), NOW)
    appending.close()
    whole = bytearray(path_of(folder).read_bytes())
    whole[data.draw(st.integers(0, durable - 1))] ^= 1 << data.draw(st.integers(0, 7))

    def read(offset: int, length: int) -> bytes:
        return bytes(whole[offset : offset + length])

    try:
        found = survey(read, len(whole), STUDY)
        found.require_sound(STUDY)
    except (Corrupt, Invalid):
        return
    assert check_bodies(read, found.objects) != []


def test_two_damaged_places_of_one_group_are_both_voided(tmp_path: Path) -> None:
    """A power cut may lose several pages of the last group; what survived of it is kept."""
    appending = writer(tmp_path)
    appending.append(drafts("in_one"), NOW)
    appending.append(drafts("in_two", "in_three", "in_four", "in_five"), NOW)
    appending.close()
    data = bytearray(path_of(tmp_path).read_bytes())
    objects = look(tmp_path).objects
    for stored in (objects[1], objects[3]):
        place = frame_of(stored, bytes(data))
        data[place : place + FRAME_BYTES] = bytes(FRAME_BYTES)
    path_of(tmp_path).write_bytes(data)
    appending = writer(tmp_path)
    appending.append(drafts("in_six"), NOW)
    appending.close()
    found = look(tmp_path)
    assert ids(found) == ["in_one", "in_three", "in_five", "in_six"]
    assert found.damages == []


@pytest.mark.requirement("F4")
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_full_or_failing_disk_refuses_the_group_and_cuts_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Half a write is taken back; when the disk is well again the same writer goes on."""
    appending = writer(tmp_path)
    appending.append(drafts("in_one"), NOW)
    before = path_of(tmp_path).read_bytes()
    real, calls = os.pwritev, 0

    def fail_halfway(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        nonlocal calls
        calls += 1
        if calls == 1:
            return real(descriptor, [buffers[0][:50]], offset)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pwritev", fail_halfway)
    with pytest.raises(Unavailable):
        appending.append(drafts("in_two", "in_three"), NOW)
    monkeypatch.undo()
    assert path_of(tmp_path).read_bytes() == before
    appending.append(drafts("in_four"), NOW)
    appending.close()
    assert ids(look(tmp_path)) == ["in_one", "in_four"]


@pytest.mark.requirement("F4")
def test_kernel_that_refuses_in_the_middle_of_a_write_loses_nothing(tmp_path: Path) -> None:
    """The same with a real refusal: the kernel takes part of the bytes and then no more."""
    appending = writer(tmp_path)
    appending.append(drafts("in_one"), NOW)
    size = path_of(tmp_path).stat().st_size
    with largest_file(size + 500), pytest.raises(Unavailable):
        appending.append(drafts("in_two", "in_three"), NOW)
    assert path_of(tmp_path).stat().st_size == size
    appending.append(drafts("in_four"), NOW)
    appending.close()
    assert ids(look(tmp_path)) == ["in_one", "in_four"]


def test_failed_sync_takes_the_group_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that were written but not made durable are not answered for and not kept."""
    appending = writer(tmp_path)
    monkeypatch.setattr(os, "fdatasync", lambda _: (_ for _ in ()).throw(OSError(errno.EIO, "no")))
    with pytest.raises(Unavailable):
        appending.append(drafts("in_one"), NOW)
    monkeypatch.undo()
    assert path_of(tmp_path).stat().st_size == 0
    appending.append(drafts("in_two"), NOW)
    appending.close()
    assert ids(look(tmp_path)) == ["in_two"]


def test_disk_that_refuses_even_to_cut_is_cut_before_the_next_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group that was refused never comes back to life, however badly the disk behaved."""
    appending = writer(tmp_path)
    appending.append(drafts("in_one"), NOW)

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "no")

    monkeypatch.setattr(os, "fdatasync", fail)
    monkeypatch.setattr(os, "ftruncate", fail)
    for _ in range(2):
        with pytest.raises(Unavailable):
            appending.append(drafts("in_two"), NOW)
    monkeypatch.undo()
    assert ids(look(tmp_path)) == ["in_one", "in_two"]
    appending.append(drafts("in_three"), NOW)
    appending.close()
    assert ids(look(tmp_path)) == ["in_one", "in_three"]


def test_pack_that_was_cut_off_under_its_writer_is_corrupt(tmp_path: Path) -> None:
    """Durable bytes that vanish are told at the next append."""
    appending = writer(tmp_path)
    appending.append(drafts("in_one"), NOW)
    os.truncate(path_of(tmp_path), 60)
    with pytest.raises(Corrupt):
        appending.append(drafts("in_two"), NOW)
    appending.close()


def test_deleted_pack_is_not_written_into_the_void(tmp_path: Path) -> None:
    """A writer whose file was removed says so instead of answering for bytes that nobody can read."""
    appending = writer(tmp_path)
    appending.append(drafts("in_one"), NOW)
    FileBlobs(tmp_path).delete(pack_name(STUDY))
    with pytest.raises(PackGone):
        appending.append(drafts("in_two"), NOW)
    appending.close()


def test_two_writers_of_one_pack_see_each_other(tmp_path: Path) -> None:
    """Two processes may append to one study; neither writes over the other."""
    one, two = writer(tmp_path), writer(tmp_path)
    one.append(drafts("in_one"), NOW)
    two.append(drafts("in_two"), NOW)
    one.append(drafts("in_three"), NOW)
    two.append(drafts("in_four"), NOW)
    one.close()
    two.close()
    assert ids(look(tmp_path)) == ["in_one", "in_two", "in_three", "in_four"]


def test_survey_goes_on_from_where_it_ended(tmp_path: Path) -> None:
    """What was looked at once is not read again."""
    appending = writer(tmp_path)
    appending.append(drafts("in_one", "in_two"), NOW)
    seen = look(tmp_path).end
    appending.append(drafts("in_three"), NOW)
    appending.close()
    data = path_of(tmp_path).read_bytes()
    touched: list[int] = []

    def read(offset: int, length: int) -> bytes:
        touched.append(offset)
        return data[offset : offset + length]

    assert ids(survey(read, len(data), STUDY, seen)) == ["in_three"]
    assert min(touched) >= seen


def test_nothing_of_a_payload_lies_in_clear(tmp_path: Path) -> None:
    """The pack shows pseudonyms, sizes and digests of ciphertext, and not a byte of the payload."""
    appending = writer(tmp_path)
    header = ObjectHeader(STUDY, "in_one", "instance", 1)
    appending.append([Draft(header, b"ZHANG^SAN" * 50, KEY)], NOW)
    appending.close()
    assert b"ZHANG" not in path_of(tmp_path).read_bytes()


@pytest.mark.requirement("F1")
def test_groups_end_with_whole_blocks_and_go_round_the_page_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the file system can, every group is written directly; where it cannot, the same bytes go the usual way."""
    direct, usual = tmp_path / "direct", tmp_path / "usual"
    appending = writer(direct)
    took = [os.fstat(fd).st_ino for fd in _direct_descriptors(direct)]
    appending.append(drafts("in_one"), NOW)
    appending.append(drafts("in_two", "in_three", size=70_000), NOW)
    appending.close()
    monkeypatch.delattr(os, "O_DIRECT")
    appending = writer(usual)
    appending.append(drafts("in_one"), NOW)
    appending.append(drafts("in_two", "in_three", size=70_000), NOW)
    appending.close()
    for folder in (direct, usual):
        assert path_of(folder).stat().st_size % BLOCK_BYTES == 0
        assert ids(look(folder)) == ["in_one", "in_two", "in_three"]
        data = path_of(folder).read_bytes()
        assert check_bodies(lambda at, length, data=data: data[at : at + length], look(folder).objects) == []
    assert path_of(direct).stat().st_size == path_of(usual).stat().st_size
    assert took in ([], [path_of(direct).stat().st_ino])


def test_padding_with_other_bytes_than_zeros_is_no_record(tmp_path: Path) -> None:
    """What lies behind a group is checked like the rest: nothing can be hidden there."""
    appending = writer(tmp_path)
    appending.append(drafts("in_one"), NOW)
    appending.append(drafts("in_two"), NOW)
    appending.close()
    data = bytearray(path_of(tmp_path).read_bytes())
    data[BLOCK_BYTES - 1] = 1
    path_of(tmp_path).write_bytes(data)
    with pytest.raises(Corrupt):
        look(tmp_path).require_sound(STUDY)


def _direct_descriptors(folder: Path) -> list[int]:
    """This process's descriptors of files in `folder` that go round the page cache."""
    found = []
    for name in os.listdir("/proc/self/fd") if Path("/proc/self/fd").exists() else []:
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
            flags = int(Path(f"/proc/self/fdinfo/{name}").read_text().split("flags:")[1].split()[0], 8)
        except OSError:
            continue
        if target.startswith(str(folder)) and flags & os.O_DIRECT:
            found.append(int(name))
    return found
