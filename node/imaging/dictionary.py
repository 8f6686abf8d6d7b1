"""The data elements and UIDs of DICOM (PS3.6), as tables that cost little to load.

They are pydicom's tables, read without pydicom itself: that package brings NumPy and its pixel decoders, a third of the
time that a node takes to start, and whoever only asks for the VR of a tag or the name of a UID needs neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

Element = tuple[str, str, str, str, str]
"""VR, VM, name, "Retired" or "", keyword."""


def _table(module: str, name: str) -> Any:
    """A table out of one of pydicom's modules of data, which import nothing."""
    package = find_spec("pydicom")
    assert package is not None and package.origin is not None
    spec = spec_from_file_location(f"{__name__}.{module}", Path(package.origin).with_name(f"{module}.py"))
    assert spec is not None and spec.loader is not None
    loaded = module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return getattr(loaded, name)


UIDS: Mapping[str, tuple[str, str, str, str, str]] = _table("_uid_dict", "UID_dictionary")
"""UID → name, type ("SOP Class", "Transfer Syntax", …), information, "Retired" or "", keyword (PS3.6 §A)."""


def dictionary_vr(tag: int) -> str:
    """The VR of a standard element ("US or SS" where it depends). Raises KeyError for a tag that is none (PS3.6 §6)."""
    elements = _elements()
    if tag in elements:
        return elements[tag][0]
    for value, mask, vr in _repeating():
        if tag & mask == value:
            return vr
    raise KeyError(tag)


def tag_of(keyword: str) -> int | None:
    """The tag of a standard element by its keyword."""
    return _keywords().get(keyword)


@cache
def _keywords() -> Mapping[str, int]:
    return {entry[4]: tag for tag, entry in _elements().items() if entry[4]}


@cache
def _elements() -> Mapping[int, Element]:
    return dict(_table("_dicom_dict", "DicomDictionary"))


@cache
def _repeating() -> tuple[tuple[int, int, str], ...]:
    """Elements of repeating groups, such as (60xx,3000): value, mask, VR."""
    repeaters: Mapping[str, Element] = _table("_dicom_dict", "RepeatersDictionary")
    return tuple(
        (
            int(tag.replace("x", "0"), 16),
            int("".join("0" if digit == "x" else "F" for digit in tag), 16),
            entry[0],
        )
        for tag, entry in repeaters.items()
    )
