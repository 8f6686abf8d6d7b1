"""`accord device …` and `accord findings`: what an operator does about devices, and what it says."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID
from sqlalchemy import insert, text

from consent.signed import sign
from consent.vocabulary import EventKind, Outcome
from node.access.activity import Activity, Refusal, activity_table, today, values_of
from node.access.wiping import KEY_DESTROYED, WipeCertificate, issuer_of
from node.audit.event import Event
from ops.doors import Doors
from ops.foundation import opened
from ops.lock import in_use, sole_user
from tests.support.cli import Said, accord

pytestmark = pytest.mark.requirement("C1", "F6")
PLAIN = ("--plain", "film digitiser")


def said(code: int, *words: object) -> Said:
    answer = accord(*words)
    assert answer.code == code, (words, answer.out, answer.err)
    return answer


def add(folder: Path, *more: object) -> None:
    said(0, "device", "add", folder, "--ae-title", "CT1", "--address", "10.1.2.3", *(more or PLAIN))


def on(folder: Path, word: str, *more: object) -> tuple[object, ...]:
    return ("device", word, folder, "--ae-title", "CT1", *more)


def test_states_are_set_in_words_and_a_change_that_is_not_allowed_is_a_conflict(folder: Path) -> None:
    """To maintenance and out of use; a retired device does not come back; an unknown one is not found."""
    add(folder)
    said(0, *on(folder, "set-state", "--state", "maintenance", "--reason", "new tube"))
    shown = said(0, *on(folder, "show"))
    assert "CT1 is maintenance since" in shown.words and "new tube" in shown.words
    assert said(5, *on(folder, "set-state", "--state", "maintenance")).err.count("\n") == 1
    said(0, *on(folder, "set-state", "--state", "retired"))
    assert "Register it anew" in said(5, *on(folder, "set-state", "--state", "active")).err
    said(4, "device", "show", folder, "--ae-title", "CT9")
    said(4, "device", "set-state", folder, "--ae-title", "CT9", "--state", "active")
    said(2, *on(folder, "set-state", "--state", "broken"))


def test_a_renewal_writes_the_new_key_and_keeps_both_certificates_for_the_overlap(
    folder: Path, tmp_path: Path
) -> None:
    """Issued here or brought; neither or both is refused before anything is written."""
    said(0, "device", "issue-certificate", folder, "--ae-title", "CT1", "--out", tmp_path / "first")
    add(folder, "--certificate", tmp_path / "first" / "CT1.crt")
    said(7, *on(folder, "renew-certificate"))
    renewed = said(0, *on(folder, "renew-certificate", "--out", tmp_path / "second", "--json")).value
    assert (tmp_path / "second" / "CT1.key").stat().st_mode & 0o077 == 0
    device = said(0, *on(folder, "show", "--json")).value
    assert (device["fingerprint"], device["former_until"]) == (
        renewed["fingerprint"],
        renewed["former_until"],
    )
    assert device["former_fingerprint"] != device["fingerprint"]
    again = on(folder, "renew-certificate", "--certificate", tmp_path / "first" / "CT1.crt")
    assert said(0, *again, "--overlap-days", "0", "--json").value["former_until"] is None
    said(2, *again, "--overlap-days", "400")
    assert "is not there" in said(4, *on(folder, "renew-certificate", "--certificate", tmp_path / "none")).err
    said(4, "device", "renew-certificate", folder, "--ae-title", "CT9", "--out", tmp_path / "third")
    assert not (tmp_path / "third").exists()


def test_a_device_that_is_called_has_a_certificate_for_it(folder: Path, tmp_path: Path) -> None:
    """One that only calls is refused for a device with a port, in words; what is issued for such a device, also later, serves."""
    for name, more in (("calls", ()), ("serves", ("--serves",))):
        said(0, "device", "issue-certificate", folder, "--ae-title", "CT1", "--out", tmp_path / name, *more)
    line = ("device", "add", folder, "--ae-title", "CT1", "--address", "10.1.2.3", "--port", 104)
    refused = said(7, *line, "--certificate", tmp_path / "calls" / "CT1.crt")
    assert "is not good for being called. Issue it with --serves" in refused.err
    said(0, *line, "--certificate", tmp_path / "serves" / "CT1.crt")
    said(7, *on(folder, "renew-certificate", "--certificate", tmp_path / "calls" / "CT1.crt"))
    said(0, *on(folder, "renew-certificate", "--out", tmp_path / "renewed"))
    add(folder, "--certificate", tmp_path / "calls" / "CT1.crt")  # without a port nobody calls it
    said(0, *on(folder, "renew-certificate", "--out", tmp_path / "again"))
    shown = {
        name: x509.load_pem_x509_certificate((tmp_path / name / "CT1.crt").read_bytes())
        .extensions.get_extension_for_class(x509.ExtendedKeyUsage)
        .value
        for name in ("calls", "serves", "renewed", "again")
    }
    assert {name for name, usages in shown.items() if ExtendedKeyUsageOID.SERVER_AUTH in usages} == {
        "serves",
        "renewed",
    }


def test_a_moved_device_is_at_its_new_address(folder: Path) -> None:
    """And a bad address is refused."""
    add(folder)
    assert "10.1.2.4" in said(0, *on(folder, "move", "--address", "10.1.2.4")).out
    said(7, *on(folder, "move", "--address", "ct1.hospital"))


async def write(folder: Path, activity: Activity) -> None:
    async with opened(folder) as node, node.database.write() as tx:
        await tx.execute(insert(activity_table).values(values_of(activity)))


async def test_the_list_shows_what_the_running_node_wrote_down(folder: Path) -> None:
    """Connected only while a node runs in the folder; the latest reason on the device's own page."""
    await asyncio.to_thread(add, folder)
    async with opened(folder) as node:
        now = node.clock.now()
    refusal = Refusal(now, "10.9.9.9", "words", "", ("device-plain",))
    await write(folder, Activity("CT1", today(now), now, "10.1.2.3", 2, 41, 4096, 1, refusal))
    assert not in_use(folder)
    [idle] = (await asyncio.to_thread(said, 0, "device", "list", folder, "--json")).value["devices"]
    assert (idle["associated"], idle["instances_today"], idle["refusals_today"]) == (0, 41, 1)
    with sole_user(folder):
        assert in_use(folder)
        listed = await asyncio.to_thread(said, 0, "device", "list", folder)
        shown = await asyncio.to_thread(said, 0, *on(folder, "show"))

    assert "connected" in listed.words and "41" in listed.words
    assert "It came in plain; this device is registered for TLS. Switch the device" in shown.words


