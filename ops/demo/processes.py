"""The region's processes: a hub and hospitals, each started by its own command and ended by whoever started it.

Everything goes through the command line and the network, as an operator would do it. Ports are free ones on
127.0.0.1. A child dies with its parent, also when the parent is killed.
"""

from __future__ import annotations

import asyncio
import compileall
import ctypes
import json
import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from consent.errors import Unavailable

READY_SECONDS = 60.0
STOP_SECONDS = 15.0
COMMAND_SECONDS = 120.0
PR_SET_PDEATHSIG = 1


@dataclass
class Site:
    """One hub or hospital: its folder, ports, and the process that serves it."""

    id: str
    name: str
    folder: Path
    ports: Mapping[str, int]
    ae_title: str = ""
    process: asyncio.subprocess.Process | None = field(default=None, repr=False)
    one_time: str = ""

    @property
    def portal(self) -> str:
        return f"https://127.0.0.1:{self.ports['http']}"

    @property
    def output(self) -> Path:
        """Where the process's standard output and error go."""
        return self.folder.with_suffix(".log")


def compile_own_code() -> None:
    """Write our modules' byte code beside them, where that is allowed: else each process that starts compiles anew."""
    root = Path(__file__).parents[2]
    for package in ("consent", "node", "federation", "learning", "ops"):
        compileall.compile_dir(root / package, quiet=2)


async def accord(*words: str | int | Path) -> Any:
    """Run one `accord` command with --json and return its value. Raises Unavailable with what it said."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "ops",
        *map(str, words),
        "--json",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        preexec_fn=_die_with_parent,
    )
    try:
        async with asyncio.timeout(COMMAND_SECONDS):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise Unavailable(
            f"accord {' '.join(map(str, words))} failed: {(err or out).decode().strip()[-800:]}"
        )
    return json.loads(out)


async def start(site: Site, *command: str) -> None:
    """Start the site's server and wait for its `ready` line. Raises Unavailable with the end of its output."""
    site.output.touch(mode=0o600)
    at = site.output.stat().st_size
    with site.output.open("ab") as output:
        site.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "ops",
            *command,
            str(site.folder),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
    async with asyncio.timeout(READY_SECONDS):
        while not re.search(rb"^ready\b", site.output.read_bytes()[at:], re.MULTILINE):
            if site.process.returncode is not None:
                raise Unavailable(f"{site.name} did not start: {_tail(site.output)}")
            await asyncio.sleep(0.05)


async def stop(site: Site, *, kill: bool = False) -> None:
    """End the site's server and wait for it; `kill` is a crash."""
    process, site.process = site.process, None
    if process is None or process.returncode is not None:
        return
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
    try:
        async with asyncio.timeout(STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def stop_all(sites: Sequence[Site]) -> None:
    """End every site at once."""
    await asyncio.gather(*(stop(site) for site in sites))


def tune(site: Site, **settings: Any) -> None:
    """Change keys of a site's node.toml: `tune(a, peer__url="https://…")`. The key must be there."""
    file = site.folder / "node.toml"
    text = file.read_text("utf-8")
    for name, value in settings.items():
        section, key = name.split("__")
        pattern = re.compile(rf"(\[{section}\][^\[]*?^{key} = )[^\n]*", re.MULTILINE | re.DOTALL)
        found = pattern.search(text)
        if found is None:
            raise Unavailable(f"{file} has no {section}.{key}.")
        text = text[: found.end(1)] + json.dumps(value) + text[found.end() :]
    file.write_text(text, "utf-8")


def _tail(file: Path) -> str:
    return file.read_text("utf-8", errors="replace").strip()[-1500:]


def _die_with_parent() -> None:
    # Linux only; elsewhere a killed demonstration leaves its servers, and Ctrl-C still ends them.
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    os.umask(0o077)
