"""One process at a time in a node's folder: the lock that who serves, imports or upgrades holds."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from consent.errors import Conflict

LOCK_NAME = "lock"
_HELD: set[Path] = set()
"""Folders that this very process holds: a lock of flock(2) knows file descriptors and not processes."""


@contextmanager
def sole_user(folder: Path) -> Iterator[None]:
    """Hold the folder for this process. Raises Conflict when another serves or imports there."""
    descriptor = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Conflict(
                f"Another process runs in {folder}.", mend="Stop it first (SIGTERM).", code="already-running"
            ) from error
        _HELD.add(folder.resolve())
        try:
            yield
        finally:
            _HELD.discard(folder.resolve())
    finally:
        os.close(descriptor)


def in_use(folder: Path) -> bool:
    """Whether some process, this one among them, serves or imports in the folder now."""
    try:
        descriptor = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def holds(folder: Path) -> bool:
    """Whether this process is the folder's sole user."""
    return folder.resolve() in _HELD
