"""Content negotiation, as the tables of PS3.18 §8.7 have it: which Accept header gets which form of what is stored."""

from __future__ import annotations

import pytest

from consent.errors import Invalid
from node.dicom import accept
from node.dicom.accept import DICOM, JSON, OCTETS, Form
from node.imaging.syntaxes import (
    DEFLATED,
    EXPLICIT_BIG_ENDIAN,
    HTJ2K,
    JPEG_2000,
    JPEG_LOSSLESS,
    JPEG_LS,
    RLE,
)
from node.imaging.syntaxes import EXPLICIT_LITTLE_ENDIAN as EXPLICIT
from node.imaging.syntaxes import IMPLICIT_LITTLE_ENDIAN as IMPLICIT

JPEG, JPEG_2000_LOSSY, MPEG4 = (f"1.2.840.10008.1.2.4.{number}" for number in (50, 91, 102))
RELATED = 'multipart/related; type="application/dicom"'
FRAMES = 'multipart/related; type="application/octet-stream"'
NOTHING = None

DATA_SETS = [
    # §8.7.3, Table 8.7.3-2: without a transfer syntax, Explicit VR Little Endian, unless what there is was stored lossy.
    ("stored so", RELATED, {EXPLICIT}, False, Form(True, DICOM)),
    ("default", RELATED, {JPEG_2000}, False, Form(True, DICOM, EXPLICIT)),
    ("implicit is not used", RELATED, {IMPLICIT}, False, Form(True, DICOM, EXPLICIT)),
    ("big endian is not used", RELATED, {EXPLICIT_BIG_ENDIAN}, False, Form(True, DICOM, EXPLICIT)),
    ("lossy stays", RELATED, {JPEG}, False, Form(True, DICOM)),
    ("no codec stays", RELATED, {MPEG4}, False, Form(True, DICOM)),
    ("mixed", RELATED, {EXPLICIT, RLE}, False, Form(True, DICOM, EXPLICIT)),
    # §8.7.3.5: any transfer syntax.
    ("any", f"{RELATED}; transfer-syntax=*", {JPEG_2000, IMPLICIT}, False, Form(True, DICOM)),
    ("any, quoted", f'{RELATED}; transfer-syntax="*"', {JPEG_2000}, False, Form(True, DICOM)),
    # A transfer syntax by name.
    ("named", f"{RELATED}; transfer-syntax={JPEG_LS}", {EXPLICIT}, False, Form(True, DICOM, JPEG_LS, True)),
    ("jpeg lossless", f"{RELATED}; transfer-syntax={JPEG_LOSSLESS}", {EXPLICIT, JPEG_2000}, False,
     Form(True, DICOM, JPEG_LOSSLESS, True)),
    ("htj2k", f"{RELATED}; transfer-syntax={HTJ2K}", {IMPLICIT}, False, Form(True, DICOM, HTJ2K, True)),
    ("htj2k not from lossy", f"{RELATED}; transfer-syntax={HTJ2K}", {JPEG_2000_LOSSY}, False, NOTHING),
    ("named and stored", f"{RELATED}; transfer-syntax={JPEG}", {JPEG}, False, Form(True, DICOM, "", True)),
    ("unpacked by name", f"{RELATED}; transfer-syntax={EXPLICIT}", {JPEG}, False, Form(True, DICOM, EXPLICIT, True)),
    ("never lossy", f"{RELATED}; transfer-syntax={JPEG}", {EXPLICIT}, False, NOTHING),
    ("not from lossy", f"{RELATED}; transfer-syntax={JPEG_LS}", {JPEG}, False, NOTHING),
    ("not for all", f"{RELATED}; transfer-syntax={JPEG_LS}", {EXPLICIT, MPEG4}, False, NOTHING),
    ("unknown", f"{RELATED}; transfer-syntax=1.2.3", {EXPLICIT}, False, NOTHING),
    # §8.6.1: one instance also as a single part.
    ("single part", DICOM, {EXPLICIT}, True, Form(False, DICOM)),
    ("single part, default", DICOM, {RLE}, True, Form(False, DICOM, EXPLICIT)),
    ("single part, any", f"{DICOM}; transfer-syntax=*", {RLE}, True, Form(False, DICOM)),
    ("a study is no single part", DICOM, {EXPLICIT}, False, NOTHING),
    # §8.7.5 and RFC 9110 §12.5.1: wildcards, no header, qualities, exclusion.
    ("no header", None, {RLE}, False, Form(True, DICOM)),
    ("empty header", " ", {RLE}, False, Form(True, DICOM)),
    ("anything", "*/*", {RLE}, True, Form(True, DICOM)),
    ("application", "application/*", {RLE}, True, Form(True, DICOM)),
    ("any multipart", "multipart/related", {EXPLICIT}, False, Form(True, DICOM)),
    ("the better of two", f"{RELATED};q=0.1, {DICOM};q=0.9", {EXPLICIT}, True, Form(False, DICOM)),
    ("the possible of two", f"text/html, {RELATED};q=0.1", {EXPLICIT}, False, Form(True, DICOM)),
    ("first of equals", f"{DICOM}, {RELATED}", {EXPLICIT}, True, Form(False, DICOM)),
    ("second choice", f"{RELATED}; transfer-syntax={JPEG}, {RELATED}; transfer-syntax=*;q=0.5", {EXPLICIT}, False,
     Form(True, DICOM)),
    ("excluded", f"{DICOM};q=0", {EXPLICIT}, True, NOTHING),
    ("excluded from anything", f"*/*, {DICOM};q=0", {EXPLICIT}, True, NOTHING),
    ("another service", "application/pdf", {EXPLICIT}, True, NOTHING),
]  # fmt: skip

