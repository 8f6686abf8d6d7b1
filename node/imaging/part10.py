"""DICOM files (PS3.10 §7): reading the head of one, and writing the head that turns a data set into one.

The data set itself is never rewritten. The 128-byte preamble is never read and always written as zeros: it
can make a DICOM file a program too.
"""

from __future__ import annotations

import re
from struct import pack
from typing import NamedTuple

from consent.errors import Invalid

from .elements import EXPLICIT_LITTLE, Buffer, encoding_of, header

IMPLEMENTATION_CLASS_UID = "2.25.305499401031923225242838725808540966087"
IMPLEMENTATION_VERSION_NAME = "ACCORD_0_1"

PREAMBLE_BYTES = 128
MAX_META_BYTES = 64 * 1024
MAX_UID_CHARACTERS = 64

_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_NOT_A_FILE = "Give a DICOM file (Part 10) with its file meta information."


class Part10(NamedTuple):
    """The head of a DICOM file. `dataset_offset` is where the data set begins."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    dataset_offset: int


def read_part10(data: Buffer) -> Part10:
    """Read the file meta information. Raises Invalid when it is missing, broken or too long.

    A file that lacks the preamble but begins with the meta information is taken too.
    """
    start = PREAMBLE_BYTES + 4 if bytes(data[PREAMBLE_BYTES : PREAMBLE_BYTES + 4]) == b"DICM" else 0
    if bytes(data[start : start + 2]) != b"\x02\x00":
        raise Invalid("Not a DICOM file: no file meta information.", mend=_NOT_A_FILE, code="not-part-10")
    meta, end = _meta(data, start)
    syntax = valid_uid(meta.get(0x00020010, b""), "TransferSyntaxUID")
    encoding_of(syntax)
    return Part10(
        valid_uid(meta.get(0x00020002, b""), "MediaStorageSOPClassUID"),
        valid_uid(meta.get(0x00020003, b""), "MediaStorageSOPInstanceUID"),
        syntax,
        end,
    )


def part10_head(sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str) -> bytes:
    """Preamble, prefix and file meta information. A data set appended to it makes a DICOM file."""
    meta = b"".join(
        (
            pack("<HH2sHI", 0x0002, 0x0001, b"OB", 0, 2) + b"\x00\x01",
            _text(0x0002, b"UI", sop_class_uid),
            _text(0x0003, b"UI", sop_instance_uid),
            _text(0x0010, b"UI", transfer_syntax_uid),
            _text(0x0012, b"UI", IMPLEMENTATION_CLASS_UID),
            _text(0x0013, b"SH", IMPLEMENTATION_VERSION_NAME),
        )
    )
    length = pack("<HH2sHI", 0x0002, 0x0000, b"UL", 4, len(meta))
    return bytes(PREAMBLE_BYTES) + b"DICM" + length + meta


def valid_uid(value: bytes, name: str) -> str:
    """The UID in a value (PS3.5 §9.1). Raises Invalid, naming the element, when it is missing or not one."""
    if len(value) > MAX_UID_CHARACTERS + 1:
        raise Invalid(f"{name} is longer than {MAX_UID_CHARACTERS} characters.", code="bad-uid")
    text = value.decode("ascii", errors="replace").rstrip("\0 ")
    if not text:
        raise Invalid(f"{name} is missing.", mend="The sender must fill it in.", code="missing-uid")
    if len(text) > MAX_UID_CHARACTERS or not _UID.fullmatch(text):
        raise Invalid(f"{name} is not a UID: digits and single dots only.", code="bad-uid")
    return text


def _meta(data: Buffer, start: int) -> tuple[dict[int, bytes], int]:
    """Values of group 0002 and the offset after it. Its length element, often wrong, is not relied on."""
    size = min(len(data), start + MAX_META_BYTES)
    found: dict[int, bytes] = {}
    position = start
    while bytes(data[position : position + 2]) == b"\x02\x00":
        element = header(data, position, size, EXPLICIT_LITTLE)
        if element.length > size - element.start:
            raise Invalid("The file meta information is cut short or too long.", code="truncated")
        position = element.start + element.length
        found[element.tag] = bytes(data[element.start : position])
    return found, position


def _text(number: int, vr: bytes, value: str) -> bytes:
    raw = value.encode("ascii")
    if len(raw) % 2:
        raw += b"\0" if vr == b"UI" else b" "
    return pack("<HH2sH", 0x0002, number, vr, len(raw)) + raw
