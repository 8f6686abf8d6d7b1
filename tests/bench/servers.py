"""What stands side by side in a benchmark: a server's doors, the certificates of its callers, its process.

Leaves starting each kind to `nodes` (ours) and `rivals`.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.client import Web

START_SECONDS = 600.0
"""A node that holds 100,000 studies looks at every pack before its doors open."""
STOP_SECONDS = 30.0
LAST_WORDS_BYTES = 2000
CLIENTS = 4
AE = "BENCH"


@dataclass(frozen=True)
class Keys:
    """Certificates of one authority: of the clients by number, and of the rival servers."""

    folder: Path

    @property
    def authority(self) -> Path:
        return self.folder / "ca.crt"

    def client(self, number: int) -> tuple[Path, Path]:
        """Certificate and key of the sender SECURE<number>."""
        return self.folder / f"client{number}.crt", self.folder / f"client{number}.key"

    @property
    def server(self) -> tuple[Path, Path]:
        """Certificate and key for Orthanc and storescp."""
        return self.folder / "server.crt", self.folder / "server.key"

    def trusting(self) -> ssl.SSLContext:
        """For a web client."""
        return ssl.create_default_context(cafile=str(self.authority))


@dataclass(frozen=True)
class Door:
    """Where C-STORE goes: port, called AE title, and the callers' certificates where it is mutual TLS."""

    port: int
    ae_title: str
    tls: Keys | None = None


@dataclass(frozen=True)
class Server:
    """A running server and its doors; None where it has none. `password`: of the reader, where people sign in."""

    name: str
    pid: int
    plain: Door | None = None
    tls: Door | None = None
    web: Web | None = None
    password: str = ""

    @property
    def web_name(self) -> str:
        """With the protocol that its web speaks."""
        return f"{self.name} ({'HTTPS' if self.web and self.web.context else 'HTTP'})"

    @property
    def door(self) -> Door:
        """The plain door, or the other where there is none."""
        found = self.plain or self.tls
        assert found is not None
        return found


@dataclass(frozen=True)
class Stage:
    """Everything that runs; `keys` are those of the rivals."""

    servers: Sequence[Server]
    keys: Keys

    def with_web(self) -> list[Server]:
        """The servers that speak DICOMweb."""
        return [server for server in self.servers if server.web is not None]

    def ours(self) -> list[Server]:
        """The nodes, which people sign in to."""
        return [server for server in self.servers if server.password]


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
def process(arguments: Sequence[object], port: int) -> Iterator[int]:
    """A program that listens on `port`, ended afterwards. Raises RuntimeError with its last words when it does not start."""
    environment = {**os.environ, "TCP_NODELAY": "1", "OMP_NUM_THREADS": "1"}
    command = [str(argument) for argument in arguments]
    with tempfile.TemporaryFile() as said:
        started = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said, env=environment)
        try:
            if not _listens(port, started):
                said.seek(0)
                last = said.read()[-LAST_WORDS_BYTES:].decode(errors="replace")
                raise RuntimeError(f"{' '.join(command[:4])} does not listen on port {port}: {last}")
            yield started.pid
        finally:
            started.send_signal(signal.SIGTERM)
            try:
                started.wait(timeout=STOP_SECONDS)
            except subprocess.TimeoutExpired:
                started.kill()
                started.wait()


def _listens(port: int, started: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + START_SECONDS
    while started.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return True
        except OSError:
            time.sleep(0.1)
    return False
