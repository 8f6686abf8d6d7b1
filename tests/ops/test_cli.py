"""The command line: what every command offers, how it says no, and what the words do to the node."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from consent.errors import Corrupt, Denied
from consent.vocabulary import EventKind, Role
from node.access.certificates import read_certificate
from node.audit.evidence import verify_proof_file
from ops.cli import WORDS, app
from ops.console import EXIT_CODES
from ops.foundation import opened
from tests.support.cli import Said, accord

WITHOUT_JSON = {"demo"}
"""Plays a story for people; its machine-readable result is --report."""


def _commands(group: click.Group, *path: str) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from _commands(command, *path, name)
        else:
            yield " ".join((*path, name)), command


ROOT = typer.main.get_command(app)
assert isinstance(ROOT, click.Group)
COMMANDS = dict(_commands(ROOT))


def _example(command: click.Command) -> list[str]:
    found = re.search(r"Example: (accord .*?)(?:\n\n|\Z)", command.help or "", re.DOTALL)
    assert found is not None, "no example"
    return shlex.split(" ".join(found[1].split()).partition(" > ")[0])


@pytest.mark.requirement("F6")
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_with_an_example_and_speaks_json(name: str) -> None:
    """--help works, shows a runnable example of this very command, and names --json."""
    said = accord(*name.split(), "--help")
    assert said.code == 0
    assert f"Example: accord {name}" in said.words
    assert ("--json" in said.out) is (name not in WITHOUT_JSON)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_is_one_that_the_command_takes(name: str) -> None:
    """Its options exist and its values are of the right kind."""
    words = _example(COMMANDS[name])[1 + len(name.split()) :]
    with COMMANDS[name].make_context(name, words) as context:
        assert context.params


def test_no_words_at_all_shows_what_there_is() -> None:
    """A bare `accord` lists the commands with what each is for."""
    said = accord()
    assert said.code == 2 and "Make a node" in said.err


@pytest.mark.requirement("F6")
def test_init_asks_nothing_and_says_what_comes_next(made: tuple[Path, Said]) -> None:
    """It ran with an empty standard input; it prints the one-time sign-in and the next command."""
    folder, said = made
    assert re.search(r"'admin' with the one-time password \S{16,}", said.words)
    assert f"Next: accord serve {folder}" in said.words
    assert "secrets/root.credential on another medium" in said.words


def test_init_leaves_secrets_to_the_owner_alone(made: tuple[Path, Said]) -> None:
    """Folder, credential and keystore are closed to everybody else, and every key is in node.toml."""
    folder, _said = made
    assert folder.stat().st_mode & 0o077 == 0
    for secret in ("secrets/root.credential", "keystore.json"):
        assert (folder / secret).stat().st_mode & 0o077 == 0, secret


@pytest.mark.requirement("U7")
async def test_the_one_time_sign_in_works_once_and_must_be_changed(
    folder: Path, made: tuple[Path, Said]
) -> None:
    """What init printed opens a session that may only choose a password, and never a second one."""
    once = re.search(r"one-time password (\S+)", made[1].words)
    assert once is not None
    async with opened(folder) as node:
        session = await node.sessions.sign_in("admin", once[1], "127.0.0.1")
        assert session.must_change_password
        with pytest.raises(Denied):
            await node.sessions.sign_in("admin", once[1], "127.0.0.2")


def _break_toml(folder: Path) -> None:
    (folder / "node.toml").write_text("[node\n", "utf-8")


def _unknown_key(folder: Path) -> None:
    file = folder / "node.toml"
    file.write_text(file.read_text("utf-8").replace("[http]", "[http]\nprot = 1"), "utf-8")


def _bad_port(folder: Path) -> None:
    file = folder / "node.toml"
    file.write_text(file.read_text("utf-8").replace("port = 8443", "port = 84430"), "utf-8")


def _wrong_credential(folder: Path) -> None:
    (folder / "secrets/root.credential").write_text("another-credential-of-good-length\n", "ascii")


def _empty_credential(folder: Path) -> None:
    (folder / "secrets/root.credential").write_text("", "ascii")


def _lost_credential(folder: Path) -> None:
    (folder / "secrets/root.credential").unlink()


def _damaged_keystore(folder: Path) -> None:
    (folder / "keystore.json").write_text("{}", "ascii")


def _missing_folder(folder: Path) -> None:
    shutil.rmtree(folder)


def _nothing(folder: Path) -> None:
    pass


BAD = {
    "missing folder": (_missing_folder, "log verify DIR", 4, "is not there. Make a node first: accord init"),
    "broken TOML": (_break_toml, "log verify DIR", 7, "is not valid TOML"),
    "unknown key": (_unknown_key, "log verify DIR", 7, "http.prot"),
    "value out of range": (_bad_port, "log verify DIR", 7, "http.port"),
    "wrong credential": (_wrong_credential, "log verify DIR", 3, "credential"),
    "empty credential": (_empty_credential, "log verify DIR", 7, "Restore it from its safe copy"),
    "lost credential": (_lost_credential, "log verify DIR", 4, "Mount the medium it lies on"),
    "damaged keystore": (_damaged_keystore, "log verify DIR", 6, "keystore"),
    "folder taken": (_nothing, "init DIR --name X --ae-title X", 5, "is there already"),
    "AE title too long": (
        _missing_folder,
        "init DIR --name X --ae-title ABCDEFGHIJKLMNOPQ",
        7,
        "node.ae_title",
    ),
    "bad node id": (_missing_folder, "init DIR --name X --ae-title X --node-id 'A B'", 7, "node.id"),
    "bad region": (_missing_folder, "hub init DIR --region 'A B'", 7, "cannot name a region"),
    "bad address": (_nothing, "device add DIR --ae-title CT1 --address 10.1 --plain old", 7, "10.1.2.0/24"),
    "neither certificate nor reason": (
        _nothing,
        "device add DIR --ae-title CT1 --address 10.1.2.3",
        7,
        '--certificate FILE, or --plain "reason"',
    ),
    "certificate not there": (
        _nothing,
        "device add DIR --ae-title CT1 --address 10.1.2.3 --certificate none.crt",
        4,
        "none.crt is not there",
    ),
    "bad AE title": (
        _nothing,
        "device issue-certificate DIR --ae-title 'A\\B' --out DIR/x",
        7,
        "AE title",
    ),
    "password file not there": (
        _nothing,
        "user add DIR --name dr.li --role clinician --password-file none",
        4,
        "The password file none is not there",
    ),
    "bad login": (_nothing, "user add DIR --name 'Dr Li' --role clinician", 7, "login"),
    "account there already": (_nothing, "user add DIR --name admin --role clinician", 5, "admin"),
    "token for nobody": (_nothing, "token create DIR --user nobody --scope api", 4, "accord user add"),
    "token without a scope that exists": (
        _nothing,
        "token create DIR --user admin --scope all",
        7,
        "Use one or more of",
    ),
    "care by nobody": (_nothing, "care add DIR --user nobody --patient 1", 4, "no such account"),
    "entry beyond the log": (_nothing, "log prove DIR 999", 4, "There is no log entry 999"),
    "invitation not there": (_nothing, "join DIR none.accord", 4, "none.accord is not there"),
    "invitation is another file": (_nothing, "join DIR DIR/node.toml", 7, "The invitation cannot be used"),
    "nothing to import": (_nothing, "import DIR none", 4, "none is not there"),
    "half of mutual TLS": (
        _nothing,
        "send 127.0.0.1 1 DIR --called A --calling B --tls-key x",
        7,
        "together",
    ),
    "web without an authority": (
        _nothing,
        "send DIR --web https://localhost:1/dicom-web",
        7,
        "the SHA-256 of its certificate",
    ),
    "web in the clear": (_nothing, "send DIR --web http://10.1.2.3/dicom-web", 7, "--plain-http"),
    "pin that is none": (_nothing, "send DIR --web https://localhost:1/ --pin 0011", 7, "64 hex digits"),
    "no token to send with": (
        _nothing,
        "send DIR --web http://localhost:1/ --token-file none",
        4,
        "none is not there",
    ),
    "a login without a password": (
        _nothing,
        "send DIR --web http://localhost:1/ --login-file DIR/node.toml",
        7,
        "must hold one line",
    ),
    "no project key": (_nothing, "deidentify DIR DIR/out --project-key none", 4, "head -c 32 /dev/urandom"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_names_what_is_wrong_and_exits_by_its_family(folder: Path, case: str) -> None:
    """One line on standard error with the remedy; nothing on standard output; the family's exit code."""
    spoil, line, code, words = BAD[case]
    spoil(folder)
    said = accord(*shlex.split(line.replace("DIR", str(folder))))
    assert (said.code, said.out) == (code, "")
    assert words in said.err
    assert said.err.startswith("accord: ") and said.err.count("\n") == 1


