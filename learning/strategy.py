"""How rounds are run: federated averaging by a polling loop of our own, k of n, with a deadline on everything.

Flower's own loop asks for replies every three seconds, waits for every node that was asked, and calls a run in
which every site failed a success. This one polls five times a second, goes on without a site that has gone
silent once enough have answered, judges each reply before it counts, and raises when fewer than the plan's
minimum are left. The averaging itself is Flower's FedAvg.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from consent.errors import AccordError, Invalid, Unavailable
from learning.client_app import METRICS, WEIGHT, Order, order_content, vector_in
from learning.egress import METRICS as ALLOWED_METRICS
from learning.flower import REFUSED_CODE
from learning.networks import Vector, initial_vector, parameter_count
from learning.plans import MAX_EXAMPLES_PER_SITE, Refusal, TrainingPlan
from learning.wording import EVALUATE, TRAIN, VOID, Ending

POLL_SECONDS = 0.2
LOOK_SECONDS = 3.0
SETTLE_SECONDS = 20.0
"""How long the first round waits for the last sites once the minimum is there."""

PATIENCE = 3.0
PATIENCE_SECONDS_MIN = 20.0
"""Once k sites have answered, the rest get PATIENCE times as long as the k-th took in the slowest round so far, and
never less than this: a site that joins later reads its images and loads its trainer as the others did at first."""

NORM_SLACK = 1.001


class TooFewSites(Unavailable):
    """Fewer sites than the plan's minimum are there, or answered usefully."""

    code = "too-few-sites"


@dataclass(frozen=True)
class SiteResult:
    """What one site did in one round: "trained", "measured", "refused", "failed" or "silent", in fixed words."""

    state: str
    words: str = ""
    examples: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)


class Store(Protocol):
    """Where the hub keeps what happens."""

    def round_done(self, number: int, kind: str, sites: Mapping[str, SiteResult], vector: Vector) -> None:
        """Keep a round: what each site did, and the parameters after it. Durable when it returns."""
        ...


