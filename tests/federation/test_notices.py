"""What the home tells holders, when they refuse to hear it and when something here is damaged."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime, timedelta

import pytest
import pytest_asyncio
from sqlalchemy import update

from consent.vocabulary import EventKind
from federation.grants import IssuedGrant
from federation.held import HeldState
from federation.notices import GrantState
from node.audit.tables import log_entry
from node.records import record
from tests.support.region import Region, Sharing, region

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Region]:
    async with region(tmp_path_factory.mktemp("region"), nodes=("a-general", "b-central")) as built:
        yield built


@pytest_asyncio.fixture(loop_scope="module")
async def r(shared: Region) -> AsyncIterator[Region]:
    """One region serves the whole module; what a test broke is mended after it."""
    yield shared
    await shared.restore()


async def issued(r: Region, sharing: Sharing) -> IssuedGrant:
    (one,) = await r.a.grants.issued(sharing.owner)
    return one


class Behind:
    """A clock that runs some time behind the region's."""

    def __init__(self, r: Region, by: timedelta) -> None:
        self.region, self.by = r, by

    def now(self) -> datetime:
        return self.region.clock.now() - self.by


@pytest.mark.requirement("E3", "E4")
async def test_refused_grant_is_shown_and_handed_over_later(r: Region) -> None:
    """B's clock is an hour behind: A shows what B said, asks ever more seldom, and B has the grant once it is set."""
    _, patient, owner, instances = await r.store()
    await r.consent(owner, patient)
    request, asker = await r.ask(instances)
    slow = Behind(r, timedelta(hours=1))
    r.b.holdings._clock = slow
    try:
        grant = await r.a.grants.issue(owner, request)
        (one,) = await r.a.grants.issued(owner)
        assert (one.state, one.delivered) == (GrantState.ALIVE, False)
        assert "future" in one.words

        asked = []
        for minutes in (0, 0, 1, 1, 1):
            r.clock.tick(minutes=minutes)
            before = r.b.wire.passed
            await r.a.notices.sweep()
            asked.append(r.b.wire.passed > before)
        assert asked == [False, False, True, False, True]
        assert not await r.b.holdings.held(asker)

        slow.by = timedelta()
        r.clock.tick(minutes=4)
        await r.a.notices.sweep()
    finally:
        r.b.holdings._clock = r.clock

    (one,) = await r.a.grants.issued(owner)
    assert (one.delivered, one.words) == (True, "")
    assert [held.grant for held in await r.b.holdings.held(asker)] == [grant.id]


@pytest.mark.requirement("E4")
async def test_refused_notice_of_an_end_is_repeated_until_it_is_heard(r: Region) -> None:
    """A holder that cannot read the notice now hears it later."""
    sharing = await r.share(fetch=False)
    r.b.holdings._clock = Behind(r, timedelta(hours=1))
    try:
        await r.a.grants.revoke(sharing.owner, sharing.grant.id, "no longer needed")
    finally:
        r.b.holdings._clock = r.clock
    assert (await r.b.holdings.one(sharing.grant.id)).state is HeldState.GRANTED

    r.clock.tick(minutes=1)
    await r.a.notices.sweep()

    assert (await r.b.holdings.one(sharing.grant.id)).state is HeldState.SHREDDED
    (one,) = await r.a.grants.issued(sharing.owner)
    assert one.words == "no longer needed"


@pytest.mark.requirement("E2", "E4", "A1")
async def test_unreadable_entry_of_the_log_keeps_no_grant_alive(r: Region) -> None:
    """A withdrawal whose entry was altered still ends its grant, the next one too, and the alarm is on record once."""
    hidden, later = await r.share(), await r.share()
    await r.a.notices.sweep()
    await r.a.consents.withdraw(hidden.owner, hidden.consent, "patient called")
    (entry,) = await r.a.log.search(kind=EventKind.CONSENT_WITHDRAWN, patient=hidden.patient)
    async with r.a.node.database.write() as tx:
        await tx.execute(
            update(log_entry).where(log_entry.c.position == entry.index).values(sealed=b"\0" * 64)
        )
    await r.a.consents.withdraw(later.owner, later.consent, "patient called")

    for _ in range(2):
        await r.a.notices.sweep()

    for sharing in (hidden, later):
        assert (await r.b.holdings.one(sharing.grant.id)).state is HeldState.SHREDDED
    alarms = await r.a.log.search(kind=EventKind.INTEGRITY_FAILED)
    assert [one.event.detail["entries"] for one in alarms] == [[entry.index]]


@pytest.mark.requirement("E2", "E4")
async def test_damaged_grant_keeps_no_other_alive(r: Region) -> None:
    """One grant's record was altered at A: that is on record, and another patient's withdrawal ends theirs."""
    damaged, other = await r.share(lasts=timedelta(hours=1)), await r.share()
    async with r.a.node.database.write() as tx:
        await tx.execute(update(record).where(record.c.id == damaged.grant.id).values(sealed=b"A"))
    for sharing in (damaged, other):
        await r.a.consents.withdraw(sharing.owner, sharing.consent, "patient called")

    for _ in range(2):
        await r.a.notices.sweep()

    assert (await r.b.holdings.one(other.grant.id)).state is HeldState.SHREDDED
    (alarm,) = [
        one
        for one in await r.a.log.search(kind=EventKind.INTEGRITY_FAILED)
        if one.event.detail["where"] == "record"
    ]
    assert alarm.event.detail["grant"] == damaged.grant.id
    r.clock.tick(hours=2)
    await r.a.notices.sweep()
    assert await r.a.log.search(kind=EventKind.GRANT_ENDED, study=damaged.study)
