"""Rounds with scripted sites in one process: k of n, refusals, garbage, silence, deadlines."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.app.error import Error
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from consent.errors import Unavailable
from learning import strategy
from learning.client_app import ARRAYS, METRICS, WEIGHT, Order, vector_in
from learning.flower import REFUSED_CODE
from learning.networks import Vector, initial_vector
from learning.plans import Refusal, Schedule, TrainingPlan
from learning.strategy import Rounds, SiteResult, TooFewSites
from learning.wording import EVALUATE, TRAIN, VOID
from tests.learning.region import digits_plan

Site = Callable[[Order, Vector], RecordDict | Error | None]
PLAN = digits_plan(schedule=Schedule(rounds=2, minimum_sites=2, round_seconds=5, deadline_seconds=10))


@pytest.fixture(autouse=True)
def identity(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Messages outside a Flower process need an identity; quick polls and no patience."""
    saved = (TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id)
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    monkeypatch.setattr(strategy, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(strategy, "SETTLE_SECONDS", 0.05)
    monkeypatch.setattr(strategy, "PATIENCE_SECONDS_MIN", 0.2)
    yield
    TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id = saved


class ScriptedGrid(Grid):
    """A grid whose sites are functions: they answer, refuse, fail, or say nothing."""

    def __init__(self, sites: Mapping[int, Site], online: Iterable[int] | None = None) -> None:
        self._sites, self._ids = sites, itertools.count(1)
        self._replies: dict[str, Message] = {}
        self.online = list(sites if online is None else online)

    def set_run(self, run: Any) -> None: ...

    @property
    def run(self) -> Any:
        return None

    def create_message(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return list(self.online)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            name = str(next(self._ids))
            message.metadata.__dict__["_message_id"] = name
            site = self._sites[message.metadata.dst_node_id]
            said = site(Order.of(message), vector_in(message.content))
            if said is not None:
                self._replies[name] = Message(said, reply_to=message)  # type: ignore[call-overload]
            ids.append(name)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._replies.pop(name) for name in list(message_ids) if name in self._replies]

    def send_and_receive(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError


class Kept:
    """A store that remembers."""

    def __init__(self) -> None:
        self.rounds: list[tuple[int, str, dict[str, SiteResult], Vector]] = []

    def round_done(self, number: int, kind: str, sites: Mapping[str, SiteResult], vector: Vector) -> None:
        self.rounds.append((number, kind, dict(sites), vector.copy()))


def report(order: Order, vector: Vector, examples: int = 10, **metrics: float) -> RecordDict:
    records: dict[str, Any] = {
        METRICS: MetricRecord({"accuracy": 0.5, "measured": 5.0, **metrics, WEIGHT: examples})
    }
    if order.kind == TRAIN:
        records[ARRAYS] = ArrayRecord([vector])
    return RecordDict(records)


def moving(step: float, examples: int = 10) -> Site:
    """A site that adds `step` to each parameter."""
    return lambda order, vector: report(order, vector + np.float32(step), examples)


def refusing(order: Order, vector: Vector) -> Error:
    return Error(code=REFUSED_CODE, reason=Refusal.NOT_APPROVED)


def silent(order: Order, vector: Vector) -> None:
    return None


def garbage(order: Order, vector: Vector) -> RecordDict:
    return report(order, np.full_like(vector, np.nan))


def far_away(order: Order, vector: Vector) -> RecordDict:
    return report(order, vector + np.float32(1000))


def short(order: Order, vector: Vector) -> RecordDict:
    return report(order, vector[:-1])


def chatty(order: Order, vector: Vector) -> RecordDict:
    return report(order, vector, patients=12.0)


def boasting(order: Order, vector: Vector) -> RecordDict:
    return report(order, vector, examples=10**9)


def talking(order: Order, vector: Vector) -> Error:
    return Error(code=2, reason="Patient Zhang Wei has no pixels")


def run(sites: list[Site], plan: TrainingPlan = PLAN, online: list[int] | None = None) -> Kept:
    store = Kept()
    grid = ScriptedGrid(dict(enumerate(sites, 1)), online)
    members = {number: "abcdef"[number - 1] for number in range(1, len(sites) + 1)}
    Rounds(grid, plan, run="r", digest="d" * 64, members=members, store=store).run()
    return store


@pytest.mark.requirement("R1")
def test_parameters_are_averaged_by_example_count() -> None:
    """After each round the model is the weighted mean; the last message only measures."""
    store = run([moving(0.01, 10), moving(0.04, 20)])

    assert [(number, kind) for number, kind, _, _ in store.rounds] == [(1, TRAIN), (2, TRAIN), (2, EVALUATE)]
    start = initial_vector(PLAN)
    assert np.allclose(store.rounds[0][3], start + 0.03, atol=1e-5)
    assert np.allclose(store.rounds[1][3], start + 0.06, atol=1e-5)
    assert np.array_equal(store.rounds[2][3], store.rounds[1][3])


@pytest.mark.requirement("R4")
@pytest.mark.parametrize("bad", [garbage, far_away, short, chatty, boasting], ids=lambda site: site.__name__)
def test_one_site_that_sends_garbage_does_not_spoil_the_run(bad: Site) -> None:
    """Not finite, too far, too short, an extra number, an absurd count: dropped, said so, and not averaged."""
    store = run([moving(0.01), moving(0.01), bad])

    assert store.rounds[0][2]["c"].state == "failed"
    assert store.rounds[0][2]["c"].words == Refusal.OUT_OF_BOUNDS
    assert np.allclose(store.rounds[1][3], initial_vector(PLAN) + 0.02, atol=1e-5)


@pytest.mark.requirement("R2", "R4")
def test_refusals_and_failures_arrive_in_fixed_words() -> None:
    """A refusal keeps its words; an error's own text, which could name a patient, goes no further."""
    store = run([moving(0.01), moving(0.01), refusing, talking])
    first = store.rounds[0][2]

    assert (first["c"].state, first["c"].words) == ("refused", Refusal.NOT_APPROVED)
    assert (first["d"].state, first["d"].words) == ("failed", Refusal.FAILED)


@pytest.mark.requirement("R4")
def test_a_silent_site_is_waited_for_only_so_long() -> None:
    """Once enough have answered, the rest get a little longer, then the round is over."""
    store = run([moving(0.01), moving(0.01), silent])
    assert {kept[2]["c"].state for kept in store.rounds} == {"silent"}


@pytest.mark.requirement("R4")
@pytest.mark.parametrize("sites", [[moving(0.01), refusing], [moving(0.01), garbage], [refusing, refusing]])
def test_too_few_useful_sites_end_the_run(sites: list[Site]) -> None:
    """Fewer than the plan's minimum: the run fails, and what they said is kept."""
    store = Kept()
    grid = ScriptedGrid(dict(enumerate(sites, 1)))
    rounds = Rounds(grid, PLAN, run="r", digest="d" * 64, members={1: "a", 2: "b"}, store=store)
    with pytest.raises(TooFewSites):
        rounds.run()
    assert [kind for _, kind, _, _ in store.rounds] == [VOID]
    assert store.rounds[0][2]["b"].words


def test_a_run_does_not_start_below_its_minimum() -> None:
    """Too few connected sites: it waits one round's time and says so."""
    plan = digits_plan(schedule=Schedule(rounds=1, minimum_sites=2, round_seconds=5, deadline_seconds=10))
    grid = ScriptedGrid({1: moving(0.01), 2: moving(0.01)}, online=[1])
    rounds = Rounds(grid, plan, run="r", digest="d" * 64, members={1: "a", 2: "b"}, store=Kept())
    rounds._end = 0.0
    with pytest.raises(Unavailable, match="deadline"):
        rounds.run()


def test_a_site_that_is_not_a_member_is_never_asked() -> None:
    """Nodes outside the run's members get no message, whatever the superlink lists."""
    asked: list[str] = []

    def stranger(order: Order, vector: Vector) -> None:
        asked.append("stranger")

    store = Kept()
    grid = ScriptedGrid({1: moving(0.01), 2: moving(0.01), 9: stranger})
    Rounds(grid, PLAN, run="r", digest="d" * 64, members={1: "a", 2: "b"}, store=store).run()
    assert not asked
    assert set(store.rounds[0][2]) == {"a", "b"}
