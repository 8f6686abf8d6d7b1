"""What every custody of the root key promises. One suite over all implementations."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from consent.errors import Corrupt, Denied, NotFound, Unavailable
from consent.vocabulary import Grade
from node.vault.custody import Custody
from node.vault.custody.keystore import Keystore
from node.vault.custody.pkcs11 import Pkcs11Custody, TokenPlace
from node.vault.custody.two_person import TwoPersonKeystore
from node.vault.custody.vault_transit import TransitPlace, VaultTransit
from tests.support.custodies import PIN, QUICK, SOFTHSM, TransitServer, make_token

KEY, CONTEXT = bytes(range(32)), b"grade 1, version 1"
CREDENTIAL = b"the right credential"
WAIT = 0.5


@dataclass
class Place:
    """One custody's surroundings: open it (again), with a wrong credential, beside another root; take it away."""

    open: Callable[[], Custody]
    wrong: Callable[[], Custody]
    other: Callable[[], Custody]
    away: Callable[[], None] | None = None


def keystore(folder: Path, stack: ExitStack) -> Place:
    """The built-in keystore."""
    Keystore.create(folder / "keystore", CREDENTIAL, effort=QUICK)
    return Place(
        lambda: Keystore.open(folder / "keystore", CREDENTIAL),
        lambda: Keystore.open(folder / "keystore", b"a wrong credential"),
        lambda: Keystore.create(folder / "other", CREDENTIAL, effort=QUICK),
    )


def two_person(folder: Path, stack: ExitStack) -> Place:
    """A keystore that two people unlock; here both have come."""
    people = {"li": b"the passphrase of li", "wang": b"the passphrase of wang"}
    now = datetime(2026, 11, 22, tzinfo=UTC)
    TwoPersonKeystore.create(folder / "two", Grade.RESTRICTED, people, effort=QUICK)

    def opened(second: bytes = people["wang"]) -> Custody:
        keystore = TwoPersonKeystore.open(folder / "two")
        assert not keystore.offer("li", people["li"], now)
        assert keystore.offer("wang", second, now)
        return keystore

    return Place(
        opened,
        lambda: opened(b"a wrong passphrase"),
        lambda: TwoPersonKeystore.create(folder / "other", Grade.RESTRICTED, people, effort=QUICK),
    )


def pkcs11(mechanism: str) -> Callable[[Path, ExitStack], Place]:
    """A SoftHSM token, wrapping with one of its mechanisms."""

    def place(folder: Path, stack: ExitStack) -> Place:
        if not SOFTHSM or shutil.which("softhsm2-util") is None:
            pytest.skip("softhsm2 is not installed")
        label = f"accord-{secrets.token_hex(4)}"
        make_token(folder, label)

        def opened(key: str = "root", pin: bytes = PIN, *, create: bool = False) -> Custody:
            custody = Pkcs11Custody.open(TokenPlace(SOFTHSM, label, key, pin, mechanism, 10.0), create=create)
            stack.callback(custody.close)
            return custody

        opened(create=True).close()
        return Place(
            opened,
            lambda: opened(pin=b"11111"),
            lambda: opened("other", create=True),
            lambda: shutil.rmtree(folder / "tokens"),
        )

    return place


def transit(folder: Path, stack: ExitStack) -> Place:
    """A server of ours that speaks Vault's transit API."""
    server = TransitServer()
    running = ExitStack()
    stack.callback(running.close)
    running.enter_context(server.running())

    def opened(key: str = "root", token: bytes = server.token.encode(), *, create: bool = False) -> Custody:
        place = TransitPlace(server.url, "transit", key, lambda: token, wait_seconds=WAIT)
        return VaultTransit.open(place, create=create)

    opened(create=True)
    return Place(
        opened, lambda: opened(token=b"hvs.wrong"), lambda: opened("other", create=True), running.close
    )


def vault(folder: Path, stack: ExitStack) -> Place:
    """The Vault server at VAULT_ADDR, with VAULT_TOKEN, whose transit engine is mounted at its usual place."""
    address, token = os.environ.get("VAULT_ADDR"), os.environ.get("VAULT_TOKEN", "").encode()
    if not address:
        pytest.skip("VAULT_ADDR names no Vault server")
    name = f"accord-test-{secrets.token_hex(4)}"

    def opened(key: str = name, token: bytes = token, *, create: bool = False) -> Custody:
        authorities = os.environ.get("VAULT_CACERT", "")
        place = TransitPlace(address, "transit", key, lambda: token, authorities=authorities)
        return VaultTransit.open(place, create=create)

    opened(create=True)
    return Place(opened, lambda: opened(token=b"hvs.wrong"), lambda: opened(name + "-b", create=True))