def test_errors_are_one_json_object_when_json_is_asked_for(tmp_path: Path) -> None:
    """A program reads code, message and remedy from standard error."""
    said = accord("log", "verify", tmp_path / "none", "--json")
    assert said.out == "" and said.code == 4
    assert set(json.loads(said.err)) >= {"error", "message", "mend"}


def test_exit_codes_differ_by_family_and_leave_the_shells_own_alone() -> None:
    """0, 1 and 2 mean success, a failed check and wrong usage; families have one number each."""
    codes = list(EXIT_CODES.values())
    assert len(set(codes)) == len(codes) and not {0, 1, 2}.intersection(codes)
    assert accord("log", "verify").code == 2


@pytest.mark.parametrize(
    "line",
    [
        "send",
        "send DIR",
        "send localhost 104",
        "send localhost many DIR --called A --calling B",
        "send localhost 70000 DIR --called A --calling B",
        "send localhost 104 DIR --called A",
        "send localhost 104 DIR --called A --calling B --token-file x",
        "send DIR --web http://localhost:1/ --called A",
        "send DIR --web http://localhost:1/ --commit",
        "send localhost 104 DIR --called A --calling B --listen-port 11112",
        "send DIR --web http://localhost:1/ --token-file a --login-file b",
        "send DIR --web https://localhost:1/ --pin 00 --tls-authority x",
    ],
)
def test_send_is_told_whom_to_send_to_and_how(tmp_path: Path, line: str) -> None:
    """A receiver by DICOM or by DICOMweb, with what belongs to that one: else wrong usage, and nothing is sent."""
    said = accord(*shlex.split(line.replace("DIR", str(tmp_path))))
    assert (said.code, said.out) == (2, "")


