"""Reading attributes: real studies, every encoding, character sets, and hostile data sets."""

from __future__ import annotations

import json
import struct
import time
import tracemalloc
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from consent.errors import Invalid
from node.imaging.attributes import Attributes, read_attributes
from node.imaging.elements import MAX_DEPTH, TRANSFER_SYNTAXES, encoding_of
from tests.support.dicom import (
    BIG_ENDIAN,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    ct_slice,
    deflate,
    element,
    from_file,
    instance,
    nested_sequences,
    pydicom_folder,
    pydicom_samples,
)

SLICE = ct_slice()
HEAD = SLICE.data[: SLICE.data.index(struct.pack("<HH2s", 0x7FE0, 0x0010, b"OW"))]


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, DEFLATED, BIG_ENDIAN])
def test_every_encoding_gives_the_same_attributes(syntax: str) -> None:
    """What is read does not depend on how it was written."""
    found = read_attributes(ct_slice(transfer_syntax=syntax).data, syntax)
    assert (found.patient_name, found.patient_id) == ("Zhang^San=张^三", "P-0001")
    assert (found.rows, found.columns, found.frames, found.instance_number) == (32, 32, 1, 1)
    assert found.pixel_length == 32 * 32 * 2
    assert found.deflated is (syntax == DEFLATED)


def test_pixel_offset_points_at_the_pixels() -> None:
    """The bytes at the offset are the image."""
    found = read_attributes(SLICE.data, EXPLICIT)
    assert found.pixel_offset is not None and found.pixel_length is not None
    pixels = SLICE.data[found.pixel_offset : found.pixel_offset + found.pixel_length]
    assert pixels == SLICE.dataset().PixelData


def test_real_studies_read_as_pydicom_reads_them() -> None:
    """The multi-series CT, MR and CR studies agree with an independent reader."""
    for one in pydicom_samples():
        found, other = read_attributes(one.data, one.transfer_syntax_uid), one.dataset()
        assert found.study_instance_uid == other.StudyInstanceUID
        assert found.patient_name == str(other.PatientName)
        assert (found.modality, found.rows) == (other.Modality, other.get("Rows"))
        assert found.series_number == other.SeriesNumber


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("chrX2.dcm", "Wang^XiaoDong=王^小东="),
        ("chrX1.dcm", "Wang^XiaoDong=王^小東="),
        ("chrH32.dcm", "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう"),
        ("chrI2.dcm", "Hong^Gildong=洪^吉洞=홍^길동"),
        ("chrGreek.dcm", "Διονυσιος"),
    ],
)
def test_character_sets_of_the_standard(name: str, expected: str) -> None:
    """Names in GB18030, UTF-8, ISO 2022 and single-byte sets read right."""
    instance = from_file((pydicom_folder().parent / "charset_files" / name).read_bytes())
    assert read_attributes(instance.data, instance.transfer_syntax_uid).patient_name == expected


def test_iso_2022_ir_58_reads_without_its_escapes() -> None:
    """The simplified Chinese code extension of PS3.5 Annex K leaves no control characters."""
    name = b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab="
    data = _with(0x00080005, b"CS", b"\\ISO 2022 IR 58 ", _with(0x00100010, b"PN", name))
    assert read_attributes(data, EXPLICIT).patient_name == "Zhang^XiaoDong=张^小东="


def test_unknown_character_set_costs_characters_not_the_instance() -> None:
    """A term that nobody knows is read as the default repertoire."""
    assert read_attributes(_with(0x00080005, b"CS", b"ISO_IR 999"), EXPLICIT).patient_id == "P-0001"


def test_json_round_trip() -> None:
    """Attributes survive JSON, and unknown fields of a later version are passed over."""
    found = read_attributes(SLICE.data, EXPLICIT)
    assert Attributes.from_json({**found.to_json(), "later": 1}) == found


def test_memoryview_and_bytearray_are_read_in_place() -> None:
    """Any buffer will do."""
    assert read_attributes(memoryview(SLICE.data), EXPLICIT) == read_attributes(
        bytearray(SLICE.data), EXPLICIT
    )


def test_odd_values_become_absent() -> None:
    """A number or a date that is none is left out; the instance is kept."""
    data = _with(0x00200013, b"IS", b"12_3", _with(0x00080020, b"DA", b"tomorrow"))
    found = read_attributes(data, EXPLICIT)
    assert (found.instance_number, found.study_date) == (None, "")


