"""Work that must come to its end although its caller is cancelled: a tidy-up, a thread that already writes."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


async def to_its_end(work: asyncio.Future[Result] | Coroutine[Any, Any, Result]) -> Result:
    """Wait for `work` whatever happens, and give its result.

    Cancelled meanwhile, even more than once, it still waits, and passes the cancellation on afterwards; what the
    work raised is then lost. The work itself must have a bound on every wait.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not task.cancelled():
            task.exception()  # looked at, so that the loop does not complain of it
        raise cancelled
    return task.result()
