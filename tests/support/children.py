"""The child processes of a process, by what they run: for tests of what is started and ended."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

IMAGING_WORKER = "node.imaging.worker"


def children(saying: str, pid: int | None = None) -> int:
    """How many living children of the process (this one when left out) have `saying` in their command line."""
    found = 0
    for listed in Path(f"/proc/{pid or os.getpid()}/task").glob("*/children"):
        for child in listed.read_text().split():
            with suppress(OSError):  # it may have ended by now
                found += saying.encode() in Path(f"/proc/{child}/cmdline").read_bytes()
    return found
