"""A value of a data set by its path: what a BulkDataURI of the DICOM JSON model names (see `dicom_json`).

Found by iteration, without reading what lies between; nothing is decoded. Bounds: the depth and length of a path,
and those of `elements`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import islice

from consent.errors import Invalid, NotFound
from node.imaging.elements import (
    MAX_DEPTH,
    UNDEFINED,
    Buffer,
    Element,
    elements,
    encoding_of,
    form_within,
    items,
    vr_of,
)

MAX_ITEM = 1_000_000
_PATH = re.compile(r"[0-9A-F]{8}(/[0-9]{1,6}/[0-9A-F]{8})*")


def value_at(data: Buffer, transfer_syntax: str, path: str) -> bytes:
    """The bytes of the value at `TAG` or `TAG/ITEM/TAG…`, items counted from 0. Raises NotFound, Invalid."""
    encoding = encoding_of(transfer_syntax)
    if encoding.deflated:
        raise Invalid("The elements of a deflated instance lie together.", mend="Retrieve the instance.")
    if not _PATH.fullmatch(path) or path.count("/") > 2 * MAX_DEPTH:
        raise Invalid("This is not the address of a value.", mend="Use the BulkDataURI of the metadata.")
    steps = path.split("/")
    form = encoding.form
    level = elements(data, form)
    for tag, item in zip(steps[::2], steps[1::2], strict=False):
        sequence = _found(level, int(tag, 16))
        if not _holds_items(sequence):
            raise _not_there()
        inner = next(islice(items(data, sequence, form, limit=MAX_ITEM), int(item), None), None)
        if inner is None:
            raise _not_there()
        level, form = iter(inner), form_within(sequence, form)
    element = _found(level, int(steps[-1], 16))
    if _holds_items(element) or element.length > len(data) - element.start:
        raise _not_there()
    return bytes(data[element.start : element.start + element.length])


def _found(level: Iterable[Element], tag: int) -> Element:
    for element in level:
        if element.tag == tag:
            return element
        if element.tag > tag:
            break
    raise _not_there()


def _holds_items(element: Element) -> bool:
    return element.length == UNDEFINED or (element.vr or vr_of(element.tag)) == "SQ"


def _not_there() -> NotFound:
    return NotFound("There is no such element with a value of its own in this instance.")
