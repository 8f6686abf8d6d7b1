"""The Basic Application Level Confidentiality Profile as data (PS3.15 Annex E, Table E.1-1, edition 2024b).

Holds the table (`table_e1_1_2024b.csv`), the options this node offers, and the lists that decide what happens
to attributes the table does not name. `node.imaging.deidentify` applies them.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib.resources import files

EDITION = "PS3.15 2024b"


class Action(StrEnum):
    """What happens to an attribute (PS3.15 §E.3)."""

    KEEP = "K"
    REMOVE = "X"
    EMPTY = "Z"
    DUMMY = "D"
    UID = "U"
    CLEAN = "C"


class Option(StrEnum):
    """Profile options (PS3.15 §E.3.x) that this engine carries out, by the names people type."""

    RETAIN_UIDS = "retain-uids"
    RETAIN_DEVICE_IDENTITY = "retain-device-identity"
    RETAIN_INSTITUTION_IDENTITY = "retain-institution-identity"
    RETAIN_PATIENT_CHARACTERISTICS = "retain-patient-characteristics"
    RETAIN_FULL_DATES = "retain-full-dates"
    MODIFIED_DATES = "modified-dates"
    CLEAN_DESCRIPTORS = "clean-descriptors"
    ALLOW_RECOGNIZABLE_FEATURES = "allow-recognizable-features"
    """Not of the standard: the project has an approval for head scans that could be rendered as a face."""


@dataclass(frozen=True)
class Method:
    """A code of CID 7050, for De-identification Method Code Sequence (0012,0064)."""

    value: str
    meaning: str


BASIC_METHOD = Method("113100", "Basic Application Confidentiality Profile")
OPTION_METHODS: Mapping[Option, Method] = {
    Option.RETAIN_UIDS: Method("113110", "Retain UIDs Option"),
    Option.RETAIN_DEVICE_IDENTITY: Method("113109", "Retain Device Identity Option"),
    Option.RETAIN_INSTITUTION_IDENTITY: Method("113112", "Retain Institution Identity Option"),
    Option.RETAIN_PATIENT_CHARACTERISTICS: Method("113108", "Retain Patient Characteristics Option"),
    Option.RETAIN_FULL_DATES: Method("113106", "Retain Longitudinal Temporal Information Full Dates Option"),
    Option.MODIFIED_DATES: Method("113107", "Retain Longitudinal Temporal Information Modified Dates Option"),
    Option.CLEAN_DESCRIPTORS: Method("113105", "Clean Descriptors Option"),
}

_COLUMN: Mapping[Option, str] = {
    Option.RETAIN_UIDS: "uids",
    Option.RETAIN_DEVICE_IDENTITY: "device-identity",
    Option.RETAIN_INSTITUTION_IDENTITY: "institution-identity",
    Option.RETAIN_PATIENT_CHARACTERISTICS: "patient-characteristics",
    Option.RETAIN_FULL_DATES: "full-dates",
    Option.MODIFIED_DATES: "modified-dates",
    Option.CLEAN_DESCRIPTORS: "descriptors",
}

_SAFEST: Mapping[str, Action] = {
    # Where the action depends on the attribute's type in the IOD, the one that never breaks the IOD is taken:
    # an empty or dummy value is allowed wherever removal is.
    "X": Action.REMOVE,
    "Z": Action.EMPTY,
    "D": Action.DUMMY,
    "U": Action.UID,
    "X/Z": Action.EMPTY,
    "X/D": Action.DUMMY,
    "Z/D": Action.DUMMY,
    "X/Z/D": Action.DUMMY,
    "X/Z/U*": Action.UID,
}

KEPT_TEXT = frozenset(
    {
        # Controlled terms and technical labels that the table does not name and that IODs or medicine need.
        "CodeValue",
        "LongCodeValue",
        "CodingSchemeDesignator",
        "CodingSchemeVersion",
        "CodingSchemeName",
        "CodingSchemeUID",
        "CodeMeaning",
        "ContextIdentifier",
        "MappingResource",
        "MappingResourceName",
        "RescaleType",
        "ModalityLUTType",
        "LUTLabel",
        "LUTExplanation",
        "WindowCenterWidthExplanation",
        "SoftwareVersions",
        "ConvolutionKernel",
        "SequenceName",
        "PulseSequenceName",
        "PositionReferenceIndicator",
        "Manufacturer",
        "ManufacturerModelName",
        "TransmitCoilName",
        "ReceiveCoilName",
        "FilterType",
        "SegmentLabel",
        "SegmentAlgorithmName",
        "SegmentationAlgorithmName",
        "FrameType",
        "DerivationDescription",
        "ImagedNucleus",
        "AngioFlag",
        "StackID",
        "DimensionDescriptionLabel",
        "LossyImageCompressionMethod",
        "RadionuclideTotalDose",
        "DeidentificationMethod",
        "PatientIdentityRemoved",
    }
)
"""Free-text attributes outside the table that stay. Every other one outside the table is emptied."""

FREE_TEXT_VRS = frozenset({"LO", "SH", "ST", "LT", "UT", "UC", "PN", "UR", "AE"})
DATE_VRS = frozenset({"DA", "DT", "TM"})


@dataclass(frozen=True)
class Row:
    """One row of the table."""

    name: str
    basic: str
    options: Mapping[str, str]


@cache
def table() -> Mapping[int, Row]:
    """Tag → row, for the rows that name one tag; groups 50xx, 60xx and private have rules of their own."""
    text = files("node.imaging").joinpath("table_e1_1_2024b.csv").read_text("utf-8")
    rows: dict[int, Row] = {}
    for line in csv.DictReader(text.splitlines()[1:]):
        tag = line["tag"].replace(",", "")
        if "x" in tag or "g" in tag:
            continue
        options = dict(pair.split("=") for pair in line["options"].split(";") if pair)
        rows[int(tag, 16)] = Row(line["name"], line["basic"], options)
    return rows


def action_for(tag: int, options: frozenset[Option]) -> Action | None:
    """The action for a tag the table names, with the options applied; None when the table does not name it.

    An option that says "clean" for an attribute this engine cannot clean by rule leaves the basic action.
    """
    row = table().get(tag)
    if row is None:
        return None
    for option in options & _COLUMN.keys():
        match row.options.get(_COLUMN[option]):
            case "K":
                return Action.KEEP
            case "C" if option in (Option.MODIFIED_DATES, Option.CLEAN_DESCRIPTORS):
                return Action.CLEAN
            case _:
                continue
    return _SAFEST[row.basic]
