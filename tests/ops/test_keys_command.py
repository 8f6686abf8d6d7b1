"""`accord keys` and `accord grade`: rotation, another credential, another custody, two people, a grade by hand."""

from __future__ import annotations

import asyncio
import secrets
import shutil
from pathlib import Path

import pytest

from consent.vocabulary import EventKind, Role
from node.config import changed_settings, load_settings, replace_settings
from node.dicom.sender import send
from node.vault.custody.keystore import Keystore
from ops import rooting
from ops.foundation import opened
from tests.support.cli import accord
from tests.support.custodies import PIN, SOFTHSM, TransitServer, make_token
from tests.support.dicom import ct_slice
from tests.support.served import make_node


def dicom_file(folder: Path, **options: object) -> Path:
    """One slice as a file."""
    file = folder / f"{secrets.token_hex(4)}.dcm"
    file.write_bytes(ct_slice(**options).file())  # type: ignore[arg-type]
    return file


def stored(folder: Path, files: Path, **options: object) -> None:
    said = accord("import", folder, dicom_file(files, **options))
    assert said.code == 0, said.err


async def secret_of(folder: Path) -> bytes:
    async with opened(folder) as node:
        return await node.keys.secret("audit")


async def changes(folder: Path) -> list[dict[str, object]]:
    async with opened(folder) as node:
        found = await node.log.search(kind=EventKind.ROOT_KEY_CHANGED, limit=50)
        return [dict(entry.event.detail) for entry in reversed(found)]


@pytest.mark.requirement("V1", "F6")
def test_status_rotate_and_rewrap(folder: Path, tmp_path: Path) -> None:
    """What is there, another version on record, everything under it; words and JSON say the same."""
    stored(folder, tmp_path)
    stored(folder, tmp_path, study="m", modality="MG")
    before = accord("keys", "status", folder, "--json").value
    assert [(one["grade"], one["version"], one["study_keys"]) for one in before["grades"]] == [
        ("ordinary", 1, 1),
        ("sensitive", 1, 1),
    ]
    done = accord("keys", "rotate", folder, "--grade", "ordinary", "--json").value
    assert done == {"versions": {"ordinary": 2}, "rewrapped": 1}
    assert accord("keys", "rewrap", folder, "--json").value == {"rewrapped": 0, "broken": 0}
    words = accord("keys", "status", folder).words
    assert "ordinary 2" in words and "built-in keystore" in words
    said = accord("keys", "rotate", folder, "--grade", "secret")
    assert said.code == 7 and "restricted" in said.err


@pytest.mark.requirement("V1")
def test_another_credential_opens_the_keystore_and_the_old_one_no_more(folder: Path) -> None:
    """A random one in the same place by default; a crash between keystore and file is mended at the next start."""
    file = load_settings(folder).path(load_settings(folder).keys.credential_file)
    keystore = folder / "keystore.json"
    old, secret = file.read_bytes(), asyncio.run(secret_of(folder))
    said = accord("keys", "change-passphrase", folder)
    assert said.code == 0 and str(file) in said.words
    assert file.read_bytes() != old and file.stat().st_mode & 0o777 == 0o600
    assert asyncio.run(secret_of(folder)) == secret
    with pytest.raises(Exception, match="does not open"):
        Keystore.open(keystore, old.strip())
    new = file.with_name(file.name + ".new")  # as if the process had ended before the file was renamed
    file.rename(new)
    file.write_bytes(old)
    file.chmod(0o600)
    assert asyncio.run(secret_of(folder)) == secret
    assert not new.exists() and file.read_bytes() != old
    assert asyncio.run(changes(folder)) == [
        {"what": "credential", "custody": asyncio.run(custody_of(folder))}
    ]


async def custody_of(folder: Path) -> str:
    async with opened(folder) as node:
        return node.custody.describe()


