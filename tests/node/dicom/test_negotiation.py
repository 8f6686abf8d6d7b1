"""What is agreed at the start of an association: contexts, roles, the window, extended negotiation."""

from __future__ import annotations

import pytest

from node.dicom.negotiation import (
    DATE_TIME,
    EMPTY_VALUE,
    STORAGE_CLASSES,
    STORAGE_COMMITMENT,
    STUDY_ROOT_FIND,
    STUDY_ROOT_GET,
    VERIFICATION,
    Terms,
    negotiate,
)
from node.dicom.pdu import AssociateRq, Extended, Proposal, Roles, Window, decode, encode
from node.imaging.syntaxes import EXPLICIT_BIG_ENDIAN, EXPLICIT_LITTLE_ENDIAN, IMPLICIT_LITTLE_ENDIAN

CT = "1.2.840.10008.5.1.4.1.1.2"
JPEG_2000 = "1.2.840.10008.1.2.4.90"
PRIVATE = "1.3.46.670589.11.0.0.12.1"
PLAIN = (EXPLICIT_LITTLE_ENDIAN, IMPLICIT_LITTLE_ENDIAN)


def agree(*contexts: Proposal, **more: object) -> Terms:
    """The terms of a request that went over the wire."""
    roles = {name: more.pop(name) for name in ("roles", "extended", "window") if name in more}
    sent = encode(AssociateRq("NODE", "CT1", contexts, **roles))  # type: ignore[arg-type]
    request = decode(sent[0], sent[6:])
    assert isinstance(request, AssociateRq)
    return negotiate(request, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        ((IMPLICIT_LITTLE_ENDIAN,), IMPLICIT_LITTLE_ENDIAN),
        ((IMPLICIT_LITTLE_ENDIAN, EXPLICIT_LITTLE_ENDIAN), EXPLICIT_LITTLE_ENDIAN),
        ((JPEG_2000, EXPLICIT_LITTLE_ENDIAN), JPEG_2000),
        ((EXPLICIT_LITTLE_ENDIAN, JPEG_2000), EXPLICIT_LITTLE_ENDIAN),
        (("1.2.3.4", JPEG_2000), JPEG_2000),
    ],
)
def test_transfer_syntax_follows_the_proposer(offered: tuple[str, ...], chosen: str) -> None:
    """Data is taken as it lies at the sender."""
    assert agree(Proposal(1, CT, offered)).answers[0].transfer_syntax == chosen


def test_what_is_not_spoken_is_not_accepted() -> None:
    """Worklists, odd transfer syntaxes and queries in Big Endian are refused per context, each for its reason."""
    worklist = Proposal(1, "1.2.840.10008.5.1.4.31", PLAIN)
    odd = Proposal(3, CT, ("1.2.840.10008.1.2.4.94",))
    find = Proposal(5, STUDY_ROOT_FIND, (EXPLICIT_BIG_ENDIAN, JPEG_2000))
    echo = Proposal(7, VERIFICATION, (IMPLICIT_LITTLE_ENDIAN,))
    assert [answer.result for answer in agree(worklist, odd, find, echo).answers] == [3, 4, 4, 0]


def test_storage_classes_hold_what_hospitals_send() -> None:
    """Images, reports, plans, waveforms; not commitment, not media directories."""
    assert {CT, "1.2.840.10008.5.1.4.1.1.88.33", "1.2.840.10008.5.1.4.1.1.481.5"} <= STORAGE_CLASSES
    assert len(STORAGE_CLASSES) > 190
    assert STORAGE_COMMITMENT not in STORAGE_CLASSES
    assert "1.2.840.10008.1.3.10" not in STORAGE_CLASSES


def test_private_storage_classes_are_taken_when_they_are_configured() -> None:
    """A class that no dictionary knows is stored where the operator named it, and nowhere else."""
    proposal = Proposal(1, PRIVATE, PLAIN)

    assert agree(proposal).answers[0].result == 3
    assert agree(proposal, private=frozenset({PRIVATE})).contexts[1].abstract_syntax == PRIVATE


def test_a_peer_that_is_to_be_sent_images_says_so() -> None:
    """In a C-GET the peer provides storage; what goes to it goes uncompressed where it offers that."""
    contexts = (Proposal(1, STUDY_ROOT_GET, PLAIN), Proposal(3, CT, (JPEG_2000, *PLAIN)))
    roles = (Roles(CT, scu=False, scp=True), Roles(STUDY_ROOT_GET, scu=True, scp=True))
    terms = agree(*contexts, roles=roles)

    assert terms.peer_stores == {CT}
    assert terms.roles == (Roles(CT, scu=False, scp=True), Roles(STUDY_ROOT_GET, scu=True, scp=False))
    assert terms.contexts[3].transfer_syntax == EXPLICIT_LITTLE_ENDIAN
    assert agree(*contexts).peer_stores == frozenset()


@pytest.mark.parametrize(
    ("asked", "answered", "operations"),
    [
        (None, None, 1),
        (Window(1, 1), Window(1, 1), 1),
        (Window(3, 9), Window(3, 1), 3),
        (Window(99, 1), Window(4, 1), 4),
        (Window(0, 0), Window(4, 1), 4),
    ],
)
def test_the_window_is_as_wide_as_both_allow(
    asked: Window | None, answered: Window | None, operations: int
) -> None:
    """0 asks for no limit and gets the node's; a peer that says nothing gets one operation at a time."""
    terms = agree(Proposal(1, CT, PLAIN), window=asked, operations=4)

    assert (terms.window, terms.operations) == (answered, operations)


def test_extended_negotiation_agrees_to_what_is_offered() -> None:
    """Combined date and time and empty values; relational queries and fuzzy names are turned down."""
    asked = Extended(STUDY_ROOT_FIND, b"\1\1\1\1\1\1\1")
    terms = agree(Proposal(1, STUDY_ROOT_FIND, PLAIN), extended=(asked,))

    assert terms.extended == (Extended(STUDY_ROOT_FIND, b"\0\1\0\0\0\1\0"),)
    assert terms.agreed(STUDY_ROOT_FIND, DATE_TIME) and terms.agreed(STUDY_ROOT_FIND, EMPTY_VALUE)
    assert not agree(Proposal(1, STUDY_ROOT_FIND, PLAIN)).agreed(STUDY_ROOT_FIND, DATE_TIME)
