"""The hub's runs: launched on approved plans, followed round by round, always brought to an end.

`Runs` starts a Flower run of our fixed server app, keeps each round (reports and a checkpoint, in one
transaction, before the next begins), tells watchers, and at the end signs the model. A run ends as finished,
failed or stopped; a watchdog ends what passes its deadline, and what a crash of the hub interrupted is marked
as failed at the next start. Who may launch is decided by the policy.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from importlib.metadata import version
from typing import Any

import numpy as np
import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from consent.decision import Facts, Request, Resource, decide
from consent.errors import AccordError, Conflict, Invalid
from consent.principals import Principal
from consent.signed import Signed, sign
from consent.vocabulary import Action, EventKind, Outcome, Purpose, ResourceKind
from learning.channel import AsyncChannel, Closed, Message
from learning.models import Approval, ModelStore, ModelVersion, RoundRecord, to_npz
from learning.planbook import PlanBook
from learning.plans import TrainingPlan
from learning.progress import Progress, SiteReport, progress_of
from learning.runtables import (
    Run,
    RunState,
    add_reports,
    add_run,
    change_run,
    read_reports,
    read_run,
    read_runs,
)
from learning.sealed import read_sealed
from learning.superlink import Superlink
from learning.wording import EVALUATE, TRAIN, VOID, Ending
from node.audit.event import Event
from node.audit.log import Log
from node.clock import Clock
from node.database import Database
from node.policies import Policies
from node.records import Records
from node.web.events import Feed

MAX_ACTIVE_RUNS = 4
END_PAUSES_SECONDS = (0.2, 1.0, 5.0)
"""Between attempts to write a run's end down."""
GRACE_SECONDS = 30.0
"""How long after the plan's own deadline the watchdog waits for the server app to say so itself."""

MAX_PARAMETER_BYTES = 1024**3

logger = structlog.get_logger()


@dataclass
class Active:
    """A run under way: who watches it, how to stop it."""

    feed: Feed
    stopping: asyncio.Event


@dataclass(frozen=True)
class RunView:
    """A run with what it has reached and what its plan asked."""

    run: Run
    plan: Signed[TrainingPlan]
    progress: Progress


