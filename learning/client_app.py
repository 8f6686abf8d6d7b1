"""The client side of a run: a Flower ClientApp that turns a message into an order for this site, and back.

It holds no data and no model code: `Site` (the runner) asks the node for permission and examples, has the
trainer work, and filters what comes back. What a site refuses never gets this far.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from consent.errors import Invalid
from learning.networks import Vector
from learning.plans import MAX_ROUNDS
from learning.wording import EVALUATE, TRAIN

ARRAYS, CONFIG, METRICS = "arrays", "config", "metrics"
WEIGHT = "num-examples"
"""Flower's key for the weight of a reply."""


@dataclass(frozen=True)
class Order:
    """What the hub asks of a site in one message. `run` and `plan` are our ids, `kind` is TRAIN or EVALUATE."""

    kind: str
    run: str
    plan: str
    round: int

    @classmethod
    def of(cls, message: Message) -> Order:
        """Read the order from a message's configuration. Raises Invalid."""
        kind = message.metadata.message_type
        config = message.content.config_records.get(CONFIG) if message.has_content() else None
        if kind not in (TRAIN, EVALUATE) or config is None:
            raise Invalid("The message is not an order that this site knows.")
        run, plan, number = config.get("run"), config.get("plan"), config.get("round")
        if not isinstance(run, str) or not isinstance(plan, str) or len(run) + len(plan) > 256:
            raise Invalid("The message names no run or no plan.")
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= MAX_ROUNDS:
            raise Invalid("The message names no round.")
        return cls(kind, run, plan, number)


@dataclass(frozen=True)
class Report:
    """What a site answers: filtered metrics, the rounded example count, and after training the new parameters."""

    metrics: Mapping[str, float]
    examples: int
    vector: Vector | None = None


class Site(Protocol):
    """What the app needs of the site it runs at."""

    def carry_out(self, order: Order, vector: Vector) -> Report:
        """Do what is ordered, within the plan; raises when the site cannot."""
        ...


def make_app(site: Site) -> ClientApp:
    """The app, bound to its site."""
    app = ClientApp()

    @app.train()
    def train(message: Message, _context: Context) -> Message:
        return _answer(message, site)

    @app.evaluate()
    def evaluate(message: Message, _context: Context) -> Message:
        return _answer(message, site)

    return app


def order_content(order: Order, vector: Vector) -> RecordDict:
    """The content of an order's message."""
    config = ConfigRecord({"run": order.run, "plan": order.plan, "round": order.round})
    return RecordDict({ARRAYS: ArrayRecord([vector]), CONFIG: config})


def vector_in(content: RecordDict) -> Vector:
    """The one parameter vector in a message's content. Raises Invalid when it is anything else."""
    arrays = content.array_records.get(ARRAYS)
    if arrays is None or len(arrays) != 1:
        raise Invalid("The message does not carry exactly one array of parameters.")
    vector: Vector = next(iter(arrays.values())).numpy()
    if vector.ndim != 1 or vector.dtype != np.float32:
        raise Invalid("The parameters are not one vector of 32-bit numbers.")
    return vector


def _answer(message: Message, site: Site) -> Message:
    report = site.carry_out(Order.of(message), vector_in(message.content))
    metrics = MetricRecord({**report.metrics, WEIGHT: report.examples})
    records: dict[str, ArrayRecord | MetricRecord] = {METRICS: metrics}
    if report.vector is not None:
        records[ARRAYS] = ArrayRecord([report.vector])
    return Message(RecordDict(records), reply_to=message)
