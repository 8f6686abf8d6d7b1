"""`accord deidentify`: files in, files out at the same paths; what is refused is named, and nothing leaks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import pytest

from tests.support.cli import Said, accord
from tests.support.dicom import ct_slice, pydicom_folder

PLANTED = ("Zhang", "张", "P-0001", "19700102", "A-0001", "General Hospital", "Li^Si", "PLANTED-COMMENT")


@dataclass(frozen=True)
class Done:
    """One run over `source`: what it was given, where the results lie, what it said."""

    source: Path
    out: Path
    key: Path
    said: Said


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """Two slices of one study in two folders, three files that cannot be made safe, and a link to the outside."""
    place = tmp_path_factory.mktemp("deidentify")
    source, key = place / "in", place / "project.key"
    key.write_bytes(b"k" * 32)
    for name, number in (("one/a.dcm", 1), ("two/deep/b.dcm", 2)):
        file = source / name
        file.parent.mkdir(parents=True)
        file.write_bytes(ct_slice(number=number, PatientComments="PLANTED-COMMENT").file())
    (source / "burned.dcm").write_bytes(ct_slice(number=3, BurnedInAnnotation="YES").file())
    (source / "notes.txt").write_text("Zhang San has a nodule", "utf-8")
    (source / "DICOMDIR").write_bytes((pydicom_folder() / "dicomdirtests/DICOMDIR").read_bytes())
    (place / "outside.dcm").write_bytes(ct_slice(number=9).file())
    (source / "link.dcm").symlink_to(place / "outside.dcm")
    said = accord("deidentify", source, place / "out", "--project-key", key, "--json")
    return Done(source, place / "out", key, said)


@pytest.mark.requirement("U6")
def test_each_file_comes_out_at_its_own_path_and_refusals_are_named(done: Done) -> None:
    """Path for path, with exit code 1 because something was refused, and no file for what was."""
    assert done.said.code == 1
    assert sorted(done.said.value["written"]) == ["one/a.dcm", "two/deep/b.dcm"]
    refused = {one["path"]: one for one in done.said.value["refused"]}
    assert set(refused) == {"burned.dcm", "notes.txt", "DICOMDIR"}
    assert all(one["code"] and one["reason"] for one in refused.values())
    files = {path.relative_to(done.out).as_posix() for path in done.out.rglob("*") if path.is_file()}
    assert files == set(done.said.value["written"])


@pytest.mark.requirement("U6")
def test_nothing_of_the_patient_is_left_and_the_image_is_whole(done: Done) -> None:
    """No planted identifier is in any byte of the output or of what was said; pixels and geometry stay."""
    before = pydicom.dcmread(done.source / "one/a.dcm")
    after = pydicom.dcmread(done.out / "one/a.dcm")
    for path in (path for path in done.out.rglob("*") if path.is_file()):
        content = path.read_bytes()
        for words in (*PLANTED, str(before.StudyInstanceUID), str(before.SOPInstanceUID)):
            assert words.encode() not in content, words
    assert not any(words in done.said.out + done.said.err for words in PLANTED)
    assert np.array_equal(before.pixel_array, after.pixel_array)
    assert after.PixelSpacing == before.PixelSpacing
    assert after.PatientIdentityRemoved == "YES"


def test_a_link_out_of_the_folder_is_not_followed(done: Done) -> None:
    """Neither written nor named: it is not part of the folder."""
    assert "link.dcm" not in done.said.out


@pytest.mark.requirement("U6")
def test_one_project_is_consistent_and_two_projects_cannot_be_joined(done: Done, tmp_path: Path) -> None:
    """Slices of one study stay one study, also in another run; another key gives other identifiers."""
    other = tmp_path / "other.key"
    other.write_bytes(b"o" * 32)
    one = done.source / "one/a.dcm"
    assert accord("deidentify", one, tmp_path / "again", "--project-key", done.key).code == 0
    assert accord("deidentify", one, tmp_path / "else", "--project-key", other).code == 0
    first, second = (pydicom.dcmread(done.out / name) for name in ("one/a.dcm", "two/deep/b.dcm"))
    assert first.StudyInstanceUID == second.StudyInstanceUID
    assert first.PatientID == second.PatientID and first.SOPInstanceUID != second.SOPInstanceUID
    again = pydicom.dcmread(tmp_path / "again/a.dcm")
    foreign = pydicom.dcmread(tmp_path / "else/a.dcm")
    assert (again.StudyInstanceUID, again.SOPInstanceUID) == (first.StudyInstanceUID, first.SOPInstanceUID)
    assert foreign.StudyInstanceUID != first.StudyInstanceUID and foreign.PatientID != first.PatientID


def test_an_output_folder_that_is_not_empty_is_refused(done: Done) -> None:
    """Old and new results would mix."""
    said = accord("deidentify", done.source, done.out, "--project-key", done.key)
    assert said.code == 5 and "is not empty" in said.err


def test_a_short_project_key_is_refused(done: Done, tmp_path: Path) -> None:
    """A guessable key would undo the pseudonyms."""
    weak = tmp_path / "weak.key"
    weak.write_bytes(b"abc")
    said = accord("deidentify", done.source, tmp_path / "out", "--project-key", weak)
    assert said.code == 7 and "shorter than 16 bytes" in said.err
    assert not (tmp_path / "out").exists()
