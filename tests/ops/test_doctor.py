"""`accord doctor`: which step fails, in words, and what to do."""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import socket
from datetime import timedelta
from pathlib import Path

import pytest

from consent.errors import Conflict
from consent.vocabulary import EventKind
from node.audit.event import Event
from node.config import Settings, load_settings
from node.ports import free_ports
from node.web.kit import Listener, make_app
from ops import doctor
from ops.doctor import Step, examine
from ops.doors import Doors
from ops.foundation import opened
from ops.lock import LOCK_NAME
from tests.ops.test_migrate import later_version
from tests.support.cli import accord
from tests.support.pages import flip, leaves, roots


def ports(folder: Path, **given: int) -> Settings:
    """Set ports in node.toml: http, dicom, plain and peer; 0 where not given."""
    file = folder / "node.toml"
    text = file.read_text("utf-8")
    for section, key, name in (
        ("http", "port", "http"),
        ("dicom", "port", "dicom"),
        ("dicom", "plain_port", "plain"),
        ("peer", "port", "peer"),
    ):
        text = re.sub(
            rf"(\[{section}\][^\[]*?^{key} = )\d+",
            rf"\g<1>{given.get(name, 0)}",
            text,
            flags=re.MULTILINE | re.DOTALL,
        )
    file.write_text(text, "utf-8")
    return load_settings(folder)


async def failing(folder: Path) -> list[Step]:
    return [step for step in await examine(folder) if not step.ok]


async def test_a_stopped_node_is_well_but_for_its_doors(folder: Path) -> None:
    """Every closed door is named with its address and the way out; the rest is fine."""
    http, dicom, plain, peer = free_ports(4)
    ports(folder, http=http, dicom=dicom, plain=plain, peer=peer)
    found = await failing(folder)
    assert [one.step for one in found] == ["port"] * 4
    doors = [one.words.partition(":")[0] for one in found]
    assert doors == ["portal", "DICOM over TLS", "plain DICOM", "peers"]
    assert all("nobody answers at 127.0.0.1:" in one.words and "accord serve" in one.mend for one in found)


async def test_a_door_that_is_switched_off_is_not_missed(folder: Path) -> None:
    """Port 0 means closed on purpose."""
    ports(folder)
    assert await failing(folder) == []


@pytest.mark.requirement("F6")
async def test_the_nodes_own_door_is_known_by_its_certificate(folder: Path) -> None:
    """An open portal is reported with TLS version and days left."""
    (http,) = free_ports(1)
    settings = ports(folder, http=http)
    async with opened(folder) as node:
        doors = Doors(
            identity=node.identity, registry=node.registry, clock=node.clock, names=settings.http.names
        )
        app = make_app(routes=[], services={}, people=False)
        async with Listener(app, settings.http.host, http, doors.people):
            findings = {one.step: one for one in await examine(folder)}
    assert findings["port"].ok and findings["certificate"].ok and findings["name"].ok
    assert re.search(r"TLSv1\.3, certificate good for \d+ days", findings["certificate"].words)
    assert "stand in the certificate" in findings["name"].words


async def test_another_program_on_the_port_is_told_apart(folder: Path) -> None:
    """Somebody answers, but not with this node's certificate."""
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
    try:
        ports(folder, http=server.sockets[0].getsockname()[1])
        [finding] = await failing(folder)
    finally:
        server.close()
    assert finding.step == "certificate"
    assert "does not show this node's certificate" in finding.words


async def test_a_port_held_without_an_answer_is_told_apart(folder: Path) -> None:
    """A program that holds the port and does not listen: the node could not start."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        ports(folder, http=holder.getsockname()[1])
        [finding] = await failing(folder)
    assert "cannot be used" in finding.words and "node.toml" in finding.mend


async def test_settings_that_do_not_read_end_the_examination(folder: Path) -> None:
    """Nothing else can be looked at."""
    (folder / "node.toml").write_text("[node", "utf-8")
    [finding] = await examine(folder)
    assert (finding.step, finding.ok) == ("settings", False) and "not valid TOML" in finding.words


async def test_a_lost_credential_is_named(folder: Path) -> None:
    """With where it should be."""
    (folder / "secrets/root.credential").unlink()
    ports(folder)
    [finding] = await failing(folder)
    assert finding.step == "keys" and "is not there" in finding.words and "Mount the medium" in finding.mend


async def test_a_wrong_credential_is_named(folder: Path) -> None:
    """It is not mistaken for damage."""
    (folder / "secrets/root.credential").write_text("another-credential-of-good-length\n", "ascii")
    ports(folder)
    [finding] = await failing(folder)
    assert finding.step == "keys" and "credential" in finding.words.lower()


async def test_a_clock_behind_the_log_is_named(folder: Path) -> None:
    """An entry from the future means that the clock was set back."""
    ports(folder)
    async with opened(folder) as node:
        node.clock.raise_floor(node.clock.now() + timedelta(hours=3))
        await node.log.record(Event(EventKind.NODE_STARTED, "system"))
    [finding] = await failing(folder)
    assert finding.step == "clock" and "behind" in finding.words and "NTP" in finding.mend


async def test_a_nearly_full_disk_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it is full: a full disk refuses studies."""
    ports(folder)
    monkeypatch.setattr(doctor, "MIN_FREE_BYTES", 2**60)
    [finding] = await failing(folder)
    assert finding.step == "disk" and "GiB free" in finding.words


