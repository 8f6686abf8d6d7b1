"""Whoever has the database in hand, and no key of the node: nothing that decides can be made or changed there."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from consent.errors import Corrupt
from consent.vocabulary import EventKind, Outcome, Role
from node.access.care import care_table
from node.access.devices import DeviceState
from node.access.people import person_table
from node.access.registry import Registry
from node.access.rows import RowAltered, Rows
from node.access.rowseal import RowSeal
from node.access.sweep import RowSweep
from node.access.tokens import secret_hash
from node.database import microseconds
from tests.node.access.conftest import GOOD, NODE, Desk
from tests.node.access.test_devices import knock
from tests.support.seeds import ROWS

pytestmark = pytest.mark.requirement("A1", "V1")

HOUR = 3_600_000_000
PATIENT = "pt_one"


@pytest.fixture
async def staffed(desk: Desk) -> Desk:
    """Two clinicians with passwords, one of whom treats the patient, and a device in plain."""
    for login in ("li", "wu"):
        await desk.registry.add_person(login, f"Dr {login}", Role.CLINICIAN, None, GOOD)
    await desk.care.record("li", PATIENT, until=desk.clock.now() + timedelta(hours=1))
    await desk.registry.add_device("CT1", "10.1.2.3", plain_reason="too old for TLS")
    return desk


async def alter(desk: Desk, statement: str, **values: Any) -> None:
    """What somebody does who has the database file."""
    async with desk.database.write() as tx:
        assert (await tx.execute(text(statement), values)).rowcount


async def refused(desk: Desk, question: Callable[[], Awaitable[object]], table: str, row: str) -> None:
    """The question gets Corrupt, however often it is put, and the log one entry that names the row."""
    for _ in range(2):
        with pytest.raises(Corrupt, match="outside this node") as error:
            await question()
        assert error.value.code == "row-altered"
        assert "backup" in error.value.mend
    (event,) = await desk.events(EventKind.INTEGRITY_FAILED)
    assert (event.outcome, event.detail) == (Outcome.FAILED, {"table": table, "row": row})


@pytest.mark.requirement("U1")
@pytest.mark.parametrize(
    "change",
    [
        "role = 'chief-physician'",
        "role = 'no-such-role'",
        "role = x'00'",
        "department = 'ICU'",
        "password = (SELECT password FROM person WHERE login = 'wu')",
        "one_time = 'ff', one_time_until = 9000000000000000",
        "credentials = credentials + 1",
        "must_change = 1",
        "mac = (SELECT mac FROM person WHERE login = 'wu')",
        "mac = x''",
    ],
)
async def test_an_altered_account_is_nobody(staffed: Desk, change: str) -> None:
    """Its role, its password, its one-time secret: neither the rules nor the sign-in believe the row."""
    await alter(staffed, f"UPDATE person SET {change} WHERE login = 'li'")
    await refused(staffed, lambda: staffed.registry.principal("li"), "person", "li")
    for question in (
        staffed.sessions.sign_in("li", GOOD, "10.0.0.1"),
        staffed.registry.proves("li", GOOD),
        staffed.registry.people(),
    ):
        with pytest.raises(Corrupt):
            await question
    assert (await staffed.registry.principal("wu")).role is Role.CLINICIAN


@pytest.mark.requirement("U1")
@pytest.mark.parametrize("change", ["created = 'soon'", "disabled = 'never'", "mac = 'x'", "bucket = 'x'"])
async def test_a_value_of_another_type_is_an_altered_row(staffed: Desk, change: str) -> None:
    """Not an unforeseen error: it is refused in words and on record, wherever it is met."""
    await alter(staffed, f"UPDATE person SET {change} WHERE login = 'li'")
    for question in (
        staffed.registry.principal("li"),
        staffed.registry.people(),
        staffed.sessions.sign_in("li", GOOD, "10.0.0.1"),
        staffed.registry.set_password("li", GOOD + GOOD),
    ):
        with pytest.raises(RowAltered):
            await question
    assert await staffed.events(EventKind.INTEGRITY_FAILED)


@pytest.mark.requirement("U1")
async def test_a_disabled_account_is_not_opened_in_the_database(staffed: Desk) -> None:
    """To clear the column is a change like any other."""
    await staffed.registry.disable("li")
    await alter(staffed, "UPDATE person SET disabled = NULL WHERE login = 'li'")
    await refused(staffed, lambda: staffed.sessions.sign_in("li", GOOD, "10.0.0.1"), "person", "li")


@pytest.mark.requirement("U1")
async def test_a_change_does_not_make_an_altered_account_whole(staffed: Desk) -> None:
    """Whatever seals a row again has checked it first."""
    await alter(staffed, "UPDATE person SET role = 'chief-physician' WHERE login = 'li'")
    await refused(staffed, lambda: staffed.registry.set_password("li", GOOD + GOOD), "person", "li")
    with pytest.raises(Corrupt):
        await staffed.registry.principal("li")


@pytest.mark.requirement("U1")
async def test_an_inserted_account_is_nobody(staffed: Desk) -> None:
    """A row copied under another login bears a seal that is not its own."""
    copied = "name, role, department, password, credentials, must_change, created, bucket, mac"
    await alter(
        staffed, f"INSERT INTO person (login, {copied}) SELECT 'eve', {copied} FROM person WHERE login = 'li'"
    )
    await refused(staffed, lambda: staffed.sessions.sign_in("eve", GOOD, "10.0.0.1"), "person", "eve")


@pytest.mark.requirement("U7")
async def test_an_inserted_session_signs_nobody_in(staffed: Desk) -> None:
    """To know the hash of a cookie that one has chosen is not enough."""
    cookie, now = "chosen", microseconds(staffed.clock.now())
    await alter(
        staffed,
        "INSERT INTO session VALUES (:hash, 'li', 1, 0, 0, '10.0.0.1', :now, :now, :then, 7, :mac)",
        hash=secret_hash(cookie), now=now, then=now + HOUR, mac=bytes(32),
    )  # fmt: skip
    await refused(staffed, lambda: staffed.sessions.session(cookie), "session", secret_hash(cookie))


@pytest.mark.requirement("U7")
@pytest.mark.parametrize(
    "change",
    ["login = 'wu'", "second_factor = 1", f"expires = expires + {HOUR}", f"seen = seen + {HOUR}"],
)
async def test_an_altered_session_is_over(staffed: Desk, change: str) -> None:
    """Its person, its factor and its end are sealed, and so is the moment it was last used."""
    session = await staffed.sessions.sign_in("li", GOOD, "10.0.0.1")
    await alter(staffed, f"UPDATE session SET {change}")
    hashed = secret_hash(session.cookie)
    await refused(staffed, lambda: staffed.sessions.session(session.cookie), "session", hashed)


@pytest.mark.requirement("U7")
async def test_a_session_of_an_altered_account_is_refused(staffed: Desk) -> None:
    """Who is signed in does not rise either."""
    session = await staffed.sessions.sign_in("li", GOOD, "10.0.0.1")
    await alter(staffed, "UPDATE person SET role = 'chief-physician' WHERE login = 'li'")
    await refused(staffed, lambda: staffed.sessions.session(session.cookie), "person", "li")


@pytest.mark.requirement("U7")
async def test_a_session_in_use_stays_sealed(staffed: Desk) -> None:
    """Being touched, and the account's last sign-in, are changes of our own."""
    session = await staffed.sessions.sign_in("li", GOOD, "10.0.0.1")
    for _ in range(3):
        staffed.clock.tick(minutes=10)
        assert await staffed.sessions.session(session.cookie) is not None
    await staffed.sessions.sign_out(session.cookie)
    assert await staffed.sessions.session(session.cookie) is None