FRAME_FORMS = [
    # Table 8.7.3-4: uncompressed bulk data is octets, in Explicit VR Little Endian by default.
    ("stored so", FRAMES, EXPLICIT, True, Form(True, OCTETS)),
    ("native is native", FRAMES, IMPLICIT, True, Form(True, OCTETS)),
    ("named native", f"{FRAMES}; transfer-syntax={EXPLICIT}", IMPLICIT, True, Form(True, OCTETS)),
    ("unpacked", FRAMES, JPEG_2000, True, Form(True, OCTETS, EXPLICIT)),
    ("unpacked lossy", FRAMES, JPEG, True, Form(True, OCTETS, EXPLICIT)),
    ("as stored", f"{FRAMES}; transfer-syntax=*", JPEG_2000, True, Form(True, OCTETS)),
    ("as stored by name", f"{FRAMES}; transfer-syntax={JPEG}", JPEG, True, Form(True, OCTETS)),
    ("packed by name", f"{FRAMES}; transfer-syntax={RLE}", EXPLICIT, True, Form(True, OCTETS, RLE)),
    ("never lossy", f"{FRAMES}; transfer-syntax={JPEG}", EXPLICIT, True, NOTHING),
    ("big endian turns", f"{FRAMES}; transfer-syntax=*", EXPLICIT_BIG_ENDIAN, True, Form(True, OCTETS, EXPLICIT)),
    ("deflated opens", FRAMES, DEFLATED, True, Form(True, OCTETS, EXPLICIT)),
    # Table 8.7.3-5: compressed bulk data by its own media type, the default transfer syntax of that when it is made.
    ("jpeg", "image/jpeg", JPEG, True, Form(False, "image/jpeg")),
    ("jpeg lossless", "image/jpeg", JPEG_LOSSLESS, True, Form(False, "image/jpeg")),
    ("jpeg by name", f"image/jpeg; transfer-syntax={JPEG}", JPEG, True, Form(False, "image/jpeg")),
    ("another jpeg", f"image/jpeg; transfer-syntax={JPEG_LOSSLESS}", JPEG, True, NOTHING),
    ("jpeg is made lossless", "image/jpeg", EXPLICIT, True, Form(False, "image/jpeg", JPEG_LOSSLESS)),
    ("jpeg lossless by name", f"image/jpeg; transfer-syntax={JPEG_LOSSLESS}", JPEG_LS, True,
     Form(False, "image/jpeg", JPEG_LOSSLESS)),
    ("baseline is not made", f"image/jpeg; transfer-syntax={JPEG}", EXPLICIT, True, NOTHING),
    ("octets that are jpeg lossless", f"{FRAMES}; transfer-syntax={JPEG_LOSSLESS}", EXPLICIT, True,
     Form(True, OCTETS, JPEG_LOSSLESS)),
    ("jp2", 'multipart/related; type="image/jp2"', JPEG_2000_LOSSY, True, Form(True, "image/jp2")),
    ("jp2 is made", 'multipart/related; type="image/jp2"', EXPLICIT, True, Form(True, "image/jp2", JPEG_2000)),
    ("jls is made", "image/jls", EXPLICIT, True, Form(False, "image/jls", JPEG_LS)),
    ("jls of jp2", "image/jls", JPEG_2000, True, Form(False, "image/jls", JPEG_LS)),
    ("jls of lossy", "image/jls", JPEG, True, NOTHING),
    ("rle", "image/dicom-rle", RLE, True, Form(False, "image/dicom-rle")),
    ("htj2k", "image/jphc", HTJ2K, True, Form(False, "image/jphc")),
    ("htj2k is made", "image/jphc", JPEG_2000, True, Form(False, "image/jphc", HTJ2K)),
    ("htj2k of lossy", "image/jphc", JPEG_2000_LOSSY, True, NOTHING),
    ("another htj2k", f"image/jphc; transfer-syntax={HTJ2K[:-1]}2", EXPLICIT, True, NOTHING),
    ("video", "video/mp4", MPEG4, True, Form(False, "video/mp4")),
    ("any image", "image/*", JPEG, True, Form(False, "image/jpeg")),
    ("any image of native", "image/*", EXPLICIT, True, NOTHING),
    # §8.6.1.2: several frames are never a single part.
    ("many single", OCTETS, EXPLICIT, False, NOTHING),
    ("one single", OCTETS, EXPLICIT, True, Form(False, OCTETS)),
    ("anything", "*/*", JPEG, False, Form(True, OCTETS)),
    ("no header", None, EXPLICIT, False, Form(True, OCTETS)),
]  # fmt: skip

