"""What the holder does with its copies when grants end at the same time, when it crashes, and when records are damaged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
import pytest_asyncio
from sqlalchemy import update

from consent.vocabulary import EventKind
from federation.held import HeldState, held_grant
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
