"""`accord access`: the operator compares the access rows, and accepts them after an inquiry."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from tests.support.cli import accord
from tests.support.custodies import hurry

pytestmark = pytest.mark.requirement("A1", "U1")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "node"
    assert accord("init", folder, "--name", "General Hospital", "--ae-title", "GENERAL").code == 0
    hurry(folder)
    assert accord("user", "add", folder, "--name", "dr.li", "--role", "clinician").code == 0
    return folder


def test_deleted_rows_are_named_and_accepted_only_with_a_reason(folder: Path) -> None:
    """Whole, then not, then accepted by somebody who says why; the log stays whole."""
    whole = accord("access", "verify", folder, "--json")
    assert (whole.code, whole.value["ok"], whole.value["faults"]) == (0, True, [])
    assert whole.value["rows"] >= 2
    with sqlite3.connect(folder / "accord.db") as database:
        assert database.execute("DELETE FROM person WHERE login = 'dr.li'").rowcount == 1
    said = accord("access", "verify", folder)
    assert said.code == 1
    assert "person: bucket" in said.out
    assert accord("access", "accept", folder, "--reason", "x").code == 7
    accepted = accord("access", "accept", folder, "--reason", "inquiry 7: dr.li will be made anew", "--json")
    assert accepted.code == 0
    assert accord("access", "verify", folder).code == 0
    assert accord("user", "add", folder, "--name", "dr.li", "--role", "clinician").code == 0
    assert accord("log", "verify", folder).code == 0


def test_an_altered_row_is_named_and_not_made_good_by_accepting(folder: Path) -> None:
    """What this node did not write stays refused."""
    with sqlite3.connect(folder / "accord.db") as database:
        database.execute("UPDATE person SET role = 'chief-physician' WHERE login = 'dr.li'")
    assert "person: dr.li" in accord("access", "verify", folder).out
    assert accord("access", "accept", folder, "--reason", "inquiry 8: nothing was found").code == 0
    assert accord("access", "verify", folder).code == 1
    assert accord("token", "create", folder, "--user", "dr.li", "--scope", "api").code == 6
