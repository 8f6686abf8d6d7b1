"""The servers that a benchmark puts side by side, each started in a folder of its own and ended afterwards.

Ours is the real `accord serve`: it seals what it keeps, its web is HTTPS alone, and every answer goes through the
rules and the log. Orthanc runs as it ships (SQLite, MD5, fsync of each file) but for TCP_NODELAY=1, without which DCMTK's
two small writes an answer wait for the sender's delayed acknowledgement; its web is plain HTTP. A second Orthanc takes
mutual DICOM TLS.
storescp writes raw bytes, with neither index, encryption nor fsync. What is not installed is left out.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from consent.vocabulary import Role
from node.config import DicomSection, HttpSection, NodeSection, PeerSection, Settings
from ops.demo.processes import free_ports
from ops.foundation import create_folder, opened
from tests.bench.client import Web

START_SECONDS = 60.0
STOP_SECONDS = 30.0
CLIENTS = 4
AE = "BENCH"
READER = "reader"


@dataclass(frozen=True)
class Door:
    """Where C-STORE goes: port, called AE title, and whether it is mutual TLS."""

    port: int
    ae_title: str
    tls: bool = False


@dataclass(frozen=True)
class Server:
    """A running server and its doors; None where it has none."""

    name: str
    pid: int
    plain: Door | None = None
    tls: Door | None = None
    web: Web | None = None

    @property
    def web_name(self) -> str:
        """With the protocol that its web speaks."""
        return f"{self.name} ({'HTTPS' if self.web and self.web.context else 'HTTP'})"


@dataclass(frozen=True)
class Keys:
    """Certificates of one authority: of the clients by number, and of the rival servers."""

    folder: Path

    @property
    def authority(self) -> Path:
        return self.folder / "ca.crt"

    def client(self, number: int) -> tuple[Path, Path]:
        """Certificate and key of the sender BENCH<number>."""
        return self.folder / f"client{number}.crt", self.folder / f"client{number}.key"

    @property
    def server(self) -> tuple[Path, Path]:
        """Certificate and key for Orthanc and storescp."""
        return self.folder / "server.crt", self.folder / "server.key"

    def trusting(self) -> ssl.SSLContext:
        """For a web client."""
        return ssl.create_default_context(cafile=str(self.authority))


@dataclass(frozen=True)
class Stage:
    """Everything that runs."""

    servers: Sequence[Server]
    keys: Keys

    def with_web(self) -> list[Server]:
        """The servers that speak DICOMweb."""
        return [server for server in self.servers if server.web is not None]


def plain_title(number: int) -> str:
    """The calling AE title of plain sender `number`."""
    return f"PLAIN{number}"


def tls_title(number: int) -> str:
    """The calling AE title of the sender with certificate `number`."""
    return f"SECURE{number}"


def find(program: str) -> str | None:
    """The path of a program; Debian puts Orthanc where only root looks."""
    return shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


@contextmanager
def stage(folder: Path) -> Iterator[Stage]:
    """Start every server that is installed."""
    keys = Keys(folder / "keys")
    keys.folder.mkdir(parents=True)
    with ExitStack() as stack:
        servers = [stack.enter_context(accord(folder / "accord", keys))]
        if find("Orthanc"):
            servers.append(stack.enter_context(orthanc(folder / "orthanc", keys, secure=False)))
            servers.append(stack.enter_context(orthanc(folder / "orthanc-tls", keys, secure=True)))
        if find("storescp"):
            servers.append(stack.enter_context(storescp(folder / "storescp", keys, secure=False)))
            servers.append(stack.enter_context(storescp(folder / "storescp-tls", keys, secure=True)))
        yield Stage(servers, keys)


@contextmanager
def accord(folder: Path, keys: Keys) -> Iterator[Server]:
    """A node of ours; it also issues the certificates of everybody else here."""
    plain, tls, http = free_ports(3)
    settings = Settings(
        node=NodeSection(id="bench", name="Bench", ae_title=AE),
        http=HttpSection(port=http),
        dicom=DicomSection(port=tls, plain_port=plain),
        peer=PeerSection(port=0),
        folder=folder.resolve(),
    )
    create_folder(settings)
    token = asyncio.run(_registered(folder, keys))
    web = Web("127.0.0.1", http, {"Authorization": f"Bearer {token}"}, keys.trusting())
    with _process([sys.executable, "-m", "ops", "serve", folder], http) as pid:
        yield Server("Accord", pid, Door(plain, AE), Door(tls, AE, tls=True), web)


async def _registered(folder: Path, keys: Keys) -> str:
    """Register the senders and a reader; return the reader's token."""
    async with opened(folder) as node:
        now = node.clock.now()
        for number in range(CLIENTS):
            pair = node.identity.issue_device_certificate(tls_title(number), now)
            certificate, key = keys.client(number)
            certificate.write_bytes(pair.certificate)
            key.write_bytes(pair.key)
            await node.registry.add_device(tls_title(number), "127.0.0.1", pair.certificate.decode())
            await node.registry.add_device(
                plain_title(number), "127.0.0.1", plain_reason="benchmark on loopback"
            )
        leaf = node.identity.leaf(["localhost", "127.0.0.1"], now)
        keys.server[0].write_bytes(leaf.certificate)
        keys.server[1].write_bytes(leaf.key)
        keys.authority.write_text(node.identity.authority_pem)
        await node.registry.add_person(READER, "Reader", Role.CHIEF_PHYSICIAN)
        return await node.registry.create_token(READER, ["dicomweb"], 1.0)


