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

from consent.errors import Invalid, Sentence
from node.index.names import folded_groups, wildcard
from node.index.names import fuzzy as fuzzy_name

MAX_KEYS = 64
EMPTY = '""'
"""What asks for attributes without a value, where it is agreed to mean that (PS3.4 §C.2.2.2.7)."""
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

    PATIENT = "patient"
    STUDY = "study"
    SERIES = "series"
    INSTANCE = "instance"


@dataclass(frozen=True)
class Attribute:
    """A DICOM attribute that the index knows. `tag` is eight upper-case hexadecimal digits.

    `items` are the attributes that are kept of the items of a sequence, by keyword.
    """

    keyword: str
    tag: str
    vr: str
    level: Level
    items: Mapping[str, Attribute] = field(default_factory=dict)


def _at(level: Level, *rows: tuple[str, str, str]) -> Iterable[Attribute]:
    return (Attribute(keyword, tag, vr, level) for tag, vr, keyword in rows)


def _sequence(level: Level, tag: str, keyword: str, *rows: tuple[str, str, str]) -> Attribute:
    return Attribute(keyword, tag, "SQ", level, {item.keyword: item for item in _at(level, *rows)})


ATTRIBUTES: Mapping[str, Attribute] = {
    attribute.keyword: attribute
    for attribute in (
        *_at(
            Level.PATIENT,
            ("00100010", "PN", "PatientName"),
            ("00100020", "LO", "PatientID"),
            ("00100030", "DA", "PatientBirthDate"),
            ("00100040", "CS", "PatientSex"),
            ("00201200", "IS", "NumberOfPatientRelatedStudies"),
            ("00201202", "IS", "NumberOfPatientRelatedSeries"),
            ("00201204", "IS", "NumberOfPatientRelatedInstances"),
        ),
        *_at(
            Level.STUDY,
            ("00080020", "DA", "StudyDate"),
            ("00080030", "TM", "StudyTime"),
            ("00080050", "SH", "AccessionNumber"),
            ("00080061", "CS", "ModalitiesInStudy"),
            ("00080090", "PN", "ReferringPhysicianName"),
            ("00081030", "LO", "StudyDescription"),
            ("0020000D", "UI", "StudyInstanceUID"),
            ("00200010", "SH", "StudyID"),
            ("00201206", "IS", "NumberOfStudyRelatedSeries"),
            ("00201208", "IS", "NumberOfStudyRelatedInstances"),
        ),
        _sequence(
            Level.STUDY,
            "00081032",
            "ProcedureCodeSequence",
            ("00080100", "SH", "CodeValue"),
            ("00080102", "SH", "CodingSchemeDesignator"),
            ("00080104", "LO", "CodeMeaning"),
        ),
        *_at(
            Level.SERIES,
            ("00080060", "CS", "Modality"),
            ("0008103E", "LO", "SeriesDescription"),
            ("00080021", "DA", "SeriesDate"),
            ("00080031", "TM", "SeriesTime"),
            ("00180015", "CS", "BodyPartExamined"),
            ("0020000E", "UI", "SeriesInstanceUID"),
            ("00200011", "IS", "SeriesNumber"),
            ("00201209", "IS", "NumberOfSeriesRelatedInstances"),
        ),
        _sequence(
            Level.SERIES,
            "00400275",
            "RequestAttributesSequence",
            ("00080050", "SH", "AccessionNumber"),
            ("00400009", "SH", "ScheduledProcedureStepID"),
            ("00401001", "SH", "RequestedProcedureID"),
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
_ORDER = {Level.PATIENT: 0, Level.STUDY: 1, Level.SERIES: 2, Level.INSTANCE: 3}
PATIENT_TOTALS = frozenset(
    {"NumberOfPatientRelatedStudies", "NumberOfPatientRelatedSeries", "NumberOfPatientRelatedInstances"}
)


@dataclass(frozen=True)
class Query:
    """A search at one level. `keys` maps DICOM keywords to matching values, none of them universal.

    A key inside a sequence is named `SEQUENCE.ATTRIBUTE`; keys of one sequence must match in one item together.
    `ignored` names keys that were asked for and are not searched by. `combined`: Study Date and Study Time are one
    moment in ranges of both. `empty`: the value `""` asks for what has none. `totals`: the counts of a patient's studies,
    series and instances are wanted at the patient level. `fuzzy`: names are matched by `names.fuzzy`.
    """

    level: Level
    keys: Mapping[str, str] = field(default_factory=dict)
    limit: int = DEFAULT_LIMIT
    offset: int = 0
    ignored: tuple[str, ...] = ()
    combined: bool = False
    empty: bool = False
    totals: bool = False
    fuzzy: bool = False

    @classmethod
    def of(
        cls,
        level: Level,
        keys: Iterable[tuple[str, str]] | Mapping[str, str] = (),
        *,
        limit: int = DEFAULT_LIMIT,
        offset: int = 0,
        combined: bool = False,
        empty: bool = False,
        totals: bool = False,
        fuzzy: bool = False,
    ) -> Query:
        """Check and make a query; a key is a keyword or a tag. Raises Invalid with the key's name, not its value."""
        pairs = list(keys.items() if isinstance(keys, Mapping) else keys)
        if len(pairs) > MAX_KEYS:
            raise Invalid(Sentence("A search has at most %(most)s keys.", most=MAX_KEYS))
        if not 0 <= offset <= MAX_OFFSET or limit < 0:
            raise Invalid(
                Sentence(
                    "limit and offset are whole numbers from 0; offset is at most %(most)s.", most=MAX_OFFSET
                )
            )
        known: dict[str, str] = {}
        ignored: list[str] = []
        for name, value in pairs:
            path = path_of(name)
            if not path or _ORDER[path[0].level] > _ORDER[level] or path[-1].keyword in _UNSEARCHED:
                ignored.append(name[:64])
            elif value.strip("*"):
                if not (empty and value == EMPTY):
                    check_value(path[-1], value)
                known[".".join(step.keyword for step in path)] = value
        return cls(
            level, known, min(limit, MAX_LIMIT), offset, tuple(ignored), combined, empty, totals, fuzzy
        )


_COUNTS = PATIENT_TOTALS | {
    "NumberOfStudyRelatedSeries",
    "NumberOfStudyRelatedInstances",
    "NumberOfSeriesRelatedInstances",
}
_UNSEARCHED = _COUNTS | {keyword for keyword, attribute in ATTRIBUTES.items() if attribute.vr == "SQ"}


def attribute_of(name: str) -> Attribute | None:
    """Find an attribute by keyword or by tag (eight hexadecimal digits); None when the index does not know it."""
    return ATTRIBUTES.get(name) or (_BY_TAG.get(name.upper()) if _TAG.fullmatch(name) else None)


def path_of(name: str) -> tuple[Attribute, ...]:
    """An attribute, or a sequence and an attribute of its items, by keyword or tag; empty when the index knows it not."""
    outer, dot, inner = name.partition(".")
    attribute = attribute_of(outer)
    if attribute is None or not dot:
        return (attribute,) if attribute is not None else ()
    of_items = {item.tag: item for item in attribute.items.values()}
    item = attribute.items.get(inner) or of_items.get(inner.upper())
    return (attribute, item) if item is not None else ()


def check_value(attribute: Attribute, value: str) -> None:
    """Raise Invalid when `value` cannot match an attribute of this VR."""
    if len(value) > MAX_VALUE_CHARACTERS:
        raise Invalid(Sentence("The value of %(keyword)s is too long.", keyword=attribute.keyword))
    if attribute.vr == "UI" and not all(_UID.fullmatch(uid) for uid in uids(value)):
        raise Invalid(
            Sentence("%(keyword)s takes UIDs, separated by commas or backslashes.", keyword=attribute.keyword)
        )
    if attribute.vr in ("DA", "TM"):
        form, shape = (_DATE, "YYYYMMDD") if attribute.vr == "DA" else (_TIME, "HHMMSS")
        ends = value.split("-")
        if len(ends) > 2 or not any(ends) or not all(form.fullmatch(end) for end in ends if end):
            raise Invalid(
                Sentence(
                    "%(keyword)s takes %(shape)s, %(shape)s-, -%(shape)s or %(shape)s-%(shape)s.",
                    keyword=attribute.keyword,
                    shape=shape,
                )
            )


def uids(value: str) -> list[str]:
    """The UIDs of a list (PS3.4 §C.2.2.2.2), without empty ones. Raises Invalid when there are too many."""
    found = [uid for uid in re.split(r"[\\,]", value) if uid]
    if len(found) > MAX_LIST_VALUES:
        raise Invalid(Sentence("A list has at most %(most)s UIDs.", most=MAX_LIST_VALUES))
    return found


def matcher(attribute: Attribute, value: str, *, empty: bool = False, fuzzy: bool = False) -> Matcher:
    """Whether one stored value answers; the kind of matching follows from the VR. `empty`: `""` asks for none.

    `fuzzy`: names are matched by `names.fuzzy`.
    """
    if empty and value == EMPTY:
        return lambda stored: not stored.strip()
    match attribute.vr:
        case "UI":
            wanted = frozenset(uids(value))
            return lambda stored: stored in wanted
        case "DA" | "TM":
            return _range(value, digits=8 if attribute.vr == "DA" else 6)
        case "PN":
            return _fuzzy_name(value) if fuzzy else _name(value)
        case "IS" | "US":
            return _number(value)
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


def _fuzzy_name(value: str) -> Matcher:
    matches = fuzzy_name(value)
    return lambda stored: any(map(matches, folded_groups(stored)))


def combined_range(dates: str, times: str) -> Callable[[str, str], bool]:
    """Whether a moment, a stored date and time, lies between the first date at the first time and the last at the last.

    PS3.4 §C.2.2.2.5: what both ranges mean where combined matching was agreed upon.
    """
    first_day, dash, last_day = dates.partition("-")
    first_time, _, last_time = times.partition("-")
    last_day = last_day if dash else first_day
    low = f"{first_day}{first_time.ljust(6, '0')}" if first_day else ""
    high = f"{last_day}{last_time or '235959.999999'}" if last_day else ""

    def matches(date: str, time: str) -> bool:
        moment = f"{date}{time.ljust(6, '0')}"
        return bool(date) and moment >= low and (not high or moment[: len(high)] <= high)

    return matches


def is_range(value: str) -> bool:
    """Whether a date or time is a range."""
    return "-" in value


def _number(value: str) -> Matcher:
    try:
        wanted = int(value)
    except ValueError:
        return lambda stored: False
    return lambda stored: stored.lstrip("-").isdigit() and int(stored) == wanted


def _range(value: str, *, digits: int) -> Matcher:
    """A date or a time; what is stored less precisely than `digits` counts from its beginning."""
    low, dash, high = value.partition("-")
    if not dash:
        # A time of less precision stands for all that begin with it.
        return lambda stored: stored.startswith(low)
    return lambda stored: (
        bool(stored)
        and stored.ljust(digits, "0") >= low.ljust(digits, "0")
        and (not high or stored[: len(high)] <= high)
    )


def dicom_json(values: Mapping[str, Any], attributes: Mapping[str, Attribute] = ATTRIBUTES) -> dict[str, Any]:
    """The DICOM JSON Model (PS3.18 Annex F) of attributes by keyword; an attribute without value has no `Value`."""
    return {
        attributes[keyword].tag: _element(attributes[keyword], value)
        for keyword, value in values.items()
        if keyword in attributes
    }


def _element(attribute: Attribute, value: Any) -> dict[str, Any]:
    vr = attribute.vr
    if value in (None, "", []):
        return {"vr": vr}
    if vr == "PN":
        return {"vr": vr, "Value": [_person_name(one) for one in str(value).split("\\")]}
    if vr in ("IS", "US"):
        return {"vr": vr, "Value": [int(value)]}
    if vr == "SQ":
        return {"vr": vr, "Value": [dicom_json(item, attribute.items) for item in value]}
    return {"vr": vr, "Value": str(value).split("\\") if vr != "LT" else [str(value)]}


def _person_name(value: str) -> dict[str, str]:
    names = zip(("Alphabetic", "Ideographic", "Phonetic"), value.split("="), strict=False)
    return {name: group for name, group in names if group}