class Runs:
    """Every run of the region. `run` until cancelled; `launch` needs it running."""

    def __init__(
        self,
        *,
        node_id: str,
        key: Ed25519PrivateKey,
        book: PlanBook,
        superlink: Superlink,
        store: ModelStore,
        database: Database,
        records: Records,
        log: Log,
        clock: Clock,
        policies: Policies,
        members: Callable[[], tuple[str, ...]],
    ) -> None:
        """`members`: ids of the active hospitals."""
        self.book, self.superlink, self.store = book, superlink, store
        self._node_id, self._key = node_id, key
        self._database, self._records, self._log, self._clock = database, records, log, clock
        self._policies, self._members = policies, members
        self._active: dict[str, Active] = {}
        self._group: asyncio.TaskGroup | None = None

    @property
    def busy(self) -> bool:
        """Whether a run is under way."""
        return bool(self._active)

    async def run(self) -> None:
        """Mark what a crash interrupted, then keep Flower and the runs alive, until cancelled."""
        await self._recover()
        if await self.book.plans():
            self.superlink.want()
        async with asyncio.TaskGroup() as group:
            self._group = group
            group.create_task(self.superlink.run())

    async def propose(
        self, plan: TrainingPlan, who: Principal, *, address: str | None = None
    ) -> Signed[TrainingPlan]:
        """Sign and offer a plan to the sites. Raises Denied."""
        self._check(who, ResourceKind.PLAN, "new")
        signed = await self.book.propose(plan, who, address=address)
        self.superlink.want()
        return signed

    async def launch(self, digest: str, who: Principal, *, address: str | None = None) -> Run:
        """Start a run of an approved plan. Raises NotFound, Denied, Conflict with what is missing."""
        self._check(who, ResourceKind.RUN, digest)
        plan = await self.book.plan(digest)
        await self._check_ready(plan)
        if self._group is None:
            raise Conflict("The learning service is not running.", code="learning-idle")
        now = self._clock.now()
        run = Run(
            secrets.token_hex(16),
            digest,
            plan.body.title,
            who.actor,
            now,
            now + timedelta(seconds=plan.body.schedule.deadline_seconds),
            RunState.STARTING,
            plan.body.schedule.rounds,
        )
        async with self._database.write() as tx:
            await add_run(tx, run)
            detail = {"run": run.id, "plan": digest}
            await self._log.append(
                tx, Event(EventKind.TRAINING_STARTED, who.actor, address=address, detail=detail)
            )
        active = self._active[run.id] = Active(Feed(), asyncio.Event())
        self._group.create_task(self._follow(run, plan, active))
        return run

    async def stop(self, run_id: str, who: Principal) -> None:
        """End a run now. Raises NotFound, Denied, Conflict when it is over."""
        self._check(who, ResourceKind.RUN, run_id)
        run = await self.run_of(run_id)
        active = self._active.get(run_id)
        if run.over or active is None:
            raise Conflict("This run is over already.", code="run-over")
        active.stopping.set()

    async def run_of(self, run_id: str) -> Run:
        """Raises NotFound."""
        async with self._database.read() as tx:
            return await read_run(tx, run_id)

    async def runs(self) -> tuple[Run, ...]:
        """The newest runs first."""
        async with self._database.read() as tx:
            return await read_runs(tx)

    async def view(self, run_id: str) -> RunView:
        """A run with its progress. Raises NotFound."""
        async with self._database.read() as tx:
            run = await read_run(tx, run_id)
            reports = await read_reports(tx, run_id)
        return RunView(run, await self.book.plan(run.plan), progress_of(reports))

    def feed(self, run_id: str) -> Feed | None:
        """Events of a run under way, or None when it is over."""
        active = self._active.get(run_id)
        return active.feed if active else None

    async def models(self) -> tuple[Signed[ModelVersion], ...]:
        """Newest first."""
        return tuple(reversed(await self._records.find(ModelVersion)))

    async def model(self, model_id: str) -> Signed[ModelVersion]:
        """Raises NotFound."""
        return await self._records.get(model_id, ModelVersion)

    def _check(self, who: Principal, kind: ResourceKind, name: str) -> None:
        resource = Resource(kind, name, None, self._node_id)
        request = Request(who, Action.LAUNCH_RUN, resource, Purpose.RESEARCH, self._clock.now())
        decide(self._policies.current, request, Facts()).or_raise()

    async def _check_ready(self, plan: Signed[TrainingPlan]) -> None:
        if plan.expired(self._clock.now()):
            raise Conflict("This plan has ended.", mend="Propose a new one.", code="plan-ended")
        approving = set(await self.book.approvals(plan.digest)) & set(self._members())
        needed = plan.body.schedule.minimum_sites
        if len(approving) < needed:
            raise Conflict(
                f"{len(approving)} of the {needed} sites that the plan needs have approved it.",
                mend="Wait for the sites' decisions, or ask their security officers.",
                code="not-enough-approvals",
            )
        if len(self._active) >= MAX_ACTIVE_RUNS:
            raise Conflict(f"{MAX_ACTIVE_RUNS} runs are under way already.", mend="Wait until one has ended.")

    async def _follow(self, run: Run, plan: Signed[TrainingPlan], active: Active) -> None:
        """Take a run from its start to one of its ends; nothing that happens leaves it open."""
        flower_run: int | None = None
        channel: AsyncChannel | None = None
        state, words = RunState.FAILED, str(Ending.FLOWER_ENDED)
        try:
            flower_run, channel = await self.superlink.start_run(run.id, plan)
            seconds = plan.body.schedule.deadline_seconds + GRACE_SECONDS
            await self._change(run, active, state=RunState.RUNNING.value)
            async with asyncio.timeout(seconds):
                state, words = await self._until_end(run, plan, active, channel)
        except TimeoutError:
            words = Ending.DEADLINE
        except AccordError as error:
            words = error.message
        except asyncio.CancelledError:
            words = Ending.HUB_STOPPED
            raise
        except Exception as error:
            logger.error("learning.run", run=run.id, error=type(error).__name__)
            words = Ending.HUB_FAILED
        finally:
            if channel is not None:
                channel.close()
            await asyncio.shield(self._wind_up(run, active, flower_run, state, words))

    async def _until_end(
        self, run: Run, plan: Signed[TrainingPlan], active: Active, channel: AsyncChannel
    ) -> tuple[RunState, str]:
        stopping = asyncio.create_task(active.stopping.wait())
        receiving: asyncio.Task[Any] = stopping
        try:
            while True:
                receiving = asyncio.create_task(channel.receive())
                await asyncio.wait({receiving, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if not receiving.done():
                    return RunState.STOPPED, Ending.STOPPED
                try:
                    message, descriptors = receiving.result()
                except Closed:
                    return RunState.FAILED, Ending.FLOWER_ENDED
                vector = _vector(descriptors)
                if message.get("event") == "round":
                    await self._keep_round(run, plan, active, message, vector)
                    await channel.send({"kept": True})
                elif message.get("event") == "finished":
                    await self._register_model(run, plan)
                    return RunState.FINISHED, ""
                else:
                    return RunState.FAILED, str(message.get("words", Ending.FLOWER_ENDED))[:500]
        finally:
            stopping.cancel()
            receiving.cancel()

    async def _keep_round(
        self, run: Run, plan: Signed[TrainingPlan], active: Active, message: Message, vector: Any
    ) -> None:
        number, kind = int(message["round"]), str(message["kind"])
        reports = _reports(number, kind, message["sites"])
        values: dict[str, Any] = {}
        previous = (await self.run_of(run.id)).checkpoint
        if vector is not None and kind == TRAIN:
            values["checkpoint"] = await self.store.put(to_npz(vector, plan.body))
            values["rounds_done"] = number
        async with self._database.write() as tx:
            await add_reports(tx, run.id, reports, self._clock.now())
            if values:
                await change_run(tx, run.id, **values)
            sites = {report.site: report.state for report in reports}
            detail: dict[str, Any] = {"run": run.id, "plan": run.plan, "round": number, "sites": sites}
            detail["message"] = kind
            await self._log.append(
                tx, Event(EventKind.TRAINING_ROUND_DONE, "system", purpose=Purpose.RESEARCH, detail=detail)
            )
        if previous and "checkpoint" in values and previous != values["checkpoint"]:
            await self.store.discard(previous)
        active.feed.publish("round", {"round": number, "kind": kind})
        active.feed.publish("refresh", {})

    async def _register_model(self, run: Run, plan: Signed[TrainingPlan]) -> None:
        """Sign what came out, from what was kept. Raises Invalid when the evaluation is missing."""
        view = await self.view(run.id)
        digest = view.run.checkpoint
        if digest is None or view.progress.accuracy is None or not view.progress.final:
            raise Invalid(Ending.NO_MODEL)
        content = await self.store.get(digest)
        took_part = {
            report.site for one in view.progress.rounds for report in one.sites if report.state == "trained"
        }
        approvals = await self.book.approvals(plan.digest)
        body = ModelVersion(
            title=plan.body.title,
            plan=plan.digest,
            run=run.id,
            app=plan.body.app,
            model=plan.body.model,
            labels=plan.body.labels.codes,
            parameters=digest,
            size_bytes=len(content),
            approvals=tuple(
                Approval(site, approvals[site].digest) for site in sorted(took_part & set(approvals))
            ),
            rounds=tuple(
                RoundRecord(
                    one.round,
                    tuple(report.site for report in one.sites if report.state == "trained"),
                    None if one.accuracy is None else round(one.accuracy, 4),
                )
                for one in view.progress.rounds
            ),
            accuracy=round(view.progress.accuracy, 4),
            site_accuracy=view.progress.final,
            baseline=view.progress.baseline,
            differential_privacy=False,
            secure_aggregation=False,
            software={"accord": version("accord-imaging"), "flwr": _version("flwr")},
        )
        signed = sign(
            body,
            record_id=secrets.token_hex(16),
            issuer=self._node_id,
            key=self._key,
            issued=self._clock.now(),
            expires=None,
        )
        async with self._database.write() as tx:
            await self._records.keep(tx, signed, subjects=[plan.digest, run.id])
            await change_run(tx, run.id, model=signed.id)
            detail = {"model": signed.id, "run": run.id, "plan": plan.digest, "parameters": digest}
            await self._log.append(tx, Event(EventKind.MODEL_REGISTERED, "system", detail=detail))

    async def _change(self, run: Run, active: Active, **values: Any) -> None:
        async with self._database.write() as tx:
            await change_run(tx, run.id, **values)
        active.feed.publish("state", {"state": values.get("state", "")})
        active.feed.publish("refresh", {})

    async def _wind_up(
        self, run: Run, active: Active, flower_run: int | None, state: RunState, words: str
    ) -> None:
        """End a run whatever fails on the way: who follows it is released, and nothing counts it as active."""
        try:
            if flower_run is not None and state is not RunState.FINISHED:
                await self.superlink.stop_run(flower_run)
        except Exception as error:
            logger.error("learning.run_stop", run=run.id, error=type(error).__name__)
        try:
            await self._end(replace(run, state=state, words=words))
        finally:
            self._active.pop(run.id, None)
            active.feed.publish("ended", {"state": state.value, "words": words})
            active.feed.publish("end", {})
            active.feed.close()

    async def _end(self, run: Run) -> None:
        """Write the end down; when the database cannot now, a few times more. What is left, `_recover` closes."""
        for pause in (*END_PAUSES_SECONDS, None):
            try:
                async with self._database.write() as tx:
                    await self._close(tx, run)
                return
            except AccordError as error:
                logger.error("learning.run_end", run=run.id, code=error.code, again=pause is not None)
                if pause is not None:
                    await asyncio.sleep(pause)

    async def _close(self, tx: Any, run: Run) -> None:
        now = self._clock.now()
        await change_run(tx, run.id, state=run.state.value, words=run.words, ended=now)
        outcome = Outcome.DONE if run.state is RunState.FINISHED else Outcome.FAILED
        detail = {"run": run.id, "plan": run.plan, "state": run.state.value}
        await self._log.append(
            tx, Event(EventKind.TRAINING_FINISHED, "system", outcome, reason=run.words, detail=detail)
        )

    async def _recover(self) -> None:
        for run in await self.runs():
            if not run.over:
                async with self._database.write() as tx:
                    await self._close(tx, replace(run, state=RunState.FAILED, words=Ending.HUB_STOPPED))


def _vector(descriptors: list[int]) -> Any:
    contents = [read_sealed(descriptor, limit=MAX_PARAMETER_BYTES) for descriptor in descriptors]
    return np.frombuffer(contents[0], np.float32) if contents else None


def _reports(number: int, kind: str, sites: Mapping[str, Mapping[str, Any]]) -> list[SiteReport]:
    if kind not in (TRAIN, EVALUATE, VOID):
        raise Invalid("A round of an unknown kind.")
    return [
        SiteReport(
            number, kind, site, one["state"], str(one["words"]), int(one["examples"]), dict(one["metrics"])
        )
        for site, one in sites.items()
    ]


def _version(package: str) -> str:
    return version(package)
