"""Reading by what differs: always what a reading of the whole data set gives, also of hostile ones, and in fact used."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consent.errors import Invalid
from node.imaging import attributes as attributes_room
from node.imaging.attributes import Attributes, AttributesReader, read_attributes
from node.imaging.dicom_json import json_model
from node.imaging.elements import EXPLICIT_LITTLE
from node.imaging.heads import LONGER_BYTES, MAX_HEAD_BYTES, Head
from node.imaging.model_lines import ModelLines
from tests.support.dicom import (
    BIG_ENDIAN,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    ct_slice,
    element,
    pydicom_samples,
    study,
)

pytestmark = pytest.mark.requirement("F1")

SLICES = [one.data for one in study(slices=5)]
HEAD_BYTES = read_attributes(SLICES[0], EXPLICIT).pixel_offset or 0


def _said(read: Callable[[], Attributes]) -> Attributes | str:
    try:
        return read()
    except Invalid as error:
        return error.code


def _agree(first: bytes, second: bytes, syntax: str) -> None:
    reader, lines = AttributesReader(), ModelLines()
    _said(lambda: reader.read(first, syntax))
    lines.line(first, syntax, "p/")
    assert _said(lambda: reader.read(second, syntax)) == _said(lambda: read_attributes(second, syntax))
    assert lines.line(second, syntax, "p/") == ModelLines().line(second, syntax, "p/")


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, DEFLATED, BIG_ENDIAN])
def test_slices_of_a_series_are_read_the_same(syntax: str) -> None:
    """In every encoding, one after another."""
    reader, lines = AttributesReader(), ModelLines()
    for one in study(slices=5, transfer_syntax=syntax):
        assert reader.read(one.data, syntax) == read_attributes(one.data, syntax)
        assert lines.line(one.data, syntax, "p/") == ModelLines().line(one.data, syntax, "p/")


def test_strangers_after_one_another_are_read_the_same() -> None:
    """Other modalities, other structure, sequences, no pixels."""
    reader, lines = AttributesReader(), ModelLines()
    for one in [*pydicom_samples(), *pydicom_samples()]:
        syntax = one.transfer_syntax_uid
        assert reader.read(one.data, syntax) == read_attributes(one.data, syntax)
        assert lines.line(one.data, syntax, "p/") == ModelLines().line(one.data, syntax, "p/")


@given(
    at=st.integers(0, HEAD_BYTES + 20),
    cut=st.integers(0, 12),
    put=st.binary(max_size=12),
    turned=st.booleans(),
)
@settings(max_examples=600, deadline=None)
def test_any_other_bytes_are_read_the_same(at: int, cut: int, put: bytes, turned: bool) -> None:
    """A damaged neighbour is refused with the same code, or read as if it had come first."""
    changed = SLICES[1][:at] + put + SLICES[1][at + cut :]
    first, second = (changed, SLICES[2]) if turned else (SLICES[0], changed)
    _agree(first, second, EXPLICIT)


@pytest.mark.parametrize("length", [0, 8, HEAD_BYTES - 1, HEAD_BYTES, HEAD_BYTES + 1, len(SLICES[0]) - 1])
def test_a_data_set_that_is_cut_short_is_read_the_same(length: int) -> None:
    """Also one that lacks its last pixel."""
    _agree(SLICES[0], SLICES[1][:length], EXPLICIT)


def test_another_character_set_is_heeded() -> None:
    """The same name in other bytes, with the character set that goes with them."""
    latin = ct_slice(patient_name="Müller^Jörg", SpecificCharacterSet="ISO_IR 100").data
    utf8 = ct_slice(patient_name="Müller^Jörg", SpecificCharacterSet="ISO_IR 192").data
    for first, second in ((latin, utf8), (utf8, latin)):
        _agree(first, second, EXPLICIT)
        reader = AttributesReader()
        assert reader.read(first, EXPLICIT).patient_name == reader.read(second, EXPLICIT).patient_name


def test_signs_are_read_as_the_data_set_says() -> None:
    """Values whose VR depends on Pixel Representation, in an encoding that leaves the VR out."""
    data = [ct_slice(number=n, transfer_syntax=IMPLICIT).data for n in (1, 2)]
    at = data[0].index(b"\x28\x00\x03\x01")
    padding = b"\x28\x00\x20\x01" + (2).to_bytes(4, "little") + b"\x30\xf8"
    made = [
        one[: at + 10] + padding[:8] + bytes(value) + one[at + 10 :]
        for one, value in zip(data, (b"\x30\xf8", b"\x00\xfc"), strict=True)
    ]
    _agree(made[0], made[1], IMPLICIT)
    unsigned = made[1][: at + 8] + b"\x00\x00" + made[1][at + 10 :]
    _agree(made[0], unsigned, IMPLICIT)


def _implicit(tag: int, value: bytes) -> bytes:
    return struct.pack("<HHI", tag >> 16, tag & 0xFFFF, len(value)) + value


def test_what_an_item_says_of_its_signs_is_not_said_of_its_data_set() -> None:
    """Pixel Representation inside an item holds in there (PS3.5 §A.1), also where only a value behind it differs."""
    within = _implicit(0x00081140, _implicit(0xFFFEE000, _implicit(0x00280103, b"\1\0")))
    made = [within + _implicit(0x00280106, value) for value in (b"\xf0\xff", b"\xf1\xff")]
    _agree(made[0], made[1], IMPLICIT)
    model = json_model(made[1], IMPLICIT)
    assert model["00280106"] == {"vr": "US", "Value": [0xFFF1]}
    assert model["00081140"]["Value"] == [{"00280103": {"vr": "US", "Value": [1]}}]


@pytest.mark.parametrize(
    "signs",
    [
        element(0x00280103, b"OB", b"\1\0" * 600),
        element(0x00280103, b"SQ", b""),
        element(0x00280103, b"UN", b"\1\0"),
        element(0x00080005, b"SQ", b""),
        element(0x00080005, b"OB", b"ISO_IR 192" + b" " * 1024),
    ],
)
def test_what_says_how_others_are_read_may_be_written_oddly(signs: bytes) -> None:
    """As bulk data or as a sequence it is not heeded, by neither reading."""
    made = [
        signs + element(0x00280106, b"UN", value) + element(0x00204000, b"LT", text)
        for value, text in ((b"\xf0\xff", b"\xc3\xbc"), (b"\xf1\xff", b"\xc3\xa4"))
    ]
    _agree(made[0], made[1], EXPLICIT)


def test_what_is_alike_is_not_read_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second slice of a series costs no reading of the whole."""
    reader = AttributesReader()
    reader.read(SLICES[0], EXPLICIT)

    def never(*_: object, **__: object) -> Attributes:
        raise AssertionError("it was read in full")

    monkeypatch.setattr(attributes_room, "read_attributes", never)
    assert reader.read(SLICES[1], EXPLICIT).instance_number == 2


def test_long_heads_and_repeated_elements_are_not_remembered() -> None:
    """What would cost memory, or has two answers, is read in full each time."""
    long = element(0x00204000, b"UT", b"x" * MAX_HEAD_BYTES)
    assert Head.of(long, EXPLICIT_LITTLE) is None
    twice = element(0x00204000, b"LT", b"ab")
    assert Head.of(twice + twice, EXPLICIT_LITTLE) is None


def test_a_head_that_grew_much_is_not_alike() -> None:
    """So that no more than a known length is looked at."""
    head = Head.of(element(0x00204000, b"LT", b"ab"), EXPLICIT_LITTLE)
    assert head is not None
    grown = element(0x00204000, b"LT", b"ab" * LONGER_BYTES)
    assert head.changes(grown) is None
    changes = head.changes(element(0x00204000, b"LT", b"abcd"))
    assert changes is not None
    assert [place for place, _ in changes.elements] == [0]