@pytest.mark.requirement("F6")
async def test_names_that_lead_nowhere_or_are_missing_in_the_certificate_are_named(folder: Path) -> None:
    """What people type into a browser is checked from outside."""
    (http,) = free_ports(1)
    settings = ports(folder, http=http)
    node_toml = folder / "node.toml"
    text = node_toml.read_text("utf-8")
    async with opened(folder) as node:
        doors = Doors(identity=node.identity, registry=node.registry, clock=node.clock, names=("127.0.0.1",))
        app = make_app(routes=[], services={}, people=False)
        async with Listener(app, settings.http.host, http, doors.people):
            [finding] = await failing(folder)
            assert (finding.step, "Restart the node" in finding.mend) == ("name", True)
            assert "not in the certificate that answers: localhost" in finding.words
            changed = re.sub(r"^names = .*$", 'names = ["pacs.invalid"]', text, flags=re.MULTILINE)
            assert changed != text
            node_toml.write_text(changed, "utf-8")
            [finding] = await failing(folder)
    assert finding.step == "name" and "pacs.invalid" in finding.words and "DNS" in finding.mend


async def test_versions_of_software_schema_and_roster_are_said(folder: Path) -> None:
    """So that support can be asked with one line."""
    ports(folder)
    findings = {one.step: one for one in await examine(folder)}
    words = findings["version"].words
    assert re.fullmatch(r"Accord \d+\.\d+\.\d+, schema \d{4}, no roster", words), words


@pytest.mark.requirement("F3")
async def test_an_older_database_is_named_and_left_as_it_is(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The doctor upgrades nothing; a command does, but not under a node that runs."""
    ports(folder)
    later_version(tmp_path / "later", monkeypatch, "0001")
    before = sorted(file.name for file in folder.iterdir() if not file.name.endswith(("-wal", "-shm")))
    [finding] = await failing(folder)
    assert finding.step == "version" and "needs schema 9999; the database has 0001" in finding.words
    assert sorted(f.name for f in folder.iterdir() if not f.name.endswith(("-wal", "-shm"))) == before
    descriptor = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600)  # as a node that runs holds it
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(Conflict, match="An older one is running on it"):
            async with opened(folder):
                pass
        [finding] = await failing(folder)
        assert finding.step == "version"
    finally:
        os.close(descriptor)
    async with opened(folder):
        assert await failing(folder) == []


async def test_a_missing_database_is_named_and_not_made(folder: Path) -> None:
    """An empty one in its place would look like a new node."""
    ports(folder)
    (folder / "accord.db").unlink()
    [finding] = await failing(folder)
    assert finding.step == "version" and not (folder / "accord.db").exists()


def test_the_command_exits_1_when_a_step_fails_and_0_when_none_does(folder: Path) -> None:
    """For a monitoring script; --json gives the findings."""
    ports(folder)
    assert accord("doctor", folder).code == 0
    (folder / "secrets/root.credential").unlink()
    said = accord("doctor", folder, "--json")
    assert said.code == 1
    assert [one["step"] for one in said.value["findings"] if not one["ok"]] == ["keys"]


@pytest.mark.requirement("V2", "C3", "F6")
def test_a_damaged_database_is_named_checked_and_mended_although_nothing_opens(folder: Path) -> None:
    """Doctor and check say what is damaged and change nothing; rebuild makes it anew; a table that is lost stays named."""
    file = folder / "accord.db"
    settings = ports(folder)
    flip(file, roots(file)["sqlite_autoindex_vault_secret_1"], 0)
    spoilt = file.read_bytes()
    said = accord("doctor", folder)
    assert said.code == 1 and "database" in said.out and "vault_secret" in said.out
    said = accord("index", "check", folder)
    assert said.code == 6 and "The database is damaged: vault_secret" in said.err
    assert "accord index rebuild" in said.err and file.read_bytes() == spoilt
    assert accord("index", "rebuild", settings.folder).code == 0
    assert accord("index", "check", folder).code == 0
    assert accord("doctor", folder).code == 0

    flip(file, leaves(file, roots(file)["person"])[0], 0)
    for command in ("check", "rebuild"):
        said = accord("index", command, folder, "--json")
        assert said.code == 1 and said.value["lost"] == ["person"]
    flip(file, 1, 100)
    said = accord("index", "check", folder)
    assert said.code == 6 and "damaged-database.md" in said.err
    assert "damaged: database" in accord("doctor", folder).out
