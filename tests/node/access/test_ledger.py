"""Whoever has the database, and no key of the node: what was deleted or put back there is noticed before it is believed."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from consent.approvals import Proposal, Voice
from consent.errors import Corrupt
from consent.principals import Principal
from consent.vocabulary import EventKind, Role
from node.access.care import Care
from node.access.ledger import Ledger
from node.access.registry import Registry
from node.access.rows import RowAltered, Rows
from node.access.sweep import RowSweep
from node.approvals import Approvals
from node.audit.log import Log
from node.audit.note import Signer
from node.database import Database
from node.records import Records
from tests.node.access.conftest import GOOD, NODE, Desk
from tests.support.consents import key_of
from tests.support.seeds import ROWS

pytestmark = pytest.mark.requirement("A1", "V1", "U1")

PATIENT = "pt_one"
LOG_TABLES = ("log_state", "log_entry", "log_hash", "log_checkpoint", "log_cosignature", "log_cursor")


class Thief:
    """Somebody who has the database file, and keeps copies of it."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def run(self, statement: str, *values: Any) -> int:
        """Change the database behind the node's back; return how many rows were touched."""
        with closing(sqlite3.connect(self.file)) as connection, connection:
            return connection.execute(statement, values).rowcount

    def copy(self, suffix: str = ".kept") -> Path:
        """Keep the database as it is now."""
        kept = self.file.with_suffix(suffix)
        kept.unlink(missing_ok=True)
        with closing(sqlite3.connect(self.file)) as connection, connection:
            connection.execute("VACUUM INTO ?", (str(kept),))
        return kept

    def put_back(self, kept: Path, *tables: str) -> None:
        """Put whole tables back as they were."""
        with closing(sqlite3.connect(self.file)) as connection:
            connection.execute("ATTACH ? AS kept", (str(kept),))
            with connection:
                for table in tables:
                    connection.execute(f"DELETE FROM main.{table}")
                    connection.execute(f"INSERT INTO main.{table} SELECT * FROM kept.{table}")

    def tables(self) -> list[str]:
        """Every table but the log's."""
        with closing(sqlite3.connect(self.file)) as connection:
            names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        return [name for (name,) in names if name not in LOG_TABLES]


@pytest.fixture
async def thief(desk: Desk, tmp_path: Path) -> Thief:
    """Two clinicians, one of whom treats a patient; and a thief."""
    for login in ("li", "wu"):
        await desk.registry.add_person(login, f"Dr {login}", Role.CLINICIAN, None, GOOD)
    await desk.care.record("li", PATIENT, until=desk.clock.now() + timedelta(hours=8))
    return Thief(tmp_path / "accord.db")


@pytest.fixture
async def again(desk: Desk, tmp_path: Path) -> AsyncIterator[Callable[[], Desk]]:
    """The same node after a restart: it remembers nothing but what the database says."""
    opened: list[Desk] = []

    def start() -> Desk:
        database = Database(desk.database.url)
        log = Log(database, key=bytes(32), origin=NODE, signer=Signer(NODE, bytes(32)), clock=desk.clock)
        passwords = desk.registry.passwords
        registry = Registry(
            database, log, desk.clock, key=ROWS, node=NODE, ae_title="A_GENERAL", passwords=passwords
        )
        started = Desk(
            database, log, desk.clock, registry, desk.sessions, Care(database, log, desk.clock, key=ROWS)
        )
        opened.append(started)
        return started

    yield start
    for one in opened:
        await one.log.close()
        await one.database.close()


def sweep_of(desk: Desk) -> RowSweep:
    return RowSweep(desk.database, desk.log, Rows(desk.database, ROWS, desk.log))


def approvals_of(desk: Desk) -> tuple[Approvals, Records]:
    records = Records(desk.database, key=ROWS, log=desk.log)
    approvals = Approvals(desk.database, records, desk.log, desk.clock, node_id=NODE, key=key_of("b-central"))
    return approvals, records


