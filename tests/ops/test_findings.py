"""Findings: one for each thing, opened by what the log and the conditions say, counted, answered, and bounded."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import text

import ops.findings as noun
from consent.errors import Conflict, Corrupt, Invalid, NotFound
from consent.vocabulary import EventKind, Outcome
from node.access.devices import DeviceState
from node.audit.event import Event
from node.config import NodeSection, Settings, StorageSection
from node.jobs import JobStatus
from node.rebuilding import Rebuilding
from ops.checks import LOW_FREE_BYTES, Checks
from ops.doctor import MIN_FREE_BYTES
from ops.findings import MAX_WORDS_CHARACTERS, Findings
from ops.findingtables import (
    CHOICES,
    OVERFLOW,
    TRANSITIONS,
    Finding,
    FindingKind,
    FindingState,
    Severity,
    Sighting,
)
from ops.findingwords import RESOLVED_BY_ITSELF, TITLES, WORDS, finding_json, tell
from ops.sightings import RULES, Overseer
from tests.support.dicom import ct_slice
from tests.support.door import Door, dicom_door
from tests.support.node import NodeFixture, small_node
from tests.support.pages import flip, roots

pytestmark = [pytest.mark.timeout(60), pytest.mark.requirement("C1")]
PLAIN = "A film digitiser that cannot do TLS"


@dataclass
class Office:
    """A small node with its findings and who keeps them."""

    node: NodeFixture
    findings: Findings
    overseer: Overseer
    door: Door

    async def now(self, **terms: Any) -> list[Finding]:
        """The findings, with everything taken in that the log says."""
        await self.door.watch.look()
        await self.overseer.follow()
        return await self.findings.listed(**terms)

    async def log(self, kind: EventKind, reason: str = "", actor: str = "system", **detail: Any) -> None:
        await self.node.log.record(Event(kind, actor, Outcome.FAILED, reason=reason, detail=detail))


@pytest_asyncio.fixture
async def office(tmp_path: Path) -> AsyncIterator[Office]:
    async with small_node(tmp_path) as node, dicom_door(node) as door:
        await node.registry.add_device("CT1", "127.0.0.1", plain_reason=PLAIN)
        findings = Findings(node.database, node.log, node.clock)
        yield Office(node, findings, Overseer(node.database, node.log, node.registry, findings), door)


def sighting(number: int = 0, **changes: Any) -> Sighting:
    """A refusal of some stranger."""
    at = datetime(2026, 11, 22, 9, tzinfo=UTC)
    values = {"reason": "test"}
    given: dict[str, Any] = {
        "kind": FindingKind.STRANGER_REFUSED,
        "severity": Severity.WARNING,
        "subject": f"10.0.0.{number}",
    }
    return Sighting(**(given | {"code": "told", "at": at, "values": values} | changes))


async def take(office: Office, *seen: Sighting) -> None:
    async with office.node.database.write() as tx:
        await office.findings.take(tx, seen)


async def test_a_refused_device_is_a_finding_with_each_fault_and_its_way_out(office: Office) -> None:
    """One for the device at that place, however often it tries; the opening is on record, the repeats are counted."""
    for _attempt in range(3):
        await office.door.refused("CT1", called="OTHER", address="127.0.0.9")
    [finding] = await office.now()
    told = tell(finding)

    assert (finding.kind, finding.severity) == (FindingKind.DEVICE_REFUSED, Severity.WARNING)
    assert (told.title, told.subject) == ("Device refused", "CT1 (127.0.0.9)")
    assert [fault for fault, _mend in told.words] == [
        'It called "OTHER"; the AE title of this node is "ACCORD".',
        "It came from 127.0.0.9; CT1 is registered at 127.0.0.1.",
    ]
    assert all(mend for _fault, mend in told.words)
    office.node.clock.tick(seconds=61)
    [finding] = await office.now()
    assert finding.count == 3
    [opened] = await office.node.events(EventKind.FINDING_OPENED)
    assert opened.event.detail["finding"] == finding.id and opened.event.detail["entry"] == finding.entry


async def test_a_device_that_comes_in_again_from_there_resolves_its_finding(office: Office) -> None:
    """What was mended closes itself; what somebody else does under its name elsewhere stays."""
    await office.door.refused("CT1", called="OTHER")
    await office.door.refused("CT1", address="127.0.0.9")
    assert len(await office.now()) == 2
    await office.door.call("CT1")
    [left] = await office.now()

    assert left.subject == "CT1 (127.0.0.9)"
    [over] = await office.now(states=CHOICES["resolved"])
    assert over.resolved is not None and over.resolved.words in RESOLVED_BY_ITSELF
    assert len(await office.node.events(EventKind.FINDING_RESOLVED)) == 1


async def test_a_stranger_is_one_finding_whatever_it_calls_itself(office: Office) -> None:
    """AE titles from outside multiply nothing."""
    for number in range(5):
        await office.door.refused(f"GUESS{number}", address="127.0.0.66")
    [finding] = await office.now()

    assert (finding.kind, finding.subject) == (FindingKind.STRANGER_REFUSED, "127.0.0.66")


async def test_a_device_in_maintenance_that_tries_is_a_notice(office: Office) -> None:
    """Nobody is alarmed about a device that is being worked on."""
    await office.node.registry.set_device_state("CT1", DeviceState.MAINTENANCE)
    await office.door.refused("CT1")
    [finding] = await office.now()

    assert finding.severity is Severity.NOTICE
    assert tell(finding).summary == "This device is in maintenance and cannot send."


async def test_refused_images_are_a_finding_for_each_reason(office: Office) -> None:
    """Two that are broken alike are one, with the words of the refusal."""
    association = await office.door.call("CT1")
    await office.door.store(association, [ct_slice(StudyInstanceUID=None), ct_slice(StudyInstanceUID=None)])
    [finding] = await office.now()

    assert (finding.kind, finding.subject, finding.count) == (FindingKind.INSTANCE_REFUSED, "CT1", 2)
    assert tell(finding).summary.startswith("Images were refused: ")


EVENTS: Mapping[str, tuple[EventKind, dict[str, Any], FindingKind, Severity]] = {
    "bytes": (
        EventKind.INTEGRITY_FAILED,
        {"opening": "op_1"},
        FindingKind.INTEGRITY_FAILED,
        Severity.INCIDENT,
    ),
    "row": (
        EventKind.INTEGRITY_FAILED,
        {"table": "person", "row": "li"},
        FindingKind.ROW_ALTERED,
        Severity.INCIDENT,
    ),
    "log": (EventKind.INTEGRITY_FAILED, {"log": True}, FindingKind.LOG_ALTERED, Severity.INCIDENT),
    "tree": (
        EventKind.INTEGRITY_FAILED,
        {"database": ["ix_index_study_patient"], "mended": True},
        FindingKind.DATABASE_DAMAGED,
        Severity.WARNING,
    ),
    "table": (
        EventKind.INTEGRITY_FAILED,
        {"database": ["index_study", "log_entry"], "mended": False},
        FindingKind.DATABASE_DAMAGED,
        Severity.INCIDENT,
    ),
    "witness": (
        EventKind.WITNESS_ALARMED,
        {"origin": "accord/a"},
        FindingKind.WITNESS_ALARMED,
        Severity.INCIDENT,
    ),
    "roster": (EventKind.ROSTER_REFUSED, {}, FindingKind.ROSTER_REFUSED, Severity.WARNING),
    "member": (EventKind.PEER_REFUSED, {}, FindingKind.MEMBER_REFUSED, Severity.WARNING),
    "flood": (
        EventKind.ASSOCIATION_REFUSED,
        {"code": "too-many-associations"},
        FindingKind.DOOR_CROWDED,
        Severity.WARNING,
    ),
    "handshake": (
        EventKind.ASSOCIATION_REFUSED,
        {"code": "tls-handshake"},
        FindingKind.STRANGER_REFUSED,
        Severity.NOTICE,
    ),
    "input": (EventKind.INPUT_REFUSED, {"code": "bad-pdu"}, FindingKind.DEVICE_FAULTY, Severity.NOTICE),
}


@pytest.mark.parametrize("name", EVENTS)
async def test_what_the_log_says_becomes_a_finding_of_its_kind_and_grade(office: Office, name: str) -> None:
    """Twice the same is one finding, counted; it has a title and words."""
    kind, detail, expected, severity = EVENTS[name]
    for _time in range(2):
        await office.log(kind, "It was altered.", **detail)
    [finding] = await office.now()

    assert (finding.kind, finding.severity, finding.count) == (expected, severity, 2)
    assert tell(finding).title and tell(finding).summary
    assert finding_json(finding)["faults"][0]["code"] == finding.code


@pytest.mark.requirement("V2")
async def test_a_storage_root_out_of_sync_is_over_when_it_is_back(office: Office) -> None:
    """Too few roots to store is an incident; both resolve themselves when every root is in sync."""
    behind: dict[str, Any] = {"root": 2, "in_sync": 2, "of": 3}
    await office.log(EventKind.REPLICA_DEGRADED, "Storage root 2 is out of sync.", **behind)
    await office.log(EventKind.REPLICA_DEGRADED, "Too few roots are left.", writing=False)
    assert [one.severity for one in await office.now()] == [Severity.INCIDENT, Severity.WARNING]
    await office.log(EventKind.REPLICA_HEALED, "Storage root 2 is in sync.", **(behind | {"in_sync": 3}))

    assert await office.now() == []


@pytest.mark.requirement("U7")
async def test_a_disowned_sign_in_is_an_incident_and_a_confirmed_one_is_over(office: Office) -> None:
    """The person's own word decides which it was."""
    told: dict[str, Any] = {"login": "li", "by": "person:it@a-general"}
    await office.log(EventKind.SIGN_IN_RESET, **told)
    [finding] = await office.now()
    assert "li, an account in use, by person:it@a-general" in tell(finding).summary
    await office.log(EventKind.SIGN_IN_RESET_CONFIRMED, **told)
    assert await office.now() == []
    await office.log(EventKind.SIGN_IN_RESET_DISOWNED, **told)
    [finding] = await office.now()

    assert (finding.kind, finding.severity) == (FindingKind.SIGN_IN_DISOWNED, Severity.INCIDENT)


