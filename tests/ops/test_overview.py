"""What the hub's operator sees of a region, from real reports of real nodes in one process."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from consent.vocabulary import EventKind, Outcome
from node.audit.event import Event
from ops.overview import MemberView, Overview, look
from tests.support.region import Hospital, Region, region


@pytest.fixture
async def delta(tmp_path: Path) -> AsyncIterator[Region]:
    async with region(tmp_path, nodes=("a-general", "b-central")) as built:
        yield built


async def seen(built: Region) -> Overview:
    hub = built.hub
    return await look(
        members=hub.members,
        authority=hub.authority,
        reports=hub.reports,
        witnessing=hub.witnessing,
        runs=None,
        log=hub.log,
    )


def one(overview: Overview, hospital: Hospital) -> MemberView:
    return next(view for view in overview.members if view.member.id == hospital.id)


@pytest.mark.requirement("E7")
async def test_a_member_is_new_then_up_then_silent_then_up_again(delta: Region) -> None:
    """Ten minutes without a report is silence; an expired roster is said instead of an empty table."""
    overview = await seen(delta)
    assert {view.member.id for view in overview.members} == {"a-general", "b-central"}
    assert one(overview, delta.a).standing == "new"
    await delta.a.reporter.send()
    view = one(await seen(delta), delta.a)
    assert (view.standing, view.roster_current, view.log_sound) == ("up", True, True)
    assert view.software and view.reported == delta.clock.now()
    delta.clock.tick(minutes=11)
    overview = await seen(delta)
    assert (one(overview, delta.a).standing, overview.up, overview.silent) == ("silent", 0, 1)
    await delta.a.reporter.send()
    assert one(await seen(delta), delta.a).standing == "up"
    delta.clock.tick(days=30)
    overview = await seen(delta)
    assert overview.members == () and "expired" in (overview.to_json()["fault"] or "")


@pytest.mark.requirement("E7", "E1")
async def test_suspension_shows_and_so_does_an_older_roster(delta: Region) -> None:
    """A suspended member is shown as such although it answered; one that has not taken the new roster is behind."""
    await delta.a.reporter.send()
    await delta.b.reporter.send()
    await delta.hub.authority.suspend("b-central", by="person:op@hub", reason="drill")
    overview = await seen(delta)
    assert one(overview, delta.b).standing == "suspended"
    assert not one(overview, delta.a).roster_current
    await delta.a.following.refresh()
    await delta.a.reporter.send()
    assert one(await seen(delta), delta.a).roster_current
    await delta.hub.authority.reinstate("b-central", by="person:op@hub", reason="over")
    assert one(await seen(delta), delta.b).standing == "up"


@pytest.mark.requirement("E7", "A1")
async def test_checkpoints_show_how_far_and_by_whom_a_log_is_vouched_for(delta: Region) -> None:
    """Nothing before the first cosignature, then everybody's; a rewritten log is an alarm that names the member."""
    await delta.a.reporter.send()
    assert one(await seen(delta), delta.a).cosigned_size == 0
    await delta.a.witnessing.submit()
    await delta.a.reporter.send()
    view = one(await seen(delta), delta.a)
    assert set(view.cosigned_by) == {"hub", "b-central"}
    assert view.cosigned_size == view.log_size == await delta.a.log.size()
    await delta.hub.witnessing.submit()
    assert set((await seen(delta)).witnesses) == {"a-general", "b-central"}
    alarm = Event(EventKind.WITNESS_ALARMED, "member:a-general", outcome=Outcome.FAILED, reason="split")
    await delta.hub.log.record(alarm)
    [shown] = (await seen(delta)).alarms
    assert (shown.kind, shown.node) == (EventKind.WITNESS_ALARMED, "a-general")


@pytest.mark.requirement("E7")
async def test_small_counts_are_not_told_and_the_sum_says_so(delta: Region) -> None:
    """One to four deeds about patients are `None`, and the sum never passes for all; a machine's troubles are exact."""
    for hospital, count in ((delta.a, 7), (delta.b, 2)):
        for _ in range(count):
            await hospital.log.record(Event(EventKind.GRANT_ISSUED, "system"))
    await delta.a.log.record(Event(EventKind.INTEGRITY_FAILED, "system", outcome=Outcome.FAILED))
    await delta.a.reporter.send()
    await delta.b.reporter.send()
    overview = await seen(delta)
    assert one(overview, delta.a).counts["grants_issued"] == 7
    assert one(overview, delta.b).counts["grants_issued"] is None
    total = overview.totals["grants_issued"]
    assert (total.told, total.untold, total.text) == (7, 1, "7+")
    assert overview.totals["packs_released"].text == "0"
    assert one(overview, delta.a).alarms["integrity_failed"] == 1


@pytest.mark.requirement("E7")
async def test_a_whole_exchange_leaves_no_patient_and_no_person_at_the_hub(delta: Region) -> None:
    """After store, consent, grant and fetch, nothing in the overview or in the hub's folder names either."""
    sharing = await delta.share(patient_name="Ouyang^Xiadan=欧阳^夏丹", patient_id="PID-778899")
    for hospital in (delta.a, delta.b):
        await hospital.witnessing.submit()
        await hospital.reporter.send()
    said = json.dumps((await seen(delta)).to_json(), ensure_ascii=False)
    secrets = (
        "Ouyang",
        "欧阳",
        "PID-778899",
        sharing.study,
        sharing.patient,
        sharing.owner.id,
        sharing.asker.id,
    )
    folder = Path(delta.hub.node.database.url.partition(":///")[2]).parent
    kept = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    for words in secrets:
        assert words not in said
        assert len(words) < 6 or words.encode() not in kept
