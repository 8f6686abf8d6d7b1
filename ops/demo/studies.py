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


ZHANG = Patient("GH-2026-471108", "Zhang^Weiming=张^伟明", "19530417", "ACC7730915")
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
    """A chest with lungs, vessels, heart, ribs, spine and one small nodule: stored values (Hounsfield units + 1024)."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j].astype(np.float32)
    noise = random.normal(0, 16, (SIDE, SIDE)).astype(np.float32)
    vessels = random.uniform(-1, 1, (160, 3)).astype(np.float32)
    for number in range(slices):
        z = 2 * number / slices - 1
        yield np.clip(
            _chest(x, y, z, vessels) + np.roll(noise, number * 37, axis=(0, 1)) + 1024, 0, 4095
        ).astype(np.int16)


def _chest(
    x: NDArray[np.float32], y: NDArray[np.float32], z: float, vessels: NDArray[np.float32]
) -> NDArray[np.float32]:
    """One slice at height `z` (-1 … 1, towards the head), in Hounsfield units; the patient's left is on the right."""
    image = np.full_like(x, -1000)
    image[_ellipse(x, y, 0, 0, 0.84, 0.6)] = -95  # fat
    image[_ellipse(x, y, 0, 0, 0.79, 0.55)] = 45  # muscle
    angle = np.arctan2(y, x)
    wall = _ellipse(x, y, 0, -0.02, 0.735, 0.505) & ~_ellipse(x, y, 0, -0.02, 0.69, 0.46)
    image[wall & (np.sin(angle * 9 + z * 14) > 0.35)] = 520  # ribs, slanting from slice to slice
    swell = float(np.sqrt(max(0.0, 1 - (z * 0.9) ** 2)))
    for side in (-1, 1):
        lung = _ellipse(x, y, side * 0.37, -0.03, 0.28 * swell + 0.03, 0.41 * swell + 0.03)
        image[lung] = -840
        for place, height, depth in vessels[vessels[:, 0] * side > 0]:
            if abs(depth - z) < 0.12:  # wide at the root of the lung, fine at its edge
                width = 0.019 * (1 - abs(place)) + 0.004
                image[lung & _ellipse(x, y, 0.14 * side + 0.44 * place, 0.36 * height, width, width)] = -60
    if z < 0.35:
        image[_ellipse(x, y, 0.1, -0.12, 0.27, 0.23 + 0.1 * z)] = 60  # heart, towards the patient's left
    if z > 0.1:
        image[_ellipse(x, y, -0.02, 0.1, 0.045, 0.035)] = -980  # trachea, above its fork
    image[_ellipse(x, y, 0.12, 0.2, 0.055, 0.055)] = 170  # aorta
    image[_ellipse(x, y, 0, 0.33, 0.115, 0.09)] = 330  # vertebra
    image[_ellipse(x, y, 0, 0.45, 0.045, 0.04)] = 20  # spinal canal
    image[_ellipse(x, y, 0, 0.52, 0.03, 0.05)] = 480  # spinous process
    nodule = max(0.0, 0.035**2 - (z * 0.1) ** 2) ** 0.5
    if nodule:
        image[_ellipse(x, y, -0.44, 0.1, nodule, nodule)] = 70
    return image


def _ellipse(
    x: NDArray[np.float32], y: NDArray[np.float32], at_x: float, at_y: float, width: float, height: float
) -> NDArray[np.bool_]:
    return np.asarray(((x - at_x) / width) ** 2 + ((y - at_y) / height) ** 2 < 1)


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