@pytest.mark.requirement("C2")
async def test_an_agent_whose_key_takes_anothers_place_is_a_finding(office: Office) -> None:
    """Whoever put it there could certify a wipe that nobody made; the first key, and the same again, are nothing."""
    registry = office.node.registry
    for key in ("ab" * 32, "ab" * 32):
        await registry.set_agent("CT1", key)
        assert await office.now() == []
    await registry.set_agent("CT1", "cd" * 32, by="person:it@a-general")
    [finding] = await office.now()

    assert (finding.kind, finding.severity) == (FindingKind.AGENT_REPLACED, Severity.WARNING)
    assert "beside CT1 was replaced by person:it@a-general" in tell(finding).summary


async def test_an_idle_association_is_nothing(office: Office) -> None:
    """A modality that keeps its association open and is silent has done nothing wrong."""
    await office.log(EventKind.INPUT_REFUSED, "It was silent for too long.", code="idle")

    assert await office.now() == []


@pytest.mark.requirement("A1", "V4")
async def test_an_altered_log_entry_is_an_incident_and_stops_nothing(office: Office) -> None:
    """The one who follows the log reports the entry that it cannot read, and goes on."""
    await office.log(EventKind.ROSTER_REFUSED, "too old")
    async with office.node.database.write() as tx:
        last = await office.node.log.size(tx) - 1
        await tx.execute(
            text("UPDATE log_entry SET sealed = zeroblob(60) WHERE position = :at"), {"at": last}
        )
    await office.log(EventKind.PEER_REFUSED, "no certificate")
    altered, refused = await office.now()

    assert (altered.kind, altered.severity) == (FindingKind.LOG_ALTERED, Severity.INCIDENT)
    assert f"Entry {last} of the log cannot be read" in tell(altered).summary
    assert refused.kind is FindingKind.MEMBER_REFUSED