@pytest.mark.requirement("U1")
async def test_an_inserted_relationship_relates_nobody(staffed: Desk) -> None:
    """Neither made up nor copied from a person who treats the patient."""
    await alter(
        staffed,
        "INSERT INTO care SELECT 'made-up', 'wu', patient, source, recorded_by, begins, ends, bucket, mac FROM care",
    )
    now = staffed.clock.now()
    await refused(staffed, lambda: staffed.care.related("wu", PATIENT, now), "care", "made-up")
    for question in (staffed.care.patients_of("wu"), staffed.care.carers_of(PATIENT)):
        with pytest.raises(Corrupt):
            await question
    assert await staffed.care.related("li", PATIENT, now)


@pytest.mark.requirement("U1")
async def test_an_ended_relationship_is_not_prolonged(staffed: Desk) -> None:
    """Nor is an altered one made whole by ending it."""
    await staffed.care.end("li", PATIENT)
    await alter(staffed, "UPDATE care SET ends = NULL, patient = 'pt_two'")
    (row,) = await _column(staffed, "SELECT id FROM care")
    await refused(staffed, lambda: staffed.care.end("li", "pt_two"), "care", row)
    with pytest.raises(Corrupt):
        await staffed.care.related("li", "pt_two", staffed.clock.now())


@pytest.mark.requirement("U7")
@pytest.mark.parametrize(
    "change",
    ["login = 'wu'", "scopes = 'api dicomweb'", f"expires = expires + {HOUR}", "created = 0"],
)
async def test_an_altered_token_opens_nothing(staffed: Desk, change: str) -> None:
    """Its owner, scopes and end are sealed."""
    secret = await staffed.registry.create_token("li", {"dicomweb"})
    await alter(staffed, f"UPDATE token SET {change}")
    (row,) = await _column(staffed, "SELECT id FROM token")
    await refused(staffed, lambda: staffed.registry.principal_of_token(secret), "token", row)
    with pytest.raises(Corrupt):
        await staffed.registry.revoke_token(row)


