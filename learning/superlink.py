"""The hub's Flower processes: superlink and driver, alive while plans are open, and the calls to them.

The superlink binds loopback with a throwaway certificate and keeps its state in memory; the driver is the only
caller of its Control API. Both end together and start again together; what ran is lost then, and `runs` says so.
Members' learning keys are registered at each start and when the roster changes; a suspended member's is removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic
from typing import Any

import structlog
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key

from consent.errors import AccordError, Unavailable
from consent.signed import Signed
from learning.channel import AsyncChannel, Closed, Message, pair
from learning.door import FleetDoor
from learning.loopback import throwaway_certificate
from learning.plans import TrainingPlan
from learning.processes import MAX_BACKOFF_SECONDS, Crew, module_command, superlink_command
from learning.sealed import seal_bytes
from node.completion import to_its_end
from node.ports import HOST, free_ports

SECRET_BYTES = 32
START_SECONDS = 90.0
CALL_SECONDS = 60.0
REGISTER_SECONDS = 2.0
STEADY_SECONDS = 60.0

logger = structlog.get_logger()

LearningKeys = Callable[[], Mapping[str, str]]
"""Active hospitals and their learning public keys (OpenSSH lines), as the roster in force has them."""


class Superlink:
    """Runs the processes until cancelled; `want` starts them, the first call waits until they are up."""

    def __init__(self, *, folder: Path, door: FleetDoor, learning_keys: LearningKeys) -> None:
        self._folder, self._door, self._learning_keys = folder, door, learning_keys
        self._wanted, self._ready = asyncio.Event(), asyncio.Event()
        self._channel: AsyncChannel | None = None
        self._answers: dict[int, asyncio.Future[Message]] = {}
        self._calls = 0
        self._nodes: dict[str, tuple[str, int]] = {}
        self.processes: dict[str, int] = {}

    def want(self) -> None:
        """Have the processes up."""
        self._wanted.set()

    def registered(self, member: str) -> bool:
        """Whether this member's supernode would be let in."""
        return member in self._nodes

    async def run(self) -> None:
        """Keep the processes alive, until cancelled."""
        backoff = 1.0
        while True:
            await self._wanted.wait()
            started = monotonic()
            try:
                await self._one_life()
            except (AccordError, OSError) as error:
                logger.warning("learning.superlink", error=str(error))
            except Exception as error:  # whatever it was, the next start may go well
                logger.error("learning.superlink", error=type(error).__name__)
            backoff = 1.0 if monotonic() - started > STEADY_SECONDS else min(2 * backoff, MAX_BACKOFF_SECONDS)
            await asyncio.sleep(backoff)

    async def start_run(self, run: str, plan: Signed[TrainingPlan]) -> tuple[int, AsyncChannel]:
        """Start a run over every registered member; return Flower's id and the channel of its events.

        Raises Unavailable.
        """
        self.want()
        async with asyncio.timeout(START_SECONDS):
            await self._ready.wait()
        ours, theirs = pair()
        members = {str(node): member for member, (_, node) in self._nodes.items()}
        try:
            flower_run = await self._call(
                {"do": "start", "run": run, "digest": plan.digest, "plan": plan.body.to_json()}
                | {"members": members},
                (theirs.fileno(),),
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return int(flower_run), AsyncChannel(ours)

    async def stop_run(self, flower_run: int) -> None:
        """Stop a run in Flower, so that the sites' tasks end too. Quiet when it has ended or Flower is away."""
        with contextlib.suppress(AccordError):
            await self._call({"do": "stop", "flower_run": flower_run})

    async def online(self) -> tuple[str, ...]:
        """Members whose supernode is connected. Empty while the processes are down."""
        if not self._ready.is_set():
            return ()
        nodes = set(await self._call({"do": "online"}))
        return tuple(sorted(member for member, (_, node) in self._nodes.items() if node in nodes))

    async def _one_life(self) -> None:
        root, pair_ = throwaway_certificate()
        crew, (port,) = Crew(self._folder), free_ports(1)
        ours = None
        tasks: set[asyncio.Task[Any]] = set()
        try:
            ours = await self._start(crew, port, root, pair_.certificate, pair_.key)
            channel = self._channel = AsyncChannel(ours)
            tasks = {
                asyncio.create_task(self._read_answers(channel)),
                asyncio.create_task(crew.first_exit()),
                asyncio.create_task(self._bring_up(port, root)),
            }
            self.processes = crew.pids
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done() and (error := task.exception()) is not None:
                    raise error
        finally:
            self._ready.clear()
            self._door.shut()
            self._nodes, self.processes, self._channel = {}, {}, None
            await to_its_end(self._wind_up(crew, tasks))
            if ours is not None:
                ours.close()

    async def _wind_up(self, crew: Crew, tasks: set[asyncio.Task[Any]]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for future in self._answers.values():
            if not future.done():
                future.set_exception(Closed())
        self._answers.clear()
        await crew.end()

    async def _start(self, crew: Crew, port: int, root: bytes, certificate: bytes, key: bytes) -> Any:
        ours, theirs = pair()
        secret = secrets.token_bytes(SECRET_BYTES)
        memory = [
            seal_bytes("accord-root", (root,)),
            seal_bytes("accord-certificate", (certificate,)),
            seal_bytes("accord-key", (key,)),
            seal_bytes("accord-secret", (secret,)),
        ]
        root_at, certificate_at, key_at, secret_at = memory
        try:
            command = superlink_command(
                port, root=root_at, certificate=certificate_at, key=key_at, secret=secret_at
            )
            await crew.start("superlink", command, memory)
            await _listening(port, crew)
            await crew.start(
                "driver",
                module_command("learning.driver", f"{HOST}:{port}", theirs.fileno(), secret_at, root_at),
                [theirs.fileno(), secret_at, root_at],
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            for descriptor in memory:
                os.close(descriptor)
        return ours

    async def _bring_up(self, port: int, root: bytes) -> None:
        await self._register_members()
        self._door.open(port, root)
        self._ready.set()
        while True:
            await asyncio.sleep(REGISTER_SECONDS)
            await self._register_members()

    async def _register_members(self) -> None:
        try:
            wanted = dict(self._learning_keys())
        except AccordError as error:  # no roster in force: the peer door lets nobody in meanwhile
            logger.warning("learning.roster", error=error.code)
            return
        for member, (key, node) in list(self._nodes.items()):
            if wanted.get(member) != key:
                await self._call({"do": "unregister", "node": node})
                del self._nodes[member]
        for member, key in wanted.items():
            if member not in self._nodes:
                await self._register(member, key)

    async def _register(self, member: str, key: str) -> None:
        try:
            pem = public_pem(key)
        except ValueError:
            logger.warning("learning.key", member=member)
            return
        self._nodes[member] = (key, int(await self._call({"do": "register", "key": pem})))

    async def _call(self, request: Message, descriptors: tuple[int, ...] = ()) -> Any:
        if self._channel is None:
            raise Unavailable("The learning service is not running.", code="learning-idle")
        self._calls += 1
        number = self._calls
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        try:
            await self._channel.send(request | {"id": number}, descriptors)
            async with asyncio.timeout(CALL_SECONDS):
                reply = await answer
        except TimeoutError as error:
            raise Unavailable("Flower does not answer.", code="learning-away") from error
        finally:
            self._answers.pop(number, None)
        if "failed" in reply:
            raise Unavailable(str(reply["failed"]), code="learning-failed")
        return reply.get("result")

    async def _read_answers(self, channel: AsyncChannel) -> None:
        while True:
            message, descriptors = await channel.receive()
            for descriptor in descriptors:
                os.close(descriptor)
            waiting = self._answers.get(int(message.get("id") or 0))
            if waiting is not None and not waiting.done():
                waiting.set_result(message)


async def _listening(port: int, crew: Crew) -> None:
    """Wait until the superlink accepts connections. Raises Unavailable when it ends or takes too long."""
    end = monotonic() + START_SECONDS
    while "superlink" in crew.pids and monotonic() < end:
        try:
            _, writer = await asyncio.open_connection(HOST, port)
        except OSError:
            await asyncio.sleep(0.1)
            continue
        writer.close()
        return
    raise Unavailable(
        "flower-superlink did not start.", mend="See superlink.log in the hub's learning folder."
    )


def public_pem(openssh: str) -> str:
    """A public key as PEM, from its OpenSSH line. Raises ValueError when it is none."""
    try:
        public = load_ssh_public_key(openssh.encode())
    except UnsupportedAlgorithm as error:
        raise ValueError("not a public key of a known kind") from error
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
