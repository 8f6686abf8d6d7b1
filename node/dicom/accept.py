"""What a DICOMweb client accepts, and which of our forms that is (PS3.18 §8.7, RFC 9110 §12.5.1).

Pure. A media type with `transfer-syntax=*`, and a wildcard, take what is stored as it is stored. A DICOM media type that
names no transfer syntax means its default (Tables 8.7.3-2, -4 and -5): what is stored otherwise is transcoded, unless it
is stored lossy. A transfer syntax that is named is met or refused with 406 and what is on offer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TypeVar

from consent.errors import Invalid
from node.dicom.multipart import parameters
from node.imaging.syntaxes import (
    DEFLATED,
    EXPLICIT_BIG_ENDIAN,
    EXPLICIT_LITTLE_ENDIAN,
    LOSSY,
    UNPACKED,
    reachable,
)

MAX_ACCEPT_CHARACTERS = 4096
MAX_RANGES = 32

DICOM, OCTETS, JSON = "application/dicom", "application/octet-stream", "application/dicom+json"
PICTURES = ("image/jpeg", "image/png", "image/webp")
AS_STORED = ""
"""The transfer syntax of a Form that leaves each thing in its own."""
F = TypeVar("F", bound=object)

COMPRESSED_TYPES = {
    "image/jpeg": ("4.70", "4.50", "4.51", "4.57"),
    "image/dicom-rle": ("5",),
    "image/jls": ("4.80", "4.81"),
    "image/jp2": ("4.90", "4.91"),
    "image/jpx": ("4.92", "4.93"),
    "image/jphc": ("4.201", "4.202", "4.203"),
    "video/mpeg2": ("4.100", "4.101"),
    "video/mp4": ("4.102", "4.103", "4.104", "4.105", "4.106"),
    "video/H265": ("4.107", "4.108"),
}
"""Media types of compressed pixels with the ends of their transfer syntaxes, the default first (PS3.18 Table 8.7.3-5)."""

SYNTAXES_OF = {
    media_type.lower(): tuple(f"1.2.840.10008.1.2.{end}" for end in ends)
    for media_type, ends in COMPRESSED_TYPES.items()
}
FRAME_TYPES = {syntax: media_type for media_type, syntaxes in SYNTAXES_OF.items() for syntax in syntaxes}
"""The media type of a single compressed frame."""


@dataclass(frozen=True)
class Range:
    """One media range of an Accept header. `inner` is the `type` parameter of multipart/related."""

    media_type: str
    inner: str
    transfer_syntax: str
    quality: float


@dataclass(frozen=True)
class Form:
    """How to answer: as parts or as one body, the media type of what is handed over, and its transfer syntax.

    `insisted`: the client named that transfer syntax; else it is a default.
    """

    multipart: bool
    media_type: str
    transfer_syntax: str = AS_STORED
    insisted: bool = False


def ranges(accept: str | None) -> tuple[Range, ...]:
    """The media ranges, best first, those of quality 0 last. Raises Invalid when the header is malformed or too long."""
    if not accept or not accept.strip():
        return (Range("*/*", "", "", 1.0),)
    if len(accept) > MAX_ACCEPT_CHARACTERS:
        raise Invalid("The Accept header is too long.", code="accept")
    found = [_range(piece) for piece in _pieces(accept)]
    if len(found) > MAX_RANGES:
        raise Invalid("The Accept header names too many media types.", code="accept")
    return tuple(sorted(found, key=lambda one: -one.quality))


def data_sets(accept: str | None, stored: Collection[str], *, single: bool) -> Form:
    """How to hand over data sets stored in these transfer syntaxes; `single`: there is one, named by its own URL."""

    def offer(one: Range) -> Form | None:
        wild = one.media_type in ("*/*", "application/*")
        multipart = _multipart(one) and one.inner in ("", "*/*", "application/*", DICOM)
        if not (wild or multipart or (single and one.media_type == DICOM)):
            return None
        named = "*" if wild and not one.transfer_syntax else one.transfer_syntax
        syntax = _syntax(named, stored, EXPLICIT_LITTLE_ENDIAN)
        return (
            None
            if syntax is None
            else Form(wild or multipart, DICOM, syntax, one.transfer_syntax not in ("", "*"))
        )

    return _choose(accept, offer, f'multipart/related; type="{DICOM}"; transfer-syntax=*', DICOM)


def frames(accept: str | None, stored: str, *, single: bool) -> Form:
    """How to hand over frames stored in this transfer syntax; `single`: there is one."""

    def offer(one: Range) -> Form | None:
        multipart = _multipart(one)
        if not (multipart or single or one.media_type in ("*/*", "application/*")):
            return None
        wanted = (one.inner or "*/*") if multipart else one.media_type
        form = _frame_form(wanted, one.transfer_syntax, stored)
        # Whoever takes anything gets parts: they name the transfer syntax, and there may be many.
        return form and Form(multipart or one.media_type in ("*/*", "application/*"), *form)

    return _choose(accept, offer, f'multipart/related; type="{OCTETS}"; transfer-syntax=*', OCTETS)


def bulk_data(accept: str | None) -> Form:
    """How to hand over a value that is not pixels."""

    def offer(one: Range) -> Form | None:
        if _multipart(one) and one.inner in ("", "*/*", "application/*", OCTETS):
            return Form(True, OCTETS)
        if one.media_type == OCTETS:
            return Form(False, OCTETS)
        return Form(True, OCTETS) if one.media_type in ("*/*", "application/*") else None

    return _choose(accept, offer, f'{OCTETS} or multipart/related; type="{OCTETS}"', OCTETS)


def metadata(accept: str | None) -> str:
    """The media type for DICOM JSON."""

    def offer(one: Range) -> str | None:
        if one.media_type in (JSON, "application/json"):
            return one.media_type
        return JSON if one.media_type in ("*/*", "application/*") else None

    return _choose(accept, offer, JSON, JSON)


def picture(accept: str | None) -> str:
    """The media type for one rendered picture; JPEG where the client does not mind."""

    def offer(one: Range) -> str | None:
        if one.media_type in PICTURES:
            return one.media_type
        return PICTURES[0] if one.media_type in ("*/*", "image/*") else None

    return _choose(accept, offer, ", ".join(PICTURES), PICTURES[0])


def pictures(accept: str | None) -> Form:
    """How to hand over rendered pictures: one, or as many parts as there are."""

    def offer(one: Range) -> Form | None:
        if not _multipart(one):
            return None
        if one.inner in PICTURES:
            return Form(True, one.inner)
        return Form(True, PICTURES[0]) if one.inner in ("", "*/*", "image/*") else None

    def single(one: Range) -> Form | None:
        if one.media_type in PICTURES:
            return Form(False, one.media_type)
        return Form(False, PICTURES[0]) if one.media_type in ("*/*", "image/*") else None

    mend = f'{", ".join(PICTURES)} or multipart/related; type="{PICTURES[0]}"'
    return _choose(accept, lambda one: offer(one) or single(one), mend, PICTURES[0])


def _syntax(named: str, stored: Collection[str], default: str) -> str | None:
    """In which transfer syntax to answer somebody who names this one, none or any; None when that cannot be."""
    if named == "*":
        return AS_STORED
    if not named:
        if all(one == default or one in LOSSY or not reachable(one, default) for one in stored):
            return AS_STORED
        return default
    if all(one == named for one in stored):
        return AS_STORED
    return named if all(reachable(one, named) for one in stored) else None


def _frame_form(media_type: str, named: str, stored: str) -> tuple[str, str] | None:
    """Media type and transfer syntax of frames for somebody who wants them so; None when that cannot be."""
    own = FRAME_TYPES.get(stored, OCTETS)
    wild = media_type in ("*/*", "application/*")
    if media_type == OCTETS or wild:
        if stored in UNPACKED and named in ("", "*", *UNPACKED):
            return OCTETS, AS_STORED  # the same bytes
        whole = stored in (DEFLATED, EXPLICIT_BIG_ENDIAN)  # no frame of which can be cut out as it is
        if named == "*" or (wild and not named):
            return OCTETS, EXPLICIT_LITTLE_ENDIAN if whole else AS_STORED
        target = named or EXPLICIT_LITTLE_ENDIAN
        if target == stored and not whole:
            return OCTETS, AS_STORED
        return (OCTETS, target) if reachable(stored, target) else None
    if media_type == "image/*":
        return (own, AS_STORED) if own != OCTETS and named in ("", "*", stored) else None
    allowed = SYNTAXES_OF.get(media_type, ())
    if stored in allowed and named in ("", "*", stored):
        return media_type, AS_STORED
    target = allowed[0] if allowed and named in ("", "*") else named
    return (media_type, target) if target in allowed and reachable(stored, target) else None


def _choose(accept: str | None, offer: Callable[[Range], F | None], mend: str, default: str) -> F:
    """The best thing on offer. Raises Invalid, which becomes 406, with what is on offer."""
    wanted = ranges(accept)
    refused = {one.media_type for one in wanted if one.quality <= 0}
    for one in wanted:
        found = offer(one) if one.quality > 0 else None
        if found is None or (one.media_type.endswith("*") and default in refused):
            continue
        return found
    raise Invalid(
        "None of the accepted media types is offered here.", mend=f"Accept {mend}.", code="not-acceptable"
    )


def _multipart(one: Range) -> bool:
    return one.media_type in ("multipart/related", "multipart/*")


def _range(piece: str) -> Range:
    media_type, found = parameters(piece)
    try:
        quality = float(found.get("q", "1"))
    except ValueError as error:
        raise Invalid("The Accept header is malformed.", code="accept") from error
    if not 0 <= quality <= 1:
        raise Invalid("A quality in the Accept header is from 0 to 1.", code="accept")
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