@pytest.mark.requirement("U7")
async def test_a_token_with_a_secret_of_ones_own_opens_nothing(staffed: Desk) -> None:
    """The hash of the secret is sealed with the rest."""
    await staffed.registry.create_token("li", {"dicomweb"})
    await alter(staffed, "UPDATE token SET hash = :hash", hash=secret_hash("acc_chosen"))
    (row,) = await _column(staffed, "SELECT id FROM token")
    await refused(staffed, lambda: staffed.registry.principal_of_token("acc_chosen"), "token", row)


@pytest.mark.requirement("U7")
async def test_a_revoked_token_is_not_revived_and_does_not_keep_an_account_open(staffed: Desk) -> None:
    """The account closes; the altered token stays refused when it opens again."""
    secret, good = [await staffed.registry.create_token("li", {"api"}) for _ in range(2)]
    (row,) = await _column(staffed, "SELECT id FROM token WHERE hash = :hash", hash=secret_hash(secret))
    await staffed.registry.revoke_token(row)
    await alter(staffed, "UPDATE token SET revoked = NULL WHERE id = :id", id=row)
    await staffed.registry.disable("li")
    await staffed.registry.enable("li")
    assert await staffed.registry.principal_of_token(good) is None
    await refused(staffed, lambda: staffed.registry.principal_of_token(secret), "token", row)


@pytest.mark.requirement("C1")
@pytest.mark.parametrize(
    "change",
    ["fingerprint = 'ff'", "address = '0.0.0.0/0'", "plain_reason = 'because'", "department = 'ICU'"],
)
async def test_an_altered_device_may_not_send(staffed: Desk, change: str) -> None:
    """Its address, certificate and reason for plain are sealed; registering it anew puts it right."""
    await alter(staffed, f"UPDATE device SET {change}")
    await refused(staffed, lambda: knock(staffed), "device", "CT1")
    with pytest.raises(Corrupt):
        await staffed.registry.set_device_state("CT1", DeviceState.ACTIVE)
    await staffed.registry.add_device("CT1", "10.1.2.3", plain_reason="too old for TLS")
    assert (await knock(staffed, tls=False, certificate_der=None)).id == "CT1"


