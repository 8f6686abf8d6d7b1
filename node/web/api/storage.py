"""/api/v1/storage: the roots that hold the studies, and the scrub, for hospital IT."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any

from aiohttp import web

from consent.fields import Fields
from consent.signed import Json
from consent.vocabulary import Action
from node.replication import StorageStatus
from node.scrubbing import Progress
from node.web.decisions import permitted
from node.web.keys import REPLICATION, SCRUBBING
from node.web.kit import read_json, respond


async def show(request: web.Request) -> web.Response:
    """GET → every root with its state, whether images can be taken in, and how the scrub goes."""
    await permitted(request, Action.ADMINISTER)
    status, progress = await look(request)
    return respond(
        {
            "writing": status.writing,
            "words": status.words,
            "quorum": status.quorum,
            "in_sync": status.in_sync,
            "roots": [_plain(asdict(root)) for root in status.roots],
            "scrub": {**_plain(asdict(progress)), "running": progress.running},
        }
    )


async def scrub(request: web.Request) -> web.Response:
    """POST {deep} → 202; a pass begins within half a minute, after the one under way."""
    await permitted(request, Action.ADMINISTER)
    fields = Fields(await read_json(request), "scrub")
    await request.app[SCRUBBING].ask(deep=fields.flag("deep"))
    return respond({"asked": True}, status=202)


async def look(request: web.Request) -> tuple[StorageStatus, Progress]:
    """How storage is now."""
    status = await asyncio.to_thread(request.app[REPLICATION].status)
    return status, await request.app[SCRUBBING].progress()


def _plain(values: dict[str, Any]) -> Json:
    return {
        name: value.isoformat() if hasattr(value, "isoformat") else value for name, value in values.items()
    }


ROUTES = [
    web.get("/api/v1/storage", show),
    web.post("/api/v1/storage/scrub", scrub),
]
