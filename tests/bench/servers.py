"""The servers that a benchmark puts side by side, each started in a folder of its own and ended afterwards.

Ours is the real `accord serve`, sealing and durable. Orthanc runs as it ships but for TCP_NODELAY=1, without which
DCMTK's two small writes an answer wait for the sender's delayed acknowledgement; storescp writes raw bytes, with
neither index, encryption nor fsync. A server that is not installed is left out.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

START_SECONDS = 30.0
AE_TITLES = tuple(f"BENCH{number}" for number in range(8))
"""The calling AE titles that our node knows."""


@dataclass(frozen=True)
class Server:
    """A running server. `web` is the root of its DICOMweb service, "" without one."""

    name: str
    port: int
    ae_title: str
    pid: int
    web: str = ""

    def cpu_seconds(self) -> float:
        """User and system time of the process and of its children that have ended."""
        stat = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return sum(int(field) for field in stat[11:15]) / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def all_servers(folder: Path) -> Iterator[list[Server]]:
    """Start every server that is installed."""
    with ExitStack() as stack:
        servers = [stack.enter_context(accord(folder / "accord"))]
        if find("Orthanc"):
            servers.append(stack.enter_context(orthanc(folder / "orthanc")))
        if find("storescp"):
            servers.append(stack.enter_context(storescp(folder / "storescp")))
        yield servers


def find(program: str) -> str | None:
    """The path of a program; Debian puts Orthanc where only root looks."""
    return shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


@contextmanager
def accord(folder: Path) -> Iterator[Server]:
    """A node of ours with plain DICOM for the benchmark's own AE titles."""
    plain, http = free_port(), free_port()
    command = [sys.executable, "-m", "ops"]
    ports = [
        "--http-port",
        http,
        "--dicom-port",
        free_port(),
        "--plain-dicom-port",
        plain,
        "--peer-port",
        free_port(),
    ]
    _run([*command, "init", folder, "--name", "Bench", "--ae-title", "BENCH", *ports])
    for title in AE_TITLES:
        device = ["--ae-title", title, "--address", "127.0.0.1", "--plain", "benchmark on loopback"]
        _run([*command, "device", "add", folder, *device])
    with _process([*command, "serve", folder], plain) as pid:
        yield Server("accord", plain, "BENCH", pid, f"https://127.0.0.1:{http}/dicom-web")


@contextmanager
def orthanc(folder: Path) -> Iterator[Server]:
    """Orthanc with its SQLite index, as Debian ships it, and TCP_NODELAY=1."""
    dicom, http = free_port(), free_port()
    folder.mkdir(parents=True)
    plugins = Path("/usr/share/orthanc/plugins")
    settings = {
        "StorageDirectory": str(folder / "db"),
        "IndexDirectory": str(folder / "db"),
        "SyncStorageArea": True,
        "HttpPort": http,
        "HttpBindAddresses": ["127.0.0.1"],
        "AuthenticationEnabled": False,
        "DicomAet": "ORTHANC",
        "DicomPort": dicom,
        "DicomCheckCalledAet": False,
        "DicomAlwaysAllowStore": True,
        "DicomAlwaysAllowEcho": True,
        "OverwriteInstances": True,
        "Plugins": [str(plugin) for plugin in plugins.glob("*OrthancDicomWeb.so")],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with _process([find("Orthanc"), folder / "orthanc.json"], dicom) as pid:
        yield Server("orthanc", dicom, "ORTHANC", pid, f"http://127.0.0.1:{http}/dicom-web")


@contextmanager
def storescp(folder: Path) -> Iterator[Server]:
    """DCMTK's storescp, one process for each association."""
    port = free_port()
    folder.mkdir(parents=True)
    arguments = [find("storescp"), "-q", "-aet", "STORESCP", "+B", "--fork", "-od", folder, port]
    with _process(arguments, port) as pid:
        yield Server("storescp", port, "STORESCP", pid)


@contextmanager
def _process(arguments: list[object], port: int) -> Iterator[int]:
    environment = {**os.environ, "TCP_NODELAY": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [str(argument) for argument in arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment,
    )
    try:
        _wait_for(port, process)
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args} ended: {process.stderr.read()!r}")  # type: ignore[union-attr]
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"{process.args} does not listen on port {port}")


def _run(arguments: list[object]) -> None:
    done = subprocess.run([str(argument) for argument in arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{done.args}: {done.stdout}{done.stderr}")
