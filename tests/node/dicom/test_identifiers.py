"""Identifiers: read within bounds, written so that the asker can read them."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset

from consent.errors import Invalid
from node.dicom.identifiers import (
    MAX_IDENTIFIER_BYTES,
    MAX_KEYS,
    answer_element,
    failed_instances,
    read_identifier,
    write_identifier,
)
from node.imaging.charsets import charset_of
from node.index.query import ATTRIBUTES
from tests.support.dicom import EXPLICIT, IMPLICIT, element, nested_sequences

SYNTAXES = (EXPLICIT, IMPLICIT)
LEVEL = element(0x00080052, b"CS", b"STUDY ")


def encoded(ds: Dataset, syntax: str = EXPLICIT) -> bytes:
    out = DicomBytesIO()
    out.is_little_endian, out.is_implicit_VR = True, syntax == IMPLICIT
    write_dataset(out, ds)
    return out.getvalue()


def decoded(data: bytes, syntax: str) -> Dataset:
    return read_dataset(BytesIO(data), syntax == IMPLICIT, True)


def query(**keys: Any) -> Dataset:
    ds = Dataset()
    for keyword, value in {"QueryRetrieveLevel": "STUDY", **keys}.items():
        setattr(ds, keyword, value)
    return ds


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_keys_are_read_by_keyword(syntax: str) -> None:
    """Values, universal keys, a sequence's keys, and what the index does not know."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator = "24627-2", ""
    ds = query(
        PatientName="Wang*", StudyDate="20260101-", StudyInstanceUID="", Modality="CT",
        ProcedureCodeSequence=[item], PatientComments="x", TimezoneOffsetFromUTC="+0800",
    )  # fmt: skip
    found = read_identifier(encoded(ds, syntax), syntax)

    assert found.level == "STUDY"
    assert found.keys == {
        "PatientName": "Wang*",
        "StudyDate": "20260101-",
        "Modality": "CT",
        "ProcedureCodeSequence.CodeValue": "24627-2",
    }
    assert {one.keyword for one in found.wanted} >= {"StudyInstanceUID", "ProcedureCodeSequence"}
    assert found.unknown == 2


@pytest.mark.parametrize(
    ("charset", "name"),
    [
        ("ISO_IR 192", "Wang^XiaoDong=王^小东"),
        ("GB18030", "Wang^XiaoDong=王^小东"),
        ("ISO_IR 100", "Müller^Jörg"),
        ("ISO 2022 IR 6\\ISO 2022 IR 87", "Yamada^Tarou=山田^太郎"),
        ("ISO 2022 IR 6\\ISO 2022 IR 149", "Hong^Gildong=洪^吉洞=홍^길동"),
    ],
)
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_name_goes_back_in_the_set_that_it_was_asked_in(charset: str, name: str, syntax: str) -> None:
    """What the asker can write it can read; an independent reader agrees."""
    terms = charset.split("\\")
    asked = read_identifier(encoded(query(SpecificCharacterSet=terms, PatientName=name), syntax), syntax)
    assert asked.keys["PatientName"] == name
    answer = decoded(write_identifier({0x00100010: ("PN", name)}, syntax, asked.charset), syntax)

    assert answer.SpecificCharacterSet in (charset, terms)
    assert str(answer.PatientName).rstrip("=") == name


@pytest.mark.parametrize(
    ("asked", "value", "answered"),
    [
        (b"", "Wang^Wei", None),
        (b"", "王^伟", "ISO_IR 192"),
        (b"ISO_IR 100", "王^伟", "ISO_IR 192"),
        (b"NONSENSE", "王^伟", "ISO_IR 192"),
        (b"ISO_IR 100", "Wang^Wei", "ISO_IR 100"),
    ],
)
def test_what_the_set_does_not_hold_comes_in_utf_8(asked: bytes, value: str, answered: str | None) -> None:
    """Text is never replaced by question marks; plain text needs no set at all."""
    answer = decoded(write_identifier({0x00100010: ("PN", value)}, EXPLICIT, charset_of(asked)), EXPLICIT)

    assert answer.get("SpecificCharacterSet") == answered
    assert answer.PatientName == value


def test_sequences_and_numbers_are_written_as_the_standard_says() -> None:
    """Items, US in two bytes, empty values, order by tag."""
    codes = [{"CodeValue": "24627-2", "CodeMeaning": "胸部"}]
    values = {
        0x00280010: answer_element(ATTRIBUTES["Rows"], 512),
        0x00081032: answer_element(ATTRIBUTES["ProcedureCodeSequence"], codes),
        0x00080050: answer_element(ATTRIBUTES["AccessionNumber"], None),
    }
    for syntax in SYNTAXES:
        answer = decoded(write_identifier(values, syntax, charset_of(b"")), syntax)

        assert (answer.Rows, answer.AccessionNumber) == (512, "")
        assert answer.ProcedureCodeSequence[0].CodeMeaning == "胸部"
        assert "SpecificCharacterSet" not in answer.ProcedureCodeSequence[0]
        assert [int(one.tag) for one in answer] == sorted(int(one.tag) for one in answer)


def test_a_list_of_failures_never_outgrows_its_length() -> None:
    """Thousands of UIDs: as many as (0008,0058) can hold, and the rest is in the counts."""
    uids = [f"1.2.826.0.1.3680043.8.498.{10**29 + number}" for number in range(5000)]
    listed = decoded(failed_instances(uids, EXPLICIT), EXPLICIT).FailedSOPInstanceUIDList

    assert 1000 < len(listed) < 5000 and list(listed) == uids[: len(listed)]


@pytest.mark.requirement("F4")
@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\x08\x00", "truncated"),
        (LEVEL + LEVEL, "bad-identifier"),
        (LEVEL + element(0x00100010, b"PN", b"Wang", length=60_000), "truncated"),
        (LEVEL + nested_sequences(400), "too-deep"),
        (LEVEL + element(0x00100010, b"ZZ", b"Wang"), "bad-data-set"),
        (
            element(0x00081032, b"SQ", b"\xfe\xff\x00\xe0\x00\x00\x00\x00" * 2) + LEVEL,
            "bad-identifier",
        ),
        (
            b"".join(element(0x00090000 + number, b"LO", b"") for number in range(MAX_KEYS + 1)),
            "too-many-keys",
        ),
        (bytes(MAX_IDENTIFIER_BYTES + 1), "too-large"),
    ],
    ids=["cut", "twice", "longer-than-itself", "400-deep", "no-vr", "two-items", "many-keys", "large"],
)
def test_malformed_identifiers_are_refused(data: bytes, code: str) -> None:
    """Each break of the format or of a bound is Invalid, at once."""
    with pytest.raises(Invalid) as refusal:
        read_identifier(data, EXPLICIT)

    assert refusal.value.code == code


def test_what_is_not_known_is_passed_over_however_deep_it_is() -> None:
    """400 sequences of defined length are one key that nobody enters."""
    found = read_identifier(LEVEL + nested_sequences(400, undefined=False), EXPLICIT)

    assert (found.level, found.unknown) == ("STUDY", 1)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=120), st.integers(0, 60), st.sampled_from(SYNTAXES))
def test_noise_is_invalid_or_an_identifier(noise: bytes, at: int, syntax: str) -> None:
    """No bytes do more."""
    good = encoded(query(PatientName="Wang*", ProcedureCodeSequence=[pydicom.Dataset()]), syntax)
    for data in (noise, good[:at] + noise + good[at + len(noise) :]):
        try:
            read_identifier(data, syntax)
        except Invalid:
            pass
