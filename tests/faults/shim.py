"""A file-system call of this process fails, once: the n-th from when the shim was armed, in whichever thread it is made.

Stands in front of the calls of `os` that our own code makes; pathlib makes its calls there too. Calls of libraries in C,
SQLite's above all, do not pass here: see `tracing`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import pytest

CHANGES = ("open", "write", "pwritev", "pwrite", "fdatasync", "fsync", "ftruncate")
NAMES = ("link", "rename", "replace", "unlink", "mkdir")
LOOKS = ("pread", "fstat", "stat", "scandir")
ERRORS = (errno.ENOSPC, errno.EIO)


def chosen(calls: Sequence[str], trials: int) -> list[int]:
    """Which of these calls are to fail: the first and the last of each kind, and so many others, evenly; all if there are no more."""
    first = {name: at for at, name in reversed(list(enumerate(calls)))}
    last = {name: at for at, name in enumerate(calls)}
    evenly = range(0, len(calls), max(1, len(calls) // trials))
    return sorted({*first.values(), *last.values(), *evenly})


def calls_that(error: int) -> tuple[str, ...]:
    """The calls that may fail with `error`: no disk is too full to be read."""
    return (*CHANGES, *NAMES, *(LOOKS if error != errno.ENOSPC else ()))


@dataclass
class Shim:
    """Lets the n-th call fail, counting from when it was armed."""

    at: int
    error: int
    calls: list[str] = field(default_factory=list)
    _turn: Lock = field(default_factory=Lock, repr=False)

    @property
    def fired(self) -> bool:
        """Whether the call that was to fail was made."""
        return len(self.calls) > self.at

    def wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        """`real`, counted."""

        def counted(*arguments: Any, **named: Any) -> Any:
            with self._turn:  # several roots are written at once
                self.calls.append(name)
                fails = len(self.calls) == self.at + 1
            if fails:
                raise OSError(self.error, os.strerror(self.error))
            return real(*arguments, **named)

        return counted


@contextmanager
def failing(at: int, error: int, only: str = "") -> Iterator[Shim]:
    """The `at`-th file-system call from here on fails with `error`; with `only` the `at`-th of that name.

    Threads make calls of different names in another order each time; of one name there are as many.
    """
    shim = Shim(at, error)
    patch = pytest.MonkeyPatch()
    for name in [only] if only else calls_that(error):
        patch.setattr(os, name, shim.wrap(name, getattr(os, name)))
    try:
        yield shim
    finally:
        patch.undo()