@pytest.mark.requirement("A1", "V4")
async def test_a_verification_that_fails_is_an_incident(office: Office) -> None:
    """What the daily look or an officer's found is on record, and so in the findings."""
    await office.log(EventKind.ROSTER_REFUSED, "too old")
    async with office.node.database.write() as tx:
        await tx.execute(text("UPDATE log_entry SET leaf = zeroblob(32) WHERE position = 0"))
    await checks(office).verify_log()

    [finding] = [one for one in await office.now() if one.kind is FindingKind.LOG_ALTERED]
    assert "Verifying the log found that it was altered" in tell(finding).summary


@pytest.mark.requirement("V2", "C3")
async def test_the_daily_look_mends_a_tree_and_names_a_table_until_it_is_made_anew(office: Office) -> None:
    """A search tree: mended, and a warning about the disk. A table of the index: an incident that a rebuild ends."""
    node = office.node
    file = node.path / "node.db"
    await node.store(ct_slice(size=8))
    await node.database.purge_journal()
    flip(file, roots(file)["ix_index_study_patient"], 0)
    await checks(office).verify_database()
    [mended] = await office.now()
    assert (mended.code, mended.severity) == ("database-mended", Severity.WARNING)
    await checks(office).verify_database()
    assert [one.count for one in await office.now()] == [1]

    await node.database.purge_journal()
    flip(file, roots(file)["index_series"], 0)
    with pytest.raises(Corrupt, match="index_series"):
        await checks(office).verify_database()
    named = {one.code: one for one in await office.now()}["database-index"]
    assert named.severity is Severity.INCIDENT and "accord index rebuild" in tell(named).words[0][1]
    await Rebuilding(node.vault, node.index, node.log, node.database).everything("system")
    assert "database-index" not in {one.code for one in await office.now()}