def test_a_second_init_changes_nothing(folder: Path) -> None:
    """A folder with a node in it is refused and stays as it was, byte for byte."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert accord("init", folder, "--name", "Other", "--ae-title", "OTHER").code == 5
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.requirement("U7")
async def test_user_add_makes_an_account_that_can_sign_in(folder: Path, tmp_path: Path) -> None:
    """With a password file at once, without one by a one-time sign-in; both are on record."""
    secret = tmp_path / "password"
    secret.write_text("correct horse battery staple\n", "utf-8")
    line = ("--role", "clinician", "--full-name", "Li Wei", "--department", "Radiology")
    assert await _said("user", "add", folder, "--name", "dr.li", *line, "--password-file", secret)
    made = await _said("user", "add", folder, "--name", "dr.wu", "--role", "chief-physician", "--json")
    async with opened(folder) as node:
        person = await node.registry.person("dr.li")
        assert (person.name, person.role, person.department) == ("Li Wei", Role.CLINICIAN, "Radiology")
        assert not (
            await node.sessions.sign_in("dr.li", "correct horse battery staple", "127.0.0.1")
        ).must_change_password
        assert (
            await node.sessions.sign_in("dr.wu", made.value["one_time"], "127.0.0.1")
        ).must_change_password
        added = await node.log.search(kind=EventKind.PERSON_ADDED)
        assert all(entry.event.actor.startswith("system:") for entry in added)
    listed = await _said("user", "list", folder, "--json")
    assert {person["login"] for person in listed.value} == {"admin", "dr.li", "dr.wu"}


@pytest.mark.requirement("U1")
async def test_care_add_records_a_relationship_by_pseudonym(folder: Path) -> None:
    """The clinician treats this patient and no other; the hospital's Patient ID is nowhere in the folder."""
    await _said("user", "add", folder, "--name", "dr.li", "--role", "clinician")
    await _said("care", "add", folder, "--user", "dr.li", "--patient", "PAT-4711-X")
    async with opened(folder) as node:
        now = node.clock.now()
        assert await node.care.related("dr.li", node.pseudonyms.patient("PAT-4711-X"), now)
        assert not await node.care.related("dr.li", node.pseudonyms.patient("PAT-4712-X"), now)
    holding = [path for path in folder.rglob("*") if path.is_file() and b"PAT-4711-X" in path.read_bytes()]
    assert holding == []