class Rounds:
    """One run over the sites in `members` (node id to member id)."""

    def __init__(
        self,
        grid: Grid,
        plan: TrainingPlan,
        *,
        run: str,
        digest: str,
        members: Mapping[int, str],
        store: Store,
    ) -> None:
        self._grid, self._plan, self._store = grid, plan, store
        self._run, self._digest, self._members = run, digest, dict(members)
        self._minimum = plan.schedule.minimum_sites
        self._slowest = 0.0
        self._end = time.monotonic() + plan.schedule.deadline_seconds
        self._average = FedAvg(min_available_nodes=self._minimum, weighted_by_key=WEIGHT)

    def run(self) -> None:
        """Every round, then one evaluation of the result. Raises TooFewSites, Unavailable (deadline), Invalid."""
        vector = initial_vector(self._plan)
        self._wait_for_sites()
        for number in range(1, self._plan.schedule.rounds + 1):
            replies, results = self._exchange(TRAIN, number, vector)
            self._require(number, results, "trained")
            vector = self._averaged(number, replies)
            self._store.round_done(number, TRAIN, results, vector)
        _, results = self._exchange(EVALUATE, self._plan.schedule.rounds, vector)
        self._require(self._plan.schedule.rounds, results, "measured")
        self._store.round_done(self._plan.schedule.rounds, EVALUATE, results, vector)

    def _wait_for_sites(self) -> None:
        start = time.monotonic()
        while True:
            online = self._online()
            waited = time.monotonic() - start
            if len(online) == len(self._members) or (
                len(online) >= self._minimum and waited > SETTLE_SECONDS
            ):
                return
            if waited > self._plan.schedule.round_seconds:
                raise TooFewSites(Ending.NOT_CONNECTED)
            self._check_deadline()
            time.sleep(POLL_SECONDS)

    def _online(self) -> tuple[int, ...]:
        return tuple(node for node in self._grid.get_node_ids() if node in self._members)

    def _exchange(
        self, kind: str, number: int, vector: Vector
    ) -> tuple[list[Message], dict[str, SiteResult]]:
        content = order_content(Order(kind, self._run, self._digest, number), vector)
        nodes = self._online()
        messages = [
            Message(content, dst_node_id=node, message_type=kind, group_id=str(number)) for node in nodes
        ]
        ids = dict(zip(self._grid.push_messages(messages), nodes, strict=True))
        results = {self._members[node]: SiteResult("silent", Refusal.UNAVAILABLE) for node in self._members}
        good: list[Message] = []
        for reply in self._replies(ids, good):
            node = ids[reply.metadata.reply_to_message_id]
            result = self._judged(kind, reply, vector)
            results[self._members[node]] = result
            if result.state in ("trained", "measured"):
                good.append(reply)
        # Sums of floats depend on their order: the sites', not that in which the replies happened to come.
        good.sort(key=lambda reply: self._members[ids[reply.metadata.reply_to_message_id]])
        return good, results

    def _replies(self, ids: Mapping[str, int], good: list[Message]) -> Iterable[Message]:
        """Replies as they come, until all are there or waiting longer is not worth it."""
        pending, start, enough_at, looked = set(ids), time.monotonic(), 0.0, time.monotonic()
        while pending:
            for reply in self._grid.pull_messages(list(pending)):
                pending.discard(reply.metadata.reply_to_message_id)
                yield reply
            now = time.monotonic()
            self._check_deadline()
            if len(good) >= self._minimum:
                enough_at = enough_at or now
                self._slowest = max(self._slowest, enough_at - start)
                if now - enough_at > max(PATIENCE_SECONDS_MIN, PATIENCE * self._slowest):
                    return
            if now - start > self._plan.schedule.round_seconds:
                return
            if pending and now - looked > LOOK_SECONDS:
                looked, online = now, set(self._online())
                pending = {one for one in pending if ids[one] in online}
            time.sleep(POLL_SECONDS)

    def _judged(self, kind: str, reply: Message, reference: Vector) -> SiteResult:
        if reply.has_error():
            words = _fixed(reply.error.reason)
            refused = reply.error.code == REFUSED_CODE and words is not Refusal.FAILED
            return SiteResult("refused" if refused else "failed", words)
        try:
            metrics = _metrics_of(reply)
            if kind == TRAIN:
                self._check_update(vector_in(reply.content), reference)
        except (AccordError, ValueError, TypeError):
            return SiteResult("failed", Refusal.OUT_OF_BOUNDS)
        examples = int(metrics.pop(WEIGHT))
        return SiteResult("trained" if kind == TRAIN else "measured", "", examples, metrics)

    def _check_update(self, update: Vector, reference: Vector) -> None:
        """The hub trusts no site's filter: shape, finite numbers and length of the step again."""
        if update.shape != (parameter_count(self._plan),) or not np.isfinite(update).all():
            raise Invalid("An update without the declared shape.")
        step = float(np.linalg.norm(update.astype(np.float64) - reference))
        if step > self._plan.training.update_norm_max * NORM_SLACK:
            raise Invalid("An update that goes too far.")

    def _averaged(self, number: int, replies: list[Message]) -> Vector:
        arrays, _ = self._average.aggregate_train(number, replies)
        if arrays is None:
            raise TooFewSites(Ending.TOO_FEW)
        vector = np.asarray(next(iter(arrays.values())).numpy(), np.float32)
        if not np.isfinite(vector).all():
            raise Invalid(Ending.NOT_FINITE)
        return vector

    def _require(self, number: int, results: Mapping[str, SiteResult], state: str) -> None:
        useful = sum(result.state == state for result in results.values())
        if useful < self._minimum:
            self._store.round_done(number, VOID, results, np.zeros(0, np.float32))
            raise TooFewSites(Ending.TOO_FEW)

    def _check_deadline(self) -> None:
        if time.monotonic() > self._end:
            raise Unavailable(Ending.DEADLINE, code="deadline")


def _metrics_of(reply: Message) -> dict[str, Any]:
    metrics = dict(reply.content.metric_records[METRICS])
    weight = metrics.get(WEIGHT)
    if not isinstance(weight, int) or not 0 < weight <= MAX_EXAMPLES_PER_SITE:
        raise Invalid("A reply without an example count.")
    for name, value in metrics.items():
        if name != WEIGHT and (name not in ALLOWED_METRICS or not np.isfinite(value)):
            raise Invalid("A reply with a metric that is not allowed.")
    return metrics


def _fixed(reason: str) -> Refusal:
    try:
        return Refusal(reason)
    except ValueError:
        return Refusal.FAILED
