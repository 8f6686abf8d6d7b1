"""A hospital's part in training: offers, the gate, the supervised processes.

`TrainingSite` keeps the plan book in step with the hub, and once a plan is offered runs the tunnel, the
supernode and the runner, restarting them as a whole. For every message the runner asks; the answer is the rule
(`plans.gate`), then the cohort with consent evaluated at that moment, then sealed memory. Each answer is in the
log. A hospital to which nobody offers a plan runs none of this.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from time import monotonic
from typing import Any, Protocol

import structlog

from consent.errors import AccordError, NotFound
from consent.signed import Signed
from consent.vocabulary import EventKind, Outcome, Purpose
from learning.bundle import bundle_digest
from learning.channel import AsyncChannel, Closed, Message, pair
from learning.dataset import Examples, TooFewPatients, seal_examples
from learning.door import Tunnel
from learning.hublink import HubLink
from learning.loopback import throwaway_certificate
from learning.planbook import PlanBook
from learning.plans import Ask, Refusal, TrainingPlan, gate
from learning.processes import MAX_BACKOFF_SECONDS, Crew, module_command, supernode_command
from learning.sealed import seal_bytes
from node.audit.event import Event
from node.audit.log import Log
from node.clock import Clock
from node.completion import to_its_end
from node.ports import HOST, free_ports

SYNC_SECONDS = 3.0
SECRET_BYTES = 32
STEADY_SECONDS = 60.0
MAX_PARTS = 200
"""How many past answers the site's page shows; the log has all of them."""

logger = structlog.get_logger()


class Gatherer(Protocol):
    """Where the examples come from: `cohort.Cohorts`."""

    async def gather(self, plan: Signed[TrainingPlan]) -> Examples:
        """De-identified examples of patients who consent now. Raises TooFewPatients, Unavailable."""
        ...


@dataclass(frozen=True)
class Part:
    """What this site answered to one message of a run; `words` is empty when it took part."""

    at: datetime
    run: str
    plan: str
    kind: str
    round: int
    words: str = ""


@dataclass
class SiteStatus:
    """For the status page: `network` is how the trainer is shut in ("none" means it has no network)."""

    running: bool = False
    registered: bool = False
    network: str = "unknown"
    restarts: int = 0
    hub_error: str = ""
    processes: dict[str, int] = field(default_factory=dict)