async def refused_proposal(desk: Desk) -> tuple[Approvals, Records, str]:
    """A proposal that one officer approves and another refuses."""
    approvals, records = approvals_of(desk)
    officers = frozenset({Role.SECURITY_OFFICER})
    put = await approvals.put(
        Principal("it", Role.ADMINISTRATOR, "It", NODE),
        deed="destruction", subject="st_1", reason="old", quorum=2, roles=officers,
    )  # fmt: skip
    for login, voice in (("one", Voice.APPROVE), ("two", Voice.REFUSE)):
        await approvals.answer(put.id, Principal(login, Role.SECURITY_OFFICER, login, NODE), voice)
        desk.clock.tick(seconds=1)
    return approvals, records, put.id


async def told(desk: Desk) -> list[str]:
    return [f"{one.detail['table']}" for one in await desk.events(EventKind.INTEGRITY_FAILED)]


@pytest.mark.parametrize("known", [True, False], ids=["running", "restarted"])
@pytest.mark.parametrize(
    "table", ["record", "record_subject", "both"], ids=["the record", "what finds it", "both"]
)
async def test_a_deleted_record_leaves_its_subject_unbelievable(
    desk: Desk, thief: Thief, again: Callable[[], Desk], table: str, known: bool
) -> None:
    """A refusal, or a withdrawal, that is gone from the database does not bring the approval back."""
    approvals, _, proposal = await refused_proposal(desk)
    newest = "(SELECT id FROM record WHERE kind = 'approval' ORDER BY issued DESC LIMIT 1)"
    if table in ("record_subject", "both"):
        assert thief.run(f"DELETE FROM record_subject WHERE record_id = {newest}")
    if table in ("record", "both"):
        assert thief.run(f"DELETE FROM record WHERE id = {newest}")
    now = desk if known else again()
    with pytest.raises(RowAltered):
        await (approvals if known else approvals_of(now)[0]).standing(proposal)
    assert await told(now) in (["record"], ["record_subject"])


@pytest.mark.parametrize("kind", ["'proposal'", "'x'"])
async def test_a_record_does_not_hide_under_another_kind(desk: Desk, thief: Thief, kind: str) -> None:
    """What kind a record is of is sealed with its row."""
    approvals, _, proposal = await refused_proposal(desk)
    assert thief.run(f"UPDATE record SET kind = {kind} WHERE kind = 'approval'")
    with pytest.raises(RowAltered):
        await approvals.standing(proposal)


@pytest.mark.requirement("U7")
@pytest.mark.parametrize("restart", [False, True], ids=["running", "restarted"])
@pytest.mark.parametrize("asked", [False, True], ids=["unread", "read just before"])
@pytest.mark.parametrize("table", ["care", "token", "person"])
async def test_an_older_row_put_back_whole_is_refused(
    desk: Desk, thief: Thief, again: Callable[[], Desk], table: str, asked: bool, restart: bool
) -> None:
    """Its seal is genuine, and it is not the newest: an ended relationship, a revoked token, an old password."""
    secret = await desk.registry.create_token("li", {"api"})
    (token,) = await desk.registry.tokens_of("li")
    kept = thief.copy()
    questions: dict[str, Callable[[Desk], Any]] = {
        "care": lambda now: now.care.related("li", PATIENT, desk.clock.now()),
        "token": lambda now: now.registry.principal_of_token(secret),
        "person": lambda now: now.registry.proves("li", GOOD),
    }
    await desk.care.end("li", PATIENT)
    await desk.registry.revoke_token(token.id)
    await desk.registry.set_password("li", GOOD + GOOD)
    if asked:
        assert not await questions[table](desk)
    thief.put_back(kept, table)
    now = again() if restart else desk
    with pytest.raises(RowAltered):
        await questions[table](now)
    assert (await told(now)) == [table]


