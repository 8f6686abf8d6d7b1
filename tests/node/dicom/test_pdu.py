"""PDUs: what is written reads back, pynetdicom agrees, and malformed bytes are faults with a reason."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ

from node.dicom.pdu import (
    MAX_ASSOCIATE_BYTES,
    MAX_CONTEXTS,
    MAX_DATA_BYTES,
    MAX_PDVS,
    MAX_TRANSFER_SYNTAXES,
    Abort,
    AbortReason,
    Answer,
    AssociateAc,
    AssociateRj,
    AssociateRq,
    Kind,
    Pdu,
    PduFault,
    Proposal,
    ReleaseRp,
    ReleaseRq,
    check_head,
    data_head,
    decode,
    encode,
    pdvs,
)

CT = "1.2.840.10008.5.1.4.1.1.2"
LITTLE = "1.2.840.10008.1.2"
REQUEST = AssociateRq("NODE", "CT1", (Proposal(1, CT, (LITTLE, LITTLE + ".1")), Proposal(3, CT, (LITTLE,))))
ALL: list[Pdu] = [
    REQUEST,
    AssociateAc("NODE", "CT1", (Answer(1, 0, LITTLE), Answer(3, 3, ""))),
    AssociateRj(1, 1, 7),
    ReleaseRq(),
    ReleaseRp(),
    Abort(2, 6),
]


@pytest.mark.parametrize("pdu", ALL, ids=lambda pdu: type(pdu).__name__)
def test_what_is_written_reads_back(pdu: Pdu) -> None:
    """Encode, check the head, decode."""
    data = encode(pdu)
    kind, length = data[0], int.from_bytes(data[2:6], "big")
    check_head(kind, length)
    assert length == len(data) - 6
    assert decode(kind, data[6:]) == pdu


def test_pynetdicom_reads_our_request_and_answer() -> None:
    """An independent stack finds the same in our bytes."""
    request = A_ASSOCIATE_RQ()
    request.decode(encode(REQUEST))
    assert (request.called_ae_title, request.calling_ae_title) == ("NODE", "CT1")
    assert [c.context_id for c in request.presentation_context] == [1, 3]
    assert request.user_information.maximum_length == MAX_DATA_BYTES
    answer = A_ASSOCIATE_AC()
    answer.decode(encode(ALL[1]))
    assert [c.result for c in answer.presentation_context] == [0, 3]


def test_ae_titles_are_trimmed_and_made_printable() -> None:
    """Padding goes; control characters cannot reach a log."""
    data = bytearray(encode(REQUEST))
    data[10:26] = b"NODE\0\0\x1b[2J      "
    assert decode(1, bytes(data[6:])).called == "NODE??" + "?[2J"  # type: ignore[union-attr]


def test_data_values_are_walked_in_place() -> None:
    """Two values in one PDU, with their flags and offsets."""
    body = data_head(1, 4, command=True, last=True)[6:] + b"abcd"
    body += data_head(3, 2, command=False, last=False)[6:] + b"ef"
    found = list(pdvs(body, 0, len(body)))
    assert [(v.context_id, v.command, v.last, body[v.start : v.end]) for v in found] == [
        (1, True, True, b"abcd"),
        (3, False, False, b"ef"),
    ]


@pytest.mark.parametrize(
    ("kind", "length", "reason"),
    [
        (0, 4, AbortReason.UNRECOGNIZED_PDU),
        (8, 4, AbortReason.UNRECOGNIZED_PDU),
        (0x16, 0x0301, AbortReason.UNRECOGNIZED_PDU),
        (Kind.DATA, MAX_DATA_BYTES + 1, AbortReason.INVALID_PARAMETER),
        (Kind.DATA, 0xFFFFFFFF, AbortReason.INVALID_PARAMETER),
        (Kind.ASSOCIATE_RQ, MAX_ASSOCIATE_BYTES + 1, AbortReason.INVALID_PARAMETER),
        (Kind.RELEASE_RQ, 5, AbortReason.INVALID_PARAMETER),
        (Kind.ABORT, 0, AbortReason.INVALID_PARAMETER),
    ],
)
def test_heads_are_judged_before_their_bodies_are_awaited(
    kind: int, length: int, reason: AbortReason
) -> None:
    """A length of 4 GiB, or a PDU type that is none, is refused at six bytes."""
    with pytest.raises(PduFault) as caught:
        check_head(kind, length)
    assert caught.value.reason == reason


def _request(contexts: bytes, *, user: bytes = b"", fixed: bytes = bytes(68)) -> bytes:
    return fixed + contexts + user


def _item(kind: int, value: bytes, length: int | None = None) -> bytes:
    return struct.pack(">BBH", kind, 0, len(value) if length is None else length) + value


def _context(number: int, *items: bytes) -> bytes:
    return _item(0x20, bytes((number, 0, 0, 0)) + b"".join(items))


ABSTRACT, SYNTAX = _item(0x30, CT.encode()), _item(0x40, LITTLE.encode())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        bytes(67),
        _request(b"\x20"),
        _request(_item(0x20, b"", length=60000)),
        _request(_context(2, ABSTRACT, SYNTAX)),
        _request(_context(1, ABSTRACT, SYNTAX) * 2),
        _request(_context(1, SYNTAX)),
        _request(_context(1, ABSTRACT)),
        _request(_context(1, ABSTRACT, ABSTRACT, SYNTAX)),
        _request(_context(1, _item(0x30, b"../../etc"), SYNTAX)),
        _request(_context(1, _item(0x30, b"1." + b"2" * 80), SYNTAX)),
        _request(_context(1, ABSTRACT, *[SYNTAX] * (MAX_TRANSFER_SYNTAXES + 1))),
        _request(b"".join(_context(1 + n % 128 * 2, ABSTRACT, SYNTAX) for n in range(MAX_CONTEXTS + 1))),
        _request(_context(1, ABSTRACT, SYNTAX), user=_item(0x50, b"\x51\0\0\x10")),
        _request(_context(1, ABSTRACT, SYNTAX), user=_item(0x50, _item(0x54, b"") * 600)),
        _request(_context(1, ABSTRACT, SYNTAX), user=_item(0x50, _item(0x51, struct.pack(">I", 7)))),
        _request(_item(0x10, b"\xff\xfe")),
    ],
)
def test_malformed_requests_are_faults(body: bytes) -> None:
    """Lengths beyond their container, even or double IDs, too many of anything, UIDs that are none."""
    with pytest.raises(PduFault):
        decode(Kind.ASSOCIATE_RQ, body)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\0\0\0",
        struct.pack(">IBB", 100, 1, 2) + b"ab",
        struct.pack(">IBB", 1, 1, 2),
        struct.pack(">IBB", 0xFFFFFFFF, 1, 2),
        struct.pack(">IBB", 2, 1, 0) * (MAX_PDVS + 1),
    ],
)
def test_malformed_data_values_are_faults(body: bytes) -> None:
    """A value longer than its PDU, shorter than its own head, none at all, or too many."""
    with pytest.raises(PduFault):
        list(pdvs(body, 0, len(body)))


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 255), st.binary(max_size=400), st.integers(0, 200))
def test_noise_is_a_fault_or_a_pdu(kind: int, noise: bytes, at: int) -> None:
    """No bytes do more than raise PduFault."""
    good = encode(REQUEST)[6:]
    for body in (noise, good[:at] + noise, good[:at] + noise + good[at + len(noise) :]):
        try:
            decode(kind, body)
        except PduFault:
            pass
        try:
            list(pdvs(body, 0, len(body)))
        except PduFault:
            pass
