"""The log for the security officer: search, one entry with its proof, and whether the whole of it verifies."""

from __future__ import annotations

import json
from typing import Final

from aiohttp import web

from consent.decision import Permit
from consent.vocabulary import Action, EventKind
from node.deeds import log_altered
from node.web.api.log import find_entries, find_entry, proof, record_reading
from node.web.decisions import permitted, verdict_of
from node.web.keys import LOG
from node.web.kit import current_person, render

PAGE_ENTRIES: Final = 50


async def log_page(request: web.Request) -> web.Response:
    """GET /log?patient=&study=&actor=&kind=&since=&until=&before="""
    entries = await find_entries(request, PAGE_ENTRIES + 1)
    terms = {name: value for name, value in request.query.items() if value and name != "before"}
    context = {
        "entries": entries[:PAGE_ENTRIES],
        "more": len(entries) > PAGE_ENTRIES,
        "terms": terms,
        "kinds": tuple(EventKind),
        "size": await request.app[LOG].size(),
        "may_grade": isinstance(verdict_of(request, Action.REGRADE), Permit),
    }
    return render(request, "log.html", context)


async def entry_page(request: web.Request) -> web.Response:
    """GET /log/{index}"""
    entry = await find_entry(request)
    detail = [
        (name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        for name, value in entry.event.detail.items()
    ]
    return render(request, "log_entry.html", {"entry": entry, "detail": detail})


async def verify_page(request: web.Request) -> web.Response:
    """POST /log/verify: recompute the whole log now and say what was found."""
    await permitted(request, Action.READ_LOG)
    await record_reading(request, {"verified": True})
    result = await request.app[LOG].verify()
    if not result.ok:
        await request.app[LOG].record(log_altered(result.faults, current_person(request).actor))
    # A node does not vouch for a log that it has just found altered.
    checkpoint = await request.app[LOG].checkpoint() if result.ok else ""
    return render(request, "log_verify.html", {"result": result, "checkpoint": checkpoint})


ROUTES = [
    web.get("/log", log_page),
    web.post("/log/verify", verify_page),
    web.get(r"/log/{index:\d{1,12}}", entry_page),
    web.get(r"/log/{index:\d{1,12}}/proof", proof),
]
