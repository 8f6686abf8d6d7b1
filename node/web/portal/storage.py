"""Storage for hospital IT: which copies are in sync, what is being brought back, what the scrub found."""

from __future__ import annotations

from aiohttp import web

from consent.vocabulary import Action, EventKind
from node.replication import IN_SYNC, RESTORING
from node.web.api.storage import look
from node.web.decisions import permitted
from node.web.keys import LOG, SCRUBBING
from node.web.kit import render
from node.web.text import N_

STATE_WORDS = {
    "in-sync": N_("In sync"),
    "restoring": N_("Being brought back"),
    "behind": N_("Behind"),
    "waiting": N_("Waiting for another root"),
    "away": N_("Away"),
    "foreign": N_("Not ours"),
}
TONES = {
    IN_SYNC: "good",
    RESTORING: "info",
    "behind": "warn",
    "waiting": "warn",
    "away": "bad",
    "foreign": "bad",
}
RECENT = 8


async def storage_page(request: web.Request) -> web.Response:
    """GET /storage"""
    await permitted(request, Action.ADMINISTER)
    status, progress = await look(request)
    log = request.app[LOG]
    entries = []
    for kind in (EventKind.REPLICA_DEGRADED, EventKind.REPLICA_HEALED, EventKind.PACK_COMPACTED):
        entries += await log.search(kind=kind, limit=RECENT)
    entries.sort(key=lambda entry: entry.index, reverse=True)
    context = {
        "status": status,
        "scrub": progress,
        "entries": entries[:RECENT],
        "state_words": STATE_WORDS,
        "tones": TONES,
        "asked": request.query.get("asked"),
    }
    return render(request, "storage.html", context)


async def ask_scrub(request: web.Request) -> web.StreamResponse:
    """POST /storage/scrub {deep}"""
    await permitted(request, Action.ADMINISTER)
    form = await request.post()
    await request.app[SCRUBBING].ask(deep=form.get("deep") == "yes")
    raise web.HTTPSeeOther("/storage?asked=yes")


ROUTES = [
    web.get("/storage", storage_page),
    web.post("/storage/scrub", ask_scrub),
]
