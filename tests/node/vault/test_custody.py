"""What single custodies promise beyond the contract: a driver that hangs, a token that was renewed, where credentials lie."""

from __future__ import annotations

import shutil
import sys
import threading
from base64 import b64decode
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from consent.errors import Corrupt, Denied, Invalid, NotFound, Unavailable
from node.vault.custody.credentials import check_source, read_credential
from node.vault.custody.envelope import altered, open_envelope
from node.vault.custody.pkcs11 import Pkcs11Custody, TokenPlace
from node.vault.custody.two_person import TwoPersonKeystore
from node.vault.custody.vault_transit import TransitPlace, VaultTransit
from tests.node.vault.vectors import load, names
from tests.support.custodies import PIN, SOFTHSM, TransitServer, make_token

needs_softhsm = pytest.mark.skipif(
    not SOFTHSM or shutil.which("softhsm2-util") is None, reason="softhsm2 is not installed"
)


@needs_softhsm
@pytest.mark.requirement("V1", "F4")
def test_a_driver_that_hangs_keeps_only_its_own_thread(tmp_path: Path) -> None:
    """The caller gets an answer within the wait, the next one too; when the driver comes back, so does the custody."""
    make_token(tmp_path, "hanging")
    custody = Pkcs11Custody.open(TokenPlace(SOFTHSM, "hanging", "root", PIN, wait_seconds=5.0), create=True)
    wrapped = custody.wrap(b"k" * 32, b"c")
    object.__setattr__(custody._place, "wait_seconds", 0.2)
    real, back, returned = custody._key, threading.Event(), []

    class Hanging:
        def decrypt(self, *args: object, **named: object) -> bytes:
            back.wait(30)
            returned.append(bytes(real.decrypt(*args, **named)))
            return returned[-1]

    custody._key = Hanging()
    for words in ("nothing came", "still busy"):
        with pytest.raises(Unavailable, match=words):
            custody.unwrap(wrapped, b"c")
    assert not returned
    object.__setattr__(custody._place, "wait_seconds", 5.0)
    custody._key = real
    back.set()
    assert custody.unwrap(wrapped, b"c") == b"k" * 32
    assert len(returned) == 1
    back.clear()
    custody._key = Hanging()
    object.__setattr__(custody._place, "wait_seconds", 0.2)
    with pytest.raises(Unavailable):
        custody.unwrap(wrapped, b"c")
    custody.close()  # the node stops, whatever the driver does
    assert len(returned) == 1
    with pytest.raises(Unavailable):
        custody.wrap(b"k" * 32, b"c")
    back.set()


@needs_softhsm
@pytest.mark.requirement("V1")
def test_a_session_that_the_device_took_away_is_opened_again(tmp_path: Path) -> None:
    """A card reader that was reset costs one sign-in, and the root key in it cannot be taken out."""
    import pkcs11

    make_token(tmp_path, "session")
    custody = Pkcs11Custody.open(TokenPlace(SOFTHSM, "session", "root", PIN), create=True)
    wrapped = custody.wrap(b"k" * 32, b"c")
    with pytest.raises(pkcs11.PKCS11Error):
        _ = custody._key[pkcs11.Attribute.VALUE]
    custody._session.close()
    assert custody.unwrap(wrapped, b"c") == b"k" * 32
    custody.close()


@needs_softhsm
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"module": "/no/such/driver.so"}, "driver"),
        ({"token": "another"}, "no single token"),
        ({"key": "another"}, "holds no key"),
        ({"mechanism": "gcm", "key": "another"}, "accord keys move"),
    ],
)
def test_what_is_not_there_is_named(tmp_path: Path, change: dict[str, str], words: str) -> None:
    """A wrong path or label in the settings says which one it is and what to do."""
    make_token(tmp_path, "there")
    given = {"module": SOFTHSM, "token": "there", "key": "root", "pin": PIN, **change}
    with pytest.raises(NotFound) as caught:
        Pkcs11Custody.open(TokenPlace(**given))
    assert words in str(caught.value)


@pytest.mark.requirement("V1")
def test_a_vault_token_that_was_renewed_is_read_again() -> None:
    """An agent writes a new token to the file; the node goes on by itself."""
    server = TransitServer()
    with server.running():
        tokens = [server.token.encode(), b"hvs.renewed"]
        custody = VaultTransit.open(
            TransitPlace(server.url, "transit", "root", lambda: tokens[0]), create=True
        )
        wrapped = custody.wrap(b"k" * 32, b"c")
        server.token = "hvs.renewed"
        tokens.pop(0)
        assert custody.unwrap(wrapped, b"c") == b"k" * 32
        server.token = "hvs.revoked"
        with pytest.raises(Denied, match="permission denied"):
            custody.unwrap(wrapped, b"c")
        custody.close()


@pytest.mark.requirement("V1")
def test_a_vault_key_may_be_rotated_in_the_server() -> None:
    """What an older version of the server's key wrapped opens still; the server never sees one of our keys."""
    server = TransitServer()
    with server.running():
        place = TransitPlace(server.url, "transit", "root", lambda: server.token.encode())
        custody = VaultTransit.open(place, create=True)
        old = custody.wrap(b"k" * 32, b"c")
        server.answer("/v1/transit/keys/root/rotate", server.token, {})
        assert b"vault:v2:" in custody.wrap(b"k" * 32, b"c")
        assert custody.unwrap(old, b"c") == b"k" * 32
        assert not any("a2tra2" in str(body) for body in server.seen)  # "kkkk…" in base64
        custody.close()


