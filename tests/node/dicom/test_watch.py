"""Devices watched live: who is associated, what came today, who was refused and why; over restarts and for others."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from sqlalchemy import text

from consent.errors import Denied, Unavailable
from consent.vocabulary import EventKind
from node.access.devices import DeviceState
from node.access.live import live_devices, refusal_words
from node.database import Database
from node.dicom.watch import DeviceWatch
from tests.support.dicom import study
from tests.support.door import Door, dicom_door, watching
from tests.support.node import small_node

pytestmark = [pytest.mark.timeout(60), pytest.mark.requirement("C1")]
WHY = "A film digitiser that cannot do TLS"


@pytest_asyncio.fixture
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    """CT1 and MR1 are registered at addresses of their own."""
    async with small_node(tmp_path) as node, dicom_door(node) as opened:
        await node.registry.add_device("CT1", "127.0.0.1", plain_reason=WHY)
        await node.registry.add_device("MR1", "127.0.0.7", plain_reason=WHY)
        yield opened


async def test_a_device_is_seen_while_it_is_associated_and_its_images_are_counted(door: Door) -> None:
    """Now: one association with three images. Afterwards: none, last seen, three images today."""
    assert (await door.live("CT1")).last_seen is None
    association = await door.call("CT1")
    assert await door.store(association, study(slices=3)) == [0, 0, 0]
    live = await door.live("CT1")
    assert (live.associated, live.associations[0].stored, live.associations[0].address) == (1, 3, "127.0.0.1")
    assert (live.activity.instances, live.last_seen) == (3, door.node.clock.now())
    assert live.activity.size_bytes == sum(len(one.data) for one in study(slices=3))
    await door.release(association)
    live = await door.live("CT1")

    assert (live.associated, live.associations, live.activity.instances) == (0, (), 3)
    assert (await door.live("MR1")).activity.instances == 0


async def test_another_process_reads_the_same_from_the_table(door: Door) -> None:
    """As the command line does: an open association is known while the node runs, and not when it does not."""
    await door.store(await door.call("CT1"), study(slices=2))
    await door.watch.look()
    node = door.node
    survey, activities = await node.registry.survey(), await node.registry.activity()
    running, _ = live_devices(survey, activities, (), node.clock.now())
    stopped, _ = live_devices(survey, activities, (), node.clock.now(), running=False)

    assert (running.associated, running.activity.instances, running.last_seen) == (1, 2, node.clock.now())
    assert (stopped.associated, stopped.activity.instances) == (0, 2)


async def test_refusals_are_counted_exactly_though_the_log_gets_one_a_minute(door: Door) -> None:
    """What was counted and not written follows when the minute is over: the log is whole."""
    for _attempt in range(4):
        await door.refused("CT1", address="127.0.0.9")
    live = await door.live("CT1")
    assert live.activity.refusals == 4 and live.troubled
    assert len(await door.node.events(EventKind.ASSOCIATION_REFUSED)) == 1
    door.node.clock.tick(seconds=61)
    assert (await door.live("CT1")).activity.refusals == 4
    first, rest = await door.node.events(EventKind.ASSOCIATION_REFUSED)

    assert rest.event.detail["repeats"] == 3 and rest.event.reason == first.event.reason
    assert (await door.live("CT1")).activity.refusals == 4


@pytest.mark.parametrize(
    ("calling", "how", "words"),
    [
        ("CT1", {"address": "127.0.0.9"}, "It came from 127.0.0.9; CT1 is registered at 127.0.0.1."),
        ("CT1", {"called": "ELSEWHERE"}, 'It called "ELSEWHERE"; the AE title of this node is "ACCORD".'),
        ("CT9", {}, 'No device with the AE title "CT9" is registered here.'),
    ],
    ids=["address", "called", "calling"],
)
async def test_the_latest_reason_says_what_was_wrong_and_the_way_out(
    door: Door, calling: str, how: dict[str, str], words: str
) -> None:
    """Also where the AE title itself is wrong: the address tells which device it is."""
    await door.refused(calling, **how)
    refusal = (await door.live("CT1")).activity.refusal
    assert refusal is not None

    [(fault, mend)] = refusal_words(refusal, str)
    assert fault == words and mend
    door.node.clock.tick(seconds=5)
    await door.call("CT1")
    assert not (await door.live("CT1")).troubled


@pytest.mark.parametrize("state", [DeviceState.MAINTENANCE, DeviceState.RETIRED])
async def test_a_device_put_out_of_use_is_out_with_what_it_has_open(door: Door, state: DeviceState) -> None:
    """Its association is ended, nothing more of it is stored, a new one is refused, and the log says why in words."""
    association = await door.call("CT1")
    first, *rest = study(slices=4)
    assert await door.store(association, [first]) == [0]
    await door.node.registry.set_device_state("CT1", state, reason="new tube")
    await door.watch.look()
    assert await door.store(association, rest) == [-1, -1, -1]
    await door.refused("CT1")

    live = await door.live("CT1")
    assert (live.associated, live.activity.instances, live.activity.refusals) == (0, 1, 2)
    reasons = {entry.event.reason for entry in await door.node.events(EventKind.ASSOCIATION_REFUSED)}
    said = {"maintenance": "in maintenance", "retired": "retired"}[state.value]
    assert reasons == {f"This device is {said} and cannot send."}


async def test_a_device_registered_otherwise_is_out_with_what_it_has_open(door: Door) -> None:
    """Moved, registered for less or altered outside: an open association is no older right. One that fits goes on."""
    registry, first = door.node.registry, study(slices=5)
    moved = await door.call("CT1")
    await door.watch.look()
    assert await door.store(moved, first[:1]) == [0]
    await registry.move_device("CT1", "127.0.0.5")
    await door.watch.look()
    assert await door.store(moved, first[1:2]) == [-1]
    await registry.move_device("CT1", "127.0.0.1")
    less = await door.call("CT1")
    await registry.add_device("CT1", "127.0.0.1", plain_reason=WHY, services=["commit"])
    await door.watch.look()
    assert await door.store(less, first[2:3]) == [-1]
    altered = await door.call("MR1", address="127.0.0.7")
    async with door.node.database.write() as tx:
        await tx.execute(text("UPDATE device SET address = '127.0.0.0/8' WHERE ae_title = 'MR1'"))
    await door.watch.look()
    assert await door.store(altered, first[3:4]) == [-1]

    codes = [entry.event.detail["code"] for entry in await door.node.events(EventKind.ASSOCIATION_REFUSED)]
    assert codes == ["device-address", "device-changed", "device-changed"]


async def test_numbers_survive_a_restart_and_end_with_the_day(door: Door) -> None:
    """Images and refusals of today are there again; tomorrow begins at none; last seen stays."""
    association = await door.call("CT1")
    await door.store(association, study(slices=2))
    await door.refused("CT1", address="127.0.0.9")
    await door.refused("CT1", address="127.0.0.9")
    await door.release(association)
    seen = door.node.clock.now()
    await door.watch.close()
    _gate, again = watching(door.node)
    await again.look()
    [live, _] = await again.live()
    assert (live.activity.instances, live.activity.refusals, live.associated) == (2, 2, 0)
    assert live.last_seen == seen
    door.node.clock.tick(days=1)
    [live, _] = await again.live()

    assert (live.activity.instances, live.activity.refusals, live.last_seen) == (0, 0, seen)
    assert not live.troubled


async def test_what_a_kill_left_unread_is_counted_at_the_next_start(door: Door) -> None:
    """No look, no close: the log has it."""
    await door.store(await door.call("CT1"), study(slices=3))
    _gate, again = watching(door.node)
    await again.look()

    assert (await again.live())[0].activity.instances == 3


async def test_two_watchers_of_one_log_count_each_image_once(door: Door) -> None:
    """Whoever writes second does nothing, and takes over what the first one wrote."""
    node = door.node
    _gate, other = watching(node)
    await other.look()
    await door.store(await door.call("CT1"), study(slices=3))
    await door.watch.look()
    await other.look()
    await other.look()

    assert (await node.registry.activity())["CT1"].instances == 3
    assert (await other.live())[0].activity.instances == 3


async def test_a_stranger_leaves_no_row(door: Door) -> None:
    """AE titles from outside fill no table."""
    for number in range(3):
        await door.refused(f"GUESS{number}", address="127.0.0.66")
    await door.watch.look()

    assert set(await door.node.registry.activity()) <= {"CT1", "MR1"}


async def test_what_cannot_be_put_on_record_now_stays_counted(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log that takes nothing for a while loses no refusal: the count is shown meanwhile, and follows."""
    for _attempt in range(4):
        await door.refused("CT1", address="127.0.0.9")
    await door.watch.look()
    door.node.clock.tick(seconds=61)

    async def full(*_: object) -> None:
        raise Unavailable("no space")

    with monkeypatch.context() as patched:
        patched.setattr(type(door.node.log), "record", full)
        with pytest.raises(Unavailable):
            await door.watch.look()
        shown = {one.device.ae_title: one for one in await door.watch.live()}["CT1"]
        assert shown.activity.refusals == 4
    await door.watch.look()
    _, rest = await door.node.events(EventKind.ASSOCIATION_REFUSED)

    assert rest.event.detail["repeats"] == 3
    assert (await door.live("CT1")).activity.refusals == 4


async def test_a_full_disk_stops_the_watch_and_not_the_door(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look that cannot write fails as a job does, and the next one catches up."""
    await door.store(await door.call("CT1"), study(slices=1))

    def full(_database: Database) -> None:
        raise Denied("no space")

    with monkeypatch.context() as patched:
        patched.setattr(Database, "write", full)
        with pytest.raises(Denied):
            await door.watch.look()

    assert (await door.live("CT1")).activity.instances == 1
    assert isinstance(door.watch, DeviceWatch)
