"""The tables of PS3.6 as a node loads them, against pydicom's own look-ups."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import pytest
from pydicom.charset import python_encoding
from pydicom.datadict import DicomDictionary, dictionary_VR

from node.imaging.charsets import TERMS
from node.imaging.dictionary import UIDS, dictionary_vr


@pytest.mark.requirement("F5")
def test_every_tag_has_the_dictionarys_vr() -> None:
    """All standard tags, tags in repeating groups, and tags that nobody defined."""
    dice = random.Random(1)
    repeating = [0x60003000, 0x60EE3000, 0x50000010, 0x50101001, 0x7F000010, 0x002031FF, 0x00280400]
    for tag in [*DicomDictionary, *repeating, *(dice.randrange(2**31) * 2 for _ in range(500))]:
        tag &= ~0x10000  # private groups are no business of the dictionary
        try:
            expected: str | None = dictionary_VR(tag)
        except KeyError:
            expected = None
        if expected is None:
            with pytest.raises(KeyError):
                dictionary_vr(tag)
        else:
            assert dictionary_vr(tag) == expected, hex(tag)


@pytest.mark.requirement("F5")
def test_every_uid_is_known() -> None:
    """The UIDs of PS3.6 annex A, as pydicom has them before another library adds its own."""
    script = "import json; from pydicom._uid_dict import UID_dictionary as uids; print(json.dumps(uids))"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert {uid: tuple(words) for uid, words in json.loads(said.stdout).items()} == UIDS


@pytest.mark.requirement("F5")
def test_every_term_of_a_character_set_names_an_encoding() -> None:
    """The terms of PS3.3 §C.12.1.1.2 under the names of the decoder that takes code extensions."""
    assert python_encoding == TERMS
