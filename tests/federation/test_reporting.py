"""What the hub is told: numbers under fixed names, floored; never a patient, never a person."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consent.errors import Invalid
from consent.vocabulary import EventKind
from federation.reporting import ALARM_COUNTS, K_FLOOR, NAMES, NodeReport, floored
from node.audit.event import Event
from tests.support.region import Region, region


@pytest.fixture
async def r(tmp_path: Path) -> AsyncIterator[Region]:
    async with region(tmp_path, nodes=("a-general", "b-central")) as built:
        yield built


@pytest.mark.requirement("E7")
async def test_hub_shows_what_members_report(r: Region) -> None:
    """After a sharing the hub knows sizes, counts and versions of both."""
    await r.share()
    for _ in range(K_FLOOR):
        await r.a.log.record(Event(EventKind.STUDY_OPENED, "system"))
    await r.a.reporter.send()

    states = {state.member.id: state for state in await r.hub.reports.members()}
    a, b = states["a-general"], states["b-central"]
    assert a.report is not None and a.report.counts["studies_opened"] == K_FLOOR
    assert a.report.counts["grants_issued"] is None
    assert a.log_size == await r.a.log.size()
    assert not a.silent and b.silent and b.report is None
    r.clock.tick(minutes=11)
    assert all(state.silent for state in await r.hub.reports.members())


@pytest.mark.requirement("E7")
async def test_report_and_hub_hold_no_patient_and_no_person(r: Region, tmp_path: Path) -> None:
    """What is sent, and everything that the hub keeps, is searched for every name that the story used."""
    sharing = await r.share()
    opening = await r.b.node.gateway.open(sharing.asker, sharing.study, home="a-general")
    await r.b.node.gateway.series(opening)
    for member in (r.a, r.b):
        await member.witnessing.submit()
        await member.reporter.send()
    ds = sharing.instances[0].dataset()
    words = [
        str(ds.PatientID), str(ds.PatientBirthDate), str(ds.AccessionNumber), "Zhang", "张",
        sharing.patient, sharing.study, sharing.asker.id, sharing.asker.name, sharing.owner.id,
        str(ds.StudyInstanceUID), sharing.grant.id,
    ]  # fmt: skip

    sent = json.dumps((await r.a.reporter.build()).to_json(), ensure_ascii=False)
    assert not [word for word in words if word in sent]
    for path in (tmp_path / "hub").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not [word for word in words if word.encode() in content], path.name
    entries = await r.hub.log.entries(limit=1000)
    told = "".join(str(entry.event) for entry in entries)
    assert not [word for word in words if word in told]


@pytest.mark.requirement("E7")
@pytest.mark.parametrize(
    "counts", [{"patients": 7}, {"studies_opened": 3}, {"studies_opened": -1}, {"grants_issued": True}]
)
def test_hub_refuses_what_must_not_be_told(counts: dict[str, Any]) -> None:
    """A name that is not agreed, or a count below the floor, is refused even when a member sends it."""
    report = NodeReport(datetime(2026, 11, 22, tzinfo=UTC), "0.1", 3, True, "", counts)
    with pytest.raises(Invalid):
        NodeReport.from_json(report.to_json())


@pytest.mark.requirement("E7")
@given(st.integers(min_value=0, max_value=10**6))
def test_small_counts_are_not_told(count: int) -> None:
    """Above zero and below the floor is None, everything else itself."""
    told = floored(count)
    assert told == (None if 0 < count < K_FLOOR else count)
    assert len(NAMES) > len(ALARM_COUNTS)
