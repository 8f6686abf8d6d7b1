"""What a DICOMweb service says of instances that were stored with it: the Store Instances Response (PS3.18 §10.5.3, §I.2).

Pure: from the bytes of an answer, which may be anything, to failure reasons by SOP Instance UID.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .sender import words_of

MAX_WORDS_CHARACTERS = 160
_FAILED, _OTHERS, _STORED = "00081198", "0008119A", "00081199"
_WARNING, _REASON, _INSTANCE = "00081196", "00081197", "00081155"
_PROBLEM_WORDS = ("detail", "Details", "Message", "message", "title")
"""Where servers put words: RFC 9457, Orthanc, and others."""


@dataclass(frozen=True)
class Told:
    """By SOP Instance UID: `stored` with the warning reason (0: none), `failed` with the failure reason.

    `others` are reasons of instances that have no name there, since they could not be read.
    """

    stored: Mapping[str, int]
    failed: Mapping[str, int]
    others: tuple[int, ...] = ()

    @staticmethod
    def words(reason: int) -> str:
        """A failure or warning reason for a person; "" for none."""
        return f"Reason {reason:04X}, {words_of(reason)}" if reason else ""


def read_told(answer: bytes) -> Told | None:
    """The answer's module; None when it is not one in DICOM JSON."""
    try:
        module = json.loads(answer)
    except (ValueError, RecursionError):
        return None
    if isinstance(module, list) and len(module) == 1:
        module = module[0]  # DICOM JSON has an array of data sets; this one some services send alone
    if not isinstance(module, dict) or not {_FAILED, _OTHERS, _STORED} & module.keys():
        return None
    return Told(
        {uid: _number(item, _WARNING) for uid, item in _named(module, _STORED)},
        {uid: _number(item, _REASON) for uid, item in _named(module, _FAILED)},
        tuple(_number(item, _REASON) for item in _items(module, _OTHERS)),
    )


def problem_of(answer: bytes) -> str:
    """The words of an answer that is an error, where it has any; printable and short."""
    try:
        problem = json.loads(answer)
    except (ValueError, RecursionError):
        return ""
    found = [problem.get(name) for name in _PROBLEM_WORDS] if isinstance(problem, dict) else []
    words = next((text for text in found if isinstance(text, str) and text), "")
    plain = "".join(character if character.isprintable() else " " for character in words)
    return plain[:MAX_WORDS_CHARACTERS].strip().rstrip(".")


def _named(module: Mapping[str, Any], tag: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for item in _items(module, tag):
        uid = _value(item, _INSTANCE)
        if isinstance(uid, str):
            yield uid, item


def _items(module: Mapping[str, Any], tag: str) -> Iterator[Mapping[str, Any]]:
    element = module.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    for item in values if isinstance(values, list) else ():
        if isinstance(item, dict):
            yield item


def _value(item: Mapping[str, Any], tag: str) -> Any:
    element = item.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    return values[0] if isinstance(values, list) and values else None


def _number(item: Mapping[str, Any], tag: str) -> int:
    number = _value(item, tag)
    return number if isinstance(number, int) and 0 <= number <= 0xFFFF else 0