@pytest.mark.requirement("U7")
async def test_token_create_gives_a_scoped_token_that_ends(folder: Path) -> None:
    """It opens what its scope says for as long as it lives, and only its hash is kept."""
    await _said("user", "add", folder, "--name", "dr.li", "--role", "clinician")
    made = await _said("token", "create", folder, "--user", "dr.li", "--scope", "dicomweb", "--days", "0.5")
    token = made.out.strip()
    async with opened(folder) as node:
        found = await node.registry.principal_of_token(token)
        assert found is not None
        assert (found[0].id, found[1]) == ("dr.li", frozenset({"dicomweb"}))
        [kept] = await node.registry.tokens_of("dr.li")
        assert 0 < (kept.expires - node.clock.now()).total_seconds() <= 12 * 3600
    assert token.encode() not in (folder / "accord.db").read_bytes()


@pytest.mark.requirement("C1")
async def test_device_add_lets_in_what_was_registered_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    """With the certificate that `issue-certificate` wrote: title, address and certificate must all agree."""
    out = tmp_path / "ct1"
    await _said("device", "issue-certificate", folder, "--ae-title", "CT1", "--out", out)
    assert sorted(path.name for path in out.iterdir()) == ["CT1.crt", "CT1.key", "ca.crt"]
    assert (out / "CT1.key").stat().st_mode & 0o077 == 0
    line = ("--ae-title", "CT1", "--address", "10.1.2.0/28", "--certificate", out / "CT1.crt")
    await _said("device", "add", folder, *line)
    shown = x509.load_pem_x509_certificate((out / "CT1.crt").read_bytes()).public_bytes(Encoding.DER)
    async with opened(folder) as node:
        admit = node.registry.admit_device
        principal = await admit("CT1", "GENERAL", "10.1.2.3", shown, True)
        assert (principal.id, principal.role) == ("CT1", Role.DEVICE)
        for wrong in (
            ("CT2", "GENERAL", "10.1.2.3", shown, True),
            ("CT1", "OTHER", "10.1.2.3", shown, True),
            ("CT1", "GENERAL", "10.1.2.99", shown, True),
            ("CT1", "GENERAL", "10.1.2.3", None, False),
        ):
            with pytest.raises(Denied):
                await admit(*wrong)


async def test_a_key_is_never_overwritten(folder: Path, tmp_path: Path) -> None:
    """Issuing into the same folder again is refused, and the first key stays."""
    out = tmp_path / "ct1"
    await _said("device", "issue-certificate", folder, "--ae-title", "CT1", "--out", out)
    before = (out / "CT1.key").read_bytes()
    again = await _run("device", "issue-certificate", folder, "--ae-title", "CT1", "--out", out)
    assert again.code == 5 and (out / "CT1.key").read_bytes() == before


