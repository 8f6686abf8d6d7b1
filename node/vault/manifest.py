"""The manifest of a study pack: what a home node vouches for when it hands a pack out.

A body of a signed record. Whoever received the pack checks every object against it without any key, and the
SHA-256 of each payload once it is opened. Format: docs/formats/study-pack.md, "Manifest".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from consent.errors import Invalid
from consent.signed import Json
from consent.vocabulary import Grade
from node.vault.seal import PREFIX_BYTES, TAG_BYTES, ObjectHeader, check_study_id

MAX_OBJECTS = 100_000
MAX_PACK_BYTES = 2**44
_NODE = re.compile(r"[a-z0-9-]{2,32}")
_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ManifestEntry:
    """One object: where its sealed body lies, BLAKE3 of the body, SHA-256 of the payload (both hex)."""

    object_id: str
    kind: str
    grade: Grade
    offset: int
    length: int
    blake3: str
    sha256: str | None = None


@dataclass(frozen=True)
class Manifest:
    """All objects of a pack of `size` bytes, in the order of their offsets; `generation` is which file of the pack that is."""

    KIND: ClassVar[str] = "manifest"
    VERSION: ClassVar[int] = 1

    study: str
    home: str
    grade: Grade
    sequence: int
    size: int
    objects: tuple[ManifestEntry, ...]
    generation: int = 0

    def __post_init__(self) -> None:
        check_study_id(self.study)
        if _NODE.fullmatch(self.home) is None:
            raise _bad("the home is not a node's id")
        if not 0 <= self.size <= MAX_PACK_BYTES or len(self.objects) > MAX_OBJECTS:
            raise _bad("it is too large")
        if self.sequence != len(self.objects):
            raise _bad("its sequence is not the number of its objects")
        end, seen = 0, set[str]()
        for entry in self.objects:
            ObjectHeader(self.study, entry.object_id, entry.kind, entry.grade)
            if entry.offset < end or entry.length < PREFIX_BYTES + TAG_BYTES or entry.object_id in seen:
                raise _bad("objects overlap, are out of order or occur twice")
            if entry.grade > self.grade:
                raise _bad("an object is of a higher grade than the whole")
            if _HEX.fullmatch(entry.blake3) is None or _HEX.fullmatch(entry.sha256 or "0" * 64) is None:
                raise _bad("a digest is malformed")
            end = entry.offset + entry.length
            seen.add(entry.object_id)
        if end > self.size:
            raise _bad("an object ends after the pack")

    def entry(self, object_id: str) -> ManifestEntry | None:
        """The entry of one object, if it is listed."""
        return next((entry for entry in self.objects if entry.object_id == object_id), None)

    def to_json(self) -> Json:
        """See `Body.to_json`."""
        return {
            **({"generation": self.generation} if self.generation else {}),
            "study": self.study,
            "home": self.home,
            "grade": int(self.grade),
            "sequence": self.sequence,
            "size": self.size,
            "objects": [
                {
                    "id": entry.object_id,
                    "kind": entry.kind,
                    "grade": int(entry.grade),
                    "offset": entry.offset,
                    "length": entry.length,
                    "blake3": entry.blake3,
                    "sha256": entry.sha256,
                }
                for entry in self.objects
            ],
        }

    @classmethod
    def from_json(cls, data: Json) -> Self:
        """See `Body.from_json`. Raises Invalid for anything malformed or past its bound."""
        objects = data.get("objects")
        if not isinstance(objects, list) or len(objects) > MAX_OBJECTS:
            raise _bad("it has no list of objects, or too long a one")
        return cls(
            study=_text(data, "study"),
            home=_text(data, "home"),
            grade=_grade(data),
            sequence=_number(data, "sequence"),
            size=_number(data, "size"),
            objects=tuple(_entry(item) for item in objects),
            generation=_number(data, "generation") if "generation" in data else 0,
        )


def _entry(item: Any) -> ManifestEntry:
    if not isinstance(item, dict):
        raise _bad("an object is not described")
    return ManifestEntry(
        object_id=_text(item, "id"),
        kind=_text(item, "kind"),
        grade=_grade(item),
        offset=_number(item, "offset"),
        length=_number(item, "length"),
        blake3=_text(item, "blake3"),
        sha256=None if item.get("sha256") is None else _text(item, "sha256"),
    )


def _text(data: Json, name: str) -> str:
    value = data.get(name)
    if not isinstance(value, str):
        raise _bad(f"{name!r} is not text")
    return value


def _number(data: Json, name: str) -> int:
    value = data.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_PACK_BYTES:
        raise _bad(f"{name!r} is not a number in range")
    return value


def _grade(data: Json) -> Grade:
    try:
        return Grade(_number(data, "grade"))
    except ValueError as error:
        raise _bad("there is no such grade") from error


def _bad(why: str) -> Invalid:
    return Invalid(f"This is not a manifest: {why}.", code="manifest")
