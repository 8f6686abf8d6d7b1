"""Whom an agent takes for its node: one that proves to be it, wherever it was told or heard to call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from zeroconf import IPVersion
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

from consent.errors import Invalid
from consent.vocabulary import EventKind
from node.access.certificates import read_certificate
from node.dicom.listener import Listener
from node.edge.agent import Agent, create
from node.edge.announcement import SERVICE, announcing
from node.edge.settings import new_edge
from node.identity import Identity
from node.ports import free_ports
from node.tls import KeyPair, dicom_server_context
from tests.node.dicom.archive import AE, SCANNER, Archive, archive_in
from tests.node.edge.conftest import device, instance, spool
from tests.support.cli import accord
from tests.support.clock import FakeClock
from tests.support.dicom import ct_slice
from tests.support.seeds import seeds

pytestmark = [pytest.mark.requirement("C2", "T1"), pytest.mark.timeout(60)]
LOOPBACK = "127.0.0.1"
COUNT = 3


@dataclass
class Hospital:
    """A node, the folder in which its scanner's agent lives, and everybody else who comes to answer."""

    node: Archive
    port: int
    folder: Path
    scanner: KeyPair
    open: AsyncExitStack

    @property
    def identity(self) -> Identity:
        return self.node.node.identity

    async def impostor(self, pair: KeyPair) -> tuple[Archive, int]:
        """An archive of somebody else, which takes what comes and vouches for it, behind a certificate of his."""
        (folder := self.folder / "impostor").mkdir()
        archive = await self.open.enter_async_context(archive_in(folder))
        return archive, await self.behind(archive, pair)

    async def behind(self, archive: Archive, pair: KeyPair) -> int:
        """Open a TLS door of an archive to the scanner; its port."""
        await archive.node.registry.add_device(SCANNER, LOOPBACK, self.scanner.certificate.decode())
        context = dicom_server_context(pair, [self.identity.authority_pem])
        door = Listener(archive.gate, archive.node.log, LOOPBACK, 0, tls=context)
        return (await self.open.enter_async_context(door)).port

    @asynccontextmanager
    async def agent(self, *, host: str = "", port: int = 2762, discover: str = "") -> AsyncIterator[Agent]:
        """The scanner's agent with a few images that the node lacks, forwarding."""
        settings = new_edge(
            self.folder / "edge",
            edge={"ae_title": SCANNER},
            listen={"port": 11112, "ae_title": "EDGE"},
            node={"ae_title": AE, "host": host, "port": port, "discover": discover},
            forward={"retry_seconds": 0.1},
        )
        create(settings, self.scanner.certificate, self.scanner.key, self.identity.authority_pem.encode())
        async with spool(settings.spool_folder) as kept:
            for number in range(COUNT):
                await kept.add(instance(number + 1))
            agent = Agent(settings, FakeClock(), kept)
            agent.forwarder.start()
            try:
                yield agent
            finally:
                await agent.forwarder.stop()

    async def everything_is_there(self, agent: Agent) -> None:
        """Wait until the node has committed it all."""
        async with asyncio.timeout(30):
            while agent.spool.count:
                await asyncio.sleep(0.02)
        assert agent.forwarder.progress.committed == COUNT
        stored = await self.node.node.events(EventKind.INSTANCES_STORED)
        assert sum(int(str(one.event.detail["instances"])) for one in stored) == COUNT

    async def nothing_goes(self, agent: Agent, impostor: Archive, *words: str) -> None:
        """The agent has tried, says why in `words`, keeps everything, and the impostor has heard no word of DICOM."""
        async with asyncio.timeout(30):
            while not all(word in agent.forwarder.progress.trouble for word in words):
                await asyncio.sleep(0.02)
        assert agent.spool.count == COUNT
        assert (agent.forwarder.progress.sent, agent.forwarder.progress.committed) == (0, 0)
        assert list((self.folder / "edge" / "spool").rglob("*.pack"))
        assert not await impostor.node.events(EventKind.ASSOCIATION_ACCEPTED)
        assert not await impostor.node.events(EventKind.INSTANCES_STORED)


@pytest.fixture
async def hospital(tmp_path: Path) -> AsyncIterator[Hospital]:
    """The node's TLS door is open to the scanner."""
    (tmp_path / "node").mkdir()
    async with archive_in(tmp_path / "node") as archive, AsyncExitStack() as stack:
        now = datetime.now(UTC)
        scanner = archive.node.identity.issue_device_certificate(SCANNER, now)
        hospital = Hospital(archive, 0, tmp_path, scanner, stack)
        hospital.port = await hospital.behind(archive, archive.node.identity.leaf([LOOPBACK], now))
        yield hospital


async def of_another_authority(hospital: Hospital) -> KeyPair:
    stranger = await Identity.load_or_create(seeds("stranger"), hospital.identity.node_id, "Stranger")
    return stranger.leaf([LOOPBACK], datetime.now(UTC))


@pytest.mark.parametrize(
    ("title", "serves", "words"),
    [
        ("MR1", True, "does not bear the name a-general"),
        ("a-general", True, "does not bear the name a-general"),
        ("MR1", False, "unsuitable certificate purpose"),
    ],
    ids=["that-may-be-called", "that-calls-itself-as-the-node", "that-only-calls"],
)
async def test_device_that_answers_in_the_place_of_the_node_gets_nothing(
    hospital: Hospital, title: str, serves: bool, words: str
) -> None:
    """Its certificate is under the node's authority, and it would vouch for what it takes; the spool stays whole."""
    now = datetime.now(UTC)
    pair = hospital.identity.issue_device_certificate(title, now, serves=serves)
    impostor, port = await hospital.impostor(pair)
    async with hospital.agent(host=LOOPBACK, port=port) as agent:
        await hospital.nothing_goes(agent, impostor, words)


