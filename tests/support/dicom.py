"""Builders of small DICOM data sets and files, and the real studies that ship inside pydicom.

`ct_slice()` is one instance as an `Instance` (data set bytes apart from the file head); `study()` is several.
Everything derives from its arguments, so the same call gives the same bytes.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import CTImageStorage

from node.imaging.part10 import part10_head, read_part10

EXPLICIT = "1.2.840.10008.1.2.1"
IMPLICIT = "1.2.840.10008.1.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN = "1.2.840.10008.1.2.2"


@dataclass(frozen=True)
class Instance:
    """One SOP instance: `data` is the data set alone, as it goes over the wire."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    data: bytes

    @property
    def sha256(self) -> bytes:
        return hashlib.sha256(self.data).digest()

    def file(self) -> bytes:
        """The same instance as a DICOM file."""
        return part10_head(self.sop_class_uid, self.sop_instance_uid, self.transfer_syntax_uid) + self.data

    def dataset(self) -> Dataset:
        """The same instance as pydicom reads it."""
        return pydicom.dcmread(BytesIO(self.file()))


def uid(*parts: object) -> str:
    """A UID that depends on `parts` alone."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return f"2.25.{int.from_bytes(digest[:15], 'big')}"


def ct_slice(
    *,
    patient_id: str = "P-0001",
    patient_name: str = "Zhang^San=张^三",
    birth_date: str = "19700102",
    sex: str = "F",
    study: str = "study-1",
    series: int = 1,
    number: int = 1,
    size: int = 32,
    modality: str = "CT",
    sop_class_uid: str = CTImageStorage,
    study_date: str = "20260301",
    accession_number: str = "A-0001",
    study_description: str = "CT THORAX",
    body_part: str = "CHEST",
    transfer_syntax: str = EXPLICIT,
    pixels: np.ndarray | None = None,
    **more: object,
) -> Instance:
    """One slice of `size`×`size` 16-bit pixels; `more` sets further elements by keyword (None deletes one)."""
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.SOPClassUID = sop_class_uid
    ds.SOPInstanceUID = uid(study, series, number)
    ds.StudyDate, ds.StudyTime = study_date, "101500"
    ds.AccessionNumber, ds.Modality = accession_number, modality
    ds.Manufacturer, ds.InstitutionName = "ACME", "General Hospital"
    ds.ReferringPhysicianName = "Li^Si"
    ds.StudyDescription, ds.SeriesDescription = study_description, f"Series {series}"
    ds.PatientName, ds.PatientID = patient_name, patient_id
    ds.PatientBirthDate, ds.PatientSex = birth_date, sex
    ds.BodyPartExamined, ds.SliceThickness, ds.KVP = body_part, "1.0", "120"
    ds.PatientPosition = "HFS"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = uid(study), uid(study, series)
    ds.StudyID, ds.SeriesNumber, ds.AcquisitionNumber, ds.InstanceNumber = "1", series, 1, number
    ds.ImagePositionPatient = ["-180", "-180", str(number)]
    ds.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
    ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = uid(study, "frame"), ""
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    image = phantom(size, number) if pixels is None else pixels
    if image.ndim == 3:
        ds.NumberOfFrames = image.shape[0]
    ds.Rows, ds.Columns = image.shape[-2:]
    ds.PixelSpacing = ["0.7", "0.7"]
    ds.BitsAllocated = ds.BitsStored = image.itemsize * 8
    ds.HighBit, ds.PixelRepresentation = image.itemsize * 8 - 1, int(image.dtype.kind == "i")
    ds.WindowCenter, ds.WindowWidth = "40", "400"
    ds.RescaleIntercept, ds.RescaleSlope = "0", "1"
    if transfer_syntax == BIG_ENDIAN:
        image = image.astype(image.dtype.newbyteorder(">"))
    ds.PixelData = image.tobytes()
    ds["PixelData"].VR = "OW" if image.itemsize > 1 else "OB"
    for keyword, value in more.items():
        if value is None:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    return instance(ds, transfer_syntax)


def study(*, series: int = 1, slices: int = 3, name: str = "study-1", **more: object) -> tuple[Instance, ...]:
    """`series` series of `slices` slices each; `more` goes to every `ct_slice`."""
    return tuple(
        ct_slice(study=name, series=s, number=n, **more)  # type: ignore[arg-type]
        for s in range(1, series + 1)
        for n in range(1, slices + 1)
    )


def instance(ds: Dataset, transfer_syntax: str = EXPLICIT) -> Instance:
    """Encode a pydicom data set (native pixels) as an instance."""
    out = DicomBytesIO()
    out.is_little_endian = transfer_syntax != BIG_ENDIAN
    out.is_implicit_VR = transfer_syntax == IMPLICIT
    write_dataset(out, ds)
    data = out.getvalue()
    if transfer_syntax == DEFLATED:
        data = deflate(data)
    return Instance(str(ds.SOPClassUID), str(ds.SOPInstanceUID), transfer_syntax, data)


def deflate(data: bytes) -> bytes:
    """A deflated data set, padded to even length (PS3.5 §A.5)."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    out = packer.compress(data) + packer.flush()
    return out + b"\0" * (len(out) % 2)


