"""Shutting a process in: no network, no file, no core dump, a bound on time and memory, death with its owner.

Linux only, by system calls that need no privilege where the kernel allows user namespaces. Every step says
what it reached, so that a node can tell its operator what the platform does not allow.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from pathlib import Path

CLONE_NEWUSER = 0x1000_0000
CLONE_NEWNET = 0x4000_0000
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_NO_NEW_PRIVS = 38
MEMORY_BYTES = 12 * 1024**3

_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent: int) -> None:
    """Ask the kernel for SIGKILL when the parent ends (prctl(2)); end at once when it already has."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)


def leave_network() -> bool:
    """Move into a network namespace of our own, which has no interface that is up. False when not permitted."""
    return any(int(_libc.unshare(flags)) == 0 for flags in (CLONE_NEWNET, CLONE_NEWUSER | CLONE_NEWNET))


def forbid_dumps() -> None:
    """No core file, no attaching by another process of this user, no new privileges."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def forbid_files(cpu_seconds: int) -> None:
    """No file may grow, whatever is tried; bounded processor time and address space.

    Address space is not bounded where there is a GPU, whose driver maps far more than it uses.
    """
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 5))
    if not Path("/dev/nvidiactl").exists():
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def main() -> None:
    """`python -m learning.confinement PARENT PROGRAM ARGUMENT…`: become PROGRAM, which ends when PARENT does.

    The death signal outlives exec, so this gives it to programs that are not ours.
    """
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != int(sys.argv[1]):
        sys.exit(0)
    os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606 (no shell is meant)


if __name__ == "__main__":
    main()