async def test_an_altered_device_row_is_an_incident_that_no_repair_resolves(office: Office) -> None:
    """The device comes back by being registered anew; the officer still has to look."""
    async with office.node.database.write() as tx:
        await tx.execute(text("UPDATE device SET address = '0.0.0.0/0'"))
    assert (await office.node.registry.survey()).altered == ("CT1",)
    [finding] = await office.now()
    await office.node.registry.add_device("CT1", "127.0.0.1", plain_reason=PLAIN)
    await office.door.call("CT1")
    [still] = await office.now()

    assert (finding.id, still.kind) == (still.id, FindingKind.ROW_ALTERED)
    assert still.subject == "device CT1" and still.severity is Severity.INCIDENT


async def test_no_more_than_so_many_of_a_kind_live_at_once(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flood of strangers fills neither the table nor the log: the rest is counted in one."""
    monkeypatch.setattr(noun, "MAX_LIVING", 3)
    await take(office, *(sighting(number) for number in range(20)))
    found = await office.findings.listed()

    assert len(found) == 4
    [rest] = [one for one in found if one.subject == OVERFLOW]
    assert rest.count == 17 and tell(rest).subject == "others of this kind"
    assert len(await office.node.events(EventKind.FINDING_OPENED)) == 4


EVERY_PAIR = [(before, after) for before in FindingState for after in FindingState]


async def put(office: Office, finding: str, state: FindingState) -> None:
    if state is FindingState.ACKNOWLEDGED:
        await office.findings.acknowledge(finding, "I look into it", by="person:it@a-general")
    elif state is FindingState.RESOLVED:
        await office.findings.resolve(finding, "It was the cable", by="person:sec@a-general")


@pytest.mark.parametrize(("before", "after"), EVERY_PAIR, ids=lambda state: state.value)
async def test_a_finding_is_answered_as_the_table_says_and_not_otherwise(
    office: Office, before: FindingState, after: FindingState
) -> None:
    """Every pair: allowed, with who and in which words, on record; or a Conflict that changes nothing."""
    await take(office, sighting())
    [finding] = await office.findings.listed()
    await put(office, finding.id, before)
    if after is FindingState.OPEN:
        assert after not in TRANSITIONS[before]
        return
    if after in TRANSITIONS[before]:
        await put(office, finding.id, after)
    else:
        with pytest.raises(Conflict):
            await put(office, finding.id, after)

    one = await office.findings.one(finding.id)
    assert one.state is (after if after in TRANSITIONS[before] else before)
    if one.state is FindingState.RESOLVED:
        assert one.resolved is not None and one.resolved.words == "It was the cable"
        [entry] = await office.node.events(EventKind.FINDING_RESOLVED)
        assert (entry.event.actor, entry.event.reason) == ("person:sec@a-general", "It was the cable")


@pytest.mark.parametrize("words", ["", "  ", "ok", "x" * (MAX_WORDS_CHARACTERS + 1)])
async def test_an_answer_needs_words(office: Office, words: str) -> None:
    """Neither silence nor a book; an unknown finding is not found."""
    await take(office, sighting())
    [finding] = await office.findings.listed()
    with pytest.raises(Invalid, match="Say in words"):
        await office.findings.acknowledge(finding.id, words, by="person:it@a-general")
    with pytest.raises(NotFound):
        await office.findings.resolve("0" * 16, "no such thing", by="person:it@a-general")


async def test_what_comes_back_after_it_was_resolved_is_a_finding_of_its_own(office: Office) -> None:
    """And while it is acknowledged, a repeat is counted in it and does not open it again."""
    await take(office, sighting())
    [first] = await office.findings.listed()
    await put(office, first.id, FindingState.ACKNOWLEDGED)
    await take(office, sighting())
    [same] = await office.findings.listed()
    assert (same.id, same.count, same.state) == (first.id, 2, FindingState.ACKNOWLEDGED)
    await put(office, first.id, FindingState.RESOLVED)
    await take(office, sighting())
    [again] = await office.findings.listed()

    assert again.id != first.id and again.state is FindingState.OPEN


async def test_following_twice_or_from_two_processes_counts_once(office: Office) -> None:
    """The cursor moves with what was done."""
    await office.log(EventKind.ROSTER_REFUSED, "too old")
    other = Overseer(
        office.node.database, office.node.log, office.node.registry, Findings(
            office.node.database, office.node.log, office.node.clock
        ),
    )  # fmt: skip
    await office.overseer.follow()
    await other.follow()
    await office.overseer.follow()
    [finding] = await office.findings.listed()

    assert finding.count == 1


def checks(office: Office, *, free: int = 100 * MIN_FREE_BYTES, jobs: Any = tuple) -> Checks:
    clock: Any = SimpleNamespace(now=office.node.clock.now, behind_seconds=0.0)
    return Checks(
        office.findings, office.node.registry, office.node.log, clock, {"packs": office.node.path}, jobs,
        free_bytes=lambda _path: free,
    )  # fmt: skip


@pytest.mark.requirement("C1", "F4")
async def test_a_disk_that_fills_is_a_warning_then_an_incident_and_then_over(office: Office) -> None:
    """One finding through it all; with room again it resolves itself."""
    for free, severity in ((LOW_FREE_BYTES - 1, Severity.WARNING), (MIN_FREE_BYTES - 1, Severity.INCIDENT)):
        await checks(office, free=free).look()
        [finding] = await office.findings.listed()
        assert (finding.kind, finding.severity, finding.count) == (FindingKind.DISK_LOW, severity, 1)
    assert "2.0 GiB left" in tell(finding).summary
    await checks(office).look()

    assert await office.findings.listed() == []
    assert len(await office.node.events(EventKind.FINDING_OPENED)) == 1


@pytest.mark.requirement("V2", "F4")
def test_the_disk_of_every_storage_root_counts(tmp_path: Path) -> None:
    """By the number that the other commands use; one copy alone is called packs."""
    section = NodeSection(id="a1", name="A")
    several = StorageSection(roots=(Path("a"), Path("/b")))
    anything: Any = None

    def places(settings: Settings) -> dict[str, Path]:
        return dict(Checks.of(settings, anything, anything, anything, anything).folders)

    assert places(Settings(node=section, folder=tmp_path)) == {
        "database": tmp_path,
        "packs": tmp_path / "packs",
    }
    assert places(Settings(node=section, storage=several, folder=tmp_path)) == {
        "database": tmp_path,
        "root 1": tmp_path / "a",
        "root 2": Path("/b"),
    }


@pytest.mark.requirement("C1")
async def test_a_certificate_is_a_finding_thirty_days_before_its_end_and_after_it(office: Office) -> None:
    """Not a day earlier; after its end as another one; renewed, it is over. A retired device's is nothing."""
    node = office.node
    issued = node.identity.issue_device_certificate("CT2", node.clock.now(), days=40).certificate.decode()
    await node.registry.add_device("CT2", "10.1.2.3", issued)
    look = checks(office).look
    node.clock.tick(days=9)
    await look()
    assert await office.findings.listed() == []
    node.clock.tick(days=2)
    await look()
    [finding] = await office.findings.listed()
    assert (finding.kind, finding.severity) == (FindingKind.CERTIFICATE_EXPIRING, Severity.WARNING)
    node.clock.tick(days=30)
    await look()
    [finding] = await office.findings.listed()
    assert finding.kind is FindingKind.CERTIFICATE_ENDED and "it cannot send" in tell(finding).summary
    fresh = node.identity.issue_device_certificate("CT2", node.clock.now()).certificate.decode()
    await node.registry.renew_certificate("CT2", fresh)
    await look()
    assert await office.findings.listed() == []
    await node.registry.set_device_state("CT2", DeviceState.RETIRED)
    node.clock.tick(days=364)
    await look()
    assert await office.findings.listed() == []


async def test_a_duty_that_keeps_failing_is_a_notice(office: Office) -> None:
    """One failure is nothing; two looks in a row are; well again, it is over."""
    failing = JobStatus("scrub", 60.0, error="The disk cannot be read.")
    states = [failing]
    look = checks(office, jobs=lambda: states).look
    await look()
    assert await office.findings.listed() == []
    await look()
    [finding] = await office.findings.listed()
    assert tell(finding).summary == "The timed duty scrub fails: The disk cannot be read."
    states[:] = [JobStatus("scrub", 60.0)]
    await look()

    assert await office.findings.listed() == []


@pytest.mark.requirement("U1")
async def test_access_rows_put_back_are_an_incident_at_once(office: Office) -> None:
    """The duty that compares them fails for one reason only."""
    states = [JobStatus("access-rows", 60.0, error="Access rows were deleted or put back outside this node.")]
    await checks(office, jobs=lambda: states).look()
    [finding] = await office.findings.listed()

    assert finding.severity is Severity.INCIDENT and "put back" in tell(finding).summary


async def test_old_resolved_findings_leave_the_table(office: Office) -> None:
    """The log still has them; living ones stay, however old."""
    await take(office, sighting(1), sighting(2))
    first, _second = await office.findings.listed()
    await put(office, first.id, FindingState.RESOLVED)
    office.node.clock.moment += noun.KEPT + timedelta(days=1)
    await office.findings.prune()

    assert len(await office.findings.listed(states=CHOICES["all"])) == 1


def test_every_kind_has_a_title_and_every_code_of_a_rule_its_words() -> None:
    """Nothing is shown as a bare code."""
    assert set(TITLES) == set(FindingKind)
    assert {
        "told",
        "overflow",
        *(kind.value for kind in (FindingKind.DISK_LOW, FindingKind.JOB_FAILING)),
    } <= set(WORDS)
    assert EventKind.FINDING_OPENED not in RULES
