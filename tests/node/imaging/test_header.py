"""Headers of images: values by tag, items by number, and data sets that break their format."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence

from consent.errors import Invalid
from node.imaging.header import Header
from tests.support.dicom import BIG_ENDIAN, DEFLATED, EXPLICIT, IMPLICIT, element, nested_sequences
from tests.support.images import groups, image

SYNTAXES = (EXPLICIT, IMPLICIT, BIG_ENDIAN)


def encoded(ds: Dataset, syntax: str = EXPLICIT) -> bytes:
    out = DicomBytesIO()
    out.is_little_endian, out.is_implicit_VR = syntax != BIG_ENDIAN, syntax == IMPLICIT
    write_dataset(out, ds)
    return out.getvalue()


def many(undefined: bool) -> Dataset:
    """Three items, one with a sequence of its own; lengths stated or not."""
    items = []
    for number in range(3):
        inner, outer = Dataset(), Dataset()
        inner.RescaleSlope = str(number + 1)
        outer.PixelValueTransformationSequence = Sequence([inner])
        outer["PixelValueTransformationSequence"].is_undefined_length = undefined
        inner.is_undefined_length_sequence_item = outer.is_undefined_length_sequence_item = undefined
        items.append(outer)
    ds = groups(None, items)
    ds["PerFrameFunctionalGroupsSequence"].is_undefined_length = undefined
    ds.Rows = 7
    return ds


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_values_read_the_same_in_every_encoding(syntax: str) -> None:
    """Numbers, texts and 16-bit words, with and without stated representation, in both byte orders."""
    one = image(
        np.zeros((3, 5), np.int16),
        syntax=syntax,
        WindowCenter=["40", "-1.5e2"],
        WindowCenterWidthExplanation=["SOFT", "BONE"],
        PixelPaddingValue=-2000,
    )
    header = Header.of(one.data, syntax)

    assert (header.integer(0x00280010, "US"), header.integer(0x00280011, "US")) == (3, 5)
    assert header.numbers(0x00281050, "DS") == (40.0, -150.0)
    assert header.texts(0x00281055) == ("SOFT", "BONE")
    assert header.words(0x00280120, signed=True) == (-2000,)
    assert header.pixels is not None and header.pixels.tag == 0x7FE00010
    assert (header.number(0x00289999, "DS"), header.text(0x00289999), 0x00289999 in header) == (
        None,
        "",
        False,
    )
    assert header.big_endian is (syntax == BIG_ENDIAN)


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_items_are_opened_by_number(syntax: str, undefined: bool) -> None:
    """Items with and without a stated length; one that is not there is None."""
    header = Header.of(encoded(many(undefined), syntax), syntax)

    assert header.count(0x52009230) == 3
    third = header.item(0x52009230, 2)
    assert third is not None
    inner = third.item(0x00289145)
    assert inner is not None and inner.number(0x00281053, "DS") == 3.0
    assert header.item(0x52009230, 3) is None and header.item(0x52009230, -1) is None
    assert [one.count(0x00289145) for one in header.items(0x52009230)] == [1, 1, 1]
    assert header.integer(0x00280010, "US") == 7


@pytest.mark.parametrize(
    "value", ["x", "1_0", "nan", "inf", "1e999", "", "12\\x"], ids=lambda value: value or "empty"
)
def test_numbers_that_are_none_are_absent(value: str) -> None:
    """A value that is not what its representation says costs itself alone."""
    data = element(0x00281050, b"DS", value.encode() + b" " * (len(value) % 2))
    assert Header.of(data, EXPLICIT).numbers(0x00281050, "DS") == ()


@pytest.mark.parametrize(
    "data",
    [
        element(0x00280010, b"US", b"ab", length=3000),
        struct.pack("<HHI", 0xFFFE, 0xE0DD, 0),
        element(0x52009230, b"SQ", b"12345678"),
        element(0x52009230, b"SQ", struct.pack("<HHI", 0xFFFE, 0xE000, 900)),
        element(0x52009230, b"SQ", struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF) + b"\x08\0"),
        nested_sequences(200),
    ],
    ids=["too long", "stray delimiter", "no item", "item too long", "item without end", "too deep"],
)
@pytest.mark.requirement("F4")
def test_broken_headers_are_invalid(data: bytes) -> None:
    """False lengths, stray delimiters and endless nesting end in a refusal."""
    with pytest.raises(Invalid):
        Header.of(data, EXPLICIT).count(0x52009230)


@pytest.mark.requirement("F4")
def test_values_too_long_to_draw_with_are_refused() -> None:
    """A table of gigabytes is not copied; the first of two equal elements counts."""
    huge = element(0x00283006, b"OW", bytes(2 * 1024 * 1024))
    with pytest.raises(Invalid, match="too long"):
        Header.of(huge, EXPLICIT).value(0x00283006)
    twice = element(0x00280010, b"US", b"\1\0") + element(0x00280010, b"US", b"\2\0")
    assert Header.of(twice, EXPLICIT).integer(0x00280010, "US") == 1


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60), st.floats(0, 1), st.booleans())
def test_noise_in_a_header_is_read_or_refused(noise: bytes, part: float, undefined: bool) -> None:
    """Any bytes anywhere."""
    whole = encoded(many(undefined))
    at = int(part * len(whole))
    for syntax in (*SYNTAXES, DEFLATED):
        try:
            header = Header.of(whole[:at] + noise + whole[at + len(noise) :], syntax)
            for one in header.items(0x52009230):
                one.count(0x00289145)
        except Invalid:
            pass