class TrainingSite:
    """Everything that a hospital's daemon does for training. `run` until cancelled."""

    def __init__(
        self,
        *,
        node_id: str,
        book: PlanBook,
        cohorts: Gatherer,
        link: HubLink,
        learning_key: Callable[[], bytes],
        log: Log,
        clock: Clock,
        folder: Path,
        sync_seconds: float = SYNC_SECONDS,
    ) -> None:
        """`learning_key` gives the node's EC P-384 private key in OpenSSH format."""
        self.node_id = node_id
        self.book = book
        self.status = SiteStatus()
        self.parts: deque[Part] = deque(maxlen=MAX_PARTS)
        self._cohorts, self._link, self._learning_key = cohorts, link, learning_key
        self._log, self._clock, self._folder = log, clock, folder
        self._sync_seconds = sync_seconds
        self._wanted, self._unwanted = asyncio.Event(), asyncio.Event()
        self._hurried = asyncio.Event()
        self._runner: AsyncChannel | None = None

    async def run(self) -> None:
        """Keep in step with the hub and the processes alive, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_in_step())
            group.create_task(self._keep_alive())

    async def sync(self) -> None:
        """Take new plans from the hub, give it decisions that it lacks. Raises Unavailable."""
        offer = await self._link.offers()
        for token in offer.plans:
            with contextlib.suppress(AccordError):
                await self.book.receive_plan(token, keys_of=self._link.keys_of, hub=self._link.hub_id)
        for decision in await self.book.unsent():
            await self._link.decided(decision.token)
            await self.book.mark_sent(decision)
        self.status.registered = offer.registered
        if offer.registered and await self.book.plans():
            self._wanted.set()
            self._unwanted.clear()
        else:
            self._wanted.clear()
            self._unwanted.set()
        await self.warm()

    def hurry(self) -> None:
        """Have the next look at the hub now: somebody has decided here."""
        self._hurried.set()

    async def warm(self) -> None:
        """Have the trainer loaded when a plan is approved here, before the first round."""
        if self._runner is None:
            return
        for plan in await self.book.plans():
            if self.node_id in await self.book.approvals(plan.digest):
                with contextlib.suppress(Closed):
                    await self._runner.send({"do": "warm"})
                return

    async def answer(self, request: Message) -> tuple[Message, int | None]:
        """Permission for one message of a run: the answer, and the examples' descriptor when it is yes."""
        ask = Ask(str(request["app"]), str(request["plan"]), int(request["round"]))
        try:
            plan: Signed[TrainingPlan] | None = await self.book.plan(ask.plan)
            decision = (await self.book.decisions(ask.plan)).get(self.node_id)
        except NotFound:
            plan = decision = None
        words = gate(
            plan,
            decision,
            ask,
            site=self.node_id,
            installed_app=bundle_digest(),
            now=self._clock.now(),
        )
        if words is None and plan is not None:
            try:
                examples = await self._cohorts.gather(plan)
            except TooFewPatients:
                words = Refusal.TOO_FEW_PATIENTS
            except AccordError as error:
                logger.warning("training.cohort", code=error.code)
                words = Refusal.UNAVAILABLE
        if words is not None or plan is None:
            words = words or Refusal.UNKNOWN_PLAN
            await self._record(request, EventKind.TRAINING_REFUSED, Outcome.REFUSED, words)
            return {"refusal": words.value}, None
        await self._record(request, EventKind.TRAINING_STARTED, Outcome.DONE, None, len(examples))
        descriptor = await asyncio.to_thread(seal_examples, examples)
        trained = int((~examples.held_out).sum())
        seconds = plan.body.schedule.round_seconds
        return {"plan": plan.body.to_json(), "count": trained, "seconds": seconds}, descriptor

    async def _keep_in_step(self) -> None:
        while True:
            self._hurried.clear()
            try:
                await self.sync()
                self.status.hub_error = ""
            except AccordError as error:
                self.status.hub_error = error.message
            except Exception as error:  # a bad answer must not end the duty
                words = f"The hub's answer could not be used ({type(error).__name__})."
                if words != self.status.hub_error:
                    logger.error("training.sync", error=type(error).__name__)
                self.status.hub_error = words
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._sync_seconds):
                    await self._hurried.wait()

    async def _keep_alive(self) -> None:
        backoff = 1.0
        while True:
            await self._wanted.wait()
            started = monotonic()
            try:
                await self._one_life()
            except Exception as error:  # whatever it was, the next start may go well
                logger.warning("training.processes", error=type(error).__name__)
            backoff = 1.0 if monotonic() - started > STEADY_SECONDS else min(2 * backoff, MAX_BACKOFF_SECONDS)
            self.status.restarts += 1
            await asyncio.sleep(backoff)

    async def _one_life(self) -> None:
        """Start tunnel, supernode and runner; return when one of them ended. All end together."""
        root, pair_ = throwaway_certificate()
        tunnel, crew, ours = Tunnel(hub=self._link.target), Crew(self._folder), None
        try:
            superlink = f"{HOST}:{await tunnel.start(pair_)}"
            (port,) = free_ports(1)
            ours = await self._start(crew, superlink, port, root)
            self._runner = AsyncChannel(ours)
            self.status.running, self.status.processes = True, crew.pids
            await self.warm()
            await self._serve_until_exit(crew, self._runner)
        finally:
            self.status.running, self.status.processes, self._runner = False, {}, None
            self.status.network = "unknown"
            if ours is not None:
                ours.close()
            await to_its_end(_wind_up(crew, tunnel))

    async def _start(self, crew: Crew, superlink: str, port: int, root: bytes) -> Any:
        ours, theirs = pair()
        secret = secrets.token_bytes(SECRET_BYTES)
        memory = [
            seal_bytes("accord-root", (root,)),
            seal_bytes("accord-node-key", (self._learning_key(),)),
            seal_bytes("accord-secret", (secret,)),
        ]
        root_at, key_at, secret_at = memory
        try:
            await crew.start(
                "supernode",
                supernode_command(superlink, port, root=root_at, node_key=key_at, secret=secret_at),
                memory,
            )
            await crew.start(
                "runner",
                module_command("learning.runner", f"{HOST}:{port}", theirs.fileno(), secret_at),
                [theirs.fileno(), secret_at],
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            for descriptor in memory:
                os.close(descriptor)
        return ours

    async def _serve_until_exit(self, crew: Crew, channel: AsyncChannel) -> None:
        serving = asyncio.create_task(self._serve(channel))
        exiting = asyncio.create_task(crew.first_exit())
        idle = asyncio.create_task(self._unwanted.wait())
        tasks = {serving, exiting, idle}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, channel: AsyncChannel) -> None:
        with contextlib.suppress(Closed):
            while True:
                message, descriptors = await channel.receive()
                for descriptor in descriptors:
                    os.close(descriptor)
                if message.get("ask") == "part":
                    await self._reply(channel, message)
                elif message.get("tell") == "ended":
                    await self._ended(message)
                elif message.get("tell") == "status":
                    self.status.network = str(message.get("network"))[:16]

    async def _reply(self, channel: AsyncChannel, request: Message) -> None:
        try:
            answer, descriptor = await self.answer(request)
        except (KeyError, ValueError, TypeError):
            answer, descriptor = {"refusal": Refusal.UNKNOWN_PLAN.value}, None
        except AccordError:
            answer, descriptor = {"refusal": Refusal.UNAVAILABLE.value}, None
        try:
            await channel.send(answer, () if descriptor is None else (descriptor,))
        finally:
            if descriptor is not None:
                os.close(descriptor)

    async def _ended(self, message: Message) -> None:
        words = str(message.get("words", ""))
        self._note(message, words)
        if not words:
            await self._record(message, EventKind.TRAINING_ROUND_DONE, Outcome.DONE, None)
        elif words in (Refusal.FAILED, Refusal.OUT_OF_BOUNDS):
            await self._record(message, EventKind.TRAINING_ROUND_DONE, Outcome.FAILED, Refusal(words))

    def _note(self, message: Message, words: str) -> None:
        part = Part(
            self._clock.now(),
            str(message.get("run", ""))[:64],
            str(message.get("plan", ""))[:64],
            str(message.get("kind", ""))[:16],
            int(message.get("round", 0)),
            words,
        )
        self.parts.append(part)

    async def _record(
        self,
        request: Message,
        kind: EventKind,
        outcome: Outcome,
        words: Refusal | None,
        examples: int | None = None,
    ) -> None:
        detail: dict[str, str | int] = {
            "plan": str(request.get("plan", ""))[:64],
            "run": str(request.get("run", ""))[:64],
            "round": int(request.get("round", 0)),
            "message": str(request.get("kind", ""))[:16],
        }
        if examples is not None:
            detail["examples"] = examples
        actor = f"member:{self._link.hub_id}"
        reason = words.value if words else ""
        await self._log.record(
            Event(kind, actor, outcome, purpose=Purpose.RESEARCH, reason=reason, detail=detail)
        )

    def describe(self) -> dict[str, Any]:
        """The status as plain JSON."""
        return asdict(self.status) | {"app": bundle_digest()}


async def _wind_up(crew: Crew, tunnel: Tunnel) -> None:
    await crew.end()
    await tunnel.stop()
