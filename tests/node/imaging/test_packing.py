"""JPEG Lossless and High-Throughput JPEG 2000 that are made here, read back bit for bit by decoders of others."""

from __future__ import annotations

import shutil
import subprocess
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.encaps import generate_frames
from pydicom.pixels.decoders import HTJ2KLosslessDecoder, JPEGLosslessSV1Decoder

from consent.errors import Invalid
from node.imaging.decode import decode_frame
from node.imaging.grayscale import stored_values
from node.imaging.part10 import part10_head
from node.imaging.syntaxes import EXPLICIT_LITTLE_ENDIAN, HTJ2K, JPEG_LOSSLESS
from node.imaging.transcode import transcode
from tests.support.dicom import Instance, from_file, pydicom_sample_paths
from tests.support.images import image

pytestmark = pytest.mark.requirement("F5", "C3")
OTHERS = {JPEG_LOSSLESS: (JPEGLosslessSV1Decoder, "gdcm"), HTJ2K: (HTJ2KLosslessDecoder, "pylibjpeg")}
"""Decoders of other makers than the encoder: GDCM's libjpeg, and OpenJPEG."""

rng = np.random.default_rng(7)
Y, X = np.mgrid[:33, :57]
SMOOTH = (np.sin(Y / 9) * 900 + np.cos(X / 7) * 900 + 2000).astype(np.uint16)
BYTES = (SMOOTH >> 4).astype(np.uint8)
COLOUR = np.stack([BYTES, BYTES[::-1], 255 - BYTES], axis=-1)
CASES: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
    "8 bits": (BYTES, {}),
    "8 bits, 6 stored": (BYTES >> 2, {"BitsStored": 6, "HighBit": 5}),
    "12 bits": (SMOOTH, {"BitsStored": 12, "HighBit": 11}),
    "12 bits and an overlay above them": (SMOOTH | (X > Y).astype(np.uint16) << 14, {"BitsStored": 12, "HighBit": 11}),
    "16 bits of noise": (rng.integers(0, 65536, (33, 57)).astype(np.uint16), {}),
    "12 bits, signed": (SMOOTH.astype(np.int16) - 2048, {"BitsStored": 12, "HighBit": 11}),
    "16 bits of noise, signed": (rng.integers(-32768, 32768, (33, 57)).astype(np.int16), {}),
    "all alike": (np.zeros((33, 57), np.uint16), {"BitsStored": 12, "HighBit": 11}),
    "colour": (COLOUR, {}),
    "colour not RGB": (COLOUR, {"PhotometricInterpretation": "YBR_FULL"}),
    "colour by plane": (COLOUR, {"PlanarConfiguration": 1}),
}  # fmt: skip


NOT_JPEG = {"8 bits, 6 stored", "colour not RGB"}
MASKED_BY_GDCM = "12 bits and an overlay above them"
"""GDCM clears what lies above Bits Stored, whatever the stream holds; DCMTK and our own decoder show that it is there."""


def made(cells: np.ndarray, **more: Any) -> Instance:
    """An uncompressed image of these cells."""
    samples = 3 if cells.ndim == 3 else 1
    laid = np.moveaxis(cells, 2, 0) if more.get("PlanarConfiguration") else cells
    ds = image(cells, samples=samples).dataset()
    ds.PixelData = laid.tobytes() + b"\0" * (laid.nbytes % 2)
    for keyword, value in more.items():
        setattr(ds, keyword, value)
    out = BytesIO()
    ds.save_as(out)
    return from_file(out.getvalue())


def read(data: bytes, syntax: str) -> pydicom.Dataset:
    return pydicom.dcmread(BytesIO(part10_head("1.2.840.10008.5.1.4.1.1.7", "1.2.3", syntax) + data))


