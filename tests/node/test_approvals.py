"""Proposals at a node: put, answered by different people, spent once, closed; all of it on record."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from consent.approvals import Proposal, State, Voice
from consent.errors import Conflict, Denied, Invalid, NotFound
from consent.signed import Signed
from consent.vocabulary import EventKind, Role
from node.approvals import Approvals
from node.audit.log import Log
from node.audit.note import Signer
from node.database import Database
from node.records import Records
from tests.support.clock import FakeClock
from tests.support.consents import HOME, key_of, person
from tests.support.databases import database_in
from tests.support.seeds import ROWS

OFFICER = frozenset({Role.SECURITY_OFFICER})


@dataclass
class Desk:
    approvals: Approvals
    log: Log
    clock: FakeClock
    database: Database

    async def put(self, quorum: int = 2, hours: float = 24) -> Signed[Proposal]:
        return await self.approvals.put(
            person(login="wang"),
            deed="training-plan",
            subject="plan-1",
            reason="skewed digits",
            quorum=quorum,
            roles=OFFICER,
            hours=hours,
        )

    async def kinds(self) -> list[EventKind]:
        return [entry.event.kind for entry in await self.log.entries()]


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    database = database_in(tmp_path / "accord.db")
    clock = FakeClock()
    log = Log(database, key=bytes(32), origin="accord/a", signer=Signer("accord/a", bytes(32)), clock=clock)
    records = Records(
        database, lambda issuer: (key_of(HOME).public_key(),) if issuer == HOME else (), key=ROWS, log=log
    )
    yield Desk(Approvals(database, records, log, clock, node_id=HOME, key=key_of(HOME)), log, clock, database)
    await database.close()


officer = {name: person(Role.SECURITY_OFFICER, login=name) for name in ("chen", "zhao", "liu")}


@pytest.mark.requirement("D3")
async def test_two_different_officers_approve_and_it_is_done_once(desk: Desk) -> None:
    """Open until the second answer; spent in the transaction of the deed; every step is in the log."""
    put = await desk.put()
    first = await desk.approvals.answer(put.id, officer["chen"], Voice.APPROVE, comment="seen")
    assert first.state is State.OPEN
    second = await desk.approvals.answer(put.id, officer["zhao"], Voice.APPROVE)
    assert (second.state, len(second.answers)) == (State.APPROVED, 2)
    async with desk.database.write() as tx:
        done = await desk.approvals.carry_out(tx, put.id, officer["chen"], deed="training-plan")
    assert done.state is State.CARRIED_OUT
    with pytest.raises(Conflict):
        async with desk.database.write() as tx:
            await desk.approvals.carry_out(tx, put.id, officer["chen"], deed="training-plan")
    desk.clock.tick(days=30)
    assert (await desk.approvals.standing(put.id)).state is State.CARRIED_OUT
    kinds = [EventKind.PROPOSAL_PUT, EventKind.PROPOSAL_SIGNED, EventKind.PROPOSAL_SIGNED]
    assert await desk.kinds() == [*kinds, EventKind.PROPOSAL_CLOSED]


async def test_a_deed_that_fails_does_not_spend_its_approval(desk: Desk) -> None:
    """The same transaction: both or neither."""
    put = await desk.put(quorum=1)
    await desk.approvals.answer(put.id, officer["chen"], Voice.APPROVE)
    with pytest.raises(RuntimeError):
        async with desk.database.write() as tx:
            await desk.approvals.carry_out(tx, put.id, officer["chen"], deed="training-plan")
            raise RuntimeError("the disk is full")
    assert (await desk.approvals.standing(put.id)).state is State.APPROVED


@pytest.mark.requirement("D1")
async def test_the_proposer_an_outsider_and_a_second_answer_do_not_count(desk: Desk) -> None:
    """Each is refused with words, and the attempt is on record."""
    put = await desk.put()
    for who in (
        person(Role.SECURITY_OFFICER, login="wang"),
        person(),
        replace(officer["chen"], node="b-central"),
        replace(officer["chen"], active=False),
    ):
        with pytest.raises(Denied):
            await desk.approvals.answer(put.id, who, Voice.APPROVE)
    await desk.approvals.answer(put.id, officer["chen"], Voice.APPROVE)
    with pytest.raises(Conflict, match="already"):
        await desk.approvals.answer(put.id, officer["chen"], Voice.APPROVE)
    assert (await desk.kinds()).count(EventKind.ACCESS_REFUSED) == 4
    assert (await desk.approvals.standing(put.id)).state is State.OPEN


async def test_one_refusal_ends_it(desk: Desk) -> None:
    """Nobody approves it afterwards."""
    put = await desk.put()
    after = await desk.approvals.answer(put.id, officer["chen"], Voice.REFUSE, comment="no consent")
    assert after.state is State.REFUSED
    with pytest.raises(Conflict, match="refused"):
        await desk.approvals.answer(put.id, officer["zhao"], Voice.APPROVE)
    assert (await desk.kinds())[-1] is EventKind.PROPOSAL_CLOSED


async def test_only_the_proposer_withdraws_and_only_while_it_lasts(desk: Desk) -> None:
    """Then it is closed for everybody."""
    put = await desk.put()
    with pytest.raises(Denied):
        await desk.approvals.withdraw(put.id, officer["chen"], address="10.0.0.7")
    (entry,) = await desk.log.search(kind=EventKind.ACCESS_REFUSED)
    assert (entry.event.actor, entry.event.address) == (officer["chen"].actor, "10.0.0.7")
    assert entry.event.detail == {"proposal": put.id, "code": "not-the-proposer"}
    assert (await desk.approvals.withdraw(put.id, person(login="wang"))).state is State.WITHDRAWN
    with pytest.raises(Conflict):
        await desk.approvals.withdraw(put.id, person(login="wang"))
    with pytest.raises(Conflict):
        await desk.approvals.answer(put.id, officer["chen"], Voice.APPROVE)


async def test_what_was_not_done_in_time_is_closed(desk: Desk) -> None:
    """An approval does not keep for ever; the job that closes it says so in the log, once."""
    put = await desk.put(quorum=1)
    await desk.approvals.answer(put.id, officer["chen"], Voice.APPROVE)
    assert await desk.approvals.close_expired() == 0
    desk.clock.tick(hours=25)
    with pytest.raises(Conflict, match="expired"):
        async with desk.database.write() as tx:
            await desk.approvals.carry_out(tx, put.id, officer["chen"], deed="training-plan")
    assert await desk.approvals.close_expired() == 1
    assert await desk.approvals.close_expired() == 0
    assert (await desk.log.entries())[-1].event.actor == "job:approvals"


async def test_an_approval_of_one_deed_is_not_spent_on_another(desk: Desk) -> None:
    """The caller names what it is about to do."""
    put = await desk.put(quorum=1)
    await desk.approvals.answer(put.id, officer["chen"], Voice.APPROVE)
    with pytest.raises(Invalid, match="training-plan"):
        async with desk.database.write() as tx:
            await desk.approvals.carry_out(tx, put.id, officer["chen"], deed="destruction")


async def test_proposals_are_listed_by_deed_subject_and_state(desk: Desk) -> None:
    """For the page of those who have to answer."""
    one, two = await desk.put(), await desk.put()
    await desk.approvals.withdraw(two.id, person(login="wang"))
    found = await desk.approvals.all(deed="training-plan", states={State.OPEN})
    assert [standing.proposal.id for standing in found] == [one.id]
    assert len(await desk.approvals.all(subject="plan-1")) == 2
    assert await desk.approvals.all(deed="destruction") == ()


@pytest.mark.parametrize("change", [{"quorum": 0}, {"hours": 0}, {"hours": 24 * 31}])
async def test_a_senseless_proposal_is_refused(desk: Desk, change: dict[str, float]) -> None:
    """Nothing is kept and nothing logged."""
    with pytest.raises(Invalid):
        await desk.put(**change)  # type: ignore[arg-type]
    assert await desk.kinds() == []


async def test_an_unknown_proposal_is_not_found(desk: Desk) -> None:
    """Nor does answering it leave an entry about something that is not there."""
    with pytest.raises(NotFound):
        await desk.approvals.answer("nothing", officer["chen"], Voice.APPROVE)