def test_a_sealed_or_missing_vault_is_said_so() -> None:
    """A sealed server is unavailable, an unknown mount or key is not found."""
    server = TransitServer()
    with server.running():

        def place(mount: str = "transit", key: str = "root") -> TransitPlace:
            return TransitPlace(server.url, mount, key, lambda: server.token.encode())

        with pytest.raises(NotFound, match="transit/root"):
            VaultTransit.open(place())
        with pytest.raises(NotFound, match="elsewhere/root"):
            VaultTransit.open(place(mount="elsewhere"))
        VaultTransit.open(place(), create=True)
        server.sealed = True
        with pytest.raises(Unavailable, match="VaultDown"):
            VaultTransit.open(place())


@pytest.mark.requirement("V1")
def test_credentials_come_from_where_they_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file, an environment variable or a systemd credential; white space around it does not count."""
    (tmp_path / "pin").write_text("  2468\n")
    (tmp_path / "pin").chmod(0o600)
    monkeypatch.setenv("HSM_PIN", "1357")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert read_credential("file:pin", Path(tmp_path)) == b"2468"
    assert read_credential("env:HSM_PIN", tmp_path) == b"1357"
    assert read_credential("systemd:pin", Path("/")) == b"2468"


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("file:missing", NotFound),
        ("env:ACCORD_NOT_SET", NotFound),
        ("systemd:pin", NotFound),
        ("ask", Unavailable),
        ("file:open", Denied),
        ("file:long", Invalid),
        ("file:empty", NotFound),
        ("", Invalid),
    ],
)
def test_a_credential_that_is_not_there_or_not_safe_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, error: type[Exception]
) -> None:
    """Each way of not having a credential has its words; the content is never among them."""
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    for name, content, mode in (
        ("open", "2468", 0o644),
        ("long", "9" * 5000, 0o600),
        ("empty", " \n", 0o600),
    ):
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(mode)
    with pytest.raises(error) as caught:
        read_credential(source, tmp_path)
    assert "2468" not in str(caught.value) and "9999" not in str(caught.value)


@pytest.mark.parametrize("source", ["2468", "file:", "env:", "ask:me", "vault:x", "hvs.token"])
def test_a_secret_written_into_the_settings_is_refused(source: str) -> None:
    """node.toml says where a secret is; the secret itself is not taken."""
    with pytest.raises(ValueError, match="never the secret itself"):
        check_source(source)


VECTORS = load("custody")


@pytest.mark.requirement("V1")
@pytest.mark.parametrize("case", VECTORS["envelopes"]["cases"], ids=names(VECTORS["envelopes"]["cases"]))
def test_an_envelope_is_opened_as_it_is_written_down(case: dict[str, str]) -> None:
    """What a token wrapped opens by the format alone, for its context alone; every other bytes are corrupt."""
    token = AESGCM(bytes.fromhex(VECTORS["envelopes"]["token_key"]))

    def outer(sealed: bytes) -> bytes:
        try:
            return token.decrypt(sealed[:12], sealed[12:], b"accord/root/v1")
        except (InvalidTag, ValueError) as error:
            raise altered() from error

    wrapped, context = b64decode(case["wrapped"]), b64decode(case["context"])
    if case["expect"] == "opens":
        assert open_envelope(wrapped, outer, context).hex() == VECTORS["envelopes"]["key"]
    else:
        with pytest.raises(Corrupt):
            open_envelope(wrapped, outer, context)


@pytest.mark.requirement("V1")
def test_a_two_person_keystore_is_opened_as_it_is_written_down(tmp_path: Path) -> None:
    """A file made by other code from the format alone: every pair of holders opens it."""
    vector = VECTORS["two_person"]
    path = tmp_path / "restricted.json"
    path.write_bytes(b64decode(vector["file"]))
    passphrases = {login: b64decode(words) for login, words in vector["passphrases"].items()}
    for pair in combinations(passphrases, 2):
        keystore = TwoPersonKeystore.open(path)
        for login in pair:
            keystore.offer(login, passphrases[login], datetime(2026, 11, 22, tzinfo=UTC))
        key = keystore.unwrap(b64decode(vector["wrapped"]), b64decode(vector["context"]))
        assert key.hex() == vector["key"]


@pytest.mark.parametrize(("library", "extra"), [("pkcs11", "hsm"), ("hvac", "vault")])
def test_a_missing_library_is_named_with_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, library: str, extra: str
) -> None:
    """The optional parts are imported when they are used, and their absence says which extra brings them."""
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(Invalid, match="not installed") as caught:
        if extra == "hsm":
            Pkcs11Custody.open(TokenPlace("driver.so", "token", "key", PIN))
        else:
            VaultTransit.open(TransitPlace("https://localhost:1", "transit", "key", lambda: b"token"))
    assert f"accord-imaging[{extra}]" in caught.value.mend
