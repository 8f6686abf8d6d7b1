"""The site's runner: stands where Flower's own executor would, and lets nothing run that the site did not approve.

A process of its own, started by the node with one end of a channel. It claims a message from the supernode,
hashes the bundle that came with it, and asks the node (which alone holds keys and records) whether this site
takes part. The node answers with fixed words of refusal, or with the approved plan and the examples in sealed
memory, consent evaluated at that moment. The runner has the trainer work, filters the result, and replies.
Code from outside is never unpacked, let alone run.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

import numpy as np

from consent.errors import AccordError, Invalid, Unavailable
from learning import client_app
from learning.channel import Channel, Closed, Message, pair
from learning.client_app import Order, Report
from learning.confinement import die_with_parent
from learning.egress import filtered_metrics, filtered_update, rounded_count
from learning.flower import SiteRuntime, SiteTask
from learning.networks import Vector, parameter_count
from learning.plans import Refusal, TrainingPlan
from learning.sealed import map_sealed, read_sealed, reserve, seal_bytes
from learning.wording import EVALUATE

IDLE_SECONDS = 0.5
BUSY_SECONDS = 0.05
BUSY_FOR_SECONDS = 60.0
NODE_ANSWER_SECONDS = 600.0
TRAINER_START_SECONDS = 120.0


class Refused(AccordError):
    """The node said no; the message is one of the fixed words."""

    code = "refused"


@dataclass
class Permitted:
    """What the node hands over for one message: the approved plan, examples in sealed memory, their count."""

    plan: TrainingPlan
    examples: int
    count: int
    seconds: float


class Trainer:
    """The warm trainer's owner: starts it, gives it one piece of work at a time, replaces it when it is gone."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self.network = "unknown"

    def start(self) -> None:
        """Start the process without waiting for it to be warm."""
        if self._process is not None and self._process.poll() is None:
            return
        self.stop()
        ours, theirs = pair()
        argv = [sys.executable, "-m", "learning.trainer", str(theirs.fileno()), str(os.getpid())]
        self._process = subprocess.Popen(argv, pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL)
        theirs.close()
        self._channel = Channel(ours)
        self.network = "unknown"

    def work(self, order: Order, permitted: Permitted, vector: Vector, task: SiteTask) -> Message:
        """Have the work done; the answer's update, if any, is under "vector". Raises Unavailable, Closed."""
        channel = self._ready()
        plan = permitted.plan
        incoming = seal_bytes("accord-parameters", (vector.tobytes(),))
        room = reserve("accord-update", 4 * parameter_count(plan))
        try:
            channel.send(
                {
                    "kind": order.kind,
                    "round": order.round,
                    "seconds": permitted.seconds,
                    "plan": plan.to_json(),
                },
                (incoming, permitted.examples, room),
            )
            answer = self._wait(channel, permitted.seconds, task)
            if order.kind != EVALUATE and "metrics" in answer:
                with map_sealed(room, writable=True) as mapping:
                    answer["vector"] = np.frombuffer(bytes(mapping), np.float32)
            return answer
        finally:
            os.close(incoming)
            os.close(room)

    def stop(self) -> None:
        """End the process and its child."""
        if self._channel is not None:
            self._channel.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = self._channel = None

    def _ready(self) -> Channel:
        self.start()
        assert self._channel is not None
        if self.network == "unknown":
            packet = self._channel.receive(TRAINER_START_SECONDS)
            if packet is None:
                raise Unavailable("The trainer did not start in time.")
            self.network = str(packet[0].get("network"))
        return self._channel

    def _wait(self, channel: Channel, seconds: float, task: SiteTask) -> Message:
        end = time.monotonic() + seconds + 10
        while time.monotonic() < end and not task.ended:
            packet = channel.receive(BUSY_SECONDS * 4)
            if packet is not None:
                return packet[0]
        self.stop()
        raise Unavailable("The trainer was stopped: the run or its time ended.")


