"""Federated training with real processes: superlink, supernodes, runners, confined trainers, over mutual TLS."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from aiohttp import web

from consent.signed import read
from consent.vocabulary import EventKind
from learning.digits import digits_of
from learning.door import FleetDoor
from learning.models import ModelVersion
from learning.networks import declared_arrays
from learning.plans import Refusal, Schedule, Training, Verdict
from learning.runtables import RunState
from tests.learning.region import OFFICER, RESEARCHER, Hospital, Hub, digits_plan, training_region

pytestmark = [pytest.mark.journey, pytest.mark.slow, pytest.mark.timeout(480)]


async def until(true: Callable[[], Awaitable[bool]], seconds: float = 300) -> None:
    async with asyncio.timeout(seconds):
        while not await true():
            await asyncio.sleep(0.1)


async def offered_to_all(hub: Hub, sites: list[Hospital]) -> None:
    async def there() -> bool:
        return all([await site.book.plans() for site in sites])

    await until(there)


async def all_online(hub: Hub, sites: list[Hospital]) -> None:
    async def there() -> bool:
        return len(await hub.runs.superlink.online()) == len(sites)

    await until(there)


async def approved_at_hub(hub: Hub, digest: str, count: int) -> None:
    async def there() -> bool:
        return len(await hub.book.approvals(digest)) == count

    await until(there)


@pytest.mark.requirement("R1", "R2", "R4")
async def test_sites_that_approve_train_and_one_that_does_not_joins_when_it_does(tmp_path: Path) -> None:
    """Two sites train; the third refuses in fixed words until it approves; the model beats every site alone."""
    async with training_region(tmp_path, limit=150) as (hub, sites):
        plan = digits_plan(
            training=Training(local_epochs=4, batch_size=8),
            schedule=Schedule(rounds=6, minimum_sites=2, round_seconds=60, deadline_seconds=200),
        )
        signed = await hub.runs.propose(plan, RESEARCHER)
        await offered_to_all(hub, sites)
        for site in sites[:2]:
            await site.book.decide(signed.digest, Verdict.APPROVE, OFFICER)
        await approved_at_hub(hub, signed.digest, 2)
        await all_online(hub, sites)

        run = await hub.runs.launch(signed.digest, RESEARCHER)
        feed = hub.runs.feed(run.id)
        assert feed is not None
        seen = []
        async for event in feed.watch():
            seen.append(event.name)
            if event.name == "round" and event.data["round"] == 1 and event.data["kind"] == "train":
                await sites[2].book.decide(signed.digest, Verdict.APPROVE, OFFICER)
        view = await hub.runs.view(run.id)

        assert seen[-2:] == ["ended", "end"]
        assert (view.run.state, view.run.words) == (RunState.FINISHED, "")
        first, last = view.progress.rounds[0].sites, view.progress.rounds[-1].sites
        assert [report.state for report in first] == ["trained", "trained", "refused"]
        assert first[2].words == Refusal.NOT_APPROVED
        assert [report.state for report in last] == ["trained"] * 3
        assert sites[2].digits.gathered < sites[0].digits.gathered == 7

        progress = view.progress
        assert set(progress.baseline) == {"a", "b", "c"}
        assert min(progress.final.values()) > max(progress.baseline.values())

        await check_model(hub, view.run.model)
        await check_logs(hub, sites)
        check_disks(tmp_path, sites)


async def check_model(hub: Hub, model_id: str | None) -> None:
    """The model is signed by the hub, names its provenance, and its parameters are what the record says."""
    assert model_id is not None
    signed = await hub.runs.model(model_id)
    again = read(signed.token, ModelVersion, keys_of=lambda _: (hub.identity.signing.public_key(),))
    assert again.body == signed.body
    assert {one.site for one in signed.body.approvals} == {"a", "b", "c"}
    assert len(signed.body.rounds) == 6
    content = await hub.runs.store.get(signed.body.parameters)
    with np.load(BytesIO(content), allow_pickle=False) as arrays:
        shapes = {name: arrays[name].shape for name in arrays.files}
    assert shapes == dict(declared_arrays(signed.body.model, 10))


async def check_logs(hub: Hub, sites: list[Hospital]) -> None:
    """Hub and sites have it on record, each what it knows."""
    assert len(await hub.log.search(kind=EventKind.TRAINING_ROUND_DONE)) == 7
    assert len(await hub.log.search(kind=EventKind.MODEL_REGISTERED)) == 1
    assert await sites[2].log.search(kind=EventKind.TRAINING_REFUSED)
    assert len(await sites[0].log.search(kind=EventKind.TRAINING_STARTED)) == 7
    for party in (hub, *sites):
        assert (await party.log.verify()).ok


def check_disks(folder: Path, sites: list[Hospital]) -> None:
    """No picture lies in any file, and no private key."""
    planted = [digit.pixels.astype(np.float32).tobytes() for digit in digits_of(0, 3, limit=150)[:20]]
    planted += [(digit.pixels.astype(np.float32) / 16).tobytes() for digit in digits_of(0, 3, limit=150)[:20]]
    planted += [b"PRIVATE KEY"]
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(one in content for one in planted), path
    assert all(site.site.status.network in ("none", "shared") for site in sites)


@pytest.mark.requirement("R4")
async def test_a_run_always_ends_and_nothing_is_left_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run stopped while a site receives its message ends, and the site takes part in the next; a dead superlink
    fails its run; no process outlives its owner."""
    async with training_region(tmp_path, sites=2, limit=60) as (hub, sites):
        quick = digits_plan(
            baseline=False,
            training=Training(local_epochs=1),
            schedule=Schedule(rounds=300, minimum_sites=2, round_seconds=240, deadline_seconds=600),
        )
        signed = await hub.runs.propose(quick, RESEARCHER)
        await offered_to_all(hub, sites)
        for site in sites:
            await site.book.decide(signed.digest, Verdict.APPROVE, OFFICER)
        await approved_at_hub(hub, signed.digest, 2)
        await all_online(hub, sites)
        pids = [*sites[0].site.status.processes.values(), *hub.runs.superlink.processes.values()]

        run = await hub.runs.launch(signed.digest, RESEARCHER)
        await rounds_reach(hub, run.id, 1)
        with monkeypatch.context() as door:
            held, over = hold_parts(hub.door, door)
            async with asyncio.timeout(60):
                await held.wait()
            await hub.runs.stop(run.id, RESEARCHER)
            assert (await ended(hub, run.id)).state is RunState.STOPPED
            over.set()

        run = await hub.runs.launch(signed.digest, RESEARCHER)
        await rounds_reach(hub, run.id, 1)
        os.kill(hub.runs.superlink.processes["superlink"], signal.SIGKILL)
        failed = await ended(hub, run.id)
        assert failed.state is RunState.FAILED
        assert failed.words
        pids += [*sites[0].site.status.processes.values(), *hub.runs.superlink.processes.values()]
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def hold_parts(door: FleetDoor, monkeypatch: pytest.MonkeyPatch) -> tuple[asyncio.Event, asyncio.Event]:
    """Hold every site's call for a part of a message at the hub's door: the first event tells of one, the second ends it."""
    held, over, passing = asyncio.Event(), asyncio.Event(), door.pass_on

    async def pass_on(request: web.Request) -> web.Response:
        if request.path.endswith("/pull-object"):
            held.set()
            await over.wait()
        return await passing(request)

    monkeypatch.setattr(door, "pass_on", pass_on)
    return held, over


async def rounds_reach(hub: Hub, run_id: str, count: int) -> None:
    async def there() -> bool:
        view = await hub.runs.view(run_id)
        assert not view.run.over, (view.run.words, view.progress)
        return view.run.rounds_done >= count

    await until(there)


async def ended(hub: Hub, run_id: str):  # type: ignore[no-untyped-def]
    async def over() -> bool:
        return (await hub.runs.run_of(run_id)).over

    await until(over)
    return await hub.runs.run_of(run_id)