@pytest.mark.parametrize("change", ["state = 'active', address = '0.0.0.0/0'", "registered = 'soon'"])
async def test_an_altered_row_is_named_and_neither_hides_nor_stops_the_others(
    folder: Path, change: str
) -> None:
    """The list has them and the exit code says so, the doors open, and it is a finding."""
    await asyncio.to_thread(add, folder)
    await asyncio.to_thread(add, folder, "--ae-title", "MR1", *PLAIN)
    async with opened(folder) as node:
        async with node.database.write() as tx:
            await tx.execute(text(f"UPDATE device SET {change} WHERE ae_title = 'CT1'"))
        doors = Doors(identity=node.identity, registry=node.registry, clock=node.clock, names=("localhost",))
        assert await doors.dicom()
    listed = await asyncio.to_thread(said, 1, "device", "list", folder, "--json")
    assert [one["ae_title"] for one in listed.value["devices"]] == ["MR1"]
    assert listed.value["altered"] == ["CT1"]
    found = (await asyncio.to_thread(said, 0, "findings", folder, "--json")).value

    assert [(one["kind"], one["severity"]) for one in found if one["kind"] == "row-altered"] == [
        ("row-altered", "incident")
    ]


@pytest.mark.requirement("C2")
async def test_a_device_with_an_agent_needs_its_wipe_certificate_as_a_file(
    folder: Path, tmp_path: Path
) -> None:
    """Without one, exit code 3 and the way out; with it, done."""
    agent = Ed25519PrivateKey.generate()
    await asyncio.to_thread(add, folder)
    async with opened(folder) as node:
        await node.registry.set_agent("CT1", agent.public_key().public_bytes_raw().hex())
        now = node.clock.now()
    body = WipeCertificate("CT1", now, (KEY_DESTROYED,))
    token = sign(
        body,
        record_id="ab" * 16,
        issuer=issuer_of("CT1"),
        key=agent,
        issued=now,
        expires=now + timedelta(days=1),
    ).token
    file = tmp_path / "wipe-certificate.jws"
    file.write_text(token + "\n", "ascii")
    asked = on(folder, "set-state", "--state", "retired")
    refused = await asyncio.to_thread(said, 3, *asked)
    assert "accord edge wipe" in refused.err

    await asyncio.to_thread(said, 0, *asked, "--wipe-certificate", file)


async def test_findings_are_listed_answered_and_follow_the_log_without_a_running_node(folder: Path) -> None:
    """Words with the way out; an answer needs words; what was answered is on record."""
    async with opened(folder) as node:
        detail = {"origin": "accord/x"}
        alarm = Event(
            EventKind.WITNESS_ALARMED, "system", Outcome.FAILED, reason="It was cut back.", detail=detail
        )
        await node.log.record(alarm)
    listed = await asyncio.to_thread(said, 0, "findings", folder)
    assert "incident: Witness alarm, accord/x" in listed.words and "→ A log was cut back" in listed.words
    found = (await asyncio.to_thread(said, 0, "findings", folder, "--json")).value
    [finding] = [one["id"] for one in found if one["kind"] == "witness-alarmed"]
    await asyncio.to_thread(said, 7, "findings", folder, "--resolve", finding)
    await asyncio.to_thread(said, 4, "findings", folder, "--resolve", "0" * 16, "--words", "nothing")
    words = ("--words", "Restored on purpose")
    await asyncio.to_thread(said, 0, "findings", folder, "--acknowledge", finding, *words)
    await asyncio.to_thread(said, 5, "findings", folder, "--acknowledge", finding, *words)
    answered = await asyncio.to_thread(said, 0, "findings", folder, "--resolve", finding, *words, "--json")
    assert answered.value["resolved"]["words"] == "Restored on purpose"
    await asyncio.to_thread(said, 7, "findings", folder, "--state", "whatever")
    async with opened(folder) as node:
        [entry] = [
            entry
            for entry in await node.log.search(kind=EventKind.FINDING_RESOLVED)
            if entry.event.detail["finding"] == finding
        ]

    assert entry.event.reason == "Restored on purpose" and entry.event.actor.startswith("system:")
