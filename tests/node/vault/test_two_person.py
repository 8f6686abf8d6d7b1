"""The keystore that two people unlock: neither alone, nobody else, not by guessing, not by changing the file."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from consent.errors import Conflict, Corrupt, Denied, Invalid, NotFound, Unavailable
from consent.vocabulary import Grade
from node.vault.custody.two_person import TwoPersonKeystore
from tests.support.custodies import QUICK

PEOPLE = {"li": b"passphrase of li", "wang": b"passphrase of wang", "zhao": b"passphrase of zhao"}
NOW = datetime(2026, 11, 22, 8, tzinfo=UTC)
CONTEXT = b"a context"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "restricted.json"


@pytest.fixture
def wrapped(path: Path) -> bytes:
    made = TwoPersonKeystore.create(path, Grade.RESTRICTED, PEOPLE, effort=QUICK)
    assert not made.locked
    return made.wrap(b"k" * 32, CONTEXT)


@pytest.mark.requirement("V1")
@pytest.mark.parametrize("pair", [("li", "wang"), ("wang", "li"), ("li", "zhao"), ("zhao", "wang")])
def test_any_two_holders_unlock_it_and_a_restart_locks_it(
    path: Path, wrapped: bytes, pair: tuple[str, str]
) -> None:
    """Whoever is on duty: any two, in any order; until then nothing opens, and after locking nothing again."""
    keystore = TwoPersonKeystore.open(path)
    assert (
        keystore.locked and keystore.grade is Grade.RESTRICTED and keystore.holders == ("li", "wang", "zhao")
    )
    with pytest.raises(Unavailable, match="two people"):
        keystore.unwrap(wrapped, CONTEXT)
    assert not keystore.offer(pair[0], PEOPLE[pair[0]], NOW)
    assert keystore.waiting(NOW) == pair[0] and keystore.locked
    assert keystore.offer(pair[1], PEOPLE[pair[1]], NOW + timedelta(minutes=4))
    assert keystore.unwrap(wrapped, CONTEXT) == b"k" * 32
    with pytest.raises(Conflict):
        keystore.offer(pair[0], PEOPLE[pair[0]], NOW)
    keystore.lock()
    with pytest.raises(Unavailable):
        keystore.wrap(b"k" * 32, CONTEXT)
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.requirement("V1")
def test_one_person_twice_is_not_two_people(path: Path, wrapped: bytes) -> None:
    """The same holder may offer as often as they like."""
    keystore = TwoPersonKeystore.open(path)
    for _ in range(3):
        assert not keystore.offer("li", PEOPLE["li"], NOW)
    assert keystore.locked


@pytest.mark.requirement("V1")
def test_a_first_passphrase_does_not_wait_for_ever(path: Path, wrapped: bytes) -> None:
    """Who comes after five minutes is the first again."""
    keystore = TwoPersonKeystore.open(path)
    keystore.offer("li", PEOPLE["li"], NOW)
    later = NOW + timedelta(minutes=5)
    assert keystore.waiting(later) == ""
    assert not keystore.offer("wang", PEOPLE["wang"], later)
    assert keystore.offer("li", PEOPLE["li"], later)


@pytest.mark.requirement("V1", "F4")
def test_guesses_are_bounded(path: Path, wrapped: bytes) -> None:
    """After five wrong passphrases even the right one waits a quarter of an hour; strangers are told who holds it."""
    keystore = TwoPersonKeystore.open(path)
    for _ in range(5):
        with pytest.raises(Denied, match="not your passphrase"):
            keystore.offer("li", PEOPLE["wang"], NOW)
    with pytest.raises(Unavailable, match="Too many"):
        keystore.offer("li", PEOPLE["li"], NOW)
    assert not keystore.offer("wang", PEOPLE["wang"], NOW), "one holder's guesses keep no other out"
    keystore.lock()
    assert not keystore.offer("li", PEOPLE["li"], NOW + timedelta(minutes=15))
    with pytest.raises(Denied) as caught:
        keystore.offer("mallory", b"some passphrase", NOW + timedelta(minutes=15))
    assert "wang" in caught.value.mend
    for _ in range(9):
        with pytest.raises(Denied, match="not one of the people"):
            keystore.offer("mallory", b"some passphrase", NOW + timedelta(minutes=16))
    assert keystore.offer("wang", PEOPLE["wang"], NOW + timedelta(minutes=16))


@pytest.mark.requirement("V1")
def test_a_holder_changes_their_passphrase_alone(path: Path, wrapped: bytes) -> None:
    """The other holder need not come; a node that runs takes the new one at once, and the old one no more."""
    running = TwoPersonKeystore.open(path)
    aside = TwoPersonKeystore.open(path)
    with pytest.raises(Denied):
        aside.change_passphrase("li", b"not the old one", b"the new passphrase", effort=QUICK)
    aside.change_passphrase("li", PEOPLE["li"], b"the new passphrase", effort=QUICK)
    with pytest.raises(Denied):
        running.offer("li", PEOPLE["li"], NOW)
    assert not running.offer("li", b"the new passphrase", NOW)
    assert running.offer("wang", PEOPLE["wang"], NOW)
    assert running.unwrap(wrapped, CONTEXT) == b"k" * 32
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "people",
    [
        {},
        {"li": b"only one of them"},
        {"li": b"the same words", "wang": b"the same words"},
        {"li": b"short", "wang": b"long enough words"},
        {"li": b"nobody types \xff\xfe", "wang": b"long enough words"},
        {f"p{n}": f"passphrase {n}".encode() for n in range(7)},
    ],
)
def test_too_few_too_many_alike_or_untypable_are_refused(path: Path, people: dict[str, bytes]) -> None:
    """Nothing is written for a keystore that would not need two people."""
    with pytest.raises(Invalid):
        TwoPersonKeystore.create(path, Grade.RESTRICTED, people, effort=QUICK)
    assert not path.exists()


@pytest.mark.requirement("V1")
@pytest.mark.parametrize("change", ["share", "holder", "grade", "id", "pairs", "json", "format", "version"])
def test_a_changed_file_opens_nothing(path: Path, wrapped: bytes, change: str) -> None:
    """Whoever edits the file can break it, and can neither get in nor make it another grade's."""
    content = json.loads(path.read_bytes())
    match change:
        case "share":
            content["pairs"][0]["shares"].reverse()
        case "holder":
            content["holders"]["li"] = content["holders"]["wang"]
        case "grade":
            content["grade"] = 1
        case "id":
            content["id"] = "0" * 32
        case "pairs":
            content["pairs"] = []
        case "format":
            content["format"] = "accord-keystore"
        case "version":
            content["version"] = 2
    path.write_bytes(b"{" if change == "json" else json.dumps(content).encode())
    with pytest.raises((Corrupt, Denied, Invalid)):
        keystore = TwoPersonKeystore.open(path)
        keystore.offer("li", PEOPLE["li"], NOW)
        keystore.offer("wang", PEOPLE["wang"], NOW)
        keystore.unwrap(wrapped, CONTEXT)


def test_there_must_be_a_file_and_it_is_never_overwritten(path: Path, wrapped: bytes) -> None:
    """Opening what is not there, and making it a second time, are told."""
    with pytest.raises(Conflict):
        TwoPersonKeystore.create(path, Grade.RESTRICTED, PEOPLE, effort=QUICK)
    with pytest.raises(NotFound):
        TwoPersonKeystore.open(path.with_name("elsewhere.json"))
