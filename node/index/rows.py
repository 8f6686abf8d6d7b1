"""Rows of the index as the rest of the node sees them, opened; and what one new instance adds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from consent.vocabulary import Grade
from node.imaging.attributes import Attributes


@dataclass(frozen=True)
class Placement:
    """Where a sealed object lies in its study's pack, and under the key of which grade; sizes in bytes, `blake3` of the
    sealed bytes."""

    offset: int
    length: int
    plain_length: int
    blake3: bytes
    grade: Grade

    @property
    def end(self) -> int:
        """The offset behind the object."""
        return self.offset + self.length

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "offset": self.offset,
            "length": self.length,
            "plain_length": self.plain_length,
            "blake3": self.blake3.hex(),
            "grade": int(self.grade),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Placement:
        """The inverse of `to_json`."""
        return cls(
            data["offset"],
            data["length"],
            data["plain_length"],
            bytes.fromhex(data["blake3"]),
            Grade(data["grade"]),
        )


@dataclass(frozen=True)
class Entry:
    """One instance to be indexed; `sha256` is of its data set (32 bytes), `size_bytes` the data set's length."""

    study: str
    series: str
    instance: str
    patient: str
    grade: Grade
    received: datetime
    attributes: Attributes
    sha256: bytes
    size_bytes: int
    data_set: Placement
    description: Placement


@dataclass(frozen=True)
class StudyRow:
    """A study. `values` are study attributes by keyword, as in the first instance that arrived."""

    study: str
    patient: str
    grade: Grade
    modalities: tuple[str, ...]
    series_count: int
    instance_count: int
    size_bytes: int
    received: datetime
    changed: datetime
    values: Mapping[str, Any] = field(repr=False)

    @property
    def study_instance_uid(self) -> str:
        return str(self.values["StudyInstanceUID"])

    @property
    def department(self) -> str | None:
        return self.values.get("InstitutionalDepartmentName") or None


@dataclass(frozen=True)
class MetadataPlace:
    """Where the pre-made DICOM JSON of a series lies, and of how many instances it is."""

    object_id: str
    count: int
    placement: Placement


@dataclass(frozen=True)
class SeriesRow:
    """A series of a study."""

    study: str
    series: str
    number: int | None
    modality: str
    instance_count: int
    metadata: MetadataPlace | None
    values: Mapping[str, Any] = field(repr=False)

    @property
    def series_instance_uid(self) -> str:
        return str(self.values["SeriesInstanceUID"])


@dataclass(frozen=True)
class InstanceRow:
    """An instance: what is needed to find, open, verify and cut its data set without parsing it again."""

    instance: str
    study: str
    series: str
    number: int | None
    size_bytes: int
    sop_instance_uid: str = field(repr=False)
    sop_class_uid: str
    transfer_syntax_uid: str
    rows: int | None
    columns: int | None
    frames: int
    sha256: bytes
    pixel: Mapping[str, Any] | None
    data_set: Placement
    description: Placement


@dataclass(frozen=True)
class Match:
    """One answer to a search: pseudonyms, and the attributes of its level and of those above, by keyword."""

    study: str
    patient: str
    grade: Grade
    values: Mapping[str, Any] = field(repr=False)
    department: str | None = None
    series: str | None = None
    instance: str | None = None
