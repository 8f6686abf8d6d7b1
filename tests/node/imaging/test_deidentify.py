"""De-identification: planted identifiers never survive, what medicine needs does, unsafe input is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from consent.errors import Invalid
from node.imaging.codestream import without_comments
from node.imaging.confidentiality import Action, Option, action_for, table
from node.imaging.decode import read_dataset
from node.imaging.deidentified import DeidentifiedInstance, Refusal
from node.imaging.deidentify import Deidentifier
from node.imaging.part10 import read_part10

pytestmark = pytest.mark.requirement("U6")
KEY = b"project key of this test, secret"
MARK = "ZQXMARK"
EXPLICIT = "1.2.840.10008.1.2.1"
TEXT_VALUES = {
    **dict.fromkeys(("LO", "SH", "ST", "LT", "UT", "UC", "PN", "AE"), MARK),
    "UR": f"http://{MARK}",
    "CS": MARK,
    "DA": "19770707",
    "DT": "19770707010203",
    "TM": "070707",
    "UI": "1.2.3.7707",
    "AS": "077Y",
}


def sample(name: str) -> tuple[bytes, str]:
    """Data set bytes and transfer syntax of a file that ships with pydicom."""
    raw = Path(str(get_testdata_file(name, download=False))).read_bytes()
    head = read_part10(raw)
    return raw[head.dataset_offset :], head.transfer_syntax_uid


def encoded(dataset: Dataset) -> bytes:
    from pydicom.filebase import DicomBytesIO
    from pydicom.filewriter import write_dataset

    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    write_dataset(buffer, dataset)
    return buffer.getvalue()


def planted() -> Dataset:
    """A CT slice with a marker in every row of the table that can hold text, at the top and nested twice."""
    dataset = read_dataset(*sample("CT_small.dcm"))
    plain = Dataset()
    for tag in table():
        vr = _vr(tag)
        if tag >> 16 > 7 and vr in TEXT_VALUES:
            plain.add(DataElement(tag, vr, TEXT_VALUES[vr]))
    for element in plain:
        if element.tag not in (0x00080016, 0x00080018, 0x0020000D, 0x0020000E):
            dataset[element.tag] = element
    dataset.BodyPartExamined = "CHEST"
    dataset.PatientName, dataset.PatientID = f"{MARK}^Planted", f"{MARK}-ID"
    outer, inner = Dataset(), Dataset()
    inner.update(plain)
    outer.update(plain)
    outer.add(DataElement(0x00400555, "SQ", Sequence([inner])))
    dataset.add(DataElement(0x00081140, "SQ", Sequence([outer])))
    dataset.add(DataElement(0x00180026, "SQ", Sequence([outer])))
    dataset.private_block(0x0099, "MAKER", create=True).add_new(1, "LO", MARK)
    dataset.add(DataElement(0x60000022, "LO", MARK))
    dataset.add(DataElement(0x00189999, "UN", MARK.encode()))
    dataset.add(DataElement(0x00104000, "LT", MARK))
    dataset.add(DataElement(0x00180015, "CS", "CHEST"))
    dataset.PixelData = dataset.PixelData + MARK.encode() + b" "
    return dataset


def _vr(tag: int) -> str:
    try:
        return pydicom.datadict.dictionary_VR(tag)
    except KeyError:
        return ""


def test_no_planted_identifier_survives_at_any_depth() -> None:
    """Markers in every text row of Table E.1-1, nested, private, in overlays and after the pixels all go."""
    source = encoded(planted())
    result = Deidentifier(KEY).apply(source, EXPLICIT)

    assert source.count(MARK.encode()) > 500
    assert isinstance(result, DeidentifiedInstance)
    assert MARK.encode() not in result.data
    assert b"19770707" not in result.data
    assert b"1.2.3.7707" not in result.data


def test_geometry_and_pixels_stay_exactly() -> None:
    """What medicine needs is untouched: spacing, orientation, rescale and every pixel value."""
    data, syntax = sample("CT_small.dcm")
    before = read_dataset(data, syntax)
    after = read_dataset(Deidentifier(KEY).apply(data, syntax).data, syntax)  # type: ignore[union-attr]

    assert np.array_equal(before.pixel_array, after.pixel_array)
    for keyword in ("PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient", "RescaleSlope", "KVP"):
        assert before[keyword].value == after[keyword].value


def test_one_project_maps_consistently_and_another_differently() -> None:
    """UIDs and pseudonyms agree within a project and cannot be linked across projects."""
    data, syntax = sample("CT_small.dcm")
    first, again = Deidentifier(KEY).apply(data, syntax), Deidentifier(KEY).apply(data, syntax)
    other = Deidentifier(b"another project's key, also long").apply(data, syntax)

    assert first == again
    assert first.patient_id != other.patient_id  # type: ignore[union-attr]
    assert first.study_instance_uid != other.study_instance_uid  # type: ignore[union-attr]


def test_it_says_what_was_done() -> None:
    """Patient Identity Removed and the CID 7050 method codes of every option are set."""
    data, syntax = sample("CT_small.dcm")
    result = Deidentifier(KEY, frozenset({Option.MODIFIED_DATES})).apply(data, syntax)
    after = read_dataset(result.data, syntax)  # type: ignore[union-attr]

    assert after.PatientIdentityRemoved == "YES"
    assert [code.CodeValue for code in after.DeidentificationMethodCodeSequence] == ["113100", "113107"]
    assert after.LongitudinalTemporalInformationModified == "MODIFIED"


def test_modified_dates_keep_intervals_and_weekdays() -> None:
    """Every date of a patient moves by the same number of whole weeks."""
    dataset = read_dataset(*sample("CT_small.dcm"))
    dataset.StudyDate, dataset.SeriesDate = "20240105", "20240119"
    result = Deidentifier(KEY, frozenset({Option.MODIFIED_DATES})).apply(encoded(dataset), EXPLICIT)
    after = read_dataset(result.data, EXPLICIT)  # type: ignore[union-attr]
    study, series = (np.datetime64(f"{d[:4]}-{d[4:6]}-{d[6:]}") for d in (after.StudyDate, after.SeriesDate))

    assert after.StudyDate != "20240105"
    assert int((series - study) / np.timedelta64(1, "D")) == 14
    assert (np.datetime64("2024-01-05") - study) / np.timedelta64(1, "D") % 7 == 0


def test_clean_descriptors_keeps_known_words_only() -> None:
    """Names in a description go, the words of the trade stay."""
    dataset = read_dataset(*sample("CT_small.dcm"))
    dataset.SeriesDescription = "CHEST axial Mrs Zhang 3"
    result = Deidentifier(KEY, frozenset({Option.CLEAN_DESCRIPTORS})).apply(encoded(dataset), EXPLICIT)

    assert read_dataset(result.data, EXPLICIT).SeriesDescription == "CHEST axial 3"  # type: ignore[union-attr]


def _with(**values: object) -> bytes:
    dataset = read_dataset(*sample("CT_small.dcm"))
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return encoded(dataset)


REFUSED = {
    "burned-in annotation": (lambda: _with(BurnedInAnnotation="YES"), "burned-in"),
    "ultrasound without a statement": (lambda: _with(Modality="US"), "burned-in"),
    "a head that could be rendered": (lambda: _with(BodyPartExamined="HEAD"), "face"),
    "a structured report": (lambda: _with(Modality="SR"), "structured"),
    "an encapsulated PDF": (lambda: _with(SOPClassUID="1.2.840.10008.5.1.4.1.1.104.1"), "encapsulated"),
    "an unknown SOP class": (lambda: _with(SOPClassUID="1.2.3.4.5"), "unknown-class"),
    "the name in a kept attribute": (
        lambda: _with(PatientName="Zhangsan^Li", Manufacturer="Zhangsan"),
        "leak",
    ),
    "a short number that stands alone": (lambda: _with(PatientID="4711", Manufacturer="Unit 4711."), "leak"),
    "a long number inside another": (
        lambda: _with(PatientID="4711047110", Manufacturer="9471104711099"),
        "leak",
    ),
    "no SOP instance": (lambda: _with(SOPInstanceUID=""), "no-identity"),
    "garbage": (lambda: b"\x08\x00\x05\x00CS\xff\xff" * 9, "unreadable"),
}


@pytest.mark.parametrize(("make", "code"), REFUSED.values(), ids=REFUSED.keys())
def test_what_no_rule_can_clean_is_refused(make, code: str) -> None:  # type: ignore[no-untyped-def]
    """Each refusal has its own code and a sentence for the person."""
    result = Deidentifier(KEY).apply(make(), EXPLICIT)

    assert isinstance(result, Refusal)
    assert result.code in (code, "no-identity" if code == "unreadable" else code)
    assert result.reason.endswith(".")


def test_a_short_number_is_in_many_uids_by_chance() -> None:
    """Four digits inside a UID or a longer number are no leak: of fifty patients none is refused for that."""
    results = [
        Deidentifier(KEY).apply(_with(PatientID=f"{number}", SOPInstanceUID=f"2.25.{number}77"), EXPLICIT)
        for number in range(4000, 4050)
    ]
    assert not [result for result in results if isinstance(result, Refusal)]
    inside = _with(PatientID="4711", DeviceSerialNumber="", Manufacturer="SN 1.4711.9 and 994711")
    assert not isinstance(Deidentifier(KEY).apply(inside, EXPLICIT), Refusal)


def test_deep_nesting_is_refused_not_followed() -> None:
    """Sequences nested past the bound end in a refusal."""
    dataset = Dataset()
    for _ in range(60):
        outer = Dataset()
        outer.add(DataElement(0x00180026, "SQ", Sequence([dataset])))
        dataset = outer
    source = read_dataset(*sample("CT_small.dcm"))
    source.update(dataset)

    assert isinstance(Deidentifier(KEY).apply(encoded(source), EXPLICIT), Refusal)


def test_code_stream_comments_go_and_pixels_stay() -> None:
    """A COM segment planted in a JPEG 2000 and a JPEG stream is gone; the decoded frame is identical."""
    jpeg = b"\xff\xd8" + b"\xff\xfe\x00\x0a" + b"ZQXMARK " + b"\xff\xda\x00\x04ab\x01\x02\xff\xd9"
    j2k = b"\xff\x4f\xff\x51\x00\x04ab" + b"\xff\x64\x00\x0c\x00\x01ZQXMARK " + b"\xff\x90rest"

    assert without_comments(jpeg, "1.2.840.10008.1.2.4.50") == b"\xff\xd8\xff\xda\x00\x04ab\x01\x02\xff\xd9"
    assert without_comments(j2k, "1.2.840.10008.1.2.4.90") == b"\xff\x4f\xff\x51\x00\x04ab\xff\x90rest"


@pytest.mark.parametrize(
    "name", ["MR_small_jp2klossless.dcm", "MR_small_RLE.dcm", "MR_small_jpeg_ls_lossless.dcm"]
)
def test_compressed_pixels_decode_to_the_same_values(name: str) -> None:
    """Rewriting fragments without comments changes no pixel."""
    data, syntax = sample(name)
    before = read_dataset(data, syntax)
    result = Deidentifier(KEY).apply(data, syntax)
    if isinstance(result, Refusal):
        pytest.fail(result.reason)
    after = read_dataset(result.data, result.transfer_syntax)

    assert np.array_equal(before.pixel_array, after.pixel_array)


def test_every_row_of_the_table_has_an_action() -> None:
    """The data file is read whole: 621 rows less the four that name groups, none without an action."""
    assert len(table()) == 617
    assert all(action_for(tag, frozenset()) in Action for tag in table())


def test_options_that_exclude_each_other_are_refused() -> None:
    """Dates stay as they are or are moved: asked for both, the engine does neither."""
    with pytest.raises(Invalid, match="exclude each other"):
        Deidentifier(KEY, frozenset({Option.RETAIN_FULL_DATES, Option.MODIFIED_DATES}))
