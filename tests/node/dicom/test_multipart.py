"""multipart/related: what goes in comes out, however the stream is cut, and hostile bodies are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consent.errors import Invalid
from node.dicom.accept import data_sets, frames, metadata, picture
from node.dicom.multipart import MultipartParser, MultipartWriter, parameters

EXPLICIT, JPEG = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.50"


def whole(bodies: list[bytes], boundary: str = "b0undary") -> bytes:
    writer = MultipartWriter("application/dicom", boundary)
    parts = [
        writer.head("application/dicom", len(body), first=number == 0) + body
        for number, body in enumerate(bodies)
    ]
    return b"".join(parts) + writer.end()


def parse(data: bytes, sizes: list[int], boundary: str = "b0undary", **bounds: int) -> list[bytes]:
    parser = MultipartParser(boundary, **bounds)
    found: list[bytes] = []
    at = 0
    while at < len(data):
        size = sizes.pop() if sizes else len(data)
        found += [part.body for part in parser.feed(data[at : at + size])]
        at += size
    parser.finish()
    return found


@given(
    st.lists(
        st.binary(max_size=60) | st.sampled_from([b"\r\n--b0undary", b"\r\n", b"--b0undary--x"]), min_size=1
    ),
    st.lists(st.integers(1, 40), max_size=60),
)
def test_parts_survive_any_cutting_of_the_stream(bodies: list[bytes], sizes: list[int]) -> None:
    """Whatever the pieces, the parts are those that were written, except where a body holds the boundary itself."""
    bodies = [body for body in bodies if b"--b0undary" not in body] or [b""]

    assert parse(whole(bodies), sizes) == bodies


def test_bytes_that_only_begin_like_the_boundary_stay_in_the_part() -> None:
    """`--b0undaryX` inside an image is not the end of it."""
    body = b"pixels\r\n--b0undaryX\r\nmore"

    assert parse(whole([body, b"x"]), [7] * 40) == [body, b"x"]


HOSTILE = {
    "cut short": whole([b"abc"])[:-6],
    "no boundary": b"x" * 8192,
    "endless boundary line": b"--b0undary" + b" " * 20_000,
    "header without colon": b"--b0undary\r\nnonsense\r\n\r\nx\r\n--b0undary--",
    "endless header": b"--b0undary\r\nA: " + b"x" * 20_000 + b"\r\n\r\nx\r\n--b0undary--",
    "too many headers": b"--b0undary\r\n" + b"A: 1\r\n" * 40 + b"\r\nx\r\n--b0undary--",
    "part too large": whole([b"x" * 200_000]),
    "too many parts": whole([b"x"] * 5),
}


@pytest.mark.requirement("F4")
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bodies_are_refused(name: str) -> None:
    """Each way of being malformed is Invalid; nothing grows without bound."""
    with pytest.raises(Invalid):
        parse(HOSTILE[name], [997] * 400, max_part_bytes=100_000, max_parts=4)


@pytest.mark.parametrize(
    "boundary", ["", "x" * 201, "a\r\nb", "ä"], ids=["none", "long", "line end", "not ascii"]
)
def test_a_malformed_boundary_is_refused(boundary: str) -> None:
    """RFC 2046 §5.1.1 says what a boundary is; only its length is taken less strictly, because Orthanc does."""
    with pytest.raises(Invalid):
        MultipartParser(boundary)


def test_media_types_are_read_with_quotes() -> None:
    """Parameters keep what is quoted, semicolons included."""
    assert parameters('multipart/related; type="application/dicom"; boundary="a;b"') == (
        "multipart/related",
        {"type": "application/dicom", "boundary": "a;b"},
    )


DATA_SETS = [
    (None, True, "application/dicom"),
    ("*/*", True, "application/dicom"),
    ('multipart/related; type="application/dicom"', True, "application/dicom"),
    ("multipart/related; type=application/dicom; transfer-syntax=*", True, "application/dicom"),
    (f'multipart/related; type="application/dicom"; transfer-syntax={EXPLICIT}', True, "application/dicom"),
    ("application/dicom", False, "application/dicom"),
    ("application/dicom; transfer-syntax=*", False, "application/dicom"),
    ("text/html;q=0.9, */*;q=0.1", True, "application/dicom"),
]


@pytest.mark.parametrize(("accept", "multipart", "kind"), DATA_SETS, ids=[str(row[0]) for row in DATA_SETS])
def test_what_viewers_send_is_understood(accept: str | None, multipart: bool, kind: str) -> None:
    """The usual Accept headers for data sets."""
    form = data_sets(accept, {EXPLICIT}, single=True)

    assert (form.multipart, form.media_type) == (multipart, kind)


@pytest.mark.parametrize(
    "accept",
    [
        "text/html",
        "application/dicom+json",
        'multipart/related; type="image/jpeg"',
        f'multipart/related; type="application/dicom"; transfer-syntax={JPEG}',
        "*/*;q=0",
        "x" * 5000,
        "multipart/related; type",
        "*/*;q=high",
    ],
)
def test_what_cannot_be_given_is_not_acceptable(accept: str) -> None:
    """Another syntax, another form, or a malformed header."""
    with pytest.raises(Invalid):
        data_sets(accept, {EXPLICIT}, single=True)


def test_frames_metadata_and_pictures_are_negotiated() -> None:
    """Octet-stream for any frame, its own image type where it has one; JSON; JPEG unless asked otherwise."""
    assert frames("*/*", EXPLICIT, single=True).media_type == "application/octet-stream"
    assert frames('multipart/related; type="image/jpeg"', JPEG, single=True).media_type == "image/jpeg"
    assert not frames("application/octet-stream", EXPLICIT, single=True).multipart
    assert metadata("application/json") == "application/json"
    assert metadata(None) == "application/dicom+json"
    assert picture("image/*") == "image/jpeg"
    assert picture("image/png;q=0.5, image/webp") == "image/webp"
    with pytest.raises(Invalid):
        picture("video/mp4")
    with pytest.raises(Invalid):
        metadata("application/dicom+xml")
