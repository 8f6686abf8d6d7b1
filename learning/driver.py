"""The hub's driver: the only process that calls Flower's Control API, and the one that executes server apps.

Started by the hub with one end of a channel; answers `register`, `unregister`, `online`, `start`, `status`,
`stop`. For each run it claims the server task and forks a child that runs our fixed server app and reports to
the hub over a channel of its own, handed in with `start`. Single-threaded, so forking is clean.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass

import httpx

from consent.errors import AccordError, Unavailable
from learning.bundle import bundle
from learning.channel import Channel, Closed, Message
from learning.confinement import die_with_parent
from learning.flower import Control, HubRuntime, HubTask
from learning.plans import TrainingPlan
from learning.sealed import read_sealed
from learning.server_app import make_app
from learning.wording import Ending

BUSY_SECONDS = 0.1
IDLE_SECONDS = 30.0


@dataclass
class Started:
    """A run that waits for its server task: what its child will need."""

    run: str
    digest: str
    plan: TrainingPlan
    members: dict[int, str]
    channel: Channel


class Driver:
    """Answers the hub and executes server tasks."""

    def __init__(self, channel: Channel, control: Control, runtime: HubRuntime) -> None:
        self._channel, self._control, self._runtime = channel, control, runtime
        self._waiting: dict[int, Started] = {}
        self._children: set[int] = set()

    def serve(self) -> None:
        """Serve until the hub closes its end. Raises Closed."""
        while True:
            packet = self._channel.receive(BUSY_SECONDS if self._waiting else IDLE_SECONDS)
            if packet is not None:
                self._channel.send(self._answer(*packet))
            if self._waiting:
                with contextlib.suppress(Unavailable):
                    self._execute()
            self._reap()

    def end(self) -> None:
        """End every child."""
        for child in self._children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGTERM)

    def _answer(self, request: Message, descriptors: list[int]) -> Message:
        deeds: dict[str, Callable[[], object]] = {
            "register": lambda: self._control.register(str(request["key"]).encode()),
            "unregister": lambda: self._control.unregister(int(request["node"])),
            "online": lambda: list(self._control.online()),
            "start": lambda: self._start(request, descriptors),
            "status": lambda: asdict(self._control.status(int(request["flower_run"]))),
            "stop": lambda: self._control.stop(int(request["flower_run"])),
        }
        try:
            result = deeds[str(request.get("do"))]()
        except AccordError as error:
            return {"id": request.get("id"), "failed": error.message}
        except (httpx.HTTPError, RuntimeError) as error:
            return {"id": request.get("id"), "failed": f"Flower: {_first_line(error)}"}
        return {"id": request.get("id"), "result": result}

    def _start(self, request: Message, descriptors: list[int]) -> int:
        channel = Channel.inherited(descriptors[0])
        plan = TrainingPlan.from_json(request["plan"])
        members = {int(node): str(member) for node, member in request["members"].items()}
        run, digest = str(request["run"]), str(request["digest"])
        flower_run = self._control.start(bundle(), {"run": run, "plan": digest})
        self._waiting[flower_run] = Started(run, digest, plan, members, channel)
        return flower_run

    def _execute(self) -> None:
        task = self._runtime.acquire()
        if task is None:
            return
        started = self._waiting.pop(task.run_id, None)
        if started is None:
            return
        parent = os.getpid()
        child = os.fork()
        if child == 0:
            die_with_parent(parent)
            self._channel.close()
            _run(task, started)
            os._exit(0)
        started.channel.close()
        self._children.add(child)

    def _reap(self) -> None:
        for child in list(self._children):
            if os.waitpid(child, os.WNOHANG)[0]:
                self._children.discard(child)


def _run(task: HubTask, started: Started) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    app = make_app(
        started.plan,
        run=started.run,
        digest=started.digest,
        members=started.members,
        channel=started.channel,
    )
    ending: Message = {"event": "finished"}
    try:
        task.run(app)
    except AccordError as error:
        ending = {"event": "failed", "words": error.message}
    except BaseException as error:
        print(f"driver: run {started.run}: {type(error).__name__}: {_first_line(error)}", file=sys.stderr)
        ending = {"event": "failed", "words": Ending.FLOWER_FAILED}
    with contextlib.suppress(Closed):
        started.channel.send(ending)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def main() -> None:
    """`python -m learning.driver ADDRESS CHANNEL SECRET ROOT PARENT`: the descriptors are inherited."""
    address, channel, secret, root, parent = sys.argv[1], *map(int, sys.argv[2:6])
    die_with_parent(parent)
    certificate = read_sealed(root)
    driver = Driver(
        Channel.inherited(channel),
        Control(address, certificate),
        HubRuntime(address, certificate, read_sealed(secret)),
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        driver.serve()
    except (Closed, KeyboardInterrupt):
        pass
    finally:
        driver.end()


if __name__ == "__main__":
    main()