@pytest.mark.parametrize(
    ("case", "target"),
    [(case, target) for case in CASES for target in OTHERS if target == HTJ2K or case not in NOT_JPEG],
)
def test_every_bit_comes_back(case: str, target: str) -> None:
    """By another maker's decoder, and by our own; the description of the image stays what it was."""
    cells, more = CASES[case]
    one = made(cells, **more)
    packed = read(transcode(one.data, EXPLICIT_LITTLE_ENDIAN, target), target)
    decoder, plugin = OTHERS[target]
    (stream,) = generate_frames(packed.PixelData, number_of_frames=1)
    back, told = decoder.as_array(packed, raw=True, decoding_plugin=plugin)

    expected = cells & 0xFFF if target == JPEG_LOSSLESS and case == MASKED_BY_GDCM else cells
    assert back.astype(np.int64).tolist() == expected.astype(np.int64).tolist()
    assert told["photometric_interpretation"] == one.dataset().PhotometricInterpretation
    for keyword in ("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SOPInstanceUID"):
        assert packed[keyword].value == one.dataset()[keyword].value
    assert packed.get("PlanarConfiguration", 0) == 0 and len(stream) < cells.nbytes + 600
    if cells.ndim == 2:
        buffer = BytesIO()
        packed.save_as(buffer)
        ours = decode_frame(from_file(buffer.getvalue()).data, target, 1)
        plain = decode_frame(one.data, EXPLICIT_LITTLE_ENDIAN, 1)
        assert np.array_equal(
            stored_values(ours.cells, ours.layout), stored_values(plain.cells, plain.layout)
        )


@pytest.mark.parametrize("case", sorted(NOT_JPEG))
def test_what_other_readers_of_jpeg_get_wrong_is_not_made(case: str) -> None:
    """Refused in words, rather than made and misread."""
    cells, more = CASES[case]
    with pytest.raises(Invalid, match="do not go into that compression"):
        transcode(made(cells, **more).data, EXPLICIT_LITTLE_ENDIAN, JPEG_LOSSLESS)


@pytest.mark.parametrize("target", OTHERS)
def test_frames_are_streams_of_their_own(target: str) -> None:
    """Three frames, in order, each by itself."""
    frames = np.stack([SMOOTH, SMOOTH[::-1], SMOOTH // 2])
    ds = image(SMOOTH).dataset()
    ds.NumberOfFrames, ds.PixelData = 3, frames.tobytes()
    out = BytesIO()
    ds.save_as(out)
    one = from_file(out.getvalue())
    packed = read(transcode(one.data, EXPLICIT_LITTLE_ENDIAN, target), target)
    assert np.array_equal(packed.pixel_array, frames)
    assert len(list(generate_frames(packed.PixelData, number_of_frames=3))) == 3


@pytest.mark.skipif(shutil.which("dcmdjpeg") is None, reason="DCMTK is not installed")
@pytest.mark.parametrize("case", [name for name in CASES if name not in NOT_JPEG])
def test_dcmtk_reads_our_jpeg(case: str, tmp_path: Path) -> None:
    """Every bit, also of overlays that lie above the pixels."""
    cells, more = CASES[case]
    one = made(cells, **more)
    packed = transcode(one.data, EXPLICIT_LITTLE_ENDIAN, JPEG_LOSSLESS)
    (tmp_path / "in.dcm").write_bytes(
        Instance(one.sop_class_uid, one.sop_instance_uid, JPEG_LOSSLESS, packed).file()
    )
    done = subprocess.run(
        ["dcmdjpeg", "+cn", "+px", tmp_path / "in.dcm", tmp_path / "out.dcm"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    back = pydicom.dcmread(tmp_path / "out.dcm")
    assert bytes(back.PixelData)[: cells.nbytes] == cells.tobytes()


@pytest.mark.parametrize("target", OTHERS)
def test_real_patients_come_back(target: str) -> None:
    """The CT, MR and CR studies inside pydicom, there and back."""
    for path in pydicom_sample_paths():
        one = from_file(path.read_bytes())
        packed = transcode(one.data, one.transfer_syntax_uid, target)
        back = read(transcode(packed, target, EXPLICIT_LITTLE_ENDIAN), EXPLICIT_LITTLE_ENDIAN)
        assert back.PixelData == pydicom.dcmread(path).PixelData


@pytest.mark.requirement("F4")
@pytest.mark.parametrize("target", OTHERS)
@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"BitsAllocated": 32, "BitsStored": 32, "HighBit": 31}, "not-acceptable"),
        ({"PhotometricInterpretation": "YBR_FULL_422"}, "not-acceptable"),
        ({"Rows": 60}, "undecodable"),
    ],
    ids=["32-bit", "subsampled", "short"],
)
def test_what_does_not_go_in_is_refused_in_words(more: dict[str, Any], code: str, target: str) -> None:
    """Nothing is cut or guessed."""
    with pytest.raises(Invalid) as refused:
        transcode(made(SMOOTH, **more).data, EXPLICIT_LITTLE_ENDIAN, target)
    assert refused.value.code == code
