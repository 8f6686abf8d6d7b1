"""The DICOM JSON of data sets as lines of text, one after another: what a series' data sets have in common is written once.

Leaves the model to `dicom_json`. A line is what `json_model` of its data set gives, in its order; where that fails, an empty
object.
"""

from __future__ import annotations

import json
from typing import Any

from consent.errors import Invalid

from .charsets import charset_of
from .dicom_json import CHARSET, PIXEL_REPRESENTATION, Model, element_model, json_model
from .elements import Buffer, encoding_of
from .heads import Changes, Head

# Inside a JSON string a quotation mark is escaped, so these bytes are always a member and never a value.
_BULK = b'"BulkDataURI":"'


class ModelLines:
    """Writes one line after another. Not for several threads at once."""

    def __init__(self) -> None:
        self._syntax = ""
        self._head: Head | None = None
        self._fragments: list[str] = []

    def line(self, data: Buffer, transfer_syntax: str, path: str) -> bytes:
        """The DICOM JSON of one data set, or of its head up to the pixels; an empty object when it cannot be made.

        Each BulkDataURI begins with `path`; the door puts its own address before it (`at_address`).
        """
        text = self._differing(data) if transfer_syntax == self._syntax else None
        if text is None:
            text = self._whole(data, transfer_syntax)
        return at_address(text.encode("utf-8", "replace"), path)

    def _whole(self, data: Buffer, transfer_syntax: str) -> str:
        self._syntax, self._head = transfer_syntax, None
        try:
            model = json_model(data, transfer_syntax)
            encoding = encoding_of(transfer_syntax)
            self._head = None if encoding.deflated else Head.of(data, encoding.form)
        except Invalid:
            return "{}"
        if self._head is not None and not _says_plainly(self._head, model):
            self._head = None
        if self._head is not None:
            self._fragments = [_fragment(model, tag) for tag in self._head.tags]
        return _text(model)

    def _differing(self, data: Buffer) -> str | None:
        """The line of a data set that is built like the last one; None when all of it has to be read."""
        head = self._head
        changes = None if head is None else head.changes(data)
        if head is None or changes is None:
            return None
        fragments = self._fragments.copy()
        for number, fragment in _changed(head, changes):
            if head.tags[number] in (CHARSET, PIXEL_REPRESENTATION):
                return None
            fragments[number] = fragment
        return "{" + ",".join(filter(None, fragments)) + "}"


def _says_plainly(head: Head, model: Model) -> bool:
    """Whether what says how others are read is an ordinary value: as a sequence or as bulk data it was not heeded."""
    entries = [model.get(f"{tag:08X}") for tag in (CHARSET, PIXEL_REPRESENTATION) if tag in head.tags]
    return all(entry is not None and entry["vr"] != "SQ" and "BulkDataURI" not in entry for entry in entries)


def _changed(head: Head, changes: Changes) -> list[tuple[int, str]]:
    """The fragments that differ, each read by what stands before it."""
    charset_at, signed_at = head.place(CHARSET), head.place(PIXEL_REPRESENTATION)
    charset = charset_of(head.value(CHARSET))
    word = head.value(PIXEL_REPRESENTATION)
    signed = len(word) >= 2 and head.form.u16.unpack_from(word)[0] == 1
    found = []
    for number, element in changes.elements:
        model = element_model(
            changes.data,
            element,
            head.form,
            charset if charset_at < number else charset_of(b""),
            signed=signed and signed_at < number,
        )
        found.append((number, _fragment(model, element.tag)))
    return found


def _fragment(model: Model, tag: int) -> str:
    name = f"{tag:08X}"
    return f'"{name}":{_text(model[name])}' if name in model else ""


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def at_address(payload: bytes, place: str) -> bytes:
    """Metadata with every BulkDataURI below `place`: an address or a path with a slash at its end."""
    return payload.replace(_BULK, _BULK + place.encode())