@pytest.mark.requirement("U1")
@pytest.mark.parametrize("change", ["expires = 'soon'", "scopes = 'admin'"])
async def test_an_altered_token_does_not_keep_an_account_open(staffed: Desk, change: str) -> None:
    """Whatever was written into it, the account closes."""
    await staffed.registry.create_token("li", {"api"})
    await alter(staffed, f"UPDATE token SET {change}")
    await staffed.registry.disable("li")
    assert not (await staffed.registry.principal("li")).active


@pytest.mark.requirement("U1")
@pytest.mark.parametrize("change", ["expires = 0", "expires = 0, created = 'soon'"])
async def test_an_altered_session_is_swept_and_leaves_those_beside_it_whole(
    staffed: Desk, change: str
) -> None:
    """It is on record, its seal leaves the ledger with it, and whoever signs in next finds nothing missing."""
    await staffed.sessions.sign_in("li", GOOD, "10.0.0.1")
    await alter(staffed, f"UPDATE session SET {change}")
    assert await staffed.sessions.sweep() == 1
    (event,) = await staffed.events(EventKind.INTEGRITY_FAILED)
    assert event.detail["table"] == "session"
    rows = Rows(staffed.database, ROWS, staffed.log)
    swept = await RowSweep(staffed.database, staffed.log, rows).sweep()
    assert swept.faults == ()


async def test_rows_sealed_by_another_node_are_refused(staffed: Desk) -> None:
    """The seal is this node's: a row brought from elsewhere does not fit."""
    other = Registry(
        staffed.database,
        staffed.log,
        staffed.clock,
        key=bytes(32),
        node=NODE,
        ae_title="A_GENERAL",
        passwords=staffed.registry.passwords,
    )
    await refused(staffed, lambda: other.person("li"), "person", "li")


async def test_who_tries_in_a_transaction_of_its_own_is_told_and_logged(staffed: Desk) -> None:
    """The entry waits until that transaction is gone, instead of waiting for itself; the error waits for the entry."""
    await alter(staffed, "UPDATE care SET ends = NULL")
    with pytest.raises(RowAltered):
        async with staffed.database.write() as tx:
            await staffed.care.related("li", PATIENT, staffed.clock.now(), tx=tx)
    assert await staffed.events(EventKind.INTEGRITY_FAILED)


@pytest.mark.parametrize("kind", ["read", "write"])
async def test_an_altered_row_is_on_record_though_the_caller_goes_on_or_is_cancelled(
    staffed: Desk, kind: str
) -> None:
    """In a transaction that swallows the error and commits, and in one that is cancelled on the way out."""
    await alter(staffed, "UPDATE care SET ends = NULL")
    met = asyncio.Event()

    async def ask() -> None:
        opened = staffed.database.read if kind == "read" else staffed.database.write
        async with opened() as tx:
            with pytest.raises(RowAltered):
                await staffed.care.related("li", PATIENT, staffed.clock.now(), tx=tx)
            met.set()
            await asyncio.sleep(10)

    task = asyncio.create_task(ask())
    await met.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await staffed.events(EventKind.INTEGRITY_FAILED)


async def _column(desk: Desk, query: str, **values: Any) -> list[str]:
    async with desk.database.read() as tx:
        return [str(one) for one in (await tx.execute(text(query), values)).scalars()]


@given(st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=20))
def test_different_rows_have_different_seals(one: str, two: str) -> None:
    """Values do not run into each other, columns and tables are told apart."""
    seal = RowSeal(ROWS)
    assert (seal.seal(person_table, {"login": one}) == seal.seal(person_table, {"login": two})) is (
        one == two
    )
    assert seal.seal(person_table, {"login": one, "name": ""}) != seal.seal(
        person_table, {"name": one, "login": ""}
    )
    assert seal.seal(person_table, {"login": one}) != seal.seal(care_table, {"login": one})


def test_a_key_of_another_length_is_refused() -> None:
    """An empty key would seal for everybody; the key is never shown."""
    with pytest.raises(ValueError, match="32 bytes"):
        RowSeal(b"")
    assert "key" not in repr(RowSeal(ROWS))
