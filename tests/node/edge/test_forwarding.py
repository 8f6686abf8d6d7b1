"""Forwarding: what one instance or one segment suffers holds nobody else back."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from consent.errors import Unavailable
from consent.principals import Principal
from consent.vocabulary import EventKind, Outcome, Role
from node.audit.event import Event
from node.dicom.sender import Outgoing, Peer, Sent, send
from node.edge import forwarding
from node.edge.agent import Agent
from node.edge.forwarding import Forwarder
from node.edge.settings import new_edge
from node.edge.spool import Segment, Spool
from tests.node.dicom.archive import AE, SCANNER, archive_in
from tests.node.edge.conftest import instance, spool
from tests.support.clock import FakeClock

pytestmark = pytest.mark.requirement("C2", "F4")


@asynccontextmanager
async def edge_and_node(tmp_path: Path) -> AsyncIterator[tuple[Spool, Forwarder]]:
    """A spool with three instances in one segment and a fourth in the next, and who forwards them to a node."""
    (tmp_path / "node").mkdir()
    async with archive_in(tmp_path / "node") as archive, spool(tmp_path / "spool") as one:
        for number in (1, 2, 3):
            await one.add(instance(number))
        await one.waiting()
        await one.add(instance(4))

        async def node() -> Peer:
            return Peer("127.0.0.1", archive.port, AE, SCANNER)

        forwarder = Forwarder(one, node, FakeClock(), retry_seconds=0.1, commit_seconds=10)
        try:
            yield one, forwarder
        finally:
            await forwarder.stop()


async def one_is_left(one: Spool, forwarder: Forwarder, segment: Segment) -> None:
    """Forward until only one instance waits."""
    forwarder.start()
    async with asyncio.timeout(20):
        while len(segment.left) > 1 or one.count > len(segment.instances):
            await asyncio.sleep(0.02)


async def test_instance_that_cannot_be_read_any_more_is_told_and_the_others_go(tmp_path: Path) -> None:
    """Bytes that rotted in the spool stay there; what came before and after reaches the node."""
    async with edge_and_node(tmp_path) as (one, forwarder):
        segment, _ = await one.waiting()
        (file,) = (tmp_path / "spool").rglob(f"{segment.name}.pack")
        data, rotten = bytearray(file.read_bytes()), segment.left[0]
        data[rotten.place.offset + rotten.place.length // 2] ^= 1
        file.write_bytes(data)
        await one_is_left(one, forwarder, segment)
        assert segment.left == [rotten]
        assert list(forwarder.progress.refused) == [rotten.id]
    assert file.exists()


async def test_association_that_breaks_off_at_one_instance_holds_nobody_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was taken before it is committed, and next time it goes last."""
    poison = instance(1).sop_instance_uid

    async def breaking(peer: Peer, instances: Sequence[Outgoing]) -> AsyncIterator[Sent]:
        for one in instances:
            if one.sop_instance_uid == poison:
                raise Unavailable("The association broke off: it aborted.", code="association-broken")
            async for sent in send(peer, [one]):
                yield sent

    monkeypatch.setattr(forwarding, "send", breaking)
    async with edge_and_node(tmp_path) as (one, forwarder):
        segment, _ = await one.waiting()
        await one_is_left(one, forwarder, segment)
        assert [each.sop_instance_uid for each in segment.left] == [poison]


async def test_days_without_the_node_end_with_everything_forwarded(tmp_path: Path) -> None:
    """Pauses double up to the longest that is set, and never pass it, for days; the first attempt after them succeeds."""
    longest, days, clock = 60.0, timedelta(days=5), FakeClock()
    back, pauses = clock.now() + days, list[float]()
    (tmp_path / "node").mkdir()
    async with archive_in(tmp_path / "node") as archive, spool(tmp_path / "spool") as one:

        async def sleep(seconds: float) -> None:
            pauses.append(seconds)
            clock.tick(seconds=seconds)
            await asyncio.sleep(0)

        async def node() -> Peer:
            if clock.now() < back:
                raise Unavailable("The node cannot be reached.", code="peer-unreachable")
            return Peer("127.0.0.1", archive.port, AE, SCANNER)

        forwarder = Forwarder(one, node, clock, retry_seconds=longest, commit_seconds=10, sleep=sleep)
        for number in (1, 2, 3):
            await one.add(instance(number))
        forwarder.start()
        try:
            async with asyncio.timeout(30):
                while one.count or forwarder.progress.trouble:
                    await asyncio.sleep(0.01)
        finally:
            await forwarder.stop()
        assert forwarder.progress.committed == 3
        assert forwarder.progress.trouble == ""
        assert clock.now() - back < timedelta(seconds=longest)
        assert pauses[:7] == [2, 4, 8, 16, 32, longest, longest]
        assert set(pauses[5:]) == {longest}
        assert len(pauses) == math.ceil((days.total_seconds() - sum(pauses[:5])) / longest) + 5


async def test_an_association_that_was_let_in_is_no_refusal(tmp_path: Path) -> None:
    """The count of refusals counts refusals."""
    settings = new_edge(
        tmp_path,
        edge={"ae_title": SCANNER},
        listen={"port": 11112, "ae_title": AE},
        node={"ae_title": AE, "host": "127.0.0.1"},
    )
    async with spool(tmp_path / "spool") as one:
        agent = Agent(settings, FakeClock(), one)
        actor = Principal(SCANNER, Role.DEVICE, SCANNER, "edge").actor
        await agent.record(Event(EventKind.ASSOCIATION_ACCEPTED, actor))
        await agent.record(Event(EventKind.ASSOCIATION_REFUSED, actor, Outcome.REFUSED, reason="No."))
        assert agent.status()["refused"] == 1
