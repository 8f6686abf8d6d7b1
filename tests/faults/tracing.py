"""Work in a forked process under strace, which lets a chosen system call fail or kills the process as it is made.

For the calls that SQLite makes, and for kills at a chosen call: `shim` reaches neither. strace counts `when` for each thread, so
a fault may fall into several threads of one process, each at its n-th call.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import re
import shutil
import subprocess
import traceback
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from consent.errors import AccordError

ATTEMPTS = 4
PR_SET_PTRACER, ANY = 0x59616D61, ctypes.c_ulong(-1).value
Say = Callable[[str], None]
Process = Callable[[Callable[[], None], Say], Coroutine[Any, Any, None]]
"""Gets a function to call when strace is to look on from now on, which returns when it does; and one to be heard by."""

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


@dataclass(frozen=True)
class Traced:
    """How the process ended (minus the signal's number), what it said, which calls were seen."""

    code: int
    said: str
    trace: str

    @property
    def injected(self) -> bool:
        """Whether the fault fell into it."""
        return "(INJECTED)" in self.trace or self.code < 0

    def reached(self) -> dict[str, int]:
        """How often the thread that made a call most often made it."""
        made = Counter(re.findall(r"^(\d+) +(\w+)\(", self.trace, re.MULTILINE))
        names = sorted({name for _, name in made})
        return {name: max(count for (_, one), count in made.items() if one == name) for name in names}


def traced(trace: Path, work: Process, calls: Iterable[str], inject: str = "") -> Traced:
    """Do `work` in a process of its own, with the fault `inject` (strace(1), "tampering") when it is given."""
    (ready, tell_ready), (go, tell_go), (said, say) = os.pipe(), os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        for end in (ready, tell_go, said):
            os.close(end)
        _child(work, tell_ready, go, say)
    for end in (tell_ready, go, say):
        os.close(end)
    assert os.read(ready, 1), "the work did not begin"
    names = ",".join(f"?{name}" for name in calls)
    told = ["-e", f"trace={names}", *(["-e", f"inject={inject}"] if inject else [])]
    strace = subprocess.Popen(
        ["strace", "-f", "-o", str(trace), *told, "-p", str(child)], stderr=subprocess.PIPE, text=True
    )
    assert strace.stderr is not None
    attached = strace.stderr.readline()
    os.write(tell_go, b".")
    with os.fdopen(said) as words:
        heard = words.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    strace.communicate()
    os.close(ready)
    os.close(tell_go)
    if "attached" not in attached:
        pytest.skip(f"strace may not look on here: {attached.strip()}")
    return Traced(code, heard, trace.read_text())


async def until_done(work: Callable[[], Coroutine[Any, Any, None]], say: Say) -> None:
    """Do it, and again when it is refused in words of ours: each thread of the process may meet the fault once."""
    for _ in range(ATTEMPTS):
        try:
            await work()
        except AccordError as error:
            say(f"refused {type(error).__name__}")
        else:
            say("done")
            return


def _child(work: Process, tell_ready: int, go: int, say: int) -> None:
    def look_on() -> None:
        # Where only a parent may trace its child, this lets a sister do it.
        ctypes.CDLL(None).prctl(PR_SET_PTRACER, ctypes.c_ulong(ANY), 0, 0, 0)
        os.write(tell_ready, b".")
        os.read(go, 1)

    def heard(line: str) -> None:
        os.write(say, f"{line}\n".encode())

    try:
        asyncio.run(work(look_on, heard))
    except AccordError as error:  # the fault fell into the end
        heard(f"ended {type(error).__name__}")
    except BaseException:
        heard(traceback.format_exc())
        os._exit(1)
    os._exit(0)
