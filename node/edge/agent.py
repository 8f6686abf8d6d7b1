"""The agent as a process: plain DICOM on loopback in, the spool in the middle, mutual DICOM TLS out.

Holds how the parts are put together, who may send (whoever is on this machine and calls the right AE title), and the status
file. Leaves keeping to `spool`, sending to `forwarding`. No database, no log of its own: what counts is what the node
records; refusals are one line each on standard output, without an identifier.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from consent.errors import AccordError, Conflict, Denied, Invalid, NotFound
from consent.principals import Principal
from consent.vocabulary import Outcome, Role
from node.arrival import Arrival, Source
from node.audit.event import Event
from node.clock import Clock
from node.completion import to_its_end
from node.dicom.gate import Gate, Limits
from node.dicom.listener import Listener
from node.dicom.sender import Peer, echo
from node.dicom.services import Services
from node.durable import write_new
from node.edge.forwarding import Forwarder
from node.edge.settings import EdgeSettings
from node.edge.spool import KEY_BYTES, Spool
from node.identity import node_of
from node.tls import KeyPair, dicom_client_context
from node.vault.blobs import FileBlobs

LOOPBACK = "127.0.0.1"
STATUS_SECONDS = 1.0

logger = structlog.get_logger()


class Agent:
    """A running agent; made by `running`."""

    def __init__(self, settings: EdgeSettings, clock: Clock, spool: Spool) -> None:
        self._settings = settings
        self._clock = clock
        self.spool = spool
        self.forwarder = Forwarder(
            spool,
            self._node,
            clock,
            retry_seconds=settings.forward.retry_seconds,
            commit_seconds=settings.forward.commit_seconds,
        )
        self.refused = 0
        self._found: tuple[str, int] | None = None
        gate = Gate(
            devices=_Loopback(settings),
            services=Services(_Taking(self), self),
            clock=clock,
            ae_title=settings.listen.ae_title,
            limits=Limits(),
        )
        self.listener = Listener(gate, self, LOOPBACK, settings.listen.port)

    async def record(self, event: Event) -> None:
        """Where a node has its log: of a refusal one line on standard output, and a count."""
        if event.outcome is not Outcome.REFUSED:
            return
        self.refused += 1
        logger.warning("edge_refused", kind=event.kind, reason=event.reason, code=event.detail.get("code"))

    def status(self) -> dict[str, Any]:
        """What the agent does now; no identifier in it."""
        progress, oldest = self.forwarder.progress, self.spool.oldest
        return {
            "ae_title": self._settings.edge.ae_title,
            "at": self._clock.now().isoformat(),
            "waiting": self.spool.count,
            "oldest": None if oldest is None else oldest.isoformat(),
            "spool_bytes": self.spool.used_bytes,
            "spool_max_bytes": self.spool.max_bytes,
            "damaged_segments": self.spool.damaged,
            "sent": progress.sent,
            "committed": progress.committed,
            "not_taken": progress.refused,
            "refused": self.refused,
            "node_reached": None if progress.reached is None else progress.reached.isoformat(),
            "trouble": progress.trouble,
        }

    async def _node(self) -> Peer:
        """Where the node is. An address that is known is not looked for: nobody on the network can hide it."""
        named = self._settings.node
        if named.host:
            return node_at(self._settings, named.host, named.port)
        if self._found is None or self.forwarder.progress.trouble:
            self._found = await self._discovered()
        return node_at(self._settings, *self._found)

    async def _discovered(self) -> tuple[str, int]:
        """Host and port of who announces the node and is it. Raises NotFound, or why who announces it is not taken for it."""
        from node.edge.announcement import find  # pays for zeroconf only where it is used

        refused: list[AccordError] = []

        async def proves(host: str, port: int) -> bool:
            try:
                await echo(node_at(self._settings, host, port))
            except AccordError as error:
                refused.append(error)
                return False
            return True

        authority = self._settings.node_authority.read_text("ascii")
        found = await find(authority, proves, interface=self._settings.node.discover)
        if found is None:
            raise next(
                iter(refused),
                NotFound("The node was not found on this network.", mend="Name its address in edge.toml."),
            )
        return found


class _Taking:
    """The one way in, as `Services` knows it."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    async def receive(self, arrival: Arrival, source: Source) -> None:
        """Keep the instance; when this returns it is durable."""
        await self._agent.spool.add(arrival)


class _Loopback:
    """Who may send: whoever is on this machine and calls the agent by its AE title."""

    def __init__(self, settings: EdgeSettings) -> None:
        self._settings = settings

    async def admit_device(
        self, calling_ae: str, called_ae: str, address: str, certificate_der: bytes | None, tls: bool
    ) -> Principal:
        """See `node.dicom.gate.DeviceGate`."""
        if not ipaddress.ip_address(address).is_loopback:
            raise Denied("Only this machine may send to the agent.", code="device-address")
        if called_ae != self._settings.listen.ae_title:
            raise Denied(
                f"It called {called_ae!r}; this agent's AE title is {self._settings.listen.ae_title!r}.",
                code="called-ae",
            )
        return Principal(calling_ae, Role.DEVICE, calling_ae, self._settings.edge.ae_title)