def phantom(size: int, z: int = 0) -> np.ndarray:
    """A smooth body with two lungs and a moving blob, plus noise: compresses about as real CT does."""
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    body = ((x / 0.8) ** 2 + (y / 0.65) ** 2 < 1) * 1000.0
    lungs = sum(((x + side) / 0.25) ** 2 + (y / 0.4) ** 2 < 1 for side in (-0.35, 0.35)) * 800.0
    blob = 300 * np.exp(-((x - 0.1 * np.sin(z / 7)) ** 2 + (y - 0.1 * np.cos(z / 7)) ** 2) / 0.01)
    noise = np.random.default_rng(z).normal(0, 12, (size, size))
    return (body - lungs + blob - 1000 + noise).astype("<i2")


def element(tag: int, vr: bytes, value: bytes, *, length: int | None = None) -> bytes:
    """One Explicit VR Little Endian element; `length` lies about the value's size when given."""
    size = len(value) if length is None else length
    head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr)
    if vr in (b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"SQ", b"UN", b"UC", b"UR", b"UT", b"SV", b"UV"):
        return head + struct.pack("<HI", 0, size) + value
    return head + struct.pack("<H", size) + value


def nested_sequences(depth: int, *, undefined: bool = True) -> bytes:
    """`depth` sequences, each the only element of the item above it (Explicit VR Little Endian)."""
    opening = struct.pack("<HH2sHI", 0x0040, 0xA730, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    closing = struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    if undefined:
        return opening * depth + closing * depth
    inner = b""
    for _ in range(depth):
        item = struct.pack("<HHI", 0xFFFE, 0xE000, len(inner)) + inner
        inner = struct.pack("<HH2sHI", 0x0040, 0xA730, b"SQ", 0, len(item)) + item
    return inner


@cache
def pydicom_folder() -> Path:
    """Where pydicom keeps its test files."""
    return Path(pydicom.__file__).parent / "data" / "test_files"


@cache
def pydicom_sample_paths() -> tuple[Path, ...]:
    """The files of the multi-series CT, MR and CR studies of three patients that ship inside pydicom."""
    root = pydicom_folder() / "dicomdirtests"
    folders = ("77654033", "98892001", "98892003")
    return tuple(path for name in folders for path in sorted((root / name).rglob("*")) if path.is_file())


def pydicom_samples() -> Iterator[Instance]:
    """The instances of `pydicom_sample_paths`."""
    for path in pydicom_sample_paths():
        yield from_file(path.read_bytes())


def from_file(data: bytes) -> Instance:
    """Split a DICOM file into an instance."""
    head = read_part10(data)
    return Instance(
        head.sop_class_uid, head.sop_instance_uid, head.transfer_syntax_uid, data[head.dataset_offset :]
    )
