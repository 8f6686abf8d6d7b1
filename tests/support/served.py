"""A real node as its own process: `accord serve` in a folder, started, killed and looked into by a test.

`make_node` makes the folder with devices, people and a token; `Served` starts and ends the process. The process
dies with the test. Nothing here reaches into a running node: what a test sees comes through its doors or, after
the end, through the composition root.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import ssl
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from consent.vocabulary import Role
from node.config import (
    DicomSection,
    HttpSection,
    MetricsSection,
    NodeSection,
    PeerSection,
    Settings,
    StorageSection,
)
from node.dicom.sender import Peer
from node.ports import free_ports
from node.tls import KeyPair, dicom_client_context
from ops.demo.processes import compile_own_code
from ops.foundation import create_folder, opened
from tests.support.custodies import hurry
from tests.support.nursery import Forked, Nursery, die_with_parent

READY_SECONDS = 60.0
STOP_SECONDS = 20.0
POLL_SECONDS = 0.01
AE = "ACCORD"
SCANNER, DIGITISER = "CT1", "OLD1"
"""A device with a certificate, and one that may send in plain."""
CHIEF = "dr.chief"


@dataclass
class Served:
    """One node's folder and, while it runs, its process."""

    folder: Path
    plain_port: int
    tls_port: int
    http_port: int
    metrics_port: int
    scanner: KeyPair
    authority_pem: str
    token: str
    process: asyncio.subprocess.Process | Forked | None = field(default=None, repr=False)

    @property
    def output(self) -> Path:
        """What the process printed, over all its lives."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def web(self) -> str:
        return f"https://localhost:{self.http_port}"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.returncode is None

    def plain(self, calling: str = DIGITISER) -> Peer:
        """Where our own sender finds the plain door."""
        return Peer("127.0.0.1", self.plain_port, AE, calling)

    def secure(self) -> Peer:
        """Where our own sender finds the TLS door, as the registered scanner."""
        context = dicom_client_context(self.scanner, [self.authority_pem])
        return Peer("127.0.0.1", self.tls_port, AE, SCANNER, context, name="a-general")

    def web_context(self) -> ssl.SSLContext:
        """Trusts this node's portal and nobody else."""
        return ssl.create_default_context(cadata=self.authority_pem)

    async def start(
        self, nursery: Nursery | None = None, *, limits: Callable[[], None] | None = None, wait: bool = True
    ) -> float:
        """Start `accord serve`, forked from `nursery` if there is one; return the seconds until `ready` (0 without `wait`)."""
        began = time.perf_counter()
        self.output.touch(mode=0o600)
        at = self.output.stat().st_size

        def prepare() -> None:
            die_with_parent()
            if limits is not None:
                limits()

        if nursery is not None:
            assert limits is None, "limits are for a process of its own"
            self.process = await nursery.serve(self.folder, self.output)
        else:
            with self.output.open("ab") as output:
                self.process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "ops", "serve", str(self.folder),
                    stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output,
                    env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True, preexec_fn=prepare,
                )  # fmt: skip
        if not wait:
            return 0.0
        async with asyncio.timeout(READY_SECONDS):
            while re.search(rb"^ready\b", self.output.read_bytes()[at:], re.MULTILINE) is None:
                if self.process.returncode is not None:
                    raise AssertionError(f"the node did not start: {self.said()}")
                await asyncio.sleep(POLL_SECONDS)
        return time.perf_counter() - began

    async def kill(self) -> None:
        """A crash: SIGKILL to the node and to its workers."""
        assert self.process is not None
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        await self.process.wait()

    async def stop(self) -> int:
        """End in good order; return the exit status."""
        if not self.alive:
            return 0
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_SECONDS):
                return await self.process.wait()
        except TimeoutError:
            await self.kill()
            raise AssertionError(f"the node did not stop: {self.said()}") from None

    def said(self) -> str:
        """The end of what the process printed."""
        return self.output.read_text("utf-8", errors="replace")[-3000:]

    def cpu_seconds(self) -> float:
        """User and system time of the node's own process so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_peak_bytes(self) -> int:
        """The most memory that the node's own process has held at once (without its workers)."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) * 1024


async def make_node(folder: Path, *, metrics: bool = False, roots: Sequence[Path] = ()) -> Served:
    """Make a node with a TLS device, a plain device (from 127.0.0.0/8), a chief physician and that person's token.

    `roots` are the folders of its replicas; without them it keeps one copy.
    """
    await asyncio.to_thread(
        compile_own_code
    )  # as an installation has it; what starts must not compile each time
    plain, tls, http, watched = free_ports(4)
    settings = Settings(
        node=NodeSection(id="a-general", name="General Hospital", ae_title=AE),
        http=HttpSection(port=http),
        dicom=DicomSection(port=tls, plain_port=plain),
        peer=PeerSection(port=0),
        metrics=MetricsSection(port=watched if metrics else 0),
        storage=StorageSection(roots=tuple(roots)),
        folder=folder.resolve(),
    )
    create_folder(settings)
    hurry(folder)
    async with opened(folder) as node:
        scanner = node.identity.issue_device_certificate(SCANNER, node.clock.now())
        registry = node.registry
        await registry.add_device(SCANNER, "127.0.0.0/8", scanner.certificate.decode())
        await registry.add_device(
            DIGITISER, "127.0.0.0/8", plain_reason="A film digitiser that cannot do TLS"
        )
        await registry.add_person(CHIEF, "Chief", Role.CHIEF_PHYSICIAN)
        token = await registry.create_token(CHIEF, ["dicomweb"], 1.0)
        authority = node.identity.authority_pem
    return Served(folder, plain, tls, http, watched, scanner, authority, token)
