"""Code streams of every common transfer syntax decode to what was encoded; those that lie or are films are refused."""

from __future__ import annotations

import struct
import zlib
from contextlib import suppress
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest

from consent.errors import Invalid, Unavailable
from node.imaging import decode
from node.imaging.codecs import DRAWN_SYNTAXES
from node.imaging.decode import decode_frame
from node.imaging.grayscale import stored_values
from node.imaging.presentation import present
from node.imaging.rendering import Renderer
from tests.support.dicom import DEFLATED, Instance
from tests.support.images import image

pytestmark = pytest.mark.requirement("F5")
JPEG = "1.2.840.10008.1.2.4."
BASELINE, EXTENDED, LOSSLESS, FIRST_ORDER = (JPEG + number for number in ("50", "51", "57", "70"))
LS, NEAR, J2K, J2K_LOSSY = (JPEG + number for number in ("80", "81", "90", "91"))
HTJ2K, RPCL, HTJ2K_LOSSY = (JPEG + number for number in ("201", "202", "203"))
RLE = "1.2.840.10008.1.2.5"
UNCOMPRESSED = "1.2.840.10008.1.2.1.98"

Y, X = np.mgrid[:48, :40]
SMOOTH = (np.sin(Y / 9) * 50 + np.cos(X / 7) * 50 + 120).astype(np.uint8)
TWELVE = (SMOOTH.astype(np.uint16) * 16) + 3
SIXTEEN = (SMOOTH.astype(np.uint16) * 257) ^ 0x55
COLOUR = np.stack([SMOOTH, SMOOTH[::-1], SMOOTH[:, ::-1]], axis=-1)


def _rle(cells: np.ndarray, samples: int = 1) -> bytes:
    found = pydicom.pixels.encoders.RLELosslessEncoder.encode(
        cells.astype("<" + cells.dtype.str[1:]).tobytes(),
        rows=cells.shape[0],
        columns=cells.shape[1],
        number_of_frames=1,
        samples_per_pixel=samples,
        bits_allocated=cells.itemsize * 8,
        bits_stored=cells.itemsize * 8,
        pixel_representation=0,
        photometric_interpretation="RGB" if samples == 3 else "MONOCHROME2",
        planar_configuration=0,
        encoding_plugin="pydicom",
    )
    return bytes(found)


def _jpeg(cells: np.ndarray, **options: Any) -> bytes:
    return bytes(imagecodecs.jpeg8_encode(cells, level=95, **options))


def _lossless(cells: np.ndarray, bits: int) -> bytes:
    return bytes(imagecodecs.jpeg8_encode(cells, lossless=True, predictor=1, bitspersample=bits))


def _j2k(cells: np.ndarray, bits: int) -> bytes:
    return bytes(
        imagecodecs.jpeg2k_encode(cells, codecformat="J2K", reversible=True, bitspersample=bits, mct=False)
    )


