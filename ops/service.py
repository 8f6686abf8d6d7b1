"""A served node or hub as a process: one at a time per folder, logs set up, ended by a signal in good order."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import logging
import signal
import sys
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path

import structlog
from structlog.typing import EventDict

from consent.vocabulary import EventKind
from node.audit.log import Event, Log
from node.web.problems import where
from ops.foundation import opened
from ops.lock import sole_user


def set_up_logs() -> None:
    """One JSON line per event on standard output; libraries' loggers only from WARNING on."""
    logging.basicConfig(format="%(message)s", stream=sys.stdout, level=logging.WARNING)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            without_values,
            structlog.processors.JSONRenderer(ensure_ascii=False),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stdout),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        cache_logger_on_first_use=True,
    )


def without_values(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Say of what kind an error was and where it arose, never what it said: its words may hold a patient's."""
    given = event.pop("exc_info", None)
    error = given if isinstance(given, BaseException) else sys.exc_info()[1] if given else None
    if error is not None:
        event.update(kind=type(error).__name__, at=where(error))
    return event


async def serve_node(folder: Path, *, as_json: bool = False) -> None:
    """Serve the hospital's node in `folder` until SIGTERM or SIGINT."""
    gc.disable()  # nothing is garbage while modules load: a tenth of the start
    from ops.compose import build_node, running

    set_up_logs()
    with sole_user(_existing(folder)):
        async with opened(folder) as foundation:
            foundation.policies.prepare()
            node = await build_node(foundation)
            await until_signalled(running(node), foundation.log, as_json=as_json)


async def serve_hub(folder: Path, *, as_json: bool = False) -> None:
    """Serve the region's hub in `folder` until SIGTERM or SIGINT."""
    gc.disable()
    from ops.hub import build_hub, running

    set_up_logs()
    with sole_user(_existing(folder)):
        async with opened(folder) as foundation:
            foundation.policies.prepare()
            hub = await build_hub(foundation)
            await until_signalled(running(hub), foundation.log, as_json=as_json)


async def until_signalled(
    service: AbstractAsyncContextManager[Mapping[str, str]], log: Log | None, *, as_json: bool
) -> None:
    """Run `service`, say `ready` with its addresses, and end it in good order at the first signal.

    Start and end are put into `log`, where there is one.
    """
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    async with service as addresses:
        gc.freeze()  # what was built lives as long as the process: no collection needs to walk it
        gc.enable()
        give_back_memory()
        if log is not None:
            await log.record(Event(EventKind.NODE_STARTED, "system"))
        _say_ready(addresses, as_json=as_json)
        await stopped.wait()
        if log is not None:
            await log.record(Event(EventKind.NODE_STOPPED, "system"))
    if log is not None:
        await log.close()


def give_back_memory() -> None:
    """Return to the system what the C library's allocator keeps free: after a start a fifth of what a node holds, in 2 ms."""
    with suppress(OSError, AttributeError):  # the C library of Linux alone
        ctypes.CDLL(None).malloc_trim(0)


def _say_ready(addresses: Mapping[str, str], *, as_json: bool) -> None:
    if as_json:
        line = json.dumps({"ready": dict(addresses)})
    else:
        line = "ready " + " ".join(f"{name}={address}" for name, address in addresses.items())
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _existing(folder: Path) -> Path:
    from node.config import load_settings

    return load_settings(folder).folder
