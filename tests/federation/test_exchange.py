"""The walk of a study from A to B and its end, over real sockets and mutual TLS."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from consent.vocabulary import EventKind
from tests.support.region import Region, region


@pytest.fixture
async def r(tmp_path: Path) -> AsyncIterator[Region]:
    async with region(tmp_path) as built:
        yield built


@pytest.mark.requirement("E3", "T2")
async def test_study_is_asked_for_granted_fetched_and_viewed(r: Region) -> None:
    """B sees A's study under a lease, and A's log shows who opened it there."""
    sharing = await r.share()
    gateway = r.b.node.gateway

    opening = await gateway.open(sharing.asker, sharing.study, home="a-general")
    series = await gateway.series(opening)
    uid = series[0].instances[0].uid
    frame = await gateway.frame(opening, uid)

    assert frame.content
    leases = await r.a.log.search(kind=EventKind.LEASE_RELEASED)
    assert {entry.event.actor for entry in leases} == {f"person:{sharing.asker.id}@b-central"}
