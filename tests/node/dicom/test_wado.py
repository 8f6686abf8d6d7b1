"""WADO-RS beyond what is stored: transcoding, ranges, bulk data by its addresses, pictures at every level."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from io import BytesIO
from itertools import count

import numpy as np
import pydicom
import pytest
import pytest_asyncio
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import HTJ2KLossless, JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless

from consent.vocabulary import EventKind
from node.dicom import wado
from tests.support.dicom import IMPLICIT, Instance, ct_slice, from_file, study, uid
from tests.support.web_door import Door, chief, open_door, parts_of, whole_parts_of

RELATED = 'multipart/related; type="application/dicom"'


pytestmark = pytest.mark.asyncio(loop_scope="module")
numbers = count()


@dataclass(frozen=True)
class Place:
    """A study of its own for a test: one node serves them all, because starting its workers costs seconds."""

    name: str

    @property
    def study(self) -> str:
        return f"/studies/{uid(self.name)}"

    @property
    def series(self) -> str:
        return f"{self.study}/series/{uid(self.name, 1)}"

    def instance(self, number: int = 1) -> str:
        return f"{self.series}/instances/{uid(self.name, 1, number)}"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def door(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Door]:
    async with open_door(tmp_path_factory.mktemp("node")) as door:
        yield door


@pytest.fixture
def at() -> Place:
    return Place(f"wado-{next(numbers)}")


def packed(syntax: str, **options: object) -> Instance:
    """A CT slice stored in a lossless compression."""
    ds = ct_slice(**options).dataset()  # type: ignore[arg-type]
    ds.compress(syntax, generate_instance_uid=False)
    out = BytesIO()
    ds.save_as(out)
    return from_file(out.getvalue())


def nested(study: str, number: int = 1) -> Instance:
    """A slice with a private binary value inside the second item of a sequence, too long for metadata."""
    ds = ct_slice(study=study, number=number).dataset()
    items = [Dataset(), Dataset()]
    items[1].add_new(0x00420011, "OB", bytes(range(256)) * 8)
    ds.add_new(0x00081115, "SQ", Sequence(items))
    out = BytesIO()
    ds.save_as(out)
    return from_file(out.getvalue())


@pytest.mark.requirement("F5")
@pytest.mark.parametrize("stored", [JPEG2000Lossless, JPEGLSLossless, RLELossless])
async def test_what_is_compressed_is_unpacked_for_who_names_no_transfer_syntax(
    door: Door, at: Place, stored: str
) -> None:
    """Explicit VR Little Endian by default, the same picture; as it lies for who takes anything."""
    one = packed(stored, study=at.name)
    await door.node.store(one)
    who = await chief(door)
    _, headers, body = await door.get(who, at.study, RELATED)
    (file,) = parts_of(headers["Content-Type"], body)
    plain = pydicom.dcmread(BytesIO(file))
    _, headers, body = await door.get(who, at.study, f"{RELATED}; transfer-syntax=*")

    assert plain.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
    assert np.array_equal(plain.pixel_array, ct_slice().dataset().pixel_array)
    assert parts_of(headers["Content-Type"], body) == [one.file()]


@pytest.mark.requirement("F5")
async def test_a_study_is_packed_for_who_asks_for_it(door: Door, at: Place) -> None:
    """JPEG-LS by name, part by part; what has no pixels stays as it is; a lossy form is 406 with what there is."""
    report = ct_slice(study=at.name, number=9)
    bare = report.dataset()
    del bare.PixelData
    out = BytesIO()
    bare.save_as(out)
    await door.node.store(*study(name=at.name, slices=2), from_file(out.getvalue()))
    who = await chief(door)
    status, headers, body = await door.get(who, at.study, f"{RELATED}; transfer-syntax={JPEGLSLossless}")
    found = [pydicom.dcmread(BytesIO(file)) for file in parts_of(headers["Content-Type"], body)]
    refused, _, words = await door.get(who, at.study, f"{RELATED}; transfer-syntax=1.2.840.10008.1.2.4.50")

    assert status == 200
    assert [one.file_meta.TransferSyntaxUID for one in found] == [JPEGLSLossless] * 2 + [
        "1.2.840.10008.1.2.1"
    ]
    assert np.array_equal(found[0].pixel_array, ct_slice(number=1).dataset().pixel_array)
    assert refused == 406
    assert RELATED in json.loads(words)["mend"]


@pytest.mark.requirement("F5")
async def test_frames_come_packed_and_unpacked(door: Door, at: Place) -> None:
    """A frame of a compressed instance as pixels, and one of a plain instance as JPEG 2000, each with its address."""
    pixels = np.arange(3 * 64 * 64, dtype="<i2").reshape(3, 64, 64)
    await door.node.store(
        packed(RLELossless, study=at.name, pixels=pixels), ct_slice(study=at.name, number=2, pixels=pixels)
    )
    who = await chief(door)
    status, headers, body = await door.get(
        who, f"{at.instance(1)}/frames/3,1", 'multipart/related; type="application/octet-stream"'
    )
    parts = whole_parts_of(headers["Content-Type"], body)
    _, kind, jp2 = await door.get(who, f"{at.instance(2)}/frames/2", "image/jp2")

    assert status == 200
    assert [part.body for part in parts] == [pixels[2].tobytes(), pixels[0].tobytes()]
    assert parts[0].headers["content-type"].endswith("transfer-syntax=1.2.840.10008.1.2.1")
    assert parts[0].headers["content-location"].endswith("/frames/3")
    assert kind["Content-Type"] == f"image/jp2; transfer-syntax={JPEG2000Lossless}"
    assert np.array_equal(
        np.asarray(Image.open(BytesIO(jp2))).astype(int) - 32768, pixels[1]
    )  # Pillow lifts signed cells


@pytest.mark.requirement("F5")
@pytest.mark.parametrize(
    ("media_type", "syntax"), [("image/jpeg", JPEGLosslessSV1), ("image/jphc", HTJ2KLossless)]
)
async def test_lossless_jpeg_and_high_throughput_jpeg_2000_are_made(
    door: Door, at: Place, media_type: str, syntax: str
) -> None:
    """By name for an instance, and for a frame as the default of their media types; what does not go in is 406 with words."""
    plain = ct_slice(study=at.name, number=1)
    deep = ct_slice(study=at.name, number=2).dataset()
    deep.BitsAllocated, deep.BitsStored, deep.HighBit = 32, 32, 31
    deep.PixelData = bytes(4 * deep.Rows * deep.Columns)
    out = BytesIO()
    deep.save_as(out)
    await door.node.store(plain, from_file(out.getvalue()))
    who = await chief(door)
    _, kind, stream = await door.get(who, f"{at.instance(1)}/frames/1", media_type)
    wanted = f"application/dicom; transfer-syntax={syntax}"
    _, _, file = await door.get(who, at.instance(1), wanted)
    made = pydicom.dcmread(BytesIO(file))
    refused, _, words = await door.get(who, at.instance(2), wanted)

    assert kind["Content-Type"] == f"{media_type}; transfer-syntax={syntax}"
    assert made.file_meta.TransferSyntaxUID == syntax and stream.rstrip(b"\0") in made.PixelData
    assert np.array_equal(made.pixel_array, plain.dataset().pixel_array)
    assert refused == 406 and "uncompressed little endian" in json.loads(words)["mend"]


@pytest.mark.requirement("F5")
async def test_implicit_vr_is_rewritten_unless_any_is_taken(door: Door, at: Place) -> None:
    """PS3.18 §8.7.3: Implicit VR Little Endian is not used, but for who asks for things as they are."""
    await door.node.store(ct_slice(study=at.name, transfer_syntax=IMPLICIT))
    who = await chief(door)
    _, _, file = await door.get(who, at.instance(), "application/dicom")
    _, _, stored = await door.get(who, at.instance(), "application/dicom; transfer-syntax=*")

    assert pydicom.dcmread(BytesIO(file)).file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
    assert pydicom.dcmread(BytesIO(stored)).file_meta.TransferSyntaxUID == IMPLICIT


@pytest.mark.requirement("F5")
async def test_parts_of_single_bodies_are_served(
    door: Door, at: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranges of an instance and of its pixels, across the head, to the end, and beyond it."""
    monkeypatch.setattr(wado, "READ_BYTES", 700)
    await door.node.store(ct_slice(study=at.name))
    who = await chief(door)
    kind = "application/dicom; transfer-syntax=*"
    status, headers, file = await door.get(who, at.instance(), kind)
    assert (status, headers["Accept-Ranges"], file) == (200, "bytes", ct_slice(study=at.name).file())
    for asked, part in (
        ("bytes=0-99", file[:100]),
        ("bytes=100-2000", file[100:2001]),
        ("bytes=500-", file[500:]),
        ("bytes=-10", file[-10:]),
        ("bytes=0-99999999", file),
    ):
        status, headers, body = await door.get(who, at.instance(), kind, Range=asked)
        start = file.index(part)
        assert (status, body) == (206, part), asked
        assert headers["Content-Range"] == f"bytes {start}-{start + len(part) - 1}/{len(file)}"
    status, _, body = await door.get(
        who, f"{at.instance()}/bulkdata/7FE00010", "application/octet-stream", Range="bytes=4-7"
    )
    assert (status, body) == (206, ct_slice().dataset().PixelData[4:8])
    assert (await door.get(who, at.instance(), kind, Range="bytes=99999999-"))[0] == 416
    assert (await door.get(who, at.instance(), kind, Range="bytes=0-1,4-5"))[0] == 200
    await door.node.gateway.close()
    assert (await door.node.events(EventKind.STUDY_DOWNLOADED))[-1].event.detail["bytes"] > len(file)


