"""Sealed objects: vectors, random access, and what sealing refuses."""

from __future__ import annotations

import os
from base64 import b64decode
from hashlib import sha256
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consent.errors import Corrupt, Invalid
from node.vault.seal import (
    CHUNK_BYTES,
    PREFIX_BYTES,
    TAG_BYTES,
    ObjectHeader,
    check_study_id,
    object_key,
    object_keys,
    open_digest,
    open_range,
    open_sealed,
    plain_length,
    seal,
    seal_digest,
    sealed_length,
)
from tests.node.vault.vectors import load, names

VECTORS = load("sealed-object")
KEY = bytes(range(32))
HEADER = ObjectHeader("st_" + "a" * 26, "in_one", "instance", 1)
FAILURES = {"corrupt": Corrupt, "invalid": Invalid}


def header_of(fields: dict[str, Any]) -> ObjectHeader:
    return ObjectHeader(fields["study"], fields["id"], fields["kind"], fields["grade"], fields["suite"])


@pytest.mark.requirement("V1", "C3")
@pytest.mark.parametrize("case", VECTORS["cases"], ids=names(VECTORS["cases"]))
def test_frozen_object_opens_or_fails_as_written_down(case: dict[str, Any]) -> None:
    """Each way of failing has its own frozen bytes, made without the product's code."""
    body, key = b64decode(case["body"]), bytes.fromhex(case["key"])
    if case["expect"] == "opens":
        plain = open_sealed(body, key, header_of(case["header"]))
        assert sha256(plain).hexdigest() == case["sha256"]
        assert len(plain) == plain_length(len(body))
    else:
        with pytest.raises(FAILURES[case["expect"]]):
            open_sealed(body, key, header_of(case["header"]))


@pytest.mark.requirement("C3")
@pytest.mark.parametrize("case", VECTORS["cases"], ids=names(VECTORS["cases"]))
def test_whole_range_of_a_frozen_object_opens_or_fails_alike(case: dict[str, Any]) -> None:
    """Reading all of an object chunk by chunk is as strict as opening it whole, except for what lies beyond its length."""
    body, key = b64decode(case["body"]), bytes.fromhex(case["key"])

    def read_all() -> bytes:
        header = header_of(case["header"])
        length = plain_length(len(body))
        return open_range(
            lambda offset, count: body[offset : offset + count], len(body), key, header, 0, length
        )

    if case["expect"] == "opens":
        assert sha256(read_all()).hexdigest() == case["sha256"]
    else:
        with pytest.raises(FAILURES[case["expect"]]):
            read_all()


@pytest.mark.parametrize("case", VECTORS["digests"], ids=names(VECTORS["digests"]))
def test_frozen_digest_opens_or_fails_as_written_down(case: dict[str, Any]) -> None:
    """The sealed SHA-256 of a payload opens only whole and unchanged."""
    key = bytes.fromhex(VECTORS["object_keys"]["in_one"])
    if case["expect"] == "opens":
        assert open_digest(b64decode(case["sealed"]), key, HEADER).hex() == case["sha256"]
    else:
        with pytest.raises(Corrupt):
            open_digest(b64decode(case["sealed"]), key, HEADER)


def test_object_keys_are_derived_as_written_down() -> None:
    """The frozen object key follows from the frozen study key."""
    study_key = bytes.fromhex(VECTORS["study_key"])
    assert object_keys(study_key, ["in_one"])["in_one"].hex() == VECTORS["object_keys"]["in_one"]
    assert object_key(study_key, "in_one") != object_key(study_key, "in_one.a")


@settings(max_examples=60, deadline=None)
@given(size=st.integers(0, 3 * CHUNK_BYTES + 5), cuts=st.lists(st.integers(0, 50_000), max_size=4))
def test_pieces_seal_to_what_opens_again(size: int, cuts: list[int]) -> None:
    """However a payload is cut into pieces, it opens to the same bytes and has the length that was promised."""
    payload = os.urandom(size)
    places = [0, *sorted(min(cut, size) for cut in cuts), size]
    parts = [memoryview(payload)[start:stop] for start, stop in pairwise(places)]
    body = seal(parts, KEY, HEADER)
    assert len(body) == sealed_length(size)
    assert open_sealed(body, KEY, HEADER) == payload


