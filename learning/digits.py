"""A teaching corpus that needs no download: scikit-learn's handwritten digits, each wrapped as a DICOM study.

1,797 real scans (8×8, 0..16), one patient per image. The class is coded in PrimaryAnatomicStructureSequence
(0008,2228), scheme 99ACCORD-DIGITS, code value digit-0 … digit-9; a held-out image carries the modifier code
REFERENCE in PrimaryAnatomicStructureModifierSequence (0008,2230). PS3.15 Table E.1-1 names neither attribute,
so de-identification keeps the codes. Sites are skewed on purpose: each has most of a third of the classes. The
references are the same at every site, as a set that was handed to all of them, so that what one site measures can
be held against what another does; no site trains on any of them.
Names, IDs and birth dates are invented. Format: docs/formats/training-plan.md, "The digits corpus".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

from learning.corpus import BODY_PART, CLASSES, CODES, MODALITY, REFERENCE, SCHEME
from learning.dataset import Examples

OWN_SHARE = 0.95
"""Of the images of its own third of the classes, this share lies at a site; the rest is spread over the others."""

REFERENCE_SHARE = 0.15
SEED = 20260101
_ROOT = "2.25"


@dataclass(frozen=True)
class Digit:
    """One scan: (8, 8) values 0..16, its class, its number in the corpus, whether it is held out."""

    pixels: NDArray[np.uint8]
    label: int
    number: int
    reference: bool


def digits_of(site: int, sites: int, *, limit: int | None = None) -> list[Digit]:
    """The scans of one of `sites` sites (0-based): references, the same at every site and in all classes evenly,
    then the skewed rest, of which no scan lies at two sites.

    With `limit`, at most so many of them, the same number of references at every site.
    """
    from sklearn.datasets import load_digits

    if not 0 <= site < sites:
        raise ValueError(f"there is no site {site} among {sites}")
    corpus = load_digits()
    generator = np.random.default_rng(SEED)
    references: list[tuple[int, Digit]] = []
    mine: list[Digit] = []
    for label in range(CLASSES):
        numbers = generator.permutation(np.flatnonzero(corpus.target == label))
        held = round(len(numbers) * REFERENCE_SHARE)
        references += [(turn, _digit(corpus, number, True)) for turn, number in enumerate(numbers[:held])]
        mine += [_digit(corpus, number, False) for number in _part(numbers[held:], label, site, sites)]
    references.sort(key=lambda one: one[0])
    chosen = [digit for _, digit in references]
    if limit is None:
        return chosen + mine
    # The number of references must not depend on the site, whose total does.
    average = len(chosen) + (len(corpus.target) - len(chosen)) / sites
    held = round(min(1.0, limit / average) * len(chosen))
    order = sorted(generator.permutation(len(mine))[: limit - held])
    return chosen[:held] + [mine[index] for index in order]


def digits_as_dicom(site: int, sites: int, *, limit: int | None = None) -> Iterator[bytes]:
    """The same scans as DICOM Part 10 files, one study of one patient each."""
    for digit in digits_of(site, sites, limit=limit):
        yield part10(digit)


def digits_as_examples(site: int, sites: int, *, limit: int | None = None) -> Examples:
    """The same scans as examples, without any DICOM in between: what a perfect pipeline would deliver."""
    digits = digits_of(site, sites, limit=limit)
    return Examples(
        np.stack([digit.pixels for digit in digits]).astype(np.float32) / np.float32(16),
        np.array([digit.label for digit in digits], np.int64),
        np.array([digit.reference for digit in digits], np.bool_),
    )


def part10(digit: Digit) -> bytes:
    """One scan as a DICOM file."""
    dataset = _identity(digit)
    dataset.PrimaryAnatomicStructureSequence = [_code(CODES[digit.label])]
    if digit.reference:
        modifier = _code(REFERENCE)
        dataset.PrimaryAnatomicStructureSequence[0].PrimaryAnatomicStructureModifierSequence = [modifier]
    rows, columns = digit.pixels.shape
    dataset.Rows, dataset.Columns = rows, columns
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.PixelRepresentation = 0
    dataset.WindowCenter, dataset.WindowWidth = "8", "16"
    dataset.PixelData = digit.pixels.tobytes()
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def patient_id(number: int) -> str:
    """The invented patient ID of scan `number`."""
    return f"DIGIT-{number:04d}"


def _part(numbers: NDArray[np.int64], label: int, site: int, sites: int) -> NDArray[np.int64]:
    """Which scans of a class, references apart, lie at a site."""
    owner = label * sites // CLASSES
    own = round(len(numbers) * OWN_SHARE)
    if site == owner:
        return numbers[:own]
    return numbers[own:][(site - owner - 1) % sites :: max(1, sites - 1)]


def _digit(corpus: object, number: np.int64, reference: bool) -> Digit:
    images, target = corpus.images, corpus.target  # type: ignore[attr-defined]
    return Digit(images[number].astype(np.uint8), int(target[number]), int(number), reference)


def _identity(digit: Digit) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.SOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.SOPInstanceUID = _uid("instance", digit.number)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.StudyInstanceUID = _uid("study", digit.number)
    dataset.SeriesInstanceUID = _uid("series", digit.number)
    dataset.PatientID = patient_id(digit.number)
    dataset.PatientName = f"Digit^Writer {digit.number:04d}"
    dataset.PatientBirthDate = f"19{40 + digit.number % 60:02d}0{1 + digit.number % 9}15"
    dataset.PatientSex = "O"
    dataset.StudyDate, dataset.StudyTime = "20260105", "090000"
    dataset.AccessionNumber = f"D{digit.number:05d}"
    dataset.StudyID = str(digit.number)
    dataset.ReferringPhysicianName = "Teacher^Ada"
    dataset.Modality, dataset.BodyPartExamined = MODALITY, BODY_PART
    dataset.StudyDescription = "Handwritten digit"
    dataset.SeriesNumber = dataset.InstanceNumber = "1"
    dataset.BurnedInAnnotation = "NO"
    dataset.ImageType = ["ORIGINAL", "PRIMARY"]
    return dataset


def _code(value: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, SCHEME, value
    return item


def _uid(kind: str, number: int) -> UID:
    digest = sha256(f"accord/digits/{kind}/{number}".encode()).digest()
    return UID(f"{_ROOT}.{int.from_bytes(digest[:16], 'big')}")