class Desk:
    """The runner's side of the channel to the node."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.warm = False

    def look(self) -> None:
        """Take in what the node says between messages."""
        while (packet := self._channel.receive(0)) is not None:
            self._note(packet[0])

    def permission(self, order: Order, bundle_digest: str) -> Permitted:
        """Ask the node to take part. Raises Refused with the words for the researcher."""
        self._channel.send(
            {
                "ask": "part",
                "kind": order.kind,
                "run": order.run,
                "plan": order.plan,
                "round": order.round,
                "app": bundle_digest,
            }
        )
        while True:
            packet = self._channel.receive(NODE_ANSWER_SECONDS)
            if packet is None:
                raise Refused(Refusal.UNAVAILABLE)
            answer, descriptors = packet
            if "refusal" in answer:
                raise Refused(Refusal(answer["refusal"]))
            if "plan" in answer and len(descriptors) == 1:
                plan = TrainingPlan.from_json(answer["plan"])
                return Permitted(plan, descriptors[0], int(answer["count"]), float(answer["seconds"]))
            self._note(answer)

    def tell(self, order: Order, words: str = "", **facts: float | str) -> None:
        """Tell the node how a message ended: `words` is empty when it was answered."""
        self._channel.send(
            {"tell": "ended", "kind": order.kind, "run": order.run, "round": order.round}
            | {"plan": order.plan, "words": words, **facts}
        )

    def status(self, network: str) -> None:
        """Tell the node how well the trainer is shut in."""
        self._channel.send({"tell": "status", "network": network})

    def _note(self, message: Message) -> None:
        if message.get("do") == "warm":
            self.warm = True


class Runner:
    """Claims, asks, trains, filters, replies: one message at a time, as the supernode gives them."""

    def __init__(self, runtime: SiteRuntime, desk: Desk, trainer: Trainer) -> None:
        self._runtime, self._desk, self._trainer = runtime, desk, trainer
        self._task: SiteTask | None = None
        self._app = client_app.make_app(self)
        self._told_network = "unknown"

    def serve(self) -> None:
        """Serve until the node closes its end. Raises Closed."""
        busy_until = 0.0
        while True:
            self._desk.look()
            if self._desk.warm:
                self._trainer.start()
            try:
                task = self._runtime.acquire()
            except Unavailable:
                time.sleep(IDLE_SECONDS)
                continue
            if task is not None:
                busy_until = time.monotonic() + BUSY_FOR_SECONDS
                self._handle(task)
            time.sleep(BUSY_SECONDS if time.monotonic() < busy_until else IDLE_SECONDS)

    def carry_out(self, order: Order, vector: Vector) -> Report:
        """`client_app.Site`: permission, work, filter."""
        task = self._task
        assert task is not None
        permitted = self._desk.permission(order, task.bundle_digest)
        try:
            if vector.size != parameter_count(permitted.plan):
                raise Refused(Refusal.OUT_OF_BOUNDS)
            answer = self._trainer.work(order, permitted, vector, task)
        finally:
            os.close(permitted.examples)
        if self._trainer.network != self._told_network:
            self._told_network = self._trainer.network
            self._desk.status(self._told_network)
        if "metrics" not in answer:
            raise Refused(Refusal.FAILED)
        return _filtered(order, permitted, vector, answer)

    def _handle(self, task: SiteTask) -> None:
        self._task, words, order = task, "", None
        try:
            order = Order.of(task.message)
            reply = self._app(task.message, task.context)
            seconds = reply.content.metric_records[client_app.METRICS].get("seconds", 0.0)
            task.reply(reply)
            self._desk.tell(order, seconds=float(seconds))
            return
        except Closed:
            task.abandon()
            raise
        except Refused as error:
            words = error.message
        except Invalid:
            words = Refusal.OUT_OF_BOUNDS.value
        except AccordError:
            words = Refusal.UNAVAILABLE.value
        except Exception as error:  # nothing of an error's text may leave: only the fixed words do
            print(f"runner: {type(error).__name__}", file=sys.stderr, flush=True)
            words = Refusal.FAILED.value
        finally:
            self._task = None
        with contextlib.suppress(Exception):
            task.refuse(words)
        if order is not None:
            self._desk.tell(order, words)


def _filtered(order: Order, permitted: Permitted, reference: Vector, answer: Message) -> Report:
    metrics = filtered_metrics(answer["metrics"])
    count = rounded_count(permitted.count)
    if order.kind == EVALUATE:
        return Report(metrics, count)
    update = filtered_update(answer["vector"], reference, permitted.plan.training.update_norm_max)
    return Report(metrics, count, update)


def main() -> None:
    """`python -m learning.runner ADDRESS CHANNEL SECRET PARENT`: the descriptors are inherited."""
    address, channel, secret, parent = sys.argv[1], *map(int, sys.argv[2:5])
    die_with_parent(parent)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    trainer = Trainer()
    runtime = SiteRuntime(address, read_sealed(secret))
    try:
        Runner(runtime, Desk(Channel.inherited(channel)), trainer).serve()
    except (Closed, KeyboardInterrupt):
        pass
    finally:
        trainer.stop()


if __name__ == "__main__":
    main()
