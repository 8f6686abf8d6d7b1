"""What the demonstration sends: real studies that ship inside pydicom, and a generated CT of 200 slices.

Every patient here is invented. The generated one has a name in Latin and Chinese letters, an ID, a birth date and
an accession number that occur nowhere else, so that they can be searched for afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from node.imaging.part10 import IMPLEMENTATION_CLASS_UID

SLICES = 200
SIDE = 512
MIN_WORD_BYTES = 5
ROOMS = ("77654033", "98892001", "98892003")


@dataclass(frozen=True)
class Patient:
    """An invented person."""

    id: str
    name: str
    birth_date: str
    accession: str

    def words(self) -> tuple[str, ...]:
        """Every way in which this person could be recognised in a file; none so short that chance makes it."""
        parts = [part for group in self.name.split("=") for part in group.split("^")]
        words = (*parts, self.id, self.birth_date, self.accession)
        return tuple(word for word in words if len(word.encode()) >= MIN_WORD_BYTES)


ZHANG = Patient("GH-2026-471108", "Zhangweiming^Suyin=张伟明^素音", "19530417", "ACC7730915")
SAMPLES = (
    Patient("77654033", "Doe^Archibald", "", ""),
    Patient("98890234", "Doe^Peter", "", ""),
)


def uid(*parts: object) -> str:
    """A UID that depends on `parts` alone (PS3.5 B.2)."""
    return f"2.25.{int.from_bytes(sha256('/'.join(map(str, parts)).encode()).digest()[:15], 'big')}"


def sample_files() -> list[Path]:
    """The multi-series CR, CT and MR studies that are installed with pydicom."""
    root = Path(pydicom.__file__).parent / "data" / "test_files" / "dicomdirtests"
    return sorted(path for room in ROOMS for path in (root / room).rglob("*") if path.is_file())


def write_ct(folder: Path, patient: Patient = ZHANG, *, slices: int = SLICES, seed: int = 1) -> list[Path]:
    """Write a generated chest CT of `slices` 512 × 512 slices as DICOM files; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, pixels in enumerate(_phantom(slices, seed), start=1):
        path = folder / f"{number:04d}.dcm"
        _ct_slice(patient, number, pixels, seed).save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def _phantom(slices: int, seed: int) -> Iterator[NDArray[np.int16]]:
    """A body with two lungs, a spine and one small nodule, in stored values (Hounsfield units + 1024)."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j].astype(np.float32)
    noise = random.normal(0, 14, (SIDE, SIDE)).astype(np.float32)
    for number in range(slices):
        z = number / slices
        image = np.full((SIDE, SIDE), -1000, np.float32)
        image[(x / 0.82) ** 2 + (y / 0.6) ** 2 < 1] = 40
        wide = 0.27 * (0.55 + 0.45 * np.sin(np.pi * z))
        for side in (-0.36, 0.36):
            image[((x - side) / wide) ** 2 + ((y + 0.04) / (wide * 1.45)) ** 2 < 1] = -820
        image[(x / 0.11) ** 2 + ((y - 0.38) / 0.12) ** 2 < 1] = 420
        image[((x + 0.36) / 0.03) ** 2 + ((y - 0.05) / 0.03) ** 2 + ((z - 0.5) / 0.05) ** 2 < 1] = 60
        image += np.roll(noise, number * 37, axis=(0, 1))
        yield np.clip(image + 1024, 0, 4095).astype(np.int16)


def _ct_slice(patient: Patient, number: int, pixels: NDArray[np.int16], seed: int) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.ImplementationClassUID = IMPLEMENTATION_CLASS_UID
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid(patient.id, seed, number)
    dataset.StudyDate = dataset.SeriesDate = "20261120"
    dataset.StudyTime = dataset.SeriesTime = "091500"
    dataset.AccessionNumber = patient.accession
    dataset.Modality = "CT"
    dataset.Manufacturer = "Accord demonstration"
    dataset.ReferringPhysicianName = "Chen^Yu"
    dataset.StudyDescription = "Chest CT"
    dataset.SeriesDescription = "Thorax axial 1.0 mm"
    dataset.PatientName, dataset.PatientID = patient.name, patient.id
    dataset.PatientBirthDate, dataset.PatientSex = patient.birth_date, "F"
    dataset.BodyPartExamined = "CHEST"
    dataset.SliceThickness, dataset.KVP, dataset.PatientPosition = "1.0", "120", "HFS"
    dataset.StudyInstanceUID = uid(patient.id, seed, "study")
    dataset.SeriesInstanceUID = uid(patient.id, seed, "series")
    dataset.StudyID, dataset.SeriesNumber, dataset.InstanceNumber = "1", 1, number
    dataset.ImagePositionPatient = [-180.0, -180.0, float(number)]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.FrameOfReferenceUID = uid(patient.id, seed, "frame")
    dataset.PositionReferenceIndicator = ""
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows = dataset.Columns = SIDE
    dataset.PixelSpacing = [0.703125, 0.703125]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation = 0
    dataset.WindowCenter, dataset.WindowWidth = "-500", "1500"
    dataset.RescaleIntercept, dataset.RescaleSlope = "-1024", "1"
    dataset.PixelData = pixels.tobytes()
    return dataset
