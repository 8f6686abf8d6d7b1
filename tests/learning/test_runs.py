"""Runs at the hub: what must be there to launch, what is kept, and that every run ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import learning.schema  # noqa: F401  (its tables are made with the node's)
from consent.errors import Conflict, Corrupt, Denied, Invalid, NotFound, Unavailable
from consent.principals import Principal
from consent.signed import sign
from consent.vocabulary import EventKind, Role
from learning import runs as runs_module
from learning.models import ModelStore, ModelVersion, to_npz
from learning.networks import declared_arrays, initial_vector
from learning.plans import PlanDecision, Schedule, Verdict
from learning.runtables import RunState
from tests.learning.hubs import RESEARCHER, HubFixture, learning_hub, trained
from tests.learning.region import digits_plan
from tests.support.node import NodeFixture, small_node


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[NodeFixture]:
    async with small_node(tmp_path) as built:
        yield built


@pytest.fixture
async def hub(node: NodeFixture) -> AsyncIterator[HubFixture]:
    async with learning_hub(node) as built:
        yield built


@pytest.mark.requirement("R2")
async def test_a_run_needs_enough_living_approvals(hub: HubFixture) -> None:
    """One approval of two is not enough; a refusal after an approval takes it back; an ended plan never runs."""
    plan = await hub.approved("a")
    with pytest.raises(Conflict, match="1 of the 2"):
        await hub.runs.launch(plan.digest, RESEARCHER)
    await hub.decide(plan, "b", Verdict.APPROVE)
    await hub.decide(plan, "b", Verdict.REFUSE)
    with pytest.raises(Conflict):
        await hub.runs.launch(plan.digest, RESEARCHER)
    hub.node.clock.tick(days=91)
    with pytest.raises(Conflict, match="ended"):
        await hub.runs.launch(plan.digest, RESEARCHER)
    with pytest.raises(NotFound):
        await hub.runs.launch("0" * 64, RESEARCHER)


@pytest.mark.requirement("U1", "R1")
@pytest.mark.parametrize(
    "role", [Role.CLINICIAN, Role.ADMINISTRATOR, Role.HUB_OPERATOR, Role.SECURITY_OFFICER]
)
async def test_only_a_researcher_launches(hub: HubFixture, role: Role) -> None:
    """Everybody else is refused by the policy, for proposing, launching and stopping."""
    plan = await hub.approved("a", "b")
    who = Principal("x", role, "X", hub.node.node_id)
    with pytest.raises(Denied):
        await hub.runs.propose(digits_plan(), who)
    with pytest.raises(Denied):
        await hub.runs.launch(plan.digest, who)


@pytest.mark.requirement("R1", "R4")
async def test_a_finished_run_leaves_a_signed_model_with_its_provenance(hub: HubFixture) -> None:
    """Rounds, who took part, approvals, digests, accuracies; the parameters are those of the last round."""
    plan = await hub.approved("a", "b")
    run_id = await hub.whole_run(plan)
    view = await hub.runs.view(run_id)
    (signed,) = await hub.runs.models()

    assert view.run.state is RunState.FINISHED
    assert (view.run.rounds_done, view.run.model) == (2, signed.id)
    model = signed.body
    assert (model.plan, model.run, model.app) == (plan.digest, run_id, plan.body.app)
    assert {one.site for one in model.approvals} == {"a", "b"}
    assert [one.sites for one in model.rounds] == [("a", "b"), ("a", "b")]
    assert (model.accuracy, dict(model.baseline)) == (0.85, {"a": 0.5, "b": 0.6})
    content = await hub.runs.store.get(model.parameters)
    assert content == to_npz(initial_vector(plan.body) + np.float32(0.02), plan.body)
    with np.load(BytesIO(content), allow_pickle=False) as arrays:
        assert [(name, arrays[name].shape) for name in arrays.files] == list(declared_arrays(model.model, 10))
    assert len(await hub.node.events(EventKind.TRAINING_ROUND_DONE)) == 3
    assert len(await hub.node.events(EventKind.MODEL_REGISTERED)) == 1


@pytest.mark.requirement("R4")
async def test_each_round_is_kept_before_the_next_begins(hub: HubFixture) -> None:
    """When the hub has answered, the round's reports and checkpoint are durable; the one before is gone."""
    plan = await hub.approved("a", "b")
    run = await hub.runs.launch(plan.digest, RESEARCHER)
    await hub.started()
    assert await hub.round(1, a=trained(0.1), b=trained(0.1)) == {"kept": True}
    first = (await hub.runs.run_of(run.id)).checkpoint
    assert first is not None
    assert await hub.runs.store.get(first)
    await hub.round(2, a=trained(0.2), b=trained(0.2))
    second = (await hub.runs.run_of(run.id)).checkpoint
    assert second not in (None, first)
    with pytest.raises(NotFound):
        await hub.runs.store.get(first)


