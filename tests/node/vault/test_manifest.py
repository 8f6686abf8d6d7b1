"""Manifests from outside: every field is checked before it is believed."""

from __future__ import annotations

from typing import Any

import pytest

from consent.errors import Invalid
from consent.vocabulary import Grade
from node.vault.manifest import MAX_OBJECTS, Manifest, ManifestEntry

GOOD = Manifest(
    study="st_" + "a" * 26,
    home="a-general",
    grade=Grade.SENSITIVE,
    sequence=2,
    size=1000,
    objects=(
        ManifestEntry("in_one.a", "attributes", Grade.ORDINARY, 100, 80, "0" * 64),
        ManifestEntry("in_one", "instance", Grade.SENSITIVE, 300, 700, "1" * 64, "2" * 64),
    ),
)


def test_manifest_survives_its_json() -> None:
    """What is signed is what is read."""
    assert Manifest.from_json(GOOD.to_json()) == GOOD
    assert GOOD.entry("in_one") == GOOD.objects[1]
    assert GOOD.entry("in_two") is None


BAD: list[tuple[str, Any]] = [
    ("study", "../x"),
    ("study", None),
    ("home", "A General"),
    ("grade", 0),
    ("grade", 1),
    ("grade", "2"),
    ("sequence", 3),
    ("size", 999),
    ("size", -1),
    ("size", 2**60),
    ("objects", None),
    ("objects", [3]),
    ("objects", [{}] * (MAX_OBJECTS + 1)),
]


@pytest.mark.parametrize(("field", "value"), BAD, ids=lambda value: str(value)[:20])
def test_bad_manifest_is_invalid(field: str, value: Any) -> None:
    """One wrong field refuses the whole."""
    with pytest.raises(Invalid):
        Manifest.from_json({**GOOD.to_json(), field: value})


BAD_ENTRY: list[tuple[str, Any]] = [
    ("id", "../x"),
    ("id", "in_one.a"),
    ("kind", "IN"),
    ("grade", 9),
    ("offset", 179),
    ("offset", -1),
    ("offset", True),
    ("length", 701),
    ("length", 10),
    ("length", 1.5),
    ("blake3", "zz"),
    ("blake3", None),
    ("sha256", "A" * 64),
]


@pytest.mark.parametrize(("field", "value"), BAD_ENTRY, ids=lambda value: str(value)[:20])
def test_bad_entry_is_invalid(field: str, value: Any) -> None:
    """Overlaps, names with paths, impossible lengths and malformed digests are refused."""
    data = GOOD.to_json()
    data["objects"][1][field] = value
    with pytest.raises(Invalid):
        Manifest.from_json(data)
