"""Starting Flower's processes and ours beside a daemon, and ending them with it.

A `Child` runs with a bare environment (no telemetry, no update checks, no proxies, no run-time installs), gets
SIGTERM from the kernel when its owner dies, and writes its output to one log file per start (the one before is kept).
A `Crew` is the children of one start, with the descriptors they were given; it ends as a whole. Needs no flwr.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from consent.errors import Unavailable
from learning.loopback import descriptor_path
from node.ports import HOST

TERMINATE_SECONDS = 5.0
MAX_BACKOFF_SECONDS = 30.0
_KEPT = ("PATH", "LANG", "LC_ALL", "PYTHONPATH", "VIRTUAL_ENV", "TMPDIR", "LD_LIBRARY_PATH")


class Crew:
    """The processes of one start. `descriptors` are closed here once the children have them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._children: dict[str, asyncio.subprocess.Process] = {}

    @property
    def pids(self) -> dict[str, int]:
        """Name to process id of everything that runs."""
        return {name: child.pid for name, child in self._children.items() if child.returncode is None}

    async def start(self, name: str, argv: Sequence[str], descriptors: Sequence[int] = ()) -> None:
        """Start one process under the death signal. Its log is `<folder>/<name>.log`."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        log = self._folder / f"{name}.log"
        if log.exists():
            log.replace(log.with_suffix(".log.before"))
        guarded = [sys.executable, "-m", "learning.confinement", str(os.getpid()), *argv]
        with log.open("wb") as output:
            self._children[name] = await asyncio.create_subprocess_exec(
                *guarded,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=tuple(descriptors),
                env=environment(self._folder),
            )

    async def first_exit(self) -> str:
        """Wait until one of the children ends; return its name."""
        waits = {asyncio.ensure_future(child.wait()): name for name, child in self._children.items()}
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            return waits[next(iter(done))]
        finally:
            for wait in waits:
                wait.cancel()

    async def end(self) -> None:
        """Ask every child to end, and kill what does not. The last started ends first."""
        for child in reversed(self._children.values()):
            with contextlib.suppress(ProcessLookupError):
                child.terminate()
        for child in self._children.values():
            try:
                await asyncio.wait_for(child.wait(), TERMINATE_SECONDS)
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    child.kill()
                await child.wait()
        self._children.clear()


def environment(folder: Path) -> dict[str, str]:
    """What a child sees of the world. `FLWR_HOME` lies in the daemon's own folder."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return kept | {
        "FLWR_HOME": str(folder / "flower"),
        "HOME": str(folder),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_LOG_LEVEL": "INFO",
        "FLWR_PRIVATE_MAX_CONCURRENT_OBJ_PUSHES": "8",
        "FLWR_PRIVATE_MAX_CONCURRENT_OBJ_PULLS": "8",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        "PYTHONUNBUFFERED": "1",
        "NO_PROXY": "*",
    }


def superlink_command(port: int, *, root: int, certificate: int, key: int, secret: int) -> list[str]:
    """`flower-superlink` on loopback: TLS, node authentication, server apps in our own process, state in memory."""
    return [
        _program("flower-superlink"),
        *("--host", HOST, "--port", str(port), "--isolation", "process"),
        *("--ssl-ca-certfile", descriptor_path(root)),
        *("--ssl-certfile", descriptor_path(certificate), "--ssl-keyfile", descriptor_path(key)),
        *("--superexec-auth-secret-file", descriptor_path(secret)),
        "--enable-supernode-auth",
        "--disable-runtime-dependency-installation",
    ]


def supernode_command(
    superlink: str, runtime_port: int, *, root: int, node_key: int, secret: int
) -> list[str]:
    """`flower-supernode` that dials the local tunnel and leaves every message to our runner."""
    return [
        _program("flower-supernode"),
        *("--superlink", superlink, "--root-certificates", descriptor_path(root)),
        *("--auth-supernode-private-key", descriptor_path(node_key)),
        *("--host", HOST, "--port", str(runtime_port), "--isolation", "process"),
        *("--superexec-auth-secret-file", descriptor_path(secret)),
    ]


def module_command(module: str, *arguments: str | int) -> list[str]:
    """One of our own child programs, told who its owner is by the last argument."""
    return [sys.executable, "-m", module, *map(str, arguments), str(os.getpid())]


def _program(name: str) -> str:
    program = Path(sys.executable).parent / name
    if not program.exists():
        raise Unavailable(
            f"{name} is not installed.",
            mend="Install the extra: pip install 'accord-imaging[learning]'.",
            code="no-learning-extra",
        )
    return str(program)