def test_ct_slice_is_read_in_well_under_a_millisecond() -> None:
    """Reading stops at Pixel Data, so size does not matter."""
    data = ct_slice(size=512).data
    best = min(_timed(data) for _ in range(20))
    assert best < 0.001


@pytest.mark.parametrize("tag", [0x00080016, 0x00080018, 0x0020000D, 0x0020000E], ids=hex)
@pytest.mark.parametrize(
    ("value", "code"),
    [
        (b"", "missing-uid"),
        (b"../../etc/passwd", "bad-uid"),
        (b"1.2/3", "bad-uid"),
        (b"1.2 3", "bad-uid"),
        (b"1..2", "bad-uid"),
        (b"1." + b"2" * 63, "bad-uid"),
        (b"1." + b"2" * 2000, "bad-uid"),
        (b"1.2\\3.4 ", "bad-uid"),
        ("1.٢".encode(), "bad-uid"),
    ],
)
def test_uids_are_uids(tag: int, value: bytes, code: str) -> None:
    """A UID with path characters, too long, or missing is refused by name, never stored."""
    _refused(_with(tag, b"UI", value), code if len(value) < 1024 else None)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "missing-uid"),
        (b"\x08", "truncated"),
        (HEAD + element(0x7FE00010, b"OW", b"\0" * 10, length=1000), "truncated"),
        (HEAD + element(0x00400001, b"UN", b"ab", length=0xFFFFFFF0), "truncated"),
        (HEAD[:-3], "truncated"),
        (HEAD + struct.pack("<HH2sH", 0x0029, 0x1010, b"\x01\x02", 0), "bad-data-set"),
        (HEAD + struct.pack("<HHI", 0xFFFE, 0xE00D, 0), "bad-data-set"),
        (element(0x00020010, b"UI", b"1.2\0") + HEAD, "bad-data-set"),
        (HEAD + element(0x00100020, b"LO", b"other"), "duplicate-element"),
        (HEAD + element(0x0040A730, b"SQ", b"", length=0xFFFFFFFF), "truncated"),
        (HEAD + element(0x0040A730, b"SQ", HEAD[:8], length=0xFFFFFFFF), None),
        (HEAD + nested_sequences(400), "too-deep"),
        (HEAD + nested_sequences(MAX_DEPTH + 1), "too-deep"),
        (HEAD + nested_sequences(60_000), "too-deep"),
    ],
)
def test_broken_data_sets_are_invalid(data: bytes, code: str | None) -> None:
    """Truncation, false lengths, stray delimiters and deep nesting end in a clear refusal."""
    _refused(data, code)


@pytest.mark.parametrize("depth", [400, 20_000])
def test_deep_nesting_of_defined_length_is_stepped_over(depth: int) -> None:
    """Sequences that state their length are not entered at all."""
    inner = nested_sequences(min(depth, 2000), undefined=False)
    assert read_attributes(_before_pixels(inner), EXPLICIT).patient_id == "P-0001"


def test_nesting_within_the_bound_is_read_past() -> None:
    """Structured reports nest; the elements after them are found."""
    assert read_attributes(_before_pixels(nested_sequences(MAX_DEPTH)), EXPLICIT).pixel_offset