CUSTODIES = {
    "keystore": keystore,
    "pkcs11-gcm": pkcs11("gcm"),
    "pkcs11-kwp": pkcs11("kwp"),
    "two-person": two_person,
    "vault-transit": transit,
    "vault-server": vault,
}


@pytest.fixture(params=sorted(CUSTODIES))
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with ExitStack() as stack:
        yield CUSTODIES[request.param](tmp_path, stack)


@pytest.mark.requirement("V1")
def test_a_wrapped_key_opens_again_also_after_a_restart(place: Place) -> None:
    """Keys and longer secrets come back exactly; nothing of them shows in what is kept; no two wraps are alike."""
    custody = place.open()
    for payload in (KEY, b"x", os.urandom(3000)):
        wrapped = custody.wrap(payload, CONTEXT)
        assert len(payload) == 1 or payload not in wrapped
        assert wrapped != custody.wrap(payload, CONTEXT)
        assert custody.unwrap(wrapped, CONTEXT) == payload
        assert place.open().unwrap(wrapped, CONTEXT) == payload


@pytest.mark.requirement("V1")
def test_a_wrapped_key_opens_only_for_its_context(place: Place) -> None:
    """A key cannot be passed off as that of another grade, version or name."""
    custody = place.open()
    wrapped = custody.wrap(KEY, CONTEXT)
    for context in (b"grade 1, version 2", b"", CONTEXT + b"x"):
        with pytest.raises(Corrupt):
            custody.unwrap(wrapped, context)


@pytest.mark.requirement("V1", "C3")
def test_a_wrapped_key_that_was_altered_is_corrupt(place: Place) -> None:
    """Changed, cut, extended or empty: no part of it may be touched, and the custody goes on working."""
    custody = place.open()
    wrapped = custody.wrap(KEY, CONTEXT)
    places = sorted({0, 1, 2, 3, 8, 14, 20, len(wrapped) // 2, len(wrapped) - 20, len(wrapped) - 1})
    altered = [wrapped[:at] + bytes([wrapped[at] ^ 1]) + wrapped[at + 1 :] for at in places]
    for bad in (*altered, wrapped[:-1], wrapped + b"\0", wrapped[:2], b""):
        with pytest.raises(Corrupt):
            custody.unwrap(bad, CONTEXT)
    assert custody.unwrap(wrapped, CONTEXT) == KEY


@pytest.mark.requirement("V1")
def test_another_root_key_opens_nothing(place: Place) -> None:
    """Stolen rows are worth nothing beside another root key of the same kind."""
    wrapped = place.open().wrap(KEY, CONTEXT)
    other = place.other()
    with pytest.raises(Corrupt):
        other.unwrap(wrapped, CONTEXT)
    assert other.unwrap(other.wrap(KEY, CONTEXT), CONTEXT) == KEY


def test_a_key_of_another_kind_of_custody_is_named_so(place: Place) -> None:
    """Whoever names the wrong custody in the settings reads which one it was."""
    custody = place.open()
    suite = custody.wrap(KEY, CONTEXT)[0]
    for other, words in ((1, "built-in keystore"), (2, "PKCS#11"), (4, "Vault")):
        if other != suite and not (suite == 3 and other == 2):
            with pytest.raises(Corrupt, match=words) as caught:
                custody.unwrap(bytes([other]) + bytes(100), CONTEXT)
            assert caught.value.code == "other-custody"


@pytest.mark.requirement("V1")
def test_a_wrong_credential_is_refused_in_words(place: Place) -> None:
    """A wrong passphrase, PIN or token opens nothing and says what to mend, without repeating it."""
    with pytest.raises(Denied) as caught:
        place.wrong()
    assert caught.value.mend and "wrong" not in str(caught.value).replace("wrong credential", "")


def test_a_custody_describes_itself_without_a_secret(place: Place) -> None:
    """One line for reports; neither credential nor key is in it, nor in the object's own words."""
    custody = place.open()
    words = custody.describe()
    assert 10 < len(words) < 300
    for secret in (CREDENTIAL.decode(), PIN.decode(), "hvs.test-token"):
        assert secret not in words + repr(custody) + repr(getattr(custody, "_place", ""))


@pytest.mark.requirement("V1", "F4")
def test_a_custody_that_went_away_is_unavailable_soon(place: Place) -> None:
    """A device or server that is gone makes a clear error within its wait, and no hang."""
    if place.away is None:
        pytest.skip("this custody is neither a device nor ours to stop")
    custody = place.open()
    wrapped = custody.wrap(KEY, CONTEXT)
    custody.close() if isinstance(custody, VaultTransit) else custody._drop()
    place.away()
    began = time.monotonic()
    with pytest.raises((Unavailable, NotFound)) as caught:
        custody.unwrap(wrapped, CONTEXT)
    assert caught.value.mend
    assert time.monotonic() - began < 4 * WAIT + 5