CASES: dict[str, tuple[np.ndarray, str, bytes, int]] = {
    "baseline": (SMOOTH, BASELINE, _jpeg(SMOOTH), 4),
    "baseline colour": (COLOUR, BASELINE, _jpeg(COLOUR, subsampling="444"), 16),
    "extended 8": (SMOOTH, EXTENDED, _jpeg(SMOOTH), 4),
    "extended 12": (TWELVE, EXTENDED, _jpeg(TWELVE, bitspersample=12), 40),
    "lossless 8": (SMOOTH, LOSSLESS, _lossless(SMOOTH, 8), 0),
    "lossless 12": (TWELVE, FIRST_ORDER, _lossless(TWELVE, 12), 0),
    "lossless 16": (SIXTEEN, FIRST_ORDER, _lossless(SIXTEEN, 16), 0),
    "JPEG-LS 8": (SMOOTH, LS, bytes(imagecodecs.jpegls_encode(SMOOTH)), 0),
    "JPEG-LS 16": (SIXTEEN, LS, bytes(imagecodecs.jpegls_encode(SIXTEEN)), 0),
    "JPEG-LS near": (SMOOTH, NEAR, bytes(imagecodecs.jpegls_encode(SMOOTH, level=2)), 2),
    "JPEG-LS colour": (COLOUR, LS, bytes(imagecodecs.jpegls_encode(COLOUR)), 0),
    "JPEG 2000 8": (SMOOTH, J2K, _j2k(SMOOTH, 8), 0),
    "JPEG 2000 12": (TWELVE, J2K, _j2k(TWELVE, 12), 0),
    "JPEG 2000 16": (SIXTEEN, J2K, _j2k(SIXTEEN, 16), 0),
    "JPEG 2000 signed": (TWELVE.astype(np.int16) - 2048, J2K, _j2k(TWELVE.astype(np.int16) - 2048, 16), 0),
    "JPEG 2000 colour": (COLOUR, J2K, _j2k(COLOUR, 8), 0),
    "JPEG 2000 lossy": (SMOOTH, J2K_LOSSY, bytes(imagecodecs.jpeg2k_encode(SMOOTH, level=45, codecformat="J2K")), 12),
    "HTJ2K 8": (SMOOTH, HTJ2K, bytes(imagecodecs.htj2k_encode(SMOOTH)), 0),
    "HTJ2K 16": (SIXTEEN, RPCL, bytes(imagecodecs.htj2k_encode(SIXTEEN)), 0),
    "HTJ2K colour": (COLOUR, HTJ2K_LOSSY, bytes(imagecodecs.htj2k_encode(COLOUR, rgb=False)), 0),
    "RLE 8": (SMOOTH, RLE, _rle(SMOOTH), 0),
    "RLE 16": (SIXTEEN, RLE, _rle(SIXTEEN), 0),
    "RLE colour": (COLOUR, RLE, _rle(COLOUR, 3), 0),
    "encapsulated, not compressed": (SIXTEEN, UNCOMPRESSED, SIXTEEN.tobytes(), 0),
}  # fmt: skip


def built(cells: np.ndarray, syntax: str, stream: bytes, **more: Any) -> Instance:
    samples = 3 if cells.ndim == 3 else 1
    padded = stream + b"\0" * (len(stream) % 2)
    return image(cells, samples=samples, syntax=syntax, stream=[padded], **more)


@pytest.mark.parametrize("name", CASES)
def test_streams_decode_to_what_was_encoded(name: str) -> None:
    """Exactly where the compression is lossless, closely where it is not."""
    cells, syntax, stream, slack = CASES[name]
    colour = {"PhotometricInterpretation": "YBR_FULL"} if name == "baseline colour" else {}
    one = built(cells, syntax, stream, **colour)
    frame = decode_frame(one.data, syntax, 1)
    ours = present(frame) if cells.ndim == 3 else stored_values(frame.cells, frame.layout)

    assert ours.shape == cells.shape
    assert int(np.abs(ours.astype(int) - cells).max()) <= slack


def test_every_drawn_syntax_has_a_case() -> None:
    """No transfer syntax is said to be drawn without a test, but those that share a decoder with one that has."""
    tested = {syntax for _, syntax, _, _ in CASES.values()}
    sharing = {JPEG + number for number in ("53", "55", "92", "93")}

    assert tested | sharing >= DRAWN_SYNTAXES


@pytest.mark.parametrize("name", [name for name in CASES if name != "encapsulated, not compressed"])
def test_streams_that_are_not_what_the_image_says_are_refused(name: str) -> None:
    """A stream of another size is found by its own head, before a decoder makes room for it."""
    cells, syntax, stream, _ = CASES[name]
    smaller = [] if syntax == RLE else [{"Rows": 47}]  # run-length segments do not say how long they are
    for more in (*smaller, {"Columns": 4000}, {"Rows": 60000, "Columns": 4000}):
        with pytest.raises(Invalid) as caught:
            decode_frame(built(cells, syntax, stream, **more).data, syntax, 1)
        assert caught.value.code in ("codestream", "undecodable")


def test_a_stream_of_giant_size_is_refused_before_it_is_decoded() -> None:
    """A few bytes that claim gigabytes, for an image that claims the same, pass the bound on one frame."""
    cells = np.zeros((4, 4, 3), np.uint8)
    head = struct.pack(">HHBHHB", 0xFFC0, 17, 8, 60000, 60000, 3) + bytes.fromhex("011100021101031101")
    one = built(cells, BASELINE, b"\xff\xd8" + head, Rows=60000, Columns=60000)
    with pytest.raises(Invalid) as caught:
        decode_frame(one.data, BASELINE, 1)
    assert caught.value.code == "no-pixels"


