"""A process that has the node's modules loaded and forks `accord serve` from itself: a start without a second of imports.

For tests that start a node very often. What a start does, it does after the fork. One node lives at a time; it dies
with the nursery, and the nursery with its test.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """In a child, before it does anything: SIGKILL when its parent ends, where the system can."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@dataclass
class Forked:
    """A node's process as the test sees it: the part of `asyncio.subprocess.Process` that `Served` needs."""

    pid: int
    ended: asyncio.Task[int]

    @property
    def returncode(self) -> int | None:
        return self.ended.result() if self.ended.done() else None

    async def wait(self) -> int:
        return await asyncio.shield(self.ended)

    def send_signal(self, number: signal.Signals) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)


class Nursery:
    """The process, from `async with` to its end."""

    async def __aenter__(self) -> Nursery:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.support.nursery",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"}, preexec_fn=die_with_parent,
        )  # fmt: skip
        return self

    async def __aexit__(self, *_: object) -> None:
        self._process.kill()
        await self._process.wait()

    async def serve(self, folder: Path, output: Path) -> Forked:
        """Fork a node for `folder`; what it prints is appended to `output`."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([str(folder), str(output)]).encode() + b"\n")
        return Forked(await self._told(), asyncio.create_task(self._told()))

    async def _told(self) -> int:
        assert self._process.stdout is not None
        return int(await self._process.stdout.readline())


def main() -> None:
    """For each line `[folder, output]`: fork a node, say its process id, wait for its end, say its exit status."""
    import ops.commands.nodes
    import ops.compose  # noqa: F401  (with what `serve` loads on its way, before the first fork)
    from ops import cli

    for line in sys.stdin:
        folder, output = json.loads(line)
        child = os.fork()
        with suppress(OSError):  # both do it: whoever hears of the node may kill it with its workers at once
            os.setpgid(child, child)
        if child == 0:
            die_with_parent()
            nothing, printed = os.open(os.devnull, os.O_RDONLY), os.open(output, os.O_WRONLY | os.O_APPEND)
            for descriptor, stream in ((nothing, 0), (printed, 1), (printed, 2)):
                os.dup2(descriptor, stream)
            sys.argv = ["accord", "serve", folder]
            cli.main()
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
