"""The story's forger: sound for every check that needs no witness, and stopped by every witness."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import insert

from consent.vocabulary import EventKind
from node.audit.event import Event
from node.audit.note import cosigned_by
from node.audit.tables import log_checkpoint
from ops.demo.forgery import MORE_ENTRIES, rewrite
from tests.support.region import Region, region


@pytest.fixture
async def r(tmp_path: Path) -> AsyncIterator[Region]:
    async with region(tmp_path, nodes=("a-general", "b-central")) as built:
        yield built


@pytest.mark.requirement("A1")
async def test_log_rewritten_with_the_nodes_own_keys_is_refused_by_every_witness(r: Region) -> None:
    """The node's own sweep and its signing find nothing; B and the hub cosign nothing, and say so on record."""
    deeds = [
        await r.a.log.record(Event(EventKind.LEASE_RELEASED, "person:wang@b-central")) for _ in range(300)
    ]
    await r.a.witnessing.submit()
    true = await r.a.log.checkpoint()
    assert len(cosigned_by(true, r.a.witnessing.verifiers())) == 2

    await rewrite(r.a.log, deeds[7], "person:nobody@b-central")

    checked = await r.a.log.verify(r.a.witnessing.verifiers())
    assert checked.ok and checked.size == await r.a.log.size() > MORE_ENTRIES
    assert (await r.a.log.entry(deeds[7].index)).event.actor == "person:nobody@b-central"  # type: ignore[union-attr]
    await r.a.witnessing.submit()
    assert not cosigned_by(await r.a.log.checkpoint(), r.a.witnessing.verifiers())
    for witness in (r.b, r.hub):
        (alarm,) = await witness.log.search(kind=EventKind.WITNESS_ALARMED)
        assert alarm.event.actor == "member:a-general"
        assert await witness.witnessing.cosigned_size(r.a.entry) == int(true.split("\n")[1])


@pytest.mark.requirement("A1")
async def test_checkpoint_from_before_the_forgery_convicts_the_log_without_any_witness(r: Region) -> None:
    """One checkpoint that an auditor kept is enough: put back, the node's own sweep names the contradiction."""
    deeds = [await r.a.log.record(Event(EventKind.LEASE_RELEASED, "person:wang@b")) for _ in range(5)]
    kept = await r.a.log.checkpoint()
    await rewrite(r.a.log, deeds[2], "person:nobody@b")
    size = int(kept.split("\n")[1])
    async with r.a.node.database.write() as tx:
        await tx.execute(insert(log_checkpoint).values(size=size, at=r.clock.now(), note=kept))

    assert any("do not fit" in fault for fault in (await r.a.log.verify()).faults)