@pytest.mark.requirement("R4")
async def test_a_run_always_ends(hub: HubFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped, failed by its server app, cut off, out of time: each has its state and its words."""
    monkeypatch.setattr(runs_module, "GRACE_SECONDS", -4.5)
    schedule = Schedule(rounds=2, minimum_sites=2, round_seconds=5, deadline_seconds=10)
    plan = await hub.approved("a", "b", plan=digits_plan(schedule=schedule))

    stopped = await hub.runs.launch(plan.digest, RESEARCHER)
    await hub.started()
    await hub.runs.stop(stopped.id, RESEARCHER)
    await hub.over(stopped.id)
    with pytest.raises(Conflict):
        await hub.runs.stop(stopped.id, RESEARCHER)

    hub.superlink.channels.clear()
    failed = await hub.runs.launch(plan.digest, RESEARCHER)
    await hub.started()
    await hub.say({"event": "failed", "words": "Only 1 sites took part; the plan needs 2."})
    await hub.over(failed.id)

    hub.superlink.channels.clear()
    cut = await hub.runs.launch(plan.digest, RESEARCHER)
    await hub.started()
    hub.superlink.channels[-1].close()
    await hub.over(cut.id)

    late = await hub.runs.launch(plan.digest, RESEARCHER)
    await hub.over(late.id)

    runs = {run.id: run for run in await hub.runs.runs()}
    assert runs[stopped.id].state is RunState.STOPPED
    assert runs[failed.id].words == "Only 1 sites took part; the plan needs 2."
    assert runs[cut.id].words == "The learning service ended during the run."
    assert "deadline" in runs[late.id].words
    assert all(run.over and run.ended for run in runs.values())
    assert len(hub.superlink.stopped) == 4
    assert len(await hub.node.events(EventKind.TRAINING_FINISHED)) == 4


@pytest.mark.requirement("R4")
async def test_a_finish_without_a_measured_model_is_a_failure(hub: HubFixture) -> None:
    """A server app that says finished before anything was measured leaves no model."""
    plan = await hub.approved("a", "b")
    run = await hub.runs.launch(plan.digest, RESEARCHER)
    await hub.started()
    await hub.say({"event": "finished"})
    await hub.over(run.id)

    assert (await hub.runs.run_of(run.id)).state is RunState.FAILED
    assert await hub.runs.models() == ()


@pytest.mark.requirement("R4")
async def test_what_a_crash_interrupted_is_failed_at_the_next_start(node: NodeFixture) -> None:
    """The hub dies during a run: after the restart the run is over, and says why."""
    async with learning_hub(node) as first:
        plan = await first.approved("a", "b")
        run = await first.runs.launch(plan.digest, RESEARCHER)
        await first.started()
        await first.round(1, a=trained(0.1), b=trained(0.1))
        async with node.database.write() as tx:  # what a crash leaves: a run that nobody follows
            await runs_module.change_run(tx, run.id, state=RunState.RUNNING.value, ended=None)
    async with node.database.write() as tx:
        await runs_module.change_run(tx, run.id, state=RunState.RUNNING.value, ended=None)
    async with learning_hub(node) as second:
        await second.over(run.id)
        kept = await second.runs.view(run.id)
    assert (kept.run.state, kept.run.words) == (RunState.FAILED, "The hub stopped during the run.")
    assert len(kept.progress.rounds) == 1


async def test_followers_are_told_and_released(hub: HubFixture) -> None:
    """State, rounds and the end arrive in order; afterwards there is no feed."""
    plan = await hub.approved("a", "b")
    run = await hub.runs.launch(plan.digest, RESEARCHER)
    feed = hub.runs.feed(run.id)
    assert feed is not None
    await hub.started()
    await hub.round(1, a=trained(0.1), b=trained(0.1))
    await hub.say({"event": "failed", "words": "enough"})
    async with asyncio.timeout(10):
        names = [event.name async for event in feed.watch()]
    assert names == ["state", "refresh", "round", "refresh", "ended", "end"]
    assert hub.runs.feed(run.id) is None


@pytest.mark.requirement("R2")
async def test_a_site_speaks_for_itself_only(hub: HubFixture) -> None:
    """A decision under another's name, on an unknown plan, or by a stranger's key does not count."""
    plan = await hub.approved()
    node = hub.node
    public = node.identity.signing.public_key()

    def decision(issuer: str, site: str, digest: str = plan.digest) -> str:
        return sign(
            PlanDecision(digest, site, Verdict.APPROVE, "security-officer", 6, 1),
            record_id="r",
            issuer=issuer,
            key=node.identity.signing,
            issued=node.clock.now(),
            expires=node.clock.now() + timedelta(days=1),
        ).token

    with pytest.raises(Denied):
        await hub.book.receive_decision(decision("b", "a"), "b", keys_of=lambda _: (public,))
    with pytest.raises(Denied):
        await hub.book.receive_decision(decision("a", "a"), "b", keys_of=lambda _: (public,))
    with pytest.raises(Corrupt):
        await hub.book.receive_decision(decision("a", "a"), "a", keys_of=lambda _: ())
    with pytest.raises(NotFound):
        await hub.book.receive_decision(decision("a", "a", "0" * 64), "a", keys_of=lambda _: (public,))
    assert await hub.book.decisions(plan.digest) == {}


@pytest.mark.requirement("V1")
async def test_parameters_lie_sealed_and_a_change_is_noticed(tmp_path: Path) -> None:
    """The file is not the npz, and one flipped byte, another file's name or a wrong key is Corrupt."""
    store = ModelStore(tmp_path, b"k" * 32)
    digest, other = await store.put(b"PK parameters"), await store.put(b"other")
    path = tmp_path / f"{digest}.model"
    assert b"parameters" not in path.read_bytes()
    with pytest.raises(Corrupt):
        await ModelStore(tmp_path, b"x" * 32).get(digest)
    (tmp_path / f"{other}.model").replace(path)
    with pytest.raises(Corrupt):
        await store.get(digest)
    for bad in ("../secret", "0" * 63):
        with pytest.raises(Invalid):
            await store.get(bad)
    with pytest.raises(NotFound):
        await store.get("0" * 64)


async def test_a_model_version_survives_its_own_json(hub: HubFixture) -> None:
    """To JSON and back is the same version; a broken one is Invalid."""
    await hub.whole_run(await hub.approved("a", "b"))
    (signed,) = await hub.runs.models()
    assert ModelVersion.from_json(signed.body.to_json()) == signed.body
    for name, value in (("plan", "x"), ("accuracy", 2), ("rounds", [{}]), ("parameters", None)):
        with pytest.raises(Invalid):
            ModelVersion.from_json(signed.body.to_json() | {name: value})


@pytest.mark.requirement("R4")
@pytest.mark.parametrize("failures", [2, 99], ids=["for a while", "for good"])
async def test_a_run_ends_for_its_followers_though_the_database_fails(
    hub: HubFixture, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    """Its end is written when that works again, else at the next start; a stop that fails does not keep it open."""
    monkeypatch.setattr(runs_module, "END_PAUSES_SECONDS", (0.01, 0.01, 0.01))
    plan = await hub.approved("a", "b")
    run = await hub.runs.launch(plan.digest, RESEARCHER)
    await hub.started()
    left, close = failures, hub.runs._close

    async def failing(tx: Any, ended: Any) -> None:
        nonlocal left
        left -= 1
        if left >= 0:
            raise Unavailable("The database cannot write now.")
        await close(tx, ended)

    async def broken(_: int) -> None:
        raise RuntimeError("gone")

    monkeypatch.setattr(hub.runs, "_close", failing)
    monkeypatch.setattr(hub.superlink, "stop_run", broken)
    await hub.runs.stop(run.id, RESEARCHER)
    async with asyncio.timeout(10):
        while hub.runs._active:
            await asyncio.sleep(0.01)
    assert (await hub.runs.run_of(run.id)).over is (failures == 2)
    monkeypatch.undo()
    await hub.runs._recover()
    assert (await hub.runs.run_of(run.id)).over
