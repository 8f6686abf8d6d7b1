"""The built-in keystore: vectors, its file, and who gets in."""

from __future__ import annotations

import stat
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest

from consent.errors import Conflict, Corrupt, Denied, Invalid, NotFound, Unavailable
from node.vault.custody import Custody
from node.vault.custody.keystore import MAX_FILE_BYTES, Keystore
from tests.node.vault.conftest import CREDENTIAL
from tests.node.vault.vectors import load, names
from tests.support.custodies import QUICK

VECTORS = load("keystore")
FAILURES = {"denied": Denied, "invalid": Invalid, "corrupt": Corrupt}


@pytest.mark.requirement("V1")
@pytest.mark.parametrize("case", VECTORS["cases"], ids=names(VECTORS["cases"]))
def test_frozen_keystore_opens_or_fails_as_written_down(case: dict[str, Any], tmp_path: Path) -> None:
    """Each way of failing has its own frozen file."""
    path = tmp_path / "keystore"
    path.write_bytes(b64decode(case["file"]))
    credential = b64decode(case["credential"])
    if case["expect"] == "opens":
        wrapped = VECTORS["wrapped"][0]
        opened = Keystore.open(path, credential)
        assert (
            opened.unwrap(b64decode(wrapped["wrapped"]), b64decode(wrapped["context"])).hex()
            == wrapped["key"]
        )
    else:
        with pytest.raises(FAILURES[case["expect"]]):
            Keystore.open(path, credential)


@pytest.mark.requirement("V1")
@pytest.mark.parametrize("case", VECTORS["wrapped"], ids=names(VECTORS["wrapped"]))
def test_frozen_wrapped_key_opens_or_fails_as_written_down(case: dict[str, Any], tmp_path: Path) -> None:
    """A wrapped key opens for its own use and for nothing else."""
    path = tmp_path / "keystore"
    path.write_bytes(b64decode(VECTORS["cases"][0]["file"]))
    keystore = Keystore.open(path, b64decode(VECTORS["cases"][0]["credential"]))
    if case["expect"] == "opens":
        assert keystore.unwrap(b64decode(case["wrapped"]), b64decode(case["context"])).hex() == case["key"]
    else:
        with pytest.raises(Corrupt):
            keystore.unwrap(b64decode(case["wrapped"]), b64decode(case["context"]))


def test_created_keystore_opens_again_with_its_credential_only(tmp_path: Path) -> None:
    """What was wrapped before a restart unwraps after it; a wrong credential is denied in words."""
    path = tmp_path / "keystore"
    made: Custody = Keystore.create(path, CREDENTIAL, effort=QUICK)
    wrapped = made.wrap(b"k" * 32, b"context")
    assert Keystore.open(path, CREDENTIAL).unwrap(wrapped, b"context") == b"k" * 32
    assert made.describe().startswith("built-in keystore")
    with pytest.raises(Denied) as refused:
        Keystore.open(path, CREDENTIAL + b"!")
    assert "credential" in refused.value.message
    assert refused.value.mend


def test_keystore_file_is_private_and_alone(tmp_path: Path) -> None:
    """Mode 0600, and no temporary file is left beside it."""
    Keystore.create(tmp_path / "keystore", CREDENTIAL, effort=QUICK)
    assert [path.name for path in tmp_path.iterdir()] == ["keystore"]
    assert stat.S_IMODE((tmp_path / "keystore").stat().st_mode) == 0o600


def test_keystore_is_never_replaced(tmp_path: Path) -> None:
    """Making a second keystore in the same place is a conflict, and the first still opens."""
    Keystore.create(tmp_path / "keystore", CREDENTIAL, effort=QUICK)
    with pytest.raises(Conflict):
        Keystore.create(tmp_path / "keystore", b"another credential", effort=QUICK)
    Keystore.open(tmp_path / "keystore", CREDENTIAL)
    assert len(list(tmp_path.iterdir())) == 1


def test_missing_and_overlong_files_are_named(tmp_path: Path) -> None:
    """A keystore that is not there, or is not one, is told apart."""
    with pytest.raises(NotFound):
        Keystore.open(tmp_path / "none", CREDENTIAL)
    (tmp_path / "long").write_bytes(b"{" + b" " * MAX_FILE_BYTES)
    with pytest.raises(Corrupt):
        Keystore.open(tmp_path / "long", CREDENTIAL)
    with pytest.raises(Unavailable):
        Keystore.open(tmp_path, CREDENTIAL)
    with pytest.raises(Unavailable):
        Keystore.create(tmp_path / "no" / "folder", CREDENTIAL, effort=QUICK)


def test_root_key_is_not_in_the_file(tmp_path: Path) -> None:
    """Two keystores under one credential share nothing."""
    first = Keystore.create(tmp_path / "one", CREDENTIAL, effort=QUICK)
    second = Keystore.create(tmp_path / "two", CREDENTIAL, effort=QUICK)
    with pytest.raises(Corrupt):
        second.unwrap(first.wrap(b"k" * 32, b""), b"")
