"""What could still identify a person: refused before de-identification, searched for after it.

The gates know what no rule can clean: whole documents, free text in reports, pictures with writing on them,
faces. The search takes the input's own identifiers and looks for them in the bytes that would leave.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

from pydicom.dataset import Dataset
from pydicom.uid import UID

from node.imaging.confidentiality import Option
from node.imaging.deidentified import Refusal

MIN_IDENTIFIER_CHARACTERS = 4
ENCAPSULATED = frozenset({f"1.2.840.10008.5.1.4.1.1.104.{number}" for number in range(1, 6)})
STRUCTURED_MODALITIES = frozenset({"SR", "KO", "PR", "AU", "DOC", "RTPLAN", "RTRECORD", "PLAN"})
CAPTURED_MODALITIES = frozenset({"US", "SC", "XC", "OT", "ES", "GM", "SM", "IVUS"})
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
CHANCE_DIGITS = 10
"""A UID of ours has 39 random digits: every fortieth data set holds a given run of four of them, none one of ten."""
FACES = frozenset({"HEAD", "FACE", "BRAIN", "SKULL", "HEADNECK", "ORBIT", "SINUS", "NECK"})
FACE_MODALITIES = frozenset({"CT", "MR", "PT"})


class Refused(Exception):
    """Carries a `Refusal` up to `Deidentifier.apply`."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.refusal = Refusal(code, reason)


def refuse_unsafe(dataset: Dataset, options: frozenset[Option]) -> None:
    """Raise Refused for what no rule can make safe."""
    sop_class, modality = str(dataset.get("SOPClassUID", "")), str(dataset.get("Modality", ""))
    if not sop_class or not dataset.get("SOPInstanceUID"):
        raise Refused("no-identity", "It has no SOP Class or SOP Instance UID.")
    if UID(sop_class).name == sop_class:
        raise Refused("unknown-class", "Its SOP class is not in the standard: nobody can say what it holds.")
    if sop_class in ENCAPSULATED or "EncapsulatedDocument" in dataset:
        raise Refused("encapsulated", "It holds a whole document, which may name the patient on any page.")
    if modality in STRUCTURED_MODALITIES:
        raise Refused("structured", f"{modality} objects hold free text that no rule can clean.")
    burned_in = str(dataset.get("BurnedInAnnotation", "")).upper()
    captured = modality in CAPTURED_MODALITIES or sop_class.startswith(SECONDARY_CAPTURE)
    if burned_in == "YES" or (captured and burned_in != "NO"):
        raise Refused(
            "burned-in", "Its pixels may show text. Have somebody look and mark it Burned In Annotation NO."
        )
    _refuse_a_face(dataset, modality, options)


def _refuse_a_face(dataset: Dataset, modality: str, options: frozenset[Option]) -> None:
    if modality not in FACE_MODALITIES or Option.ALLOW_RECOGNIZABLE_FEATURES in options:
        return
    body_part = str(dataset.get("BodyPartExamined", "")).upper().replace(" ", "")
    if body_part in FACES and str(dataset.get("RecognizableVisualFeatures", "")).upper() != "NO":
        raise Refused("face", "A head scan can be rendered as a face. Deface it, or get the option approved.")


def search_for_leaks(data: bytes, original: Dataset, options: frozenset[Option]) -> None:
    """Pair the check: the bytes that leave are searched for the direct identifiers that came in."""
    again = _without_pixels(data, original)
    for word in _identifiers(original, options):
        if _stands_in(word, again):
            raise Refused(
                "leak", "An identifier of the patient is still in it after cleaning; it needs a person's eye."
            )


def _stands_in(word: bytes, data: bytes) -> bool:
    """Whether an identifier is in the data; a short number inside a longer one or a UID is there by chance."""
    if not word.isdigit() or len(word) >= CHANCE_DIGITS:
        return word in data
    alone = rb"(?<![0-9])(?<![0-9]\.)" + word + rb"(?![0-9])(?!\.[0-9])"
    return re.search(alone, data) is not None


def _without_pixels(data: bytes, original: Dataset) -> bytes:
    # Chance hits inside pixels would mean nothing.
    if "PixelData" not in original:
        return data
    cut = data.find(b"\xe0\x7f\x10\x00")
    return data[:cut] if cut > 0 else data


def _identifiers(dataset: Dataset, options: frozenset[Option]) -> set[bytes]:
    words: set[str] = set()
    for keyword in ("PatientName", "OtherPatientNames", "ReferringPhysicianName", "PatientBirthName"):
        words.update(re.split(r"[\^= ]+", str(dataset.get(keyword, ""))))
    for keyword in ("PatientID", "AccessionNumber", "OtherPatientIDs"):
        words.add(str(dataset.get(keyword, "")))
    if not options & {Option.RETAIN_FULL_DATES}:
        words.add(str(dataset.get("PatientBirthDate", "")))
    if Option.RETAIN_UIDS not in options:
        words.update(
            str(dataset.get(keyword, ""))
            for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
        )
    long_enough = {word.strip() for word in words if len(word.strip()) >= MIN_IDENTIFIER_CHARACTERS}
    cjk = {word.strip() for word in words if word.strip() and not word.isascii()}
    return {word.encode() for word in long_enough | cjk if word not in known_terms()}


@cache
def known_terms() -> frozenset[str]:
    """Words that name no person: they may stay in descriptions and are no leak."""
    text = files("node.imaging").joinpath("descriptors.txt").read_text("utf-8")
    return frozenset(word for line in text.splitlines() if not line.startswith("#") for word in line.split())
