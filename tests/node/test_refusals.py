"""Junk in bulk: the first refusals in full, then counts; nothing is lost in the count, and the log stays readable."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from consent.errors import Conflict, Invalid
from consent.vocabulary import EventKind
from node import refusals
from node.access.live import refusals_in
from node.audit.event import Event
from node.ingest import Arrival, Source
from node.refusals import IN_FULL, MAX_OWED, refused, summary
from tests.support.dicom import ct_slice
from tests.support.node import NodeFixture, small_node
from tests.support.web_door import chief, multipart, open_door

pytestmark = pytest.mark.requirement("V4", "F4")


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[NodeFixture]:
    async with small_node(tmp_path) as node:
        yield node


def codes(events: list[Event]) -> Counter[str]:
    """How many refusals these entries stand for, by code."""
    counted: Counter[str] = Counter()
    for event in events:
        counted[str(event.detail["code"])] += refusals_in(event)
    return counted


async def test_a_flood_of_junk_makes_a_dozen_entries_that_count_it_all(node: NodeFixture) -> None:
    """Two hundred files that are no DICOM, and as many of another kind, in one association."""
    source = Source(node.device, "dimse", "10.0.0.5")
    for _ in range(200):
        with pytest.raises(Invalid):
            await node.ingest.receive(
                Arrival.of("1.2.3", "1.2.4", "1.2.840.10008.1.2.1", b"\x00" * 64), source
            )
        await node.ingest.refused(Conflict("Another one.", code="taken"), source)
    await node.ingest.summarise(source)
    await node.ingest.summarise(source)
    events = [entry.event for entry in await node.events(EventKind.INSTANCE_REFUSED)]
    assert len(events) == IN_FULL + 2
    assert sum(codes(events).values()) == 400
    assert codes(events)["taken"] == 200
    assert {event.address for event in events} == {"10.0.0.5"}


def test_each_source_counts_for_itself(node: NodeFixture) -> None:
    """What one sender does hides nothing of another's."""
    one, two = (Source(node.device, "stow", f"10.0.0.{number}") for number in (1, 2))
    for _ in range(IN_FULL + 5):
        refused(Invalid("Junk."), one)
    (event,) = refused(Invalid("Junk."), two)
    assert (event.address, event.detail.get("repeats")) == ("10.0.0.2", None)
    assert [event.detail["repeats"] for event in summary(one)] == [5]
    assert one == Source(node.device, "stow", "10.0.0.1")


def test_a_source_that_goes_on_for_ever_is_counted_on_the_way(
    node: NodeFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a thousand, and after a minute: a node that is killed loses less than that."""
    source = Source(node.device, "dimse", "10.0.0.5")
    events = [event for _ in range(IN_FULL + MAX_OWED) for event in refused(Invalid("Junk."), source)]
    assert [event.detail.get("repeats") for event in events] == [None] * IN_FULL + [MAX_OWED]
    assert not refused(Invalid("Junk."), source)
    monkeypatch.setattr(refusals, "OWED_SECONDS", 0.0)
    assert [event.detail["repeats"] for event in refused(Invalid("Junk."), source)] == [2]
    assert not summary(source)


async def test_a_request_full_of_junk_makes_a_few_entries(tmp_path: Path) -> None:
    """STOW-RS: forty parts, none of them DICOM, and one good one."""
    async with open_door(tmp_path) as door:
        who = await chief(door)
        status, answer = await door.post(who, *multipart(*(40 * [b"not dicom"]), ct_slice().file()))
        assert status == 202
        assert len(answer["0008119A"]["Value"]) == 40  # Other Failures Sequence: they have no UIDs
        events = [entry.event for entry in await door.node.events(EventKind.INSTANCE_REFUSED)]
        assert len(events) == IN_FULL + 1
        assert sum(codes(events).values()) == 40
