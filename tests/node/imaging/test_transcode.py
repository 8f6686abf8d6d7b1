"""Uncompressed or lossless from whatever an image is stored in: the picture stays what it is."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pydicom
import pytest
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit, JPEGLSLossless, RLELossless

from consent.errors import Invalid
from node.imaging import transcode as transcoding
from node.imaging.elements import PIXEL_DATA, elements, encoding_of
from node.imaging.part10 import part10_head
from node.imaging.syntaxes import PACKED, TARGETS
from node.imaging.transcode import transcode, transcode_frame
from tests.support.dicom import BIG_ENDIAN, DEFLATED, EXPLICIT, IMPLICIT, ct_slice, from_file

CT = "1.2.840.10008.5.1.4.1.1.2"


def read(data: bytes, syntax: str) -> pydicom.Dataset:
    return pydicom.dcmread(BytesIO(part10_head(CT, "1.2.3", syntax) + data))


@pytest.mark.requirement("F5")
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("source", [EXPLICIT, IMPLICIT, DEFLATED, BIG_ENDIAN])
def test_plain_encodings_change_and_pixels_do_not(source: str, target: str) -> None:
    """Byte order, VRs and deflation go; names, numbers and pixel values stay."""
    one = ct_slice(transfer_syntax=source)
    made = read(transcode(one.data, source, target), target)
    before = ct_slice().dataset()

    assert np.array_equal(made.pixel_array, before.pixel_array)
    assert (made.PatientName, made.SOPInstanceUID) == (before.PatientName, before.SOPInstanceUID)


@pytest.mark.requirement("F5")
@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless, RLELossless])
def test_compressed_images_are_decoded(syntax: str) -> None:
    """Lossless codecs give every picture element back."""
    ds = ct_slice(size=64).dataset()
    before = ds.pixel_array.copy()
    ds.compress(syntax, generate_instance_uid=False)
    out = BytesIO()
    ds.save_as(out)
    stored = from_file(out.getvalue())
    made = read(transcode(stored.data, str(syntax), EXPLICIT), EXPLICIT)

    assert np.array_equal(made.pixel_array, before)
    assert made.SOPInstanceUID == ds.SOPInstanceUID


@pytest.mark.parametrize(
    ("data", "source", "target", "code"),
    [
        (b"not a data set", str(JPEG2000Lossless), EXPLICIT, "undecodable"),
        (ct_slice().data, EXPLICIT, str(JPEGBaseline8Bit), "transfer-syntax"),
        (ct_slice().data, "1.2.3", EXPLICIT, "transfer-syntax"),
    ],
    ids=["noise", "to-lossy", "from-unknown"],
)
def test_what_cannot_be_done_is_said(data: bytes, source: str, target: str, code: str) -> None:
    """Noise, a lossy target and an unknown source are Invalid, each for its reason."""
    with pytest.raises(Invalid) as refusal:
        transcode(data, source, target)

    assert refusal.value.code == code


def test_what_would_grow_past_the_bound_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The size is known from the header before a decoder runs."""
    ds = ct_slice(size=64).dataset()
    ds.compress(RLELossless, generate_instance_uid=False)
    out = BytesIO()
    ds.save_as(out)
    monkeypatch.setattr(transcoding, "MAX_DECODED_BYTES", 64 * 64 * 2 - 1)
    with pytest.raises(Invalid, match="larger than"):
        transcode(from_file(out.getvalue()).data, str(RLELossless), EXPLICIT)


@pytest.mark.requirement("F5")
@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("source", [EXPLICIT, BIG_ENDIAN])
def test_a_frame_is_packed_and_unpacked_alone(source: str, packed: str) -> None:
    """Of a data set only its head is needed to bring one frame into another syntax and back."""
    one = ct_slice(transfer_syntax=source)
    place = next(e for e in elements(one.data, encoding_of(source).form) if e.tag in PIXEL_DATA)
    head, stored = one.data[: place.start], one.data[place.start : place.start + place.length]
    made = transcode_frame(head, stored, source, packed)
    whole = transcode(one.data, source, packed)
    place = next(e for e in elements(whole, encoding_of(packed).form) if e.tag in PIXEL_DATA)

    assert len(made) < len(stored)
    assert transcode_frame(whole[: place.start], made, packed, EXPLICIT) == ct_slice().dataset().PixelData
