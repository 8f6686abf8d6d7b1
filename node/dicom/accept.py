"""What a DICOMweb client accepts, and which of our forms that is (PS3.18 §8.7, RFC 9110 §12.5.1).

Pure. Data sets and frames are handed over as they are stored; a client that insists on another transfer syntax
gets 406 with the reason, and one that names none gets what is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TypeVar

from consent.errors import Invalid
from node.dicom.multipart import parameters

MAX_ACCEPT_CHARACTERS = 4096
MAX_RANGES = 32

DICOM, OCTETS, JSON = "application/dicom", "application/octet-stream", "application/dicom+json"
F = TypeVar("F", bound=object)
PICTURES = ("image/jpeg", "image/png", "image/webp")

FRAME_TYPES = {
    "1.2.840.10008.1.2.4.50": "image/jpeg",
    "1.2.840.10008.1.2.4.51": "image/jpeg",
    "1.2.840.10008.1.2.4.57": "image/jpeg",
    "1.2.840.10008.1.2.4.70": "image/jpeg",
    "1.2.840.10008.1.2.4.80": "image/jls",
    "1.2.840.10008.1.2.4.81": "image/jls",
    "1.2.840.10008.1.2.4.90": "image/jp2",
    "1.2.840.10008.1.2.4.91": "image/jp2",
    "1.2.840.10008.1.2.4.201": "image/jphc",
    "1.2.840.10008.1.2.4.202": "image/jphc",
    "1.2.840.10008.1.2.4.203": "image/jphc",
    "1.2.840.10008.1.2.5": "image/dicom-rle",
}
"""The media type of a single encapsulated frame (PS3.18 Table 8.7.3-5)."""


@dataclass(frozen=True)
class Range:
    """One media range of an Accept header. `inner` is the `type` parameter of multipart/related."""

    media_type: str
    inner: str
    transfer_syntax: str
    quality: float


@dataclass(frozen=True)
class Form:
    """How to answer: as parts or as one body, and the media type of what is handed over."""

    multipart: bool
    media_type: str


def ranges(accept: str | None) -> tuple[Range, ...]:
    """The media ranges, best first. Raises Invalid when the header is malformed or too long."""
    if not accept or not accept.strip():
        return (Range("*/*", "", "", 1.0),)
    if len(accept) > MAX_ACCEPT_CHARACTERS:
        raise Invalid("The Accept header is too long.", code="accept")
    found = [_range(piece) for piece in _pieces(accept)]
    if len(found) > MAX_RANGES:
        raise Invalid("The Accept header names too many media types.", code="accept")
    wanted = [one for one in found if one.quality > 0]
    return tuple(sorted(wanted, key=lambda one: -one.quality))


def data_sets(accept: str | None, syntaxes: Collection[str], *, single: bool) -> Form:
    """How to hand over data sets stored in `syntaxes`; `single`: there is exactly one, named by its own URL."""

    def offer(one: Range) -> Form | None:
        if not _same_syntax(one, syntaxes):
            return None
        if _multipart(one) and one.inner in ("", "*/*", "application/*", DICOM):
            return Form(True, DICOM)
        if single and one.media_type == DICOM:
            return Form(False, DICOM)
        return Form(True, DICOM) if one.media_type in ("*/*", "application/*") else None

    return _choose(accept, offer, f'multipart/related; type="{DICOM}"; transfer-syntax=*')


def frames(accept: str | None, syntax: str, *, single: bool) -> Form:
    """How to hand over frames stored in `syntax`."""
    kinds = (OCTETS, FRAME_TYPES.get(syntax, OCTETS))

    def offer(one: Range) -> Form | None:
        if not _same_syntax(one, (syntax,)):
            return None
        if _multipart(one):
            if one.inner in ("", "*/*", "application/*"):
                return Form(True, OCTETS)
            if one.inner == "image/*" and kinds[1] != OCTETS:
                return Form(True, kinds[1])
            return Form(True, one.inner) if one.inner in kinds else None
        if single and one.media_type in kinds:
            return Form(False, one.media_type)
        return Form(True, OCTETS) if one.media_type in ("*/*", "application/*") else None

    return _choose(accept, offer, f'multipart/related; type="{OCTETS}"; transfer-syntax=*')


def metadata(accept: str | None) -> str:
    """The media type for DICOM JSON."""

    def offer(one: Range) -> str | None:
        if one.media_type in (JSON, "application/json"):
            return one.media_type
        return JSON if one.media_type in ("*/*", "application/*") else None

    return _choose(accept, offer, JSON)


def picture(accept: str | None) -> str:
    """The media type for a rendered picture; JPEG where the client does not mind."""

    def offer(one: Range) -> str | None:
        if one.media_type in PICTURES:
            return one.media_type
        return PICTURES[0] if one.media_type in ("*/*", "image/*") else None

    return _choose(accept, offer, ", ".join(PICTURES))


def _choose(accept: str | None, offer: Callable[[Range], F | None], mend: str) -> F:
    for one in ranges(accept):
        found = offer(one)
        if found is not None:
            return found
    raise Invalid(
        "None of the accepted media types is offered here.", mend=f"Accept {mend}.", code="not-acceptable"
    )


def _multipart(one: Range) -> bool:
    return one.media_type in ("multipart/related", "multipart/*")


def _same_syntax(one: Range, syntaxes: Collection[str]) -> bool:
    return one.transfer_syntax in ("", "*") or all(one.transfer_syntax == syntax for syntax in syntaxes)


def _range(piece: str) -> Range:
    media_type, found = parameters(piece)
    try:
        quality = float(found.get("q", "1"))
    except ValueError as error:
        raise Invalid("The Accept header is malformed.", code="accept") from error
    return Range(media_type, found.get("type", "").lower(), found.get("transfer-syntax", ""), quality)


def _pieces(accept: str) -> Sequence[str]:
    """Split at commas outside quotes."""
    pieces: list[str] = []
    quoted, start = False, 0
    for at, character in enumerate(accept):
        if character == '"':
            quoted = not quoted
        elif character == "," and not quoted:
            pieces.append(accept[start:at])
            start = at + 1
    pieces.append(accept[start:])
    return [piece for piece in pieces if piece.strip()]
