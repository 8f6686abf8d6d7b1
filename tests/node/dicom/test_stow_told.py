"""What services say of instances that were stored with them, as the standard has it and as it comes."""

from __future__ import annotations

import json

import pytest

from node.dicom.stow_told import MAX_WORDS_CHARACTERS, problem_of, read_told

pytestmark = pytest.mark.requirement("F5")


def test_the_answer_is_read_as_the_standard_has_it() -> None:
    """Warnings, failures, and what has no name; also in the array that DICOM JSON asks for."""
    body = {
        "00081199": {"Value": [{"00081155": {"Value": ["1.2"]}, "00081196": {"Value": [0xB000]}}]},
        "00081198": {"Value": [{"00081155": {"Value": ["1.3"]}, "00081197": {"Value": [0xA700]}}]},
        "0008119A": {"Value": [{"00081197": {"Value": [0xC000]}}]},
    }
    for form in (body, [body]):
        told = read_told(json.dumps(form).encode())
        assert told is not None
        assert (told.stored, told.failed, told.others) == ({"1.2": 0xB000}, {"1.3": 0xA700}, (0xC000,))
        assert told.words(0xA700) == "Reason A700, out of resources"
        assert told.words(0) == ""


@pytest.mark.requirement("F4")
@pytest.mark.parametrize("answer", [b"", b"{}", b"[]", b"[{}, {}]", b"7", b"\xff", b"{" * 9999, b"[" * 99999])
def test_what_is_no_answer_says_nothing(answer: bytes) -> None:
    """Nothing is taken for stored."""
    assert read_told(answer) is None
    assert problem_of(answer) == ""


def test_the_words_of_a_refusal_are_printable_and_short() -> None:
    """They are shown on a terminal."""
    said = problem_of(json.dumps({"Message": "\x1b[31mNo\n" + "x" * 999}).encode())
    assert said.startswith("[31mNo x") and len(said) <= MAX_WORDS_CHARACTERS