@asynccontextmanager
async def running(settings: EdgeSettings, clock: Clock) -> AsyncIterator[Mapping[str, str]]:
    """Run the agent; give its addresses. Raises NotFound for a missing key, Unavailable for a port in use."""
    node_at(settings, LOOPBACK, settings.node.port)  # a wrong certificate is said now, not at the first image
    spool = Spool(
        FileBlobs(settings.spool_folder), read_spool_key(settings), clock, max_bytes=settings.spool.max_bytes
    )
    waiting = await spool.load()
    agent = Agent(settings, clock, spool)
    logger.info("edge_started", waiting=waiting, damaged=len(spool.damaged))
    async with AsyncExitStack() as stack:
        stack.push_async_callback(_write_status, agent, settings.status_file)
        await stack.enter_async_context(_telling_status(agent, settings.status_file))
        stack.push_async_callback(spool.close)
        stack.push_async_callback(agent.forwarder.stop)
        await stack.enter_async_context(agent.listener)
        agent.forwarder.start()
        yield {"dicom": f"{LOOPBACK}:{agent.listener.port}", "agent": agent_key_of(settings)}


def create(settings: EdgeSettings, certificate: bytes, key: bytes, authority: bytes) -> str:
    """Make the agent's folder: keys, certificates, an empty spool; return the agent's public key (hex).

    Raises Conflict when there is an agent already, Invalid when certificate and key do not fit, or the authority is no node's.
    """
    if settings.spool_key.exists() or settings.agent_key.exists():
        raise Conflict(f"{settings.folder} has an agent's keys already.", mend="Choose another folder.")
    vouching = authority.decode("ascii", "replace")
    node_of(vouching)
    dicom_client_context(KeyPair(certificate, key), [vouching])
    for folder in (settings.folder, settings.keys, settings.spool_folder):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)
    agent = Ed25519PrivateKey.generate()
    write_new(settings.spool_key, os.urandom(KEY_BYTES).hex().encode() + b"\n")
    write_new(settings.agent_key, agent.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    write_new(settings.device_certificate, certificate)
    write_new(settings.device_key, key)
    write_new(settings.node_authority, authority)
    return agent.public_key().public_bytes_raw().hex()


def read_spool_key(settings: EdgeSettings) -> bytes:
    """The spool key. Raises NotFound (also after a wipe) or Invalid."""
    try:
        key = bytes.fromhex(settings.spool_key.read_text("ascii").strip())
    except FileNotFoundError as error:
        raise NotFound(
            "There is no spool key: this agent was wiped, or its keys lie elsewhere.",
            mend="Make a new agent: accord edge init.",
            code="no-spool-key",
        ) from error
    except (ValueError, OSError) as error:
        raise Invalid(f"{settings.spool_key} is no spool key.") from error
    if len(key) != KEY_BYTES:
        raise Invalid(f"{settings.spool_key} is no spool key.")
    return key


def read_agent_key(settings: EdgeSettings) -> Ed25519PrivateKey:
    """The key that signs wipe certificates. Raises NotFound or Invalid."""
    try:
        key = load_pem_private_key(settings.agent_key.read_bytes(), None)
    except FileNotFoundError as error:
        raise NotFound("There is no agent key here.", mend="Name the agent's folder.") from error
    except (ValueError, TypeError) as error:
        raise Invalid(f"{settings.agent_key} is no private key.") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise Invalid(f"{settings.agent_key} is no Ed25519 key.")
    return key


def agent_key_of(settings: EdgeSettings) -> str:
    """The agent's public key, 64 hex digits: what the node's registry is told."""
    return read_agent_key(settings).public_key().public_bytes_raw().hex()


def node_at(settings: EdgeSettings, host: str, port: int) -> Peer:
    """The node, if it is the one that answers there: under its authority, which is trusted alone, with a certificate of its own.

    Other devices have certificates under the same authority; what the agent takes for the node's word is its leave to
    let images go. Raises NotFound or Invalid.
    """
    try:
        pair = KeyPair(settings.device_certificate.read_bytes(), settings.device_key.read_bytes())
        authority = settings.node_authority.read_text("ascii")
    except FileNotFoundError as error:
        raise NotFound(
            f"{error.filename} is not there.",
            mend="Make a new agent: accord edge init.",
            code="no-device-key",
        ) from error
    context = dicom_client_context(pair, [authority])
    return Peer(host, port, settings.node.ae_title, settings.edge.ae_title, context, name=node_of(authority))


@asynccontextmanager
async def _telling_status(agent: Agent, file: Path) -> AsyncIterator[None]:
    async def tell() -> None:
        while True:
            await _write_status(agent, file)
            await asyncio.sleep(STATUS_SECONDS)

    telling = asyncio.create_task(tell(), name="edge-status")
    try:
        yield
    finally:
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)


async def _write_status(agent: Agent, file: Path) -> None:
    """What the agent does now, into its file; a full disk must not end the agent for that."""
    text = json.dumps(agent.status())  # here: what it reads changes on this loop

    def write() -> None:
        new = file.with_suffix(".new")
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as out:
            out.write(text)
        new.rename(file)

    with contextlib.suppress(OSError):
        await to_its_end(asyncio.to_thread(write))