def test_unknown_sequence_of_undefined_length_is_read_past() -> None:
    """UN of undefined length holds Implicit VR Little Endian (PS3.5 §6.2.2)."""
    inside = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF) + struct.pack("<HHI", 0x0008, 0x0100, 2) + b"AB"
    end = struct.pack("<HHIHHI", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
    unknown = struct.pack("<HH2sHI", 0x0029, 0x1010, b"UN", 0, 0xFFFFFFFF) + inside + end
    assert read_attributes(_before_pixels(unknown), EXPLICIT).pixel_offset


def test_deflate_bomb_is_not_inflated() -> None:
    """Half a megabyte that inflates to half a gigabyte costs a few megabytes and is refused or cut at pixels."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    huge = element(0x7FE00010, b"OW", b"", length=512 * 1024 * 1024)
    bomb = packer.compress(HEAD + huge) + b"".join(packer.compress(bytes(1 << 20)) for _ in range(64))
    bomb += packer.flush()
    tracemalloc.start()
    found = read_attributes(bomb, DEFLATED)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.pixel_offset and peak < 2 * 1024 * 1024


def test_deflated_header_without_end_is_refused() -> None:
    """A header that inflates past its bound is Invalid."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    endless = element(0x00091010, b"OB", b"", length=0x7FFFFFFF)
    bomb = packer.compress(HEAD + endless) + b"".join(packer.compress(bytes(1 << 20)) for _ in range(32))
    with pytest.raises(Invalid) as caught:
        read_attributes(bomb + packer.flush(), DEFLATED)
    assert caught.value.code == "inflates-too-far"


@pytest.mark.parametrize("data", [b"\xff\xff\xff\xff", b"", deflate(HEAD)[:40]])
def test_broken_deflate_is_invalid(data: bytes) -> None:
    """What does not inflate, or inflates to half a header, is refused."""
    with pytest.raises(Invalid):
        read_attributes(data, DEFLATED)


@pytest.mark.parametrize("syntax", ["", "1.2.3", "1.2.840.10008.1.2.4.94", "../x"])
def test_unknown_transfer_syntax_is_invalid(syntax: str) -> None:
    """What a node cannot read is refused, as are pixels that lie elsewhere."""
    with pytest.raises(Invalid):
        read_attributes(SLICE.data, syntax)
    assert syntax not in TRANSFER_SYNTAXES


def test_compressed_syntaxes_are_explicit_little_endian() -> None:
    """PS3.5 §A.4."""
    assert encoding_of("1.2.840.10008.1.2.4.90").encapsulated


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.integers(0, len(SLICE.data) - 1))
def test_noise_never_does_more_than_raise_invalid(noise: bytes, at: int) -> None:
    """Any bytes, anywhere, in any encoding: attributes, or Invalid."""
    for syntax in (EXPLICIT, IMPLICIT, BIG_ENDIAN, DEFLATED):
        for data in (noise, SLICE.data[:at] + noise + SLICE.data[at + len(noise) :]):
            try:
                read_attributes(data, syntax)
            except Invalid:
                pass


def _with(tag: int, vr: bytes, value: bytes, data: bytes = SLICE.data) -> bytes:
    """`data` with one element's value replaced."""
    start = data.index(struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr))
    (length,) = struct.unpack_from("<H", data, start + 6)
    return data[:start] + element(tag, vr, value) + data[start + 8 + length :]


def _before_pixels(extra: bytes) -> bytes:
    return HEAD + extra + SLICE.data[len(HEAD) :]


def _refused(data: bytes, code: str | None) -> None:
    with pytest.raises(Invalid) as caught:
        read_attributes(data, EXPLICIT)
    assert code in (None, caught.value.code)
    assert "P-0001" not in str(caught.value)


def _timed(data: bytes) -> float:
    start = time.perf_counter()
    read_attributes(data, EXPLICIT)
    return time.perf_counter() - start


def _requested() -> Dataset:
    ds = ct_slice().dataset()
    code, request = Dataset(), Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "24627-2", "LN", "胸部"
    request.RequestedProcedureID, request.ScheduledProcedureStepID = "RP-1", "SPS-1"
    request.ScheduledProtocolCodeSequence = [code]
    ds.ProcedureCodeSequence, ds.RequestAttributesSequence = [code], [request, request]
    return ds


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG_ENDIAN, DEFLATED])
@pytest.mark.parametrize("undefined", [False, True])
def test_codes_and_requests_are_read_item_by_item(syntax: str, undefined: bool) -> None:
    """What queries match inside sequences, of defined and undefined length; what lies deeper is passed over."""
    ds = _requested()
    for keyword in ("ProcedureCodeSequence", "RequestAttributesSequence"):
        ds[keyword].is_undefined_length = undefined
        for item in ds[keyword].value:
            item.is_undefined_length_sequence_item = undefined
    found = read_attributes(instance(ds, syntax).data, syntax)

    assert found.procedure_codes == (
        {"CodeValue": "24627-2", "CodingSchemeDesignator": "LN", "CodeMeaning": "胸部"},
    )
    assert (
        found.request_attributes
        == ({"RequestedProcedureID": "RP-1", "ScheduledProcedureStepID": "SPS-1"},) * 2
    )
    assert Attributes.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_a_sequence_that_cannot_be_read_costs_nothing_else() -> None:
    """Noise where items should be: the instance is taken without those codes."""
    ds = ct_slice().dataset()
    del ds.PixelData
    data = instance(ds).data
    at = data.index(b"\x10\x00\x10\x00PN")
    broken = data[:at] + element(0x00081032, b"SQ", b"nonsense") + data[at:]

    assert read_attributes(broken, EXPLICIT).procedure_codes == ()
