"""The DICOM JSON model: agrees with pydicom, leaves bulk out, and never fails on what ingest accepted."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from consent.errors import Invalid
from node.imaging.attributes import read_attributes
from node.imaging.dicom_json import MAX_INLINE_BYTES, json_model
from node.imaging.elements import MAX_DEPTH
from tests.support.dicom import (
    BIG_ENDIAN,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    ct_slice,
    element,
    from_file,
    nested_sequences,
    pydicom_folder,
    pydicom_samples,
)

SLICE = ct_slice()
HEAD = SLICE.data[: SLICE.data.index(struct.pack("<HH2s", 0x7FE0, 0x0010, b"OW"))]


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, DEFLATED, BIG_ENDIAN])
def test_model_is_the_same_in_every_encoding(syntax: str) -> None:
    """Only the VR of Pixel Data may depend on the encoding."""
    assert json_model(ct_slice(transfer_syntax=syntax).data, syntax) == json_model(SLICE.data, EXPLICIT)


def test_model_agrees_with_pydicom_on_real_studies() -> None:
    """Every element of the sample studies, as pydicom's own model has it."""
    for instance in pydicom_samples():
        _same(json_model(instance.data, instance.transfer_syntax_uid), instance.dataset().to_json_dict())


@pytest.mark.parametrize("name", ["reportsi.dcm", "rtplan.dcm", "liver_1frame.dcm"])
def test_model_agrees_with_pydicom_on_nested_sequences(name: str) -> None:
    """Structured reports, plans and segmentations nest sequences of both kinds."""
    data = (pydicom_folder() / name).read_bytes()
    instance = from_file(data)
    _same(json_model(instance.data, instance.transfer_syntax_uid), instance.dataset().to_json_dict())


def test_pydicom_reads_the_model_back() -> None:
    """The model is standard DICOM JSON."""
    back = Dataset.from_json(json_model(SLICE.data, EXPLICIT), lambda tag, vr, uri: None)
    assert str(back.PatientName) == "Zhang^San=张^三"
    assert back.PixelSpacing == [0.7, 0.7]


def test_pixels_are_a_reference() -> None:
    """No bulk in the model."""
    assert json_model(SLICE.data, EXPLICIT)["7FE00010"] == {"vr": "OW", "BulkDataURI": "bulkdata/7FE00010"}


def test_long_binary_values_are_references_and_short_ones_inline() -> None:
    """The bound is MAX_INLINE_BYTES, also inside items."""
    inner = Dataset()
    inner.EncapsulatedDocument = b"\x01" * (MAX_INLINE_BYTES + 2)
    model = json_model(ct_slice(RequestAttributesSequence=Sequence([inner])).data, EXPLICIT)
    entry = model["00400275"]["Value"][0]["00420011"]
    assert entry == {"vr": "OB", "BulkDataURI": "bulkdata/00400275/0/00420011"}
    short = json_model(ct_slice(EncapsulatedDocument=b"\x01\x02").data, EXPLICIT)
    assert short["00420011"] == {"vr": "OB", "InlineBinary": "AQI="}


def test_odd_values_are_null_or_left_out() -> None:
    """Numbers that are none, infinities and empty names do not stop the model."""
    extra = (
        element(0x00189073, b"FD", struct.pack("<d", float("inf")))
        + element(0x00189074, b"DT", b"x" * 30)
        + element(0x00280008, b"IS", b"1A")
        + element(0x00281050, b"DS", b"1e999\\12 ")
        + element(0x00400001, b"US", b"\x01\x02\x03\x04\x05")
    )
    model = json_model(HEAD + extra, EXPLICIT)
    assert model["00281050"]["Value"] == [None, 12]
    assert model["00280008"] == {"vr": "IS"}
    assert model["00189073"] == {"vr": "FD"}
    assert len(model["00400001"]["Value"]) == 2
    json.dumps(model, allow_nan=False)


@pytest.mark.parametrize("depth", [MAX_DEPTH + 5, 400, 2000])
def test_nesting_past_the_bound_is_left_out(depth: int) -> None:
    """Defined-length nesting is accepted at ingest and omitted here, without recursion."""
    data = HEAD + nested_sequences(depth, undefined=False) + SLICE.data[len(HEAD) :]
    assert read_attributes(data, EXPLICIT)
    model = json_model(data, EXPLICIT)
    assert "0040A730" not in model
    assert "7FE00010" in model


def test_nesting_within_the_bound_is_kept() -> None:
    """Both kinds of nesting give the same model."""
    depth = MAX_DEPTH - 1
    kinds = [json_model(HEAD + nested_sequences(depth, undefined=kind), EXPLICIT) for kind in (True, False)]
    level: Any = kinds[0]
    for _ in range(depth):
        level = level["0040A730"]["Value"][0]
    assert level == {}
    json.dumps(kinds[0])


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.integers(0, len(HEAD)))
def test_whatever_is_accepted_has_a_model(noise: bytes, at: int) -> None:
    """If attributes can be read, the model can be made, and it is JSON."""
    for syntax in (EXPLICIT, IMPLICIT):
        data = SLICE.data[:at] + noise + SLICE.data[at:]
        try:
            read_attributes(data, syntax)
        except Invalid:
            continue
        json.dumps(json_model(data, syntax), allow_nan=False).encode()


def _same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    for tag in ours:
        if tag == "00080005" or "BulkDataURI" in ours[tag]:
            continue
        assert ours[tag]["vr"] == theirs[tag]["vr"], tag
        if ours[tag]["vr"] == "SQ":
            pairs = zip(ours[tag].get("Value", []), theirs[tag].get("Value", []), strict=True)
            for mine, other in pairs:
                _same(mine, other)
        else:
            assert _plain(ours[tag]) == _plain(theirs[tag]), tag
    missing = {tag for tag in theirs if tag not in ours and tag[:4] not in ("FFFA", "FFFC")}
    assert not {tag for tag in missing if not tag.endswith("0000")}


def _plain(entry: dict[str, Any]) -> dict[str, Any]:
    values = [float(v) if isinstance(v, int) else v if v != "" else None for v in entry.get("Value", [])]
    values = [v.strip() if isinstance(v, str) else v for v in values]
    return {**entry, "Value": [v for v in values if v is not None]}