@pytest.mark.requirement("V1")
def test_a_passphrase_from_a_named_source(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The node opens with what the environment holds; a new passphrase is put there by the operator."""
    credential = (folder / "secrets/root.credential").read_text().strip()
    text = (folder / "node.toml").read_text().replace('credential = ""', 'credential = "env:ACCORD_PASS"')
    replace_settings(folder, text)
    said = accord("keys", "status", folder)
    assert said.code == 4 and "env:ACCORD_PASS is empty" in said.err
    monkeypatch.setenv("ACCORD_PASS", credential)
    monkeypatch.setenv("ACCORD_NEW", "another long passphrase")
    said = accord("keys", "change-passphrase", folder, "--new", "env:ACCORD_NEW")
    assert said.code == 0 and "env:ACCORD_PASS" in said.words, said.err
    assert accord("keys", "status", folder).code == 3
    monkeypatch.setenv("ACCORD_PASS", "another long passphrase")
    assert accord("keys", "status", folder).code == 0


@pytest.mark.requirement("V1")
@pytest.mark.skipif(not SOFTHSM or shutil.which("softhsm2-util") is None, reason="softhsm2 is not installed")
def test_the_root_key_moves_into_a_token_to_a_server_and_back(folder: Path, tmp_path: Path) -> None:
    """Each custody opens the node alone: the one before may be destroyed. Nothing else changes."""
    stored(folder, tmp_path)
    secret = asyncio.run(secret_of(folder))
    label = f"accord-{secrets.token_hex(4)}"
    make_token(tmp_path / "hsm", label)
    for name, content in (("pin", PIN), ("token", b"hvs.test-token")):
        (folder / "secrets" / name).write_bytes(content)
        (folder / "secrets" / name).chmod(0o600)
    hsm, vault, back = (tmp_path / f"{name}.toml" for name in ("hsm", "vault", "back"))
    hsm.write_text(
        f'[custody]\nkind = "pkcs11"\ncredential = "file:secrets/pin"\n'
        f'pkcs11_module = "{SOFTHSM}"\npkcs11_token = "{label}"\n'
    )
    said = accord("keys", "move", folder, "--to", hsm)
    assert said.code == 4 and "--create-key" in said.err
    said = accord("keys", "move", folder, "--to", hsm, "--create-key")
    assert said.code == 0 and "PKCS#11 token" in said.words, said.err
    (folder / "keystore.json").unlink()
    (folder / "secrets/root.credential").unlink()
    assert asyncio.run(secret_of(folder)) == secret
    server = TransitServer()
    with server.running():
        vault.write_text(
            f'[custody]\nkind = "vault"\ncredential = "file:secrets/token"\nvault_url = "{server.url}"\n'
        )
        assert accord("keys", "move", folder, "--to", vault, "--create-key").code == 0
        assert asyncio.run(secret_of(folder)) == secret
        assert "Vault transit" in accord("keys", "status", folder).words
        server.sealed = True
        said = accord("keys", "status", folder)
        assert said.code == 8 and "Vault server does not answer" in said.err
        server.sealed = False
        said = accord("keys", "change-passphrase", folder)
        assert said.code == 7 and "maker's own tools" in said.err
        back.write_text('[custody]\nkind = "keystore"\n[keys]\nkeystore = "second.json"\n')
        assert accord("keys", "move", folder, "--to", back).code == 0
    assert asyncio.run(secret_of(folder)) == secret
    (grade,) = accord("keys", "status", folder, "--json").value["grades"]
    assert (grade["study_keys"], grade["version"]) == (1, 1)
    assert [one["what"] for one in asyncio.run(changes(folder))] == ["custody"] * 3


@pytest.mark.requirement("V1", "F4")
@pytest.mark.parametrize("moment", ["before the keys", "after the keys"])
def test_a_move_that_was_cut_short_is_given_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Whether the keys had moved or not: the same command again ends with a node that opens under the new root."""
    secret = asyncio.run(secret_of(folder))
    to = tmp_path / "to.toml"
    to.write_text(
        '[custody]\nkind = "keystore"\n[keys]\nkeystore = "second.json"\ncredential_file = "secrets/second"\n'
    )

    where = "_prepare_settings" if moment == "before the keys" else "_finish_settings"
    real = getattr(rooting, where)

    def crashing(*args: object, **named: object) -> None:
        if moment == "before the keys":
            real(*args, **named)  # the coming node.toml is written; then the process ends
        elif named.get("to_new") is not True:
            return  # nothing was begun before
        raise KeyboardInterrupt

    monkeypatch.setattr(rooting, where, crashing)
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(rooting.move(folder, to, "system:it", create_key=False))
    monkeypatch.undo()
    assert (folder / "node.toml.new").exists()
    if moment == "after the keys":
        said = accord("keys", "status", folder)
        assert said.code == 6 and "accord keys move" in said.err
    said = accord("keys", "move", folder, "--to", to)
    assert said.code == 0, said.err
    assert not (folder / "node.toml.new").exists()
    (folder / "keystore.json").unlink()
    assert asyncio.run(secret_of(folder)) == secret


@pytest.mark.requirement("V1")
def test_what_a_move_cannot_use_is_named(folder: Path, tmp_path: Path) -> None:
    """A file that is not there, says too much, or names a custody halfway changes nothing."""
    before = (folder / "node.toml").read_bytes()
    for text, words in (
        (None, "is not there"),
        ("[http]\nport = 1\n", "nothing else"),
        ('[custody]\nkind = "pkcs11"\n', "needs pkcs11_module"),
        ("[custody\n", "to.toml"),
    ):
        file = tmp_path / "to.toml"
        if text is not None:
            file.write_text(text)
        said = accord("keys", "move", folder, "--to", file)
        assert said.code in (4, 7) and words in said.err
    assert (folder / "node.toml").read_bytes() == before


@pytest.mark.requirement("V1", "V4")
def test_a_grade_is_set_by_hand_on_a_stopped_node(folder: Path, tmp_path: Path) -> None:
    """By study id or Study Instance UID; the old key is gone, the deed on record."""
    stored(folder, tmp_path)
    uid = str(ct_slice().dataset().StudyInstanceUID)
    said = accord("grade", "set", folder, uid, "restricted", "--reason", "A member of staff", "--json")
    assert said.code == 0, said.err
    done = said.value
    assert (done["before"], done["grade"], done["objects"]) == ("ordinary", "restricted", 2)
    assert accord("grade", "set", folder, done["study"], "restricted").code == 5
    assert accord("grade", "set", folder, "st_" + "z" * 26, "sensitive").code == 4
    said = accord("grade", "set", folder, done["study"], "secret")
    assert said.code == 7 and "ordinary" in said.err


@pytest.mark.slow
@pytest.mark.journey
@pytest.mark.requirement("V1")
async def test_two_people_unlock_a_running_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set up on a stopped node; after a start a VIP's study is refused, after both have come it is taken; then locked again."""
    served = await make_node(tmp_path / "node")
    # An address that stands in no certificate: the command asks the node where the settings say, by a name that does.
    replace_settings(served.folder, changed_settings(served.folder, {"http.host": "127.0.0.2"}))
    people = {"dr.li": "passphrase of li", "dr.wang": "passphrase of wang"}
    async with opened(served.folder) as node:
        for login in people:
            await node.registry.add_person(login, login, Role.CHIEF_PHYSICIAN)
            token = await node.registry.create_token(login, ["api"], 1.0)
            (tmp_path / f"{login}.token").write_text(token)
    for login, words in people.items():
        monkeypatch.setenv(login.replace(".", "_"), words)
    holders = [f"--holder={login}=env:{login.replace('.', '_')}" for login in people]

    async def command(*words: object):  # type: ignore[no-untyped-def]
        return await asyncio.to_thread(accord, *words)

    said = await command("keys", "two-person", served.folder, holders[0])
    assert said.code == 7
    said = await command("keys", "two-person", served.folder, *holders, "--holder=mallory=env:dr_li")
    assert said.code == 4
    said = await command("keys", "two-person", served.folder, *holders)
    assert said.code == 0, said.err
    said = await command("keys", "two-person", served.folder, *holders)
    assert said.code == 5 and "already" in said.err
    vip = ct_slice(ConfidentialityConstraintOnPatientDataDescription="VIP", study="vip")
    await served.start()
    try:
        refused = await _sent(served, vip)
        assert refused.status == 0xA700 and "locked" in refused.reason
        for login, locked in zip(people, (True, False), strict=True):
            said = await command(
                "keys", "unlock", served.folder, "--token-file", tmp_path / f"{login}.token",
                "--passphrase", f"env:{login.replace('.', '_')}", "--json",
            )  # fmt: skip
            assert said.code == 0 and said.value["locked"] is locked, said.err
        assert (await _sent(served, vip)).ok
        said = await command(
            "grade", "set", served.folder, vip.dataset().StudyInstanceUID, "sensitive",
            "--token-file", tmp_path / "dr.li.token", "--json",
        )  # fmt: skip
        assert said.code == 0 and said.value["before"] == "restricted", said.err
        said = await command("grade", "set", served.folder, said.value["study"], "ordinary")
        assert said.code == 5 and "--token-file" in said.err
        token = ("--token-file", tmp_path / "dr.wang.token")
        assert (await command("keys", "lock", served.folder, *token)).code == 0
        assert not (
            await _sent(
                served,
                ct_slice(number=2, study="vip-2", ConfidentialityConstraintOnPatientDataDescription="VIP"),
            )
        ).ok
        assert await served.stop() == 0
        said = await command("keys", "unlock", served.folder, *token, "--passphrase", "env:dr_wang")
        assert said.code == 8 and "accord serve" in said.err
    finally:
        if served.alive:
            await served.kill()


async def _sent(served, instance):  # type: ignore[no-untyped-def]
    from tests.faults.slices import outgoing

    (one,) = [one async for one in send(served.plain(), [outgoing(instance)])]
    return one