async def test_what_is_put_back_for_a_moment_is_not_believed_in_it(desk: Desk, thief: Thief) -> None:
    """Each question meets the rows as they are then: there is no time between two sweeps to hide in."""
    kept = thief.copy()
    await desk.care.end("li", PATIENT)
    assert not await desk.care.related("li", PATIENT, desk.clock.now())
    present = thief.copy(".now")
    thief.put_back(kept, "care")
    with pytest.raises(RowAltered):
        await desk.care.related("li", PATIENT, desk.clock.now())
    thief.put_back(present, "care")
    assert not await desk.care.related("li", PATIENT, desk.clock.now())
    assert await told(desk) == ["care"]


@pytest.mark.parametrize("read", [True, False], ids=["read since", "only written"])
async def test_rows_put_back_with_their_states_are_refused_while_the_node_runs(
    desk: Desk, thief: Thief, read: bool
) -> None:
    """The states are genuine too, and older than those that this process has seen or made."""
    kept = thief.copy()
    await desk.care.end("li", PATIENT)
    if read:
        assert not await desk.care.related("li", PATIENT, desk.clock.now())
    thief.put_back(kept, "care", "row_state")
    with pytest.raises(RowAltered):
        await desk.care.related("li", PATIENT, desk.clock.now())


@pytest.mark.parametrize("noted", [False, True], ids=["since the last note", "noted"])
async def test_a_database_behind_its_own_log_is_believed_in_nothing_until_accepted(
    desk: Desk, thief: Thief, again: Callable[[], Desk], noted: bool
) -> None:
    """Everything but the log was put back, the node restarted: the log has the later count, and keeps it."""
    kept = thief.copy()
    await desk.care.end("li", PATIENT)
    if noted:
        await sweep_of(desk).run()
    thief.put_back(kept, *thief.tables())
    now = again()
    with pytest.raises(Corrupt, match="put back"):
        await sweep_of(now).run()
    for question in (now.care.related("li", PATIENT, desk.clock.now()), now.registry.principal("wu")):
        with pytest.raises(RowAltered):
            await question
    assert await sweep_of(now).accept("system:root", "inquiry 7: the copy of noon was restored") >= 3
    assert await now.care.related("li", PATIENT, desk.clock.now())  # as it was at noon, and on record
    await sweep_of(now).run()
    (accepted,) = await now.events(EventKind.ACCESS_ROWS_ACCEPTED)
    assert accepted.reason.startswith("inquiry 7")
    assert await desk.care.related("li", PATIENT, desk.clock.now())  # whoever ran on meanwhile goes on


async def test_changes_made_after_rows_were_put_back_do_not_cover_it_in_the_log(
    desk: Desk, thief: Thief, again: Callable[[], Desk]
) -> None:
    """The same count twice in the log tells of two histories."""
    kept = thief.copy()
    await desk.care.end("li", PATIENT)
    thief.put_back(kept, *thief.tables())
    now = again()
    for patient in ("pt_2", "pt_3"):
        await now.care.record("wu", patient)
    checked = await now.log.verify()
    assert any("put back" in fault for fault in checked.faults)


async def test_a_state_put_back_alone_is_refused(desk: Desk, thief: Thief, again: Callable[[], Desk]) -> None:
    """Rows and state of one table, with the states of the others: together they do not fit."""
    kept = thief.copy()
    await desk.care.end("li", PATIENT)
    await desk.registry.create_token("li", {"api"})
    thief.put_back(kept, "care")
    with closing(sqlite3.connect(thief.file)) as connection:
        connection.execute("ATTACH ? AS kept", (str(kept),))
        with connection:
            connection.execute("DELETE FROM row_state WHERE name = 'care'")
            connection.execute("INSERT INTO row_state SELECT * FROM kept.row_state WHERE name = 'care'")
    now = again()
    assert (await sweep_of(now).sweep(max_rows=0)).put_back
    with pytest.raises(RowAltered):
        await now.care.related("li", PATIENT, desk.clock.now())


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM row_state WHERE name = 'person'",
        "DELETE FROM row_state WHERE name = ''",
        "UPDATE row_state SET sealed = zeroblob(68) WHERE name = 'person'",
        "UPDATE row_state SET changes = changes + 1 WHERE name = 'person'",
        "UPDATE row_state SET sealed = 'x' WHERE name = 'person'",
        "UPDATE person SET mac = 'x' WHERE login = 'wu'",
        "DELETE FROM person WHERE login = 'wu'",
        "UPDATE person SET bucket = bucket + 1 WHERE login = 'wu'",
        "DELETE FROM care",
    ],
)
async def test_the_sweep_finds_what_nobody_asks_about(
    desk: Desk, thief: Thief, again: Callable[[], Desk], statement: str
) -> None:
    """A state or a row that is gone, forged or moved; it is on record, and the job says so."""
    assert thief.run("DELETE FROM session") == 0
    assert thief.run(statement)
    now = again()
    with pytest.raises(Corrupt, match="deleted or put back"):
        await sweep_of(now).run()
    assert await told(now)


