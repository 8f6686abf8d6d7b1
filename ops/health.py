"""Health and metrics on a listener of their own: `/healthz`, `/readyz`, `/metrics`. No identifiers, no people.

`/healthz` says that the process answers; `/readyz` that it can do its work: the database answers, the disk
has room, images can be taken in, the clock is not behind, every timed duty went well lately.
"""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from sqlalchemy import text

from node.clock import TrustedClock
from node.database import Database
from node.jobs import Jobs
from node.web.kit import respond
from ops.doctor import MAX_CLOCK_BEHIND_SECONDS, MIN_FREE_BYTES

Check = Callable[[], Awaitable[str]]


@dataclass(frozen=True)
class Health:
    """What readiness looks at. Each check returns an empty string, or what is wrong."""

    database: Database
    clock: TrustedClock
    jobs: Jobs
    folder: Path
    registry: CollectorRegistry
    closed: Callable[[], str] = str
    """Why no images can be taken in, in words; empty when they can."""

    async def faults(self) -> dict[str, str]:
        """Every check that fails, with its words."""
        checks = {
            "database": self._database,
            "disk": self._disk,
            "storage": self._storage,
            "clock": self._clock,
            "jobs": self._jobs,
        }
        found = {name: await check() for name, check in checks.items()}
        return {name: words for name, words in found.items() if words}

    async def _database(self) -> str:
        try:
            async with self.database.read() as tx:
                await tx.execute(text("SELECT 1"))
        except Exception as error:
            return f"does not answer ({type(error).__name__})"
        return ""

    async def _disk(self) -> str:
        free = shutil.disk_usage(self.folder).free
        return "" if free >= MIN_FREE_BYTES else f"{free // 1024**2} MiB free"

    async def _storage(self) -> str:
        return self.closed()

    async def _clock(self) -> str:
        behind = self.clock.behind_seconds
        return "" if behind <= MAX_CLOCK_BEHIND_SECONDS else f"{behind:.0f} s behind"

    async def _jobs(self) -> str:
        failing = [status.name for status in self.jobs.status() if status.error]
        return f"failing: {', '.join(sorted(failing))}" if failing else ""


HEALTH: web.AppKey[Health] = web.AppKey("health")


async def healthz(request: web.Request) -> web.Response:
    """The process answers."""
    return respond({"ok": True})


async def readyz(request: web.Request) -> web.Response:
    """200 when the node can do its work, 503 with what is wrong when not."""
    faults = await request.app[HEALTH].faults()
    return respond({"ok": not faults, "faults": faults}, status=503 if faults else 200)


async def metrics(request: web.Request) -> web.Response:
    """Prometheus text format."""
    body = generate_latest(request.app[HEALTH].registry)
    return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})


ROUTES: list[web.AbstractRouteDef] = [
    web.get("/healthz", healthz),
    web.get("/readyz", readyz),
    web.get("/metrics", metrics),
]