@contextmanager
def orthanc(folder: Path, keys: Keys, *, secure: bool) -> Iterator[Server]:
    """Orthanc with its SQLite index; `secure`: mutual DICOM TLS and no web (Debian's 1.10.1 ends at its first HTTPS request)."""
    dicom, http = free_ports(2)
    folder.mkdir(parents=True)
    settings: dict[str, object] = {
        "StorageDirectory": str(folder / "db"),
        "IndexDirectory": str(folder / "db"),
        "HttpPort": http,
        "HttpBindAddresses": ["127.0.0.1"],
        "HttpCompressionEnabled": False,
        "KeepAlive": True,
        "AuthenticationEnabled": False,
        "DicomAet": AE,
        "DicomPort": dicom,
        "DicomCheckCalledAet": False,
        "DicomAlwaysAllowStore": True,
        "DicomAlwaysAllowEcho": True,
        "OverwriteInstances": True,
        "Plugins": [str(plugin) for plugin in Path("/usr/share/orthanc/plugins").glob("*OrthancDicomWeb.so")],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    if secure:
        certificate, key = keys.server
        settings |= {
            "HttpServerEnabled": False,
            "DicomTlsEnabled": True,
            "DicomTlsCertificate": str(certificate),
            "DicomTlsPrivateKey": str(key),
            "DicomTlsTrustedCertificates": str(keys.authority),
        }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with _process([find("Orthanc"), folder / "orthanc.json"], dicom) as pid:
        if secure:
            yield Server("Orthanc", pid, tls=Door(dicom, AE, tls=True))
        else:
            yield Server("Orthanc", pid, Door(dicom, AE), web=Web("127.0.0.1", http))


@contextmanager
def storescp(folder: Path, keys: Keys, *, secure: bool) -> Iterator[Server]:
    """DCMTK's storescp, one process for each association."""
    (port,) = free_ports(1)
    folder.mkdir(parents=True)
    arguments: list[object] = [find("storescp"), "-q", "-aet", AE, "+B", "--fork", "-od", folder]
    if secure:
        certificate, key = keys.server
        arguments += ["+tls", key, certificate, "+cf", keys.authority]
    with _process([*arguments, port], port) as pid:
        door = Door(port, AE, tls=secure)
        yield Server("storescp", pid, None if secure else door, door if secure else None)


@contextmanager
def floor(keys: Keys) -> Iterator[Server]:
    """See `tests.bench.floor`."""
    (port,) = free_ports(1)
    certificate, key = keys.server
    with _process([sys.executable, "-m", "tests.bench.floor", port, certificate, key], port) as pid:
        yield Server("aiohttp alone", pid, web=Web("127.0.0.1", port, context=keys.trusting()))


@contextmanager
def _process(arguments: Sequence[object], port: int) -> Iterator[int]:
    environment = {**os.environ, "TCP_NODELAY": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [str(argument) for argument in arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    try:
        _wait_for(port, process)
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args} ended")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"{process.args} does not listen on port {port}")