@pytest.mark.requirement("F5")
async def test_every_address_in_the_metadata_gives_its_value(door: Door, at: Place) -> None:
    """BulkDataURIs work, inside sequences too; all of a series come as parts with those addresses."""
    await door.node.store(nested(at.name, 1), nested(at.name, 2))
    who = await chief(door)
    _, _, text = await door.get(who, f"{at.study}/metadata")
    model = json.loads(text)[0]
    uri = model["00081115"]["Value"][1]["00420011"]["BulkDataURI"]
    status, headers, value = await door.get(who, uri.partition("/dicom-web")[2], "application/octet-stream")
    _, kind, body = await door.get(who, f"{at.series}/bulkdata")
    parts = {
        part.headers["content-location"]: part.body for part in whole_parts_of(kind["Content-Type"], body)
    }
    _, kind, body = await door.get(who, f"{at.study}/pixeldata")

    assert (status, value) == (200, bytes(range(256)) * 8)
    assert headers["Content-Location"] == uri
    assert parts[uri] == value
    assert parts[model["7FE00010"]["BulkDataURI"]] == nested(at.name).dataset().PixelData
    assert len(parts) == 4
    assert parts_of(kind["Content-Type"], body) == [
        nested(at.name, number).dataset().PixelData for number in (1, 2)
    ]
    for path in ("00081115", "00081115/7/00420011", "00081115/1/00420012", "00100010/0/00100010"):
        assert (await door.get(who, f"{at.instance()}/bulkdata/{path}"))[0] == 404
    assert (await door.get(who, f"{at.study}/bulkdata", "application/octet-stream"))[0] == 406


