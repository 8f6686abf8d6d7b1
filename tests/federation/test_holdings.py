"""What the holder does with its copies when grants end at the same time, when it crashes, and when records are damaged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
import pytest_asyncio
from sqlalchemy import update

from consent.errors import Conflict, Unavailable
from consent.vocabulary import EventKind
from federation.asking import asked_request
from federation.held import HeldState, held_grant
from federation.notices import issued_grant
from federation.protocol import RequestState
from node.records import record
from node.vault.blobs import FileBlobs
from node.vault.pack import pack_name
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


async def methods(r: Region, sharing: Sharing) -> list[object]:
    """What the receipts in A's log say, for B's copies of one study."""
    entries = await r.a.log.search(kind=EventKind.SHRED_RECEIPT_RECEIVED, study=sharing.study)
    return [entry.event.detail["method"] for entry in entries]


async def state_of(r: Region, sharing: Sharing) -> HeldState:
    return (await r.b.holdings.one(sharing.grant.id)).state


@pytest.mark.requirement("E4")
async def test_grant_that_ends_twice_at_once_is_shredded_once(r: Region) -> None:
    """The home's notice and the sweep in the same moment: one entry, one receipt, and it says what was done."""
    sharing = await r.share(lasts=timedelta(minutes=5))
    r.clock.tick(minutes=6)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(3):
            tasks.create_task(r.b.holdings.end(sharing.grant.id, "The grant has ended."))
            tasks.create_task(r.b.holdings.sweep())

    shredded = await r.b.log.search(kind=EventKind.COPY_SHREDDED, study=sharing.study)
    assert [entry.event.detail["method"] for entry in shredded] == ["overwritten and removed"]
    assert await methods(r, sharing) == ["overwritten and removed"]


@pytest.mark.requirement("E4")
async def test_receipt_after_a_crash_does_not_deny_the_copy(r: Region) -> None:
    """The copy was removed and the power failed before that was written down: the receipt says removed, and how large."""
    sharing = await r.share()
    size = (await r.b.holdings.one(sharing.grant.id)).size_bytes
    async with r.b.node.database.write() as tx:
        await tx.execute(
            update(held_grant).where(held_grant.c.id == sharing.grant.id).values(state=HeldState.ENDED)
        )
    FileBlobs(r.b.holdings.blobs("a-general").root).delete(pack_name(sharing.study))

    await r.b.holdings.sweep()

    assert await methods(r, sharing) == ["removed before"]
    (entry,) = await r.b.log.search(kind=EventKind.COPY_SHREDDED, study=sharing.study)
    assert entry.event.detail["size_bytes"] == size > 0


@pytest.mark.requirement("E4")
async def test_grant_that_ended_before_anything_came_held_no_copy(r: Region) -> None:
    """Without a fetch there was nothing to remove, and the receipt says so."""
    sharing = await r.share(fetch=False)
    await r.a.grants.revoke(sharing.owner, sharing.grant.id, "asked by mistake")

    assert await state_of(r, sharing) is HeldState.SHREDDED
    assert await methods(r, sharing) == ["no copy was held"]


@pytest.mark.requirement("E4")
async def test_copy_is_not_fetched_once_its_grant_has_ended_here(r: Region) -> None:
    """The home would still give it, but what came after the end would never be shredded."""
    sharing = await r.share()
    await r.b.holdings.end(sharing.grant.id, "The holder gave it back.")
    assert await state_of(r, sharing) is HeldState.SHREDDED

    with pytest.raises(Conflict) as caught:
        await r.b.fetching.fetch(sharing.grant.id)

    assert caught.value.code == "grant-ended"
    assert not r.b.pack("a-general", sharing.study).exists()


@pytest.mark.requirement("E4")
async def test_home_that_is_away_is_called_once_in_a_sweep_for_its_receipts(
    r: Region, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call may take its full time to fail: all copies go, and other homes do not wait for this one."""
    ended = [await r.share(lasts=timedelta(minutes=5)) for _ in range(3)]
    r.clock.tick(minutes=6)
    called: list[str] = []

    async def away(home: str, path: str, *_: object) -> None:
        called.append(path)
        raise Unavailable("It does not answer.")

    with monkeypatch.context() as patch:
        patch.setattr(r.b.client, "post", away)
        await r.b.holdings.sweep()
    assert sum(path.endswith("/receipts") for path in called) == 1
    assert [r.b.pack("a-general", one.study).exists() for one in ended] == [False] * 3

    await r.b.holdings.sweep()
    assert [await methods(r, one) for one in ended] == [["overwritten and removed"]] * 3


@pytest.mark.requirement("E3")
async def test_grant_handed_over_again_closes_the_request(r: Region) -> None:
    """The power failed between keeping the grant and closing the request: the repeat closes it."""
    sharing = await r.share(fetch=False)
    (asked,) = await r.b.asking.asked(sharing.asker)
    async with r.b.node.database.write() as tx:
        await tx.execute(
            update(asked_request)
            .where(asked_request.c.id == asked.id)
            .values(state=RequestState.WAITING, grant_id=None)
        )
    async with r.a.node.database.write() as tx:
        await tx.execute(
            update(issued_grant).where(issued_grant.c.id == sharing.grant.id).values(delivered=False)
        )

    await r.a.notices.sweep()

    (asked,) = await r.b.asking.asked(sharing.asker)
    assert (asked.state, asked.grant) == (RequestState.GRANTED, sharing.grant.id)
    assert len(await r.b.log.search(kind=EventKind.GRANT_RECEIVED, study=sharing.study)) == 1


@pytest.mark.requirement("E4")
async def test_damaged_record_of_one_grant_keeps_no_other_copy_alive(r: Region) -> None:
    """One grant's record was altered: that is on record once, the others end in time, and so does this one."""
    damaged, later = await r.share(lasts=timedelta(minutes=10)), await r.share(lasts=timedelta(minutes=5))
    async with r.b.node.database.write() as tx:
        await tx.execute(update(record).where(record.c.id == damaged.grant.id).values(sealed=b"A"))

    r.clock.tick(minutes=6)
    for _ in range(2):
        await r.b.holdings.sweep()

    async with r.b.node.database.read() as tx:
        states = {row.id: row.state for row in await tx.execute(held_grant.select())}
    assert (states[damaged.grant.id], states[later.grant.id]) == (HeldState.HELD, HeldState.SHREDDED)
    (entry,) = await r.b.log.search(kind=EventKind.INTEGRITY_FAILED, study=damaged.study)
    assert entry.event.detail["where"] == "record"

    r.clock.tick(minutes=5)
    await r.b.holdings.sweep()
    assert not r.b.pack("a-general", damaged.study).exists()
    assert await methods(r, damaged) == ["overwritten and removed"]