OTHERS = [
    ("metadata", accept.metadata, None, JSON),
    ("metadata", accept.metadata, "application/json", "application/json"),
    ("metadata", accept.metadata, f"application/json;q=0.2, {JSON}", JSON),
    ("metadata", accept.metadata, 'multipart/related; type="application/dicom+xml", */*;q=0.1', JSON),
    ("metadata", accept.metadata, "application/dicom+xml", NOTHING),
    ("metadata", accept.metadata, f"*/*, {JSON};q=0", NOTHING),
    # §8.7.4: rendered media types; image/jpeg is the default of a single frame.
    ("rendered", accept.pictures, None, Form(False, "image/jpeg")),
    ("rendered", accept.pictures, "image/*", Form(False, "image/jpeg")),
    ("rendered", accept.pictures, "image/png;q=0.5, image/webp", Form(False, "image/webp")),
    ("rendered", accept.pictures, 'multipart/related; type="image/png"', Form(True, "image/png")),
    ("rendered", accept.pictures, "video/mp4, image/gif", NOTHING),
    ("bulk data", accept.bulk_data, None, Form(True, OCTETS)),
    ("bulk data", accept.bulk_data, OCTETS, Form(False, OCTETS)),
    ("bulk data", accept.bulk_data, "image/jpeg", NOTHING),
]


def judge(offer: object, *arguments: object, **named: object) -> object:
    """What is negotiated; NOTHING for 406, whose words say what to accept instead."""
    try:
        return offer(*arguments, **named)  # type: ignore[operator]
    except Invalid as refusal:
        assert refusal.code == "not-acceptable"
        assert refusal.mend.startswith("Accept ")
        return NOTHING


@pytest.mark.requirement("F5")
@pytest.mark.parametrize(
    ("name", "header", "stored", "single", "form"), DATA_SETS, ids=[row[0] for row in DATA_SETS]
)
def test_data_sets_are_negotiated(
    name: str, header: str | None, stored: set[str], single: bool, form: Form | None
) -> None:
    """PS3.18 Table 8.7.3-2 and §8.7.5 for instances."""
    assert judge(accept.data_sets, header, stored, single=single) == form


@pytest.mark.requirement("F5")
@pytest.mark.parametrize(
    ("name", "header", "stored", "single", "form"), FRAME_FORMS, ids=[row[0] for row in FRAME_FORMS]
)
def test_frames_are_negotiated(
    name: str, header: str | None, stored: str, single: bool, form: Form | None
) -> None:
    """PS3.18 Tables 8.7.3-4 and 8.7.3-5 for frames."""
    assert judge(accept.frames, header, stored, single=single) == form


@pytest.mark.requirement("F5")
@pytest.mark.parametrize(("what", "offer", "header", "found"), OTHERS)
def test_metadata_pictures_and_values_are_negotiated(
    what: str, offer: object, header: str | None, found: object
) -> None:
    """PS3.18 Table 8.7.3-3 and §8.7.4."""
    assert judge(offer, header) == found


@pytest.mark.requirement("F5", "F4")
@pytest.mark.parametrize(
    "header", ["a" * 5000, "*/*;q=x", "*/*;q=2", ", ".join(["a/b"] * 40), 'a/b; =";', "a/b;c"]
)
def test_a_broken_header_is_invalid(header: str) -> None:
    """Too long, too many, no number, no parameter: refused in words, not guessed at."""
    with pytest.raises(Invalid):
        accept.data_sets(header, {EXPLICIT}, single=True)
