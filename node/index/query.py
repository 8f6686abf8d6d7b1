"""What QIDO-RS and C-FIND may ask, and whether one row answers it (PS3.4 §C.2.2.2, PS3.18 §10.6).

Pure: no database. `ATTRIBUTES` is the list of attributes that are known, with their level and VR. Unknown
attributes are reported as ignored, malformed values are Invalid; every size is bounded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from consent.errors import Invalid
from node.index.names import folded_groups, wildcard

MAX_KEYS = 64
MAX_VALUE_CHARACTERS = 16 * 1024
MAX_LIST_VALUES = 500
MAX_LIMIT = 10_000
MAX_OFFSET = 1_000_000
DEFAULT_LIMIT = 500

_DATE = re.compile(r"\d{8}")
_TIME = re.compile(r"\d{2}(\d{2}(\d{2}(\.\d{1,6})?)?)?")
_UID = re.compile(r"[0-9.]{1,64}")
_TAG = re.compile(r"[0-9a-fA-F]{8}")

Matcher = Callable[[str], bool]


class Level(StrEnum):
    """What one answer is about."""

    STUDY = "study"
    SERIES = "series"
    INSTANCE = "instance"


@dataclass(frozen=True)
class Attribute:
    """A DICOM attribute that the index knows. `tag` is eight upper-case hexadecimal digits."""

    keyword: str
    tag: str
    vr: str
    level: Level


def _at(level: Level, *rows: tuple[str, str, str]) -> Iterable[Attribute]:
    return (Attribute(keyword, tag, vr, level) for tag, vr, keyword in rows)


ATTRIBUTES: Mapping[str, Attribute] = {
    attribute.keyword: attribute
    for attribute in (
        *_at(
            Level.STUDY,
            ("00080020", "DA", "StudyDate"),
            ("00080030", "TM", "StudyTime"),
            ("00080050", "SH", "AccessionNumber"),
            ("00080061", "CS", "ModalitiesInStudy"),
            ("00080090", "PN", "ReferringPhysicianName"),
            ("00081030", "LO", "StudyDescription"),
            ("00100010", "PN", "PatientName"),
            ("00100020", "LO", "PatientID"),
            ("00100030", "DA", "PatientBirthDate"),
            ("00100040", "CS", "PatientSex"),
            ("0020000D", "UI", "StudyInstanceUID"),
            ("00200010", "SH", "StudyID"),
            ("00201206", "IS", "NumberOfStudyRelatedSeries"),
            ("00201208", "IS", "NumberOfStudyRelatedInstances"),
        ),
        *_at(
            Level.SERIES,
            ("00080060", "CS", "Modality"),
            ("0008103E", "LO", "SeriesDescription"),
            ("00180015", "CS", "BodyPartExamined"),
            ("0020000E", "UI", "SeriesInstanceUID"),
            ("00200011", "IS", "SeriesNumber"),
            ("00201209", "IS", "NumberOfSeriesRelatedInstances"),
        ),
        *_at(
            Level.INSTANCE,
            ("00080016", "UI", "SOPClassUID"),
            ("00080018", "UI", "SOPInstanceUID"),
            ("00200013", "IS", "InstanceNumber"),
            ("00280008", "IS", "NumberOfFrames"),
            ("00280010", "US", "Rows"),
            ("00280011", "US", "Columns"),
        ),
    )
}
_BY_TAG = {attribute.tag: attribute for attribute in ATTRIBUTES.values()}
_ORDER = {Level.STUDY: 0, Level.SERIES: 1, Level.INSTANCE: 2}


@dataclass(frozen=True)
class Query:
    """A search at one level. `keys` maps DICOM keywords to matching values, none of them universal.

    `ignored` names keys that were asked for and are not searched by.
    """

    level: Level
    keys: Mapping[str, str] = field(default_factory=dict)
    limit: int = DEFAULT_LIMIT
    offset: int = 0
    ignored: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        level: Level,
        keys: Iterable[tuple[str, str]] | Mapping[str, str] = (),
        *,
        limit: int = DEFAULT_LIMIT,
        offset: int = 0,
    ) -> Query:
        """Check and make a query; a key is a keyword or a tag. Raises Invalid with the key's name, not its value."""
        pairs = list(keys.items() if isinstance(keys, Mapping) else keys)
        if len(pairs) > MAX_KEYS:
            raise Invalid(f"A search has at most {MAX_KEYS} keys.")
        if not 0 <= offset <= MAX_OFFSET or limit < 0:
            raise Invalid(f"limit and offset are whole numbers from 0; offset is at most {MAX_OFFSET}.")
        known: dict[str, str] = {}
        ignored: list[str] = []
        for name, value in pairs:
            attribute = attribute_of(name)
            if attribute is None or _ORDER[attribute.level] > _ORDER[level] or attribute.keyword in _COUNTS:
                ignored.append(name[:64])
            elif value.strip("*"):
                check_value(attribute, value)
                known[attribute.keyword] = value
        return cls(level, known, min(limit, MAX_LIMIT), offset, tuple(ignored))