@pytest.mark.requirement("F5")
async def test_many_frames_are_never_in_memory_together(
    door: Door, at: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past a few, frames go out as they are read."""
    monkeypatch.setattr(wado, "FRAMES_AT_ONCE", 2)
    pixels = np.arange(5 * 16 * 16, dtype="<i2").reshape(5, 16, 16)
    await door.node.store(ct_slice(study=at.name, pixels=pixels))
    _, headers, body = await door.get(await chief(door), f"{at.instance()}/frames/1,2,3,4,5")

    assert parts_of(headers["Content-Type"], body) == [frame.tobytes() for frame in pixels]
    assert "Content-Length" not in headers


@pytest.mark.requirement("F5", "U5")
async def test_pictures_are_drawn_at_every_level(door: Door, at: Place) -> None:
    """One picture stands for a study or series; in parts there is one of each frame; thumbnails are small."""
    await door.node.store(*study(name=at.name, slices=3))
    who = await chief(door)
    for level in (
        at.study,
        at.series,
        at.instance(),
        f"{at.instance()}/frames/1",
    ):
        for what, side in (("rendered?viewport=64,64", 320), ("thumbnail", 160)):
            status, headers, body = await door.get(who, f"{level}/{what}")
            assert (status, headers["Content-Type"]) == (200, "image/jpeg"), (level, what)
            assert Image.open(io.BytesIO(body)).size[0] <= side
    status, headers, body = await door.get(
        who, f"{at.study}/rendered?quality=5", 'multipart/related; type="image/jpeg"'
    )
    parts = whole_parts_of(headers["Content-Type"], body)
    assert [part.headers["content-location"].split("/")[-4] for part in parts] == [
        uid(at.name, 1, number) for number in (1, 2, 3)
    ]
    _, _, better = await door.get(who, f"{at.instance()}/rendered?quality=95")
    assert len(parts[0].body) < len(better)
    turned = await door.get(
        who, f"{at.instance()}/rendered?window=40,400,sigmoid&viewport=32,32,0,0,16,16", "image/png"
    )
    assert turned[0] == 200
    for broken in (
        "quality=0",
        "quality=x",
        "window=1,2,3,4",
        "window=40,400,cubic",
        "viewport=1,2,3",
        "viewport=9,9,,,,",
    ):
        assert (await door.get(who, f"{at.instance()}/rendered?{broken}"))[0] == 400, broken
    monstrous = f"{at.instance()}/frames/" + ",".join(["1"] * 600) + "/rendered"
    assert (await door.get(who, monstrous, 'multipart/related; type="image/jpeg"'))[0] == 413


@pytest.mark.requirement("C3", "F5")
async def test_a_changed_byte_stops_every_way_out(door: Door, at: Place) -> None:
    """Transcoding, ranges, bulk data and pictures of an altered instance give nothing of it, and it is on record."""
    (receipt,) = await door.node.store(ct_slice(study=at.name))
    pack = next((door.node.path / "studies").rglob(f"{receipt.study}.pack"))
    row = await door.node.index.instance(receipt.study, receipt.instance)
    data = bytearray(pack.read_bytes())
    data[row.data_set.end - 40] ^= 1
    pack.write_bytes(bytes(data))
    who = await chief(door)
    for path, kind, more in (
        (at.instance(), f"{RELATED}; transfer-syntax={RLELossless}", {}),
        (at.instance(), "application/dicom; transfer-syntax=*", {"Range": "bytes=400-500"}),
        (f"{at.instance()}/bulkdata/7FE00010", "*/*", {}),
        (f"{at.instance()}/frames/1", "*/*", {}),
        (f"{at.study}/pixeldata", "*/*", {}),
        (f"{at.study}/thumbnail", "*/*", {}),
    ):
        assert (await door.get(who, path, kind, **more))[0] == 500, path

    assert len(await door.node.events(EventKind.INTEGRITY_FAILED)) == 6


@pytest.mark.requirement("F5")
async def test_the_head_of_an_answer_comes_alone(door: Door, at: Place) -> None:
    """HEAD tells length and type, hands nothing over and counts nothing; the connection stays in step."""
    await door.node.store(*study(name=at.name, slices=2))
    headers = {"Authorization": f"Bearer {await door.token(await chief(door))}"}
    for path in (
        at.study,
        at.instance(),
        f"{at.instance()}/frames/1",
        f"{at.study}/metadata",
        f"{at.study}/pixeldata",
    ):
        for _ in range(2):
            async with door.http.head(door.url + path, headers=headers) as head:
                assert (head.status, await head.read()) == (200, b""), path
        async with door.http.get(door.url + path, headers=headers) as answer:
            whole = await answer.read()
        assert head.headers.get("Content-Length", str(len(whole))) == str(len(whole)), path