async def test_node_of_the_same_name_under_another_authority_gets_nothing(hospital: Hospital) -> None:
    """A name is worth what its authority is worth."""
    impostor, port = await hospital.impostor(await of_another_authority(hospital))
    async with hospital.agent(host=LOOPBACK, port=port) as agent:
        await hospital.nothing_goes(agent, impostor, "certificate is not trusted")


async def test_node_is_found_by_its_announcement(hospital: Hospital) -> None:
    """Without an address the agent looks on its interface, and everything arrives."""
    authority = hospital.identity.authority_pem
    async with (
        announcing(interface=LOOPBACK, authority=authority, port=hospital.port),
        hospital.agent(discover=LOOPBACK) as agent,
    ):
        await hospital.everything_is_there(agent)


async def test_true_fingerprint_announced_at_a_false_port_leads_nowhere_until_the_node_speaks(
    hospital: Hospital,
) -> None:
    """Whoever announces the node's own authority for his port gets nothing; what he held up arrives afterwards."""
    authority = hospital.identity.authority_pem
    pair = hospital.identity.issue_device_certificate("MR1", datetime.now(UTC), serves=True)
    impostor, port = await hospital.impostor(pair)
    async with hospital.agent(discover=LOOPBACK) as agent:
        async with announcing(interface=LOOPBACK, authority=authority, port=port):
            await hospital.nothing_goes(agent, impostor, "does not bear the name a-general")
        async with announcing(interface=LOOPBACK, authority=authority, port=hospital.port):
            await hospital.everything_is_there(agent)


async def test_liars_who_announce_beside_the_node_hold_nothing_up(hospital: Hospital) -> None:
    """One answers with a device's certificate, one not at all; both say the true fingerprint, and came first."""
    authority = hospital.identity.authority_pem
    pair = hospital.identity.issue_device_certificate("MR1", datetime.now(UTC), serves=True)
    impostor, port = await hospital.impostor(pair)
    (nobody,) = free_ports(1)
    async with (
        said_by("liar-1", authority, port),
        said_by("liar-2", authority, nobody),
        announcing(interface=LOOPBACK, authority=authority, port=hospital.port),
        hospital.agent(discover=LOOPBACK) as agent,
    ):
        await hospital.everything_is_there(agent)
    assert not await impostor.node.events(EventKind.ASSOCIATION_ACCEPTED)


async def test_accord_send_tells_the_node_from_a_device_under_its_authority(hospital: Hospital) -> None:
    """The authority says whose name to expect; another name, or a pin, is expected when given. Otherwise nothing is sent."""
    pair = hospital.identity.issue_device_certificate("MR1", datetime.now(UTC), serves=True)
    impostor, false_port = await hospital.impostor(pair)
    files = {"scan.dcm": ct_slice(size=16).file(), "ca.crt": hospital.identity.authority_pem.encode()}
    files |= {"ct1.crt": hospital.scanner.certificate, "ct1.key": hospital.scanner.key}
    for name, content in files.items():
        (hospital.folder / name).write_bytes(content)
    at = hospital.folder
    own = ("--tls-certificate", at / "ct1.crt", "--tls-key", at / "ct1.key", "--tls-authority", at / "ca.crt")

    async def code(port: int, *more: object) -> int:
        said = await asyncio.to_thread(
            accord, "send", LOOPBACK, port, at / "scan.dcm", "--called", AE, "--calling", SCANNER, *own, *more
        )
        return said.code

    pin = read_certificate(pair.certificate.decode())[1]
    assert await code(hospital.port) == 0
    assert await code(hospital.port, "--tls-name", LOOPBACK) == 0
    assert await code(hospital.port, "--pin", pin) == 3
    assert await code(hospital.port, "--tls-name", "b-central") == 3
    assert await code(false_port) == 3
    assert await code(false_port, "--pin", "1234") == 7
    assert not await impostor.node.events(EventKind.ASSOCIATION_ACCEPTED)
    assert await code(false_port, "--pin", ":".join(pin[at : at + 2] for at in range(0, 64, 2)).upper()) == 0


async def test_agent_is_not_made_with_an_authority_that_is_no_node(tmp_path: Path) -> None:
    """A hospital's own authority, a certificate of a device, or two of them name no node to expect."""
    settings = new_edge(
        tmp_path / "edge",
        edge={"ae_title": SCANNER},
        listen={"port": 11112, "ae_title": "EDGE"},
        node={"ae_title": AE, "host": LOOPBACK},
    )
    pair, authority = await device()
    for wrong in (pair.certificate, authority * 2, b"", b"\xff"):
        with pytest.raises(Invalid, match="authority of a node"):
            create(settings, pair.certificate, pair.key, wrong)
    assert not settings.keys.exists()


@asynccontextmanager
async def said_by(name: str, authority: str, port: int) -> AsyncIterator[None]:
    """Somebody announces, under a name of his own, the fingerprint of the node's authority for a port of his."""
    own = AsyncServiceInfo(
        SERVICE,
        f"{name}-{port}.{SERVICE}",
        parsed_addresses=[LOOPBACK],
        port=port,
        properties={"fp": read_certificate(authority)[1]},
        server=f"{name}-{port}.local.",
    )
    network = AsyncZeroconf(interfaces=[LOOPBACK], ip_version=IPVersion.V4Only)
    try:
        await (await network.async_register_service(own))
        yield
    finally:
        await network.async_unregister_all_services()
        await network.async_close()