_COUNTS = frozenset(
    {"NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances", "NumberOfSeriesRelatedInstances"}
)


def attribute_of(name: str) -> Attribute | None:
    """Find an attribute by keyword or by tag (eight hexadecimal digits); None when the index does not know it."""
    return ATTRIBUTES.get(name) or (_BY_TAG.get(name.upper()) if _TAG.fullmatch(name) else None)


def check_value(attribute: Attribute, value: str) -> None:
    """Raise Invalid when `value` cannot match an attribute of this VR."""
    if len(value) > MAX_VALUE_CHARACTERS:
        raise Invalid(f"The value of {attribute.keyword} is too long.")
    if attribute.vr == "UI" and not all(_UID.fullmatch(uid) for uid in uids(value)):
        raise Invalid(f"{attribute.keyword} takes UIDs, separated by commas or backslashes.")
    if attribute.vr in ("DA", "TM"):
        form, shape = (_DATE, "YYYYMMDD") if attribute.vr == "DA" else (_TIME, "HHMMSS")
        ends = value.split("-")
        if len(ends) > 2 or not any(ends) or not all(form.fullmatch(end) for end in ends if end):
            raise Invalid(f"{attribute.keyword} takes {shape}, {shape}-, -{shape} or {shape}-{shape}.")


def uids(value: str) -> list[str]:
    """The UIDs of a list (PS3.4 §C.2.2.2.2), without empty ones. Raises Invalid when there are too many."""
    found = [uid for uid in re.split(r"[\\,]", value) if uid]
    if len(found) > MAX_LIST_VALUES:
        raise Invalid(f"A list has at most {MAX_LIST_VALUES} UIDs.")
    return found


def matcher(attribute: Attribute, value: str) -> Matcher:
    """Whether one stored value answers; the kind of matching follows from the VR."""
    match attribute.vr:
        case "UI":
            wanted = frozenset(uids(value))
            return lambda stored: stored in wanted
        case "DA" | "TM":
            return _range(value)
        case "PN":
            return _name(value)
        case "IS" | "US":
            return lambda stored: stored.strip() == value.strip()
        case _:
            tests = [_text(part) for part in (re.split(r"[\\,]", value) if attribute.vr == "CS" else [value])]
            return lambda stored: any(test(one) for one in stored.split("\\") for test in tests)


def is_wild(value: str) -> bool:
    """Whether the value holds a wildcard."""
    return "*" in value or "?" in value


def _text(value: str) -> Matcher:
    if is_wild(value):
        return lambda stored: wildcard(value).fullmatch(stored) is not None
    return lambda stored: stored.strip() == value.strip()


def _name(value: str) -> Matcher:
    patterns = [wildcard(group) for group in folded_groups(value)]

    def matches(stored: str) -> bool:
        groups = folded_groups(stored)
        return bool(patterns) and all(any(p.fullmatch(group) for group in groups) for p in patterns)

    return matches


def _range(value: str) -> Matcher:
    low, dash, high = value.partition("-")
    if not dash:
        # A time of less precision stands for all that begin with it.
        return lambda stored: stored.startswith(low)
    return lambda stored: (
        bool(stored) and (not low or stored >= low) and (not high or stored[: len(high)] <= high)
    )


def dicom_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """The DICOM JSON Model (PS3.18 Annex F) of attributes by keyword; an attribute without value has no `Value`."""
    return {
        ATTRIBUTES[keyword].tag: _element(ATTRIBUTES[keyword].vr, value)
        for keyword, value in values.items()
        if keyword in ATTRIBUTES
    }


def _element(vr: str, value: Any) -> dict[str, Any]:
    if value is None or value == "":
        return {"vr": vr}
    if vr == "PN":
        return {"vr": vr, "Value": [_person_name(one) for one in str(value).split("\\")]}
    if vr in ("IS", "US"):
        return {"vr": vr, "Value": [int(value)]}
    return {"vr": vr, "Value": str(value).split("\\") if vr != "LT" else [str(value)]}


def _person_name(value: str) -> dict[str, str]:
    names = zip(("Alphabetic", "Ideographic", "Phonetic"), value.split("="), strict=False)
    return {name: group for name, group in names if group}