@pytest.mark.requirement("C1", "V4")
async def test_an_issued_certificate_is_on_record(folder: Path, tmp_path: Path) -> None:
    """With the AE title and the fingerprint by which the device will be known."""
    out = tmp_path / "ct1"
    await _said("device", "issue-certificate", folder, "--ae-title", "CT1", "--out", out)
    async with opened(folder) as node:
        (entry,) = await node.log.search(kind=EventKind.DEVICE_CERTIFICATE_ISSUED)
    fingerprint = read_certificate((out / "CT1.crt").read_text("ascii"))[1]
    assert entry.event.detail == {"ae_title": "CT1", "fingerprint": fingerprint}
    assert entry.event.actor.startswith("system:")


async def test_device_list_shows_channel_and_state(folder: Path) -> None:
    """A plain device is listed with the reason why."""
    line = ("--ae-title", "OLD1", "--address", "10.1.2.9", "--plain", "film digitiser")
    await _said("device", "add", folder, *line)
    listed = await _said("device", "list", folder, "--json")
    [device] = listed.value["devices"]
    expected = {
        "ae_title": "OLD1",
        "address": "10.1.2.9/32",
        "channel": "plain",
        "plain_reason": "film digitiser",
        "services": ["commit", "store"],
        "state": "active",
    }
    assert device | expected == device and listed.value["altered"] == []


@pytest.mark.requirement("A1")
def test_log_verify_finds_the_altered_entry(folder: Path) -> None:
    """A whole log exits 0; after one byte of one entry was changed in the database it exits 1 and names it."""
    whole = accord("log", "verify", folder, "--json")
    assert whole.code == 0 and whole.value["ok"] and whole.value["entries"] >= 3
    with sqlite3.connect(folder / "accord.db") as database:
        [(sealed,)] = database.execute("SELECT sealed FROM log_entry WHERE position = 1")
        altered = sealed[:-1] + bytes([sealed[-1] ^ 1])
        database.execute("UPDATE log_entry SET sealed = ? WHERE position = 1", (altered,))
    said = accord("log", "verify", folder)
    assert said.code == 1
    assert re.search(r"\b1\b", said.out)
    assert accord("log", "verify", folder, "--json").value["faults"]


@pytest.mark.requirement("A1")
def test_log_verify_finds_a_deleted_entry(folder: Path) -> None:
    """An entry cut out of the middle is missed."""
    with sqlite3.connect(folder / "accord.db") as database:
        database.execute("DELETE FROM log_entry WHERE position = 1")
    assert accord("log", "verify", folder).code == 1


@pytest.mark.requirement("A1")
async def test_log_prove_prints_evidence_that_holds_without_the_node(folder: Path) -> None:
    """The proof file is checked with nothing but the log's public key; a changed one does not hold."""
    async with opened(folder) as node:
        vkey = node.identity.public()["log_vkey"]
    proof = (await _said("log", "prove", folder, "0")).out
    evidence = verify_proof_file(proof, [vkey])
    assert (evidence.index, evidence.event.kind) == (0, EventKind.NODE_INITIALISED)
    other = (await _said("log", "prove", folder, "1")).out
    lines, changed = proof.split("\n"), other.split("\n")
    lines[1] = changed[1]
    with pytest.raises(Corrupt):
        verify_proof_file("\n".join(lines), [vkey])


async def _run(*words: object) -> Said:
    """A command from inside an event loop: it makes its own, so it runs in a thread."""
    return await asyncio.to_thread(accord, *words)


async def _said(*words: object) -> Said:
    said = await _run(*words)
    assert said.code == 0, said.err
    return said


@pytest.mark.requirement("F6")
def test_the_list_of_commands_says_what_each_says_of_itself() -> None:
    """`accord --help` is a table of its own, so that it loads no command; it must not drift from them."""
    for word, (_, _, words) in WORDS.items():
        own = ROOT.commands[word].help or ""
        assert " ".join(own.split()).startswith(words.rstrip(".")), word