@pytest.mark.requirement("F1")
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_range_reads_only_the_chunks_that_cover_it(data: st.DataObject) -> None:
    """A frame out of the middle costs its own chunks and the 56-byte prefix, nothing else."""
    size = data.draw(st.integers(1, 6 * CHUNK_BYTES))
    offset = data.draw(st.integers(0, size))
    length = data.draw(st.integers(0, size - offset))
    payload = os.urandom(size)
    body = bytes(seal(payload, KEY, HEADER))
    touched = 0

    def read(start: int, count: int) -> bytes:
        nonlocal touched
        touched += count
        return body[start : start + count]

    assert open_range(read, len(body), KEY, HEADER, offset, length) == payload[offset : offset + length]
    chunks = 0 if length == 0 else (offset + length - 1) // CHUNK_BYTES - offset // CHUNK_BYTES + 1
    assert touched <= PREFIX_BYTES + chunks * (CHUNK_BYTES + TAG_BYTES)


@pytest.mark.requirement("C3")
@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, 2 * CHUNK_BYTES + 200), bit=st.integers(0, 7))
def test_any_flipped_bit_is_detected(place: int, bit: int) -> None:
    """No single bit of a sealed object can be changed unnoticed."""
    body = seal(bytes(2 * CHUNK_BYTES + 100), KEY, HEADER)
    body[place % len(body)] ^= 1 << bit
    with pytest.raises(Corrupt):
        open_sealed(body, KEY, HEADER)


def test_range_notices_damage_only_where_it_reads() -> None:
    """A flipped bit elsewhere does not stop a range; one inside it does."""
    payload = os.urandom(3 * CHUNK_BYTES)
    body = seal(payload, KEY, HEADER)
    body[PREFIX_BYTES + CHUNK_BYTES + TAG_BYTES + 7] ^= 1

    def read(start: int, count: int) -> bytes:
        return bytes(body[start : start + count])

    assert open_range(read, len(body), KEY, HEADER, 0, CHUNK_BYTES) == payload[:CHUNK_BYTES]
    with pytest.raises(Corrupt):
        open_range(read, len(body), KEY, HEADER, CHUNK_BYTES, 1)


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (0, -1), (0, 101), (101, 0), (2**70, 1)])
def test_range_outside_the_object_is_invalid(offset: int, length: int) -> None:
    """A range from outside is checked before anything is read."""
    body = bytes(seal(bytes(100), KEY, HEADER))
    with pytest.raises(Invalid):
        open_range(lambda *_: pytest.fail("read"), len(body), KEY, HEADER, offset, length)


def test_range_of_a_file_that_ends_early_is_corrupt() -> None:
    """When the disk gives fewer bytes than the index promised, nothing is returned."""
    body = bytes(seal(bytes(100), KEY, HEADER))
    with pytest.raises(Corrupt):
        open_range(lambda start, count: body[:90][start : start + count], len(body), KEY, HEADER, 0, 100)
    with pytest.raises(Corrupt):
        open_range(lambda *_: b"", len(body), KEY, HEADER, 0, 100)


def test_same_payload_never_seals_to_the_same_bytes() -> None:
    """Every body has its own salt, so equal images cannot be told from the disk."""
    assert seal(b"same", KEY, HEADER) != seal(b"same", KEY, HEADER)
    assert seal_digest(bytes(32), KEY, HEADER) != seal_digest(bytes(32), KEY, HEADER)


@pytest.mark.parametrize(
    "study",
    [
        "",
        "st_",
        "st_abc",
        "xx_abcdef",
        "st_ABCDEF",
        "st_../../x",
        "st_abc/def",
        "st_abcdef\n",
        "st_" + "a" * 65,
    ],
)
def test_study_ids_that_could_be_paths_are_refused(study: str) -> None:
    """Only pseudonyms ever become file names."""
    with pytest.raises(Invalid):
        check_study_id(study)


@pytest.mark.parametrize(
    ("object_id", "kind"),
    [("", "instance"), ("../x", "instance"), ("in_" + "a" * 130, "instance"), ("in_x", "In")],
)
def test_object_names_outside_their_pattern_are_refused(object_id: str, kind: str) -> None:
    """Names are bounded before they are bound into a key."""
    with pytest.raises(Invalid):
        ObjectHeader("st_abcdef", object_id, kind, 1)


def test_digest_of_the_wrong_length_is_refused() -> None:
    """Only a SHA-256 is sealed as one."""
    with pytest.raises(Invalid):
        seal_digest(b"short", KEY, HEADER)