@pytest.mark.parametrize("number", ["100", "101", "102", "103", "104", "105", "106", "107", "108"])
def test_films_are_refused_as_films(number: str) -> None:
    """MPEG-2, MPEG-4 and HEVC are not drawn, and the refusal says what to do instead."""
    with pytest.raises(Invalid, match="film") as caught:
        decode_frame(built(SMOOTH, JPEG + number, b"\0\0\1\xb3" * 8).data, JPEG + number, 1)
    assert (caught.value.code, "Download" in caught.value.mend) == ("video", True)


def test_compressions_without_a_decoder_are_refused_in_words() -> None:
    """Retired hierarchical JPEG is named as what it is: not drawn here."""
    with pytest.raises(Invalid, match="not drawn here") as caught:
        decode_frame(built(SMOOTH, JPEG + "59", b"\xff\xd8" * 9).data, JPEG + "59", 1)
    assert caught.value.code == "no-decoder"


@pytest.mark.parametrize(
    ("photometric", "stream"),
    [
        ("RGB", _jpeg(COLOUR, colorspace="RGB", outcolorspace="RGB", subsampling="444")),
        ("YBR_FULL", _jpeg(COLOUR, colorspace="RGB", outcolorspace="RGB", subsampling="444")),
        ("RGB", _jpeg(COLOUR, subsampling="444")),
        ("YBR_FULL_422", _jpeg(COLOUR, subsampling="422")),
    ],
    ids=["RGB as said", "RGB, said YBR", "YBR, said RGB", "YBR as said"],
)
def test_a_jpeg_stream_knows_its_colours_best(photometric: str, stream: bytes) -> None:
    """Where the stream's own markers and the data set disagree, the stream is right."""
    one = built(COLOUR, BASELINE, stream, PhotometricInterpretation=photometric)
    picture = present(decode_frame(one.data, BASELINE, 1))

    assert np.abs(picture.astype(int) - COLOUR).mean() < 3


def test_a_deflated_data_set_is_drawn_and_a_bomb_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """PS3.5 §A.5; what inflates past the bound is refused on the way."""
    monkeypatch.setattr(decode, "MAX_INFLATED_BYTES", 1 << 20)
    one = image(SMOOTH, syntax=DEFLATED)
    assert (present(decode_frame(one.data, DEFLATED, 1)) == SMOOTH).all()

    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = packer.compress(zlib.decompress(one.data, -15))
    bomb += b"".join(packer.compress(bytes(1 << 20)) for _ in range(4))
    with pytest.raises(Invalid) as caught:
        decode_frame(bomb + packer.flush(), DEFLATED, 1)
    assert caught.value.code == "inflates-too-far"


def test_pixels_encoded_otherwise_than_the_transfer_syntax_says_are_refused() -> None:
    """Native pixels under a compressed syntax, and the other way round."""
    native, packed = image(SMOOTH), built(SMOOTH, BASELINE, _jpeg(SMOOTH))
    for one, syntax in ((native, BASELINE), (packed, "1.2.840.10008.1.2.1")):
        with pytest.raises(Invalid) as caught:
            decode_frame(one.data, syntax, 1)
        assert caught.value.code == "undecodable"


@pytest.mark.requirement("F4")
async def test_damaged_streams_are_drawn_or_refused_and_the_next_is_drawn() -> None:
    """Damage costs the picture, at worst the worker, never more: two hundred damaged streams of every kind."""
    rng = np.random.default_rng(20)
    whole = image(SMOOTH)
    async with Renderer(1) as renderer:
        for number in range(200):
            cells, syntax, stream, _ = list(CASES.values())[number % len(CASES)]
            damaged = bytearray(stream)
            reach = len(stream) if number % 2 else min(len(stream), 64)
            for at in rng.integers(0, reach, 3):
                damaged[at] = rng.integers(0, 256)
            with suppress(Invalid, Unavailable):
                await renderer.render(
                    built(cells, syntax, bytes(damaged)).data, syntax, media_type="image/jpeg"
                )
        assert await renderer.render(whole.data, whole.transfer_syntax_uid)
