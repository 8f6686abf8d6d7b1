"""Signed records kept: found by what they are about, never changed, noticed when they were."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from consent.approvals import Approval, Proposal, Voice
from consent.errors import Conflict, Corrupt, NotFound
from consent.signed import Signed, sign
from consent.vocabulary import EventKind, Role
from node.audit.log import Log
from node.audit.note import Signer
from node.database import Database
from node.records import Records, subjects_of
from tests.support.clock import FakeClock
from tests.support.consents import ABROAD, HOME, NOW, key_of
from tests.support.databases import database_in
from tests.support.seeds import ROWS


def proposal(record_id: str = "p-1", *, issuer: str = HOME, **changes: Any) -> Signed[Proposal]:
    body = Proposal("destruction", "st_1", "li", "retention", 2, frozenset({Role.SECURITY_OFFICER}), {})
    return sign(
        replace(body, **changes),
        record_id=record_id,
        issuer=issuer,
        key=key_of(issuer),
        issued=NOW,
        expires=NOW + timedelta(days=7),
    )


def keys_of(issuer: str) -> tuple[Ed25519PublicKey, ...]:
    return (key_of(HOME).public_key(),) if issuer == HOME else ()


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = database_in(tmp_path / "accord.db")
    yield database
    await database.close()


async def _keep(database: Database, *records: Signed[Any], **options: Any) -> None:
    async with database.write() as tx:
        for one in records:
            await Records(database, key=ROWS).keep(tx, one, **options)


@pytest.mark.parametrize("checked", [True, False])
async def test_a_record_comes_back_as_it_was_signed(database: Database, checked: bool) -> None:
    """By id and by digest, body, times and token."""
    signed = proposal()
    await _keep(database, signed)
    records = Records(database, keys_of if checked else None, key=ROWS)
    for _ in range(2):
        found = await records.get("p-1", Proposal)
        assert found == signed
        assert (found.body, found.expires, found.digest) == (signed.body, signed.expires, signed.digest)
    assert await records.by_digest(signed.digest, Proposal) == signed
    assert await records.status("p-1") == "active"


@pytest.mark.requirement("V1", "E2")
async def test_what_people_wrote_into_a_record_is_nowhere_in_the_database(
    database: Database, tmp_path: Path
) -> None:
    """Neither in words nor as the base64 of the token that holds them, also not in the write-ahead log."""
    words = "the daughter of Wang Xiaoming signed in his presence"
    signed = proposal(reason=words)
    await _keep(database, signed)
    assert (await Records(database, key=ROWS).get("p-1", Proposal)).body.reason == words
    payload = signed.token.split(".")[1]
    for file in tmp_path.iterdir():
        content = file.read_bytes()
        assert words.encode() not in content
        assert payload[:40].encode() not in content
        assert payload[40:80].encode() not in content


async def test_a_sealed_token_belongs_to_its_record(database: Database, tmp_path: Path) -> None:
    """Put under another id, it does not open."""
    await _keep(database, proposal("p-1"), proposal("p-2", reason="other"))
    with sqlite3.connect(tmp_path / "accord.db") as connection:
        connection.execute(
            "UPDATE record SET sealed = (SELECT sealed FROM record WHERE id = 'p-2') WHERE id = 'p-1'"
        )
    connection.close()
    with pytest.raises(Corrupt, match="altered"):
        await Records(database, key=ROWS).get("p-1", Proposal)


async def test_records_are_found_by_kind_subject_status_and_issuer(database: Database) -> None:
    """Oldest first; every condition that is given must hold."""
    one, two, far = proposal("p-1"), proposal("p-2"), proposal("p-3", issuer=ABROAD)
    await _keep(database, one, subjects=["st_1", "pt_9", "st_1"])
    await _keep(database, two, far, status="open", subjects=["st_1"])
    records = Records(database, key=ROWS)
    assert await records.find(Proposal) == (one, two, far)
    assert await records.find(Proposal, subject="pt_9") == (one,)
    assert await records.find(Proposal, subject="st_1", status="open") == (two, far)
    assert await records.find(Proposal, issuer=ABROAD) == (far,)
    assert await records.find(Approval) == ()
    assert [kept.status for kept in await records.find_kept(Proposal)] == ["active", "open", "open"]


async def test_a_write_sees_its_own_records_before_it_ends(database: Database) -> None:
    """Given the transaction, reading and writing belong together; without it they do not."""
    records = Records(database, key=ROWS)
    async with database.write() as tx:
        await records.keep(tx, proposal())
        assert (await records.get("p-1", Proposal, tx=tx)).id == "p-1"
        with pytest.raises(NotFound):
            await records.get("p-1", Proposal)


async def test_keeping_twice_changes_nothing_and_another_under_the_id_is_refused(database: Database) -> None:
    """A token once kept stands."""
    await _keep(database, proposal())
    await _keep(database, proposal())
    with pytest.raises(Conflict, match="id"):
        await _keep(database, proposal(reason="something else"))
    assert (await Records(database, key=ROWS).get("p-1", Proposal)).body.reason == "retention"


async def test_a_status_changes_only_from_what_was_expected(database: Database) -> None:
    """Two who act on one record at once do not both succeed."""
    await _keep(database, proposal())
    records = Records(database, key=ROWS)
    async with database.write() as tx:
        await records.mark(tx, "p-1", "revoked", expected="active")
        with pytest.raises(Conflict, match="revoked now, not active"):
            await records.mark(tx, "p-1", "revoked", expected="active")
        await records.mark(tx, "p-1", "archived")
        with pytest.raises(NotFound):
            await records.mark(tx, "p-9", "revoked")
    assert await records.status("p-1") == "archived"


async def test_what_is_not_there_is_not_found(database: Database) -> None:
    """Nor is a record of another kind under the same id."""
    await _keep(database, proposal())
    records = Records(database, key=ROWS)
    for wanted in (
        records.get("p-2", Proposal),
        records.get("p-1", Approval),
        records.by_digest("0", Proposal),
    ):
        with pytest.raises(NotFound):
            await wanted
    with pytest.raises(NotFound):
        await records.status("p-2")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE record SET sealed = zeroblob(length(sealed))",
        "UPDATE record SET sealed = substr(sealed, 1, 5)",
        "UPDATE record SET sealed = 'x'",
        "UPDATE record SET issuer = 'b-central'",
        "UPDATE record SET expires = expires + 86400000000",
        "UPDATE record SET digest = 'ff'",
    ],
)
async def test_a_record_altered_in_the_database_is_noticed(
    database: Database, tmp_path: Path, statement: str
) -> None:
    """The token is the statement; columns beside it must agree with it."""
    await _keep(database, proposal())
    with sqlite3.connect(tmp_path / "accord.db") as connection:
        connection.execute(statement)
    connection.close()
    with pytest.raises(Corrupt, match=r"altered|outside this node"):
        await Records(database, key=ROWS).get("p-1", Proposal)


@pytest.mark.requirement("A1", "V1", "U2")
async def test_a_status_altered_in_the_database_is_refused_and_logged(
    database: Database, tmp_path: Path
) -> None:
    """A revoked record does not come to life again, and no change makes the row whole."""
    clock = FakeClock()
    log = Log(database, key=bytes(32), origin=HOME, signer=Signer(HOME, bytes(32)), clock=clock)
    records = Records(database, keys_of, key=ROWS, log=log)
    async with database.write() as tx:
        await records.keep(tx, proposal())
        await records.mark(tx, "p-1", "revoked")
    with sqlite3.connect(tmp_path / "accord.db") as connection:
        connection.execute("UPDATE record SET status = 'active'")
    connection.close()
    for question in (
        records.status("p-1"),
        records.get("p-1", Proposal),
        records.find(Proposal, status="active"),
    ):
        with pytest.raises(Corrupt, match="A record was changed outside this node"):
            await question
    with pytest.raises(Corrupt):
        async with database.write() as tx:
            await records.mark(tx, "p-1", "archived")
    (entry,) = await log.search(kind=EventKind.INTEGRITY_FAILED)
    assert entry.event.detail == {"table": "record", "row": "p-1"}
    await log.close()


@pytest.mark.requirement("A1", "V1")
async def test_a_record_put_into_the_database_is_refused_even_without_keys(
    database: Database, tmp_path: Path
) -> None:
    """A token that nobody verified lacks the seal of its keeping."""
    await _keep(database, proposal("p-1"))
    forged = proposal("p-2")
    with sqlite3.connect(tmp_path / "accord.db") as connection:
        connection.execute(
            "INSERT INTO record (id, kind, issuer, issued, expires, status, digest, sealed, bucket, mac)"
            " SELECT ?, kind, issuer, issued, expires, status, ?, ?, bucket, mac FROM record",
            (forged.id, forged.digest, forged.token),
        )
    connection.close()
    with pytest.raises(Corrupt, match="A record was changed outside this node"):
        await Records(database, key=ROWS).get("p-2", Proposal)


async def test_with_keys_a_record_of_no_known_issuer_does_not_come_back(database: Database) -> None:
    """Whoever writes a forged token and its digest into the table still lacks the issuer's key."""
    await _keep(database, proposal(issuer=ABROAD))
    with pytest.raises(Corrupt, match="No key"):
        await Records(database, keys_of, key=ROWS).get("p-1", Proposal)


def test_a_record_is_about_its_named_fields_unless_it_says_otherwise() -> None:
    """Subjects come from the body when the keeper gives none."""
    assert subjects_of(proposal().body) == ()
    assert subjects_of(Approval("digest-1", "li", Role.SECURITY_OFFICER, Voice.APPROVE)) == ("digest-1",)

    class Own(Proposal):
        def subjects(self) -> tuple[str, ...]:
            return ("one", "two")

    assert subjects_of(Own("d", "s", "p", "", 1, frozenset({Role.CLINICIAN}), {})) == ("one", "two")
