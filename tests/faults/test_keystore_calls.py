"""Each file-system call of writing a keystore fails once, in turn, or is where SIGKILL strikes: the old file or the new one.

Whoever has both credentials opens it afterwards, the same again is done, and what a killed process left beside it is removed when
it is opened: that file opens with a credential too.
"""

from __future__ import annotations

import errno
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from consent.errors import AccordError, Denied, Unavailable
from consent.vocabulary import Grade
from node.vault.custody.keystore import Keystore
from node.vault.custody.two_person import TwoPersonKeystore
from tests.faults.shim import ERRORS, chosen, failing
from tests.faults.tracing import Say, needs_strace, traced
from tests.support.clock import FakeClock
from tests.support.custodies import QUICK

pytestmark = [pytest.mark.requirement("V1", "F4")]
OLD, NEW, OTHER = b"the old passphrase", b"the new passphrase", b"the passphrase of another"
CALLS = ("write", "fsync", "rename", "renameat", "renameat2", "link", "linkat", "unlink", "unlinkat")
CONTEXT, SECRET = b"context", bytes(32)
ALL = 10_000


class OnePerson:
    """The built-in keystore."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "keystore.json"

    def make(self) -> bytes:
        """Make it; return something wrapped."""
        return Keystore.create(self.path, OLD, effort=QUICK).wrap(SECRET, CONTEXT)

    def change(self, old: bytes, new: bytes) -> None:
        Keystore.change_credential(self.path, old, new, effort=QUICK)

    def opens(self, credential: bytes, wrapped: bytes) -> bool:
        try:
            return Keystore.open(self.path, credential).unwrap(wrapped, CONTEXT) == SECRET
        except Denied:
            return False


class TwoPersons(OnePerson):
    """The one that two people unlock; the passphrase of one of them is changed."""

    def make(self) -> bytes:
        made = TwoPersonKeystore.create(self.path, Grade.RESTRICTED, {"a": OLD, "b": OTHER}, effort=QUICK)
        return made.wrap(SECRET, CONTEXT)

    def change(self, old: bytes, new: bytes) -> None:
        keystore = TwoPersonKeystore.open(self.path)
        try:
            keystore.change_passphrase("a", old, new, effort=QUICK)
        finally:  # what is in memory is what the file says
            assert keystore._content == TwoPersonKeystore.open(self.path)._content

    def opens(self, credential: bytes, wrapped: bytes) -> bool:
        keystore, now = TwoPersonKeystore.open(self.path), FakeClock().now()
        try:
            keystore.offer("a", credential, now)
            assert keystore.offer("b", OTHER, now)
            return keystore.unwrap(wrapped, CONTEXT) == SECRET
        except Denied:
            return False


@pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize("kind", [OnePerson, TwoPersons])
def test_each_call_of_changing_a_credential_fails_in_turn(
    tmp_path: Path, kind: type[OnePerson], error: int, record_property: Callable[[str, object], None]
) -> None:
    """In words; the file opens with the old credential or with the new one, and the change is done when asked again."""
    keystore = kind(tmp_path)
    wrapped, (old, new), refused = keystore.make(), (OLD, NEW), 0
    with failing(ALL, error) as undisturbed:
        keystore.change(old, new)
    old, new = new, old
    for at in chosen(undisturbed.calls, ALL):
        with failing(at, error) as shim:
            try:
                keystore.change(old, new)
            except AccordError as told:
                assert told.mend
                refused += 1
        where = shim.calls[at : at + 1]
        assert keystore.opens(old, wrapped) != keystore.opens(new, wrapped), where
        if keystore.opens(old, wrapped):
            keystore.change(old, new)
        assert keystore.opens(new, wrapped), where
        assert [path.name for path in tmp_path.iterdir()] == ["keystore.json"], where
        old, new = new, old
    record_property("calls", len(undisturbed.calls))
    record_property("refused", refused)
    assert refused


@pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize("kind", [OnePerson, TwoPersons])
def test_each_call_of_making_a_keystore_fails_in_turn(
    tmp_path: Path, kind: type[OnePerson], error: int
) -> None:
    """None is there that nobody was told of, and it is made when asked again."""
    with failing(ALL, error) as undisturbed:
        kind(tmp_path).make()
    for at in chosen(undisturbed.calls, ALL):
        keystore = kind(tmp_path / str(at))
        keystore.path.parent.mkdir()
        with failing(at, error):
            try:
                wrapped = keystore.make()
            except Unavailable:
                assert not keystore.path.exists()
                wrapped = keystore.make()
        assert keystore.opens(OLD, wrapped)
        assert [path.name for path in keystore.path.parent.iterdir()] == ["keystore.json"]


@needs_strace
@pytest.mark.slow
@pytest.mark.parametrize("fault", ["signal=KILL", "error=ENOSPC", "error=EIO"])
@pytest.mark.parametrize("kind", [OnePerson, TwoPersons])
def test_a_keystore_is_whole_wherever_its_writing_ends(
    tmp_path: Path, kind: type[OnePerson], fault: str
) -> None:
    """Also what passes no shim, the writing of the bytes; nothing stays beside the file once it was opened."""
    (tmp_path / "keys").mkdir()
    keystore = kind(tmp_path / "keys")
    wrapped, (old, new), struck = keystore.make(), (OLD, NEW), 0

    async def change(look_on: Callable[[], None], say: Say) -> None:
        look_on()
        keystore.change(old, new)

    reached = traced(tmp_path / "trace", change, CALLS).reached()
    old, new = new, old
    for call, count in reached.items():
        for at in range(1, count + 1):
            done = traced(tmp_path / "trace", change, CALLS, f"{call}:{fault}:when={at}")
            struck += done.injected
            assert done.code in (0, -signal.SIGKILL), done.said
            assert keystore.opens(old, wrapped) != keystore.opens(new, wrapped), (call, at)
            assert [path.name for path in keystore.path.parent.iterdir()] == ["keystore.json"], (call, at)
            if keystore.opens(old, wrapped):
                keystore.change(old, new)
            old, new = new, old
    assert struck >= 3, reached
