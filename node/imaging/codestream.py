"""Taking comments out of compressed pixel data without touching a pixel.

JPEG and JPEG-LS (T.81 B.2.4.5, T.87): COM and APPn segments before the first scan, except the Adobe segment
that says how colours are coded. JPEG 2000 (T.800 A.9.2): COM segments of the main header. Only whole,
well-formed segments go; anything odd is Invalid, since nobody can tell what it hides.
"""

from __future__ import annotations

from struct import unpack_from

from consent.errors import Invalid

JPEG_SYNTAXES = frozenset(
    {
        "1.2.840.10008.1.2.4.50",
        "1.2.840.10008.1.2.4.51",
        "1.2.840.10008.1.2.4.57",
        "1.2.840.10008.1.2.4.70",
        "1.2.840.10008.1.2.4.80",
        "1.2.840.10008.1.2.4.81",
    }
)
JPEG_2000_SYNTAXES = frozenset(
    {
        "1.2.840.10008.1.2.4.90",
        "1.2.840.10008.1.2.4.91",
        "1.2.840.10008.1.2.4.92",
        "1.2.840.10008.1.2.4.93",
        "1.2.840.10008.1.2.4.201",
        "1.2.840.10008.1.2.4.202",
        "1.2.840.10008.1.2.4.203",
    }
)
UNCOMMENTED_SYNTAXES = frozenset({"1.2.840.10008.1.2.5"})
"""RLE has no place for a comment."""

MAX_SEGMENTS = 10_000
_COM, _SOS, _SOD, _J2K_COM = 0xFE, 0xDA, 0x93, 0x64
_APP0, _APP14, _APP15 = 0xE0, 0xEE, 0xEF


def without_comments(frame: bytes, transfer_syntax: str) -> bytes:
    """Return the frame's code stream without comments; an even number of bytes, as DICOM wants fragments."""
    if transfer_syntax in JPEG_SYNTAXES:
        cleaned = _clean_jpeg(frame)
    elif transfer_syntax in JPEG_2000_SYNTAXES:
        cleaned = _clean_jpeg_2000(frame)
    elif transfer_syntax in UNCOMMENTED_SYNTAXES:
        cleaned = frame
    else:
        raise Invalid("This compression is not one whose comments can be found.", code="codestream")
    return cleaned + b"\0" if len(cleaned) % 2 else cleaned


def _clean_jpeg(frame: bytes) -> bytes:
    if frame[:2] != b"\xff\xd8":
        raise Invalid("The JPEG stream does not begin with SOI.", code="codestream")
    kept, at = [frame[:2]], 2
    for _ in range(MAX_SEGMENTS):
        at = _skip_fill(frame, at)
        marker = frame[at + 1]
        if marker == _SOS:
            end = frame.rfind(b"\xff\xd9")
            return b"".join((*kept, frame[at : end + 2 if end > at else len(frame)]))
        size = _segment_size(frame, at)
        adobe = marker == _APP14 and frame[at + 4 : at + 9] == b"Adobe"
        if marker != _COM and (not _APP0 <= marker <= _APP15 or adobe):
            kept.append(frame[at : at + size])
        at += size
    raise Invalid("The JPEG stream has too many segments.", code="codestream")


def _clean_jpeg_2000(frame: bytes) -> bytes:
    if frame[:2] != b"\xff\x4f":
        raise Invalid("The JPEG 2000 stream does not begin with SOC.", code="codestream")
    kept, at = [frame[:2]], 2
    for _ in range(MAX_SEGMENTS):
        if frame[at : at + 1] != b"\xff" or at + 4 > len(frame):
            raise Invalid("The JPEG 2000 header is broken.", code="codestream")
        if frame[at + 1] == 0x90:  # SOT: the tiles begin, the main header ends
            return b"".join((*kept, frame[at:]))
        size = _segment_size(frame, at)
        if frame[at + 1] != _J2K_COM:
            kept.append(frame[at : at + size])
        at += size
    raise Invalid("The JPEG 2000 header has too many segments.", code="codestream")


def _skip_fill(frame: bytes, at: int) -> int:
    while frame[at : at + 2] == b"\xff\xff":
        at += 1
    if frame[at : at + 1] != b"\xff" or at + 4 > len(frame):
        raise Invalid("The JPEG header is broken.", code="codestream")
    return at


def _segment_size(frame: bytes, at: int) -> int:
    size = 2 + int(unpack_from(">H", frame, at + 2)[0])
    if size < 4 or at + size > len(frame):
        raise Invalid("A segment of the code stream is longer than the stream.", code="codestream")
    return size
