"""A hub's runs without Flower: the other end of each run's channel is in the test's hand."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from datetime import timedelta

import numpy as np

from consent.principals import Principal
from consent.signed import Signed, sign
from consent.vocabulary import Role
from learning.channel import AsyncChannel, Channel, pair
from learning.models import ModelStore
from learning.networks import initial_vector
from learning.planbook import PlanBook
from learning.plans import PlanDecision, TrainingPlan, Verdict
from learning.runs import Runs
from learning.sealed import seal_bytes
from learning.strategy import SiteResult
from learning.wording import EVALUATE, TRAIN
from tests.learning.region import digits_plan
from tests.support.node import NodeFixture

MEMBERS = ("a", "b", "c")
RESEARCHER = Principal("wang", Role.RESEARCHER, "Wang", "a-general")


@dataclass
class ScriptedSuperlink:
    """Stands where the Flower processes would: hands out channels, remembers what was stopped."""

    channels: list[Channel] = field(default_factory=list)
    stopped: list[int] = field(default_factory=list)
    wanted: bool = False

    def want(self) -> None:
        self.wanted = True

    def registered(self, member: str) -> bool:
        return member in MEMBERS

    async def run(self) -> None:
        await asyncio.Event().wait()

    async def start_run(self, run: str, plan: Signed[TrainingPlan]) -> tuple[int, AsyncChannel]:
        ours, theirs = pair()
        self.channels.append(Channel(theirs))
        return len(self.channels), AsyncChannel(ours)

    async def stop_run(self, flower_run: int) -> None:
        self.stopped.append(flower_run)


@dataclass
class HubFixture:
    """A hub's learning parts over a small node's database and log."""

    node: NodeFixture
    book: PlanBook
    runs: Runs
    superlink: ScriptedSuperlink

    async def approved(self, *sites: str, plan: TrainingPlan | None = None) -> Signed[TrainingPlan]:
        """A plan that these sites approve."""
        signed = await self.runs.propose(plan or digits_plan(), RESEARCHER)
        for site in sites:
            await self.decide(signed, site, Verdict.APPROVE)
        return signed

    async def decide(self, plan: Signed[TrainingPlan], site: str, verdict: Verdict) -> None:
        """A site's decision arrives."""
        earlier = (await self.book.decisions(plan.digest)).get(site)
        sequence = earlier.body.sequence + 1 if earlier else 1
        decision = sign(
            PlanDecision(plan.digest, site, verdict, "security-officer", 6, sequence, "read it"),
            record_id=os.urandom(16).hex(),
            issuer=site,
            key=self.node.identity.signing,
            issued=self.node.clock.now(),
            expires=self.node.clock.now() + timedelta(days=30),
        )
        public = self.node.identity.signing.public_key()
        await self.book.receive_decision(decision.token, site, keys_of=lambda _: (public,))

    async def say(
        self, event: Mapping[str, object], vector: np.ndarray | None = None
    ) -> dict[str, object] | None:  # type: ignore[type-arg]
        """Send one event of the newest run as its server app would, and return the hub's answer."""
        channel = self.superlink.channels[-1]
        descriptors = [] if vector is None else [seal_bytes("vector", (vector.tobytes(),))]
        channel.send(dict(event), descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        if event["event"] != "round":
            return None
        answer = await asyncio.to_thread(channel.receive, 10)
        return None if answer is None else answer[0]

    async def round(self, number: int, **sites: SiteResult) -> dict[str, object] | None:
        """One training round's event."""
        vector = initial_vector(digits_plan()) + np.float32(number / 100)
        event = {"event": "round", "round": number, "kind": TRAIN}
        return await self.say(event | {"sites": {name: asdict(one) for name, one in sites.items()}}, vector)

    async def whole_run(self, plan: Signed[TrainingPlan]) -> str:
        """Two rounds, an evaluation, the end."""
        run = await self.runs.launch(plan.digest, RESEARCHER)
        await self.started()
        for number in (1, 2):
            await self.round(number, a=trained(0.2 * number), b=trained(0.3 * number), c=REFUSING)
        final = {"a": measured(0.9, 0.5), "b": measured(0.8, 0.6)}
        sites = {name: asdict(one) for name, one in final.items()}
        vector = initial_vector(digits_plan()) + np.float32(0.02)
        await self.say({"event": "round", "round": 2, "kind": EVALUATE, "sites": sites}, vector)
        await self.say({"event": "finished"})
        await self.over(run.id)
        return run.id

    async def started(self) -> None:
        """Wait until the newest run has its channel."""
        async with asyncio.timeout(10):
            while not self.superlink.channels:
                await asyncio.sleep(0.01)

    async def over(self, run_id: str) -> None:
        """Wait until a run has ended."""
        async with asyncio.timeout(10):
            while not (await self.runs.run_of(run_id)).over:
                await asyncio.sleep(0.01)


def trained(accuracy: float) -> SiteResult:
    return SiteResult(
        "trained", "", 20, {"accuracy": accuracy, "measured": 10.0, "loss": 1.0, "seconds": 0.1}
    )


def measured(accuracy: float, alone: float) -> SiteResult:
    metrics = {"accuracy": accuracy, "measured": 10.0, "baseline_accuracy": alone, "seconds": 0.1}
    return SiteResult("measured", "", 20, metrics)


REFUSING = SiteResult("refused", "This site has not approved the plan.")


@asynccontextmanager
async def learning_hub(node: NodeFixture) -> AsyncIterator[HubFixture]:
    """The hub's parts, running until the block ends."""
    book = PlanBook(
        node_id=node.node_id,
        key=node.identity.signing,
        database=node.database,
        records=node.records,
        log=node.log,
        clock=node.clock,
    )
    superlink = ScriptedSuperlink()
    runs = Runs(
        node_id=node.node_id,
        key=node.identity.signing,
        book=book,
        superlink=superlink,  # type: ignore[arg-type]
        store=ModelStore(node.path / "models", os.urandom(32)),
        database=node.database,
        records=node.records,
        log=node.log,
        clock=node.clock,
        policies=node.policies,
        members=lambda: MEMBERS,
    )
    task = asyncio.create_task(runs.run())
    await asyncio.sleep(0.05)
    try:
        yield HubFixture(node, book, runs, superlink)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
