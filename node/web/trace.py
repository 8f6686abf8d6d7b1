"""What is known about one request from its first byte: its number, its start, whether the answer has begun.

`kit` makes one per request and puts it under `TRACE`; log lines, error answers and pages name its id.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field

from aiohttp import web


@dataclass
class Trace:
    """One request. `id` is ours: what a client sends under that name is not trusted."""

    id: str = field(default_factory=lambda: secrets.token_hex(8))
    started: float = field(default_factory=time.perf_counter)
    answered: bool = False

    @property
    def seconds(self) -> float:
        """Time since the request's headers were complete."""
        return time.perf_counter() - self.started


TRACE: web.RequestKey[Trace] = web.RequestKey("trace", Trace)


def request_id(request: web.Request) -> str:
    """The number of this request, for messages and the person who reports an error."""
    return request[TRACE].id
