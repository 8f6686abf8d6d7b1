"""DICOM files: the head that is written is the head that is read, and bad heads are refused."""

from __future__ import annotations

from io import BytesIO

import pydicom
import pytest

from consent.errors import Invalid
from node.imaging.part10 import part10_head, read_part10
from tests.support.dicom import EXPLICIT, ct_slice, pydicom_folder, pydicom_sample_paths

SLICE = ct_slice()


def test_head_and_data_set_make_a_file_that_pydicom_reads() -> None:
    """What we write is Part 10, with a preamble of zeros."""
    found = pydicom.dcmread(BytesIO(SLICE.file()))
    assert found.SOPInstanceUID == found.file_meta.MediaStorageSOPInstanceUID == SLICE.sop_instance_uid
    assert found.preamble == bytes(128)


def test_head_reads_back() -> None:
    """The data set begins where the head ends."""
    head = read_part10(SLICE.file())
    assert SLICE.file()[head.dataset_offset :] == SLICE.data
    assert (head.sop_instance_uid, head.transfer_syntax_uid) == (SLICE.sop_instance_uid, EXPLICIT)


def test_program_in_the_preamble_is_not_looked_at() -> None:
    """A file that is also a program reads as the same instance (the preamble is never kept)."""
    assert read_part10(b"MZ" + bytes(126) + SLICE.file()[128:]) == read_part10(SLICE.file())


def test_real_files() -> None:
    """Every file of the sample studies has a head."""
    assert all(read_part10(path.read_bytes()).dataset_offset > 132 for path in pydicom_sample_paths())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"DICM",
        b"GIF89a" + bytes(500),
        SLICE.file()[:140],
        SLICE.file()[:200],
        part10_head("1.2", "1.3", EXPLICIT)[:-8],
        part10_head("../x", "1.3", EXPLICIT),
        part10_head("1.2", "1.3", "1.2.3.4"),
        SLICE.file()[:132] + b"\x02\x00\x01\x00OB\x00\x00\xff\xff\xff\x7f" + bytes(100),
        (pydicom_folder() / "no_meta.dcm").read_bytes(),
        (pydicom_folder() / "meta_missing_tsyntax.dcm").read_bytes(),
    ],
)
def test_not_a_dicom_file(data: bytes) -> None:
    """Anything else is refused with what to give instead."""
    with pytest.raises(Invalid):
        read_part10(data)