async def test_a_row_put_in_does_not_make_those_beside_it_unbelievable(desk: Desk, thief: Thief) -> None:
    """It is refused itself; somebody who can write must not thereby shut others out."""
    copied = "name, role, department, password, credentials, must_change, created, bucket, mac"
    assert thief.run(
        f"INSERT INTO person (login, {copied}) SELECT 'eve', {copied} FROM person WHERE login = 'li'"
    )
    assert (await desk.registry.principal("li")).id == "li"
    with pytest.raises(RowAltered):
        await desk.registry.principal("eve")


async def test_what_was_rolled_back_is_not_held_against_the_rows(desk: Desk, thief: Thief) -> None:
    """A transaction reads its own changes and fails: the next reader finds everything in order."""
    with pytest.raises(RuntimeError):
        async with desk.database.write() as tx:
            await desk.care.record("li", "pt_two", tx=tx)
            assert await desk.care.related("li", "pt_two", desk.clock.now(), tx=tx)
            raise RuntimeError
    assert not await desk.care.related("li", "pt_two", desk.clock.now())
    assert await desk.care.related("li", PATIENT, desk.clock.now())
    await sweep_of(desk).run()
    assert (await desk.log.verify()).ok


async def test_readers_and_writers_of_two_processes_never_see_a_false_alarm(
    desk: Desk, thief: Thief, again: Callable[[], Desk]
) -> None:
    """Snapshots older than what was learnt meanwhile are no rollback."""
    other, sweep = again(), sweep_of(desk)

    async def write(there: Desk, login: str) -> None:
        for number in range(12):
            await there.care.record(login, f"pt_{number}")
            await there.registry.create_token(login, {"api"})

    async def read(there: Desk) -> None:
        for _ in range(40):
            await there.care.patients_of("li")
            await there.registry.tokens_of("wu")
            await there.registry.people()

    async with asyncio.TaskGroup() as group:
        for there, login in ((desk, "li"), (other, "wu")):
            group.create_task(write(there, login))
            group.create_task(read(there))
        for _ in range(5):
            await sweep.run()
    await sweep.run()
    assert not await told(desk)
    checked = await desk.log.verify()
    assert checked.ok, checked.faults


async def test_only_what_no_change_told_is_noted_in_the_log(desk: Desk, thief: Thief) -> None:
    """A sweep over rows whose last change the log knows appends nothing."""
    before = await desk.log.size()
    await sweep_of(desk).run()
    await sweep_of(desk).run()
    assert await desk.log.size() == before
    _, records, _ = await refused_proposal(desk)
    async with desk.database.write() as tx:
        for one in await records.find(Proposal, tx=tx):
            await records.mark(tx, one.id, "sent")
    await sweep_of(desk).run()
    assert len(await desk.events(EventKind.ACCESS_ROWS_SEALED)) == 1


def test_the_states_tell_nothing_without_the_key() -> None:
    """Two ledgers with different keys give different elements, and neither shows its key."""
    one, two = Ledger(ROWS), Ledger(bytes(32))
    assert one.digest_of("care", [bytes(32)]) != two.digest_of("care", [bytes(32)])
    assert one.digest_of("care", [b"a", b"b"]) == one.digest_of("care", [b"b", b"a"])
