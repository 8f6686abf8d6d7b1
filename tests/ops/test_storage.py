"""`accord replicas` and `accord index` on a node with three roots that does not run, and on one that does."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from ops.lock import sole_user
from tests.support.cli import accord
from tests.support.custodies import hurry
from tests.support.dicom import ct_slice

STUDIES = 3


@pytest.fixture(scope="module")
def archived(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A node with three roots and three imported studies."""
    folder = tmp_path_factory.mktemp("archived")
    node, files = folder / "node", folder / "files"
    assert accord("init", node, "--name", "General Hospital", "--ae-title", "GENERAL").code == 0
    hurry(node)
    settings = node / "node.toml"
    settings.write_text(settings.read_text().replace("\nroots = []", '\nroots = ["r/1", "r/2", "r/3"]'))
    files.mkdir()
    for study in range(STUDIES):
        for number in range(2):
            uid = f"1.2.{study}.{number}"
            one = ct_slice(size=32, StudyInstanceUID=f"1.2.{study}", SOPInstanceUID=uid)
            (files / f"{uid}.dcm").write_bytes(one.file())
    assert accord("import", node, files).code == 0
    return node


@pytest.fixture
def node(archived: Path, tmp_path: Path) -> Path:
    """A copy of it, to be spoilt."""
    return Path(shutil.copytree(archived, tmp_path / "node"))


def roots(node: Path) -> list[dict[str, bytes]]:
    return [
        {path.name: path.read_bytes() for path in (node / "r" / number).rglob("*.pack")} for number in "123"
    ]


@pytest.mark.requirement("V2", "F6")
def test_import_leaves_three_equal_copies_and_status_says_so(node: Path) -> None:
    """All in sync, exit 0; a folder that is gone is named, exit 1."""
    copies = roots(node)
    assert len(copies[0]) == STUDIES and copies[0] == copies[1] == copies[2]
    assert accord("replicas", "status", node).code == 0
    shutil.rmtree(node / "r" / "2")
    said = accord("replicas", "status", node, "--json")
    assert said.code == 1
    assert [root["state"] for root in said.value["roots"]] == ["in-sync", "away", "in-sync"]


@pytest.mark.requirement("V2", "C3", "F6")
def test_scrub_heals_what_it_can_and_exits_by_what_it_cannot(node: Path) -> None:
    """One bad copy: exit 0 and equal again. The same place bad in all: exit 1, and the log names the study."""
    good = roots(node)[0]
    name, data = next(iter(good.items()))
    for number in "123":
        pack = next((node / "r" / number).rglob(name))
        pack.write_bytes(data[:2000] + bytes([data[2000] ^ 1]) + data[2001:])
        if number == "1":
            said = accord("replicas", "scrub", node, "--deep", "--json")
            assert (said.code, said.value["faults"]) == (0, 0)
            assert said.value["healed_bytes"] > 0
            assert roots(node) == [good] * 3
            pack.write_bytes(data[:2000] + bytes([data[2000] ^ 1]) + data[2001:])
    said = accord("replicas", "scrub", node, "--json")
    assert (said.code, said.value["faults"]) == (1, 1)


@pytest.mark.requirement("V2", "F6")
def test_refill_brings_an_empty_root_and_one_without_identity_back(node: Path) -> None:
    """Afterwards three equal copies; a root that is another node's is refused."""
    good = roots(node)[0]
    shutil.rmtree(node / "r" / "2")
    (node / "r" / "2").mkdir()
    identity = node / "r" / "3" / ".accord-root.json"
    assert accord("replicas", "refill", node).code == 0
    identity.unlink()
    said = accord("replicas", "refill", node)
    assert said.code == 1 and "foreign" in said.out
    assert accord("replicas", "refill", node, "--root", 3).code == 0
    assert roots(node) == [good] * 3
    identity.write_text(identity.read_text().replace('"node":"general-hospital"', '"node":"b-central"'))
    assert accord("replicas", "refill", node, "--root", 3).code == 5
    assert accord("replicas", "refill", node, "--root", 4).code == 4


@pytest.mark.requirement("V2", "F6")
def test_one_root_of_three_is_accepted_only_when_somebody_says_so(node: Path) -> None:
    """Two disks are dead: nothing is filled from the third by itself; accepted, it is the archive, on record."""
    good = roots(node)[0]
    for number in "23":
        shutil.rmtree(node / "r" / number)
        (node / "r" / number).mkdir()
    assert accord("replicas", "refill", node).code == 1
    assert roots(node)[1] == {}
    shutil.rmtree(node / "r" / "3")
    assert accord("replicas", "accept", node, "--root", 3).code == 5
    (node / "r" / "3").mkdir()
    assert accord("replicas", "accept", node, "--root", 1).code == 0
    assert accord("replicas", "refill", node).code == 0
    assert roots(node) == [good] * 3
    assert accord("index", "check", node).code == 0


def test_a_running_node_is_asked(node: Path) -> None:
    """While another process holds the folder, the wish is written down for it."""
    with sole_user(node):
        said = accord("replicas", "scrub", node, "--deep", "--json")
        assert (said.code, said.value) == (0, {"asked": True})
        assert accord("replicas", "status", node, "--json").value["scrub"]["asked"] == "deep"
        assert accord("index", "rebuild", node).code == 5


@pytest.mark.requirement("V2", "C3", "F6")
def test_index_is_checked_and_rebuilt_also_when_the_node_cannot_start(node: Path) -> None:
    """A damaged name keeps the node from starting; check says which study, rebuild puts the same bytes back."""

    def rows() -> list[tuple[object, ...]]:
        with closing(sqlite3.connect(node / "accord.db")) as database:
            tables = ("index_study", "index_series", "index_instance")
            return [row for table in tables for row in database.execute(f"SELECT * FROM {table}")]

    before = rows()
    assert accord("index", "check", node).code == 0
    with closing(sqlite3.connect(node / "accord.db")) as database, database:
        for study, name in database.execute("SELECT study, sealed_name FROM index_study").fetchall():
            damaged = bytes([name[0] ^ 1]) + name[1:]
            database.execute("UPDATE index_study SET sealed_name = ? WHERE study = ?", (damaged, study))
    assert accord("import", node, node).code == 6
    said = accord("index", "check", node, "--json")
    assert (said.code, len(said.value["differing"])) == (1, STUDIES)
    assert accord("index", "rebuild", node).code == 0
    assert sorted(map(repr, rows())) == sorted(map(repr, before))
    assert accord("index", "check", node).code == 0


def test_other_roots_are_refused_while_the_studies_lie_elsewhere(tmp_path: Path) -> None:
    """A node with one folder of packs does not begin on three empty ones."""
    node = tmp_path / "node"
    assert accord("init", node, "--name", "General Hospital", "--ae-title", "GENERAL").code == 0
    (tmp_path / "one.dcm").write_bytes(ct_slice(size=16).file())
    assert accord("import", node, tmp_path / "one.dcm").code == 0
    settings = node / "node.toml"
    text = settings.read_text()
    settings.write_text(text.replace("\nroots = []", '\nroots = ["r/1", "r/2", "r/3"]'))
    said = accord("import", node, tmp_path / "one.dcm")
    assert said.code == 5 and "not among storage.roots" in said.err
    settings.write_text(text.replace("\nroots = []", '\nroots = ["packs", "r/2", "r/3"]'))
    assert accord("replicas", "refill", node).code == 0
    assert accord("replicas", "status", node).code == 0
    assert len({path.read_bytes() for path in node.rglob("*.pack")}) == 1
