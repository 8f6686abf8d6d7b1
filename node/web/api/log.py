"""/api/v1/log: the tamper-evident record, for the security officer. Reading it is on record too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from aiohttp import web

from consent.errors import NotFound
from consent.signed import Json
from consent.vocabulary import Action, EventKind
from node.audit.event import Entry, Event
from node.web.decisions import permitted
from node.web.inputs import choice_of, moment_of, whole_number
from node.web.keys import LOG
from node.web.kit import address_of, current_person, respond
from node.web.text import N_

MAX_PAGE: Final = 500


async def search(request: web.Request) -> web.Response:
    """GET ?patient=&study=&actor=&kind=&since=&until=&before=&limit= → entries, newest first."""
    entries = await find_entries(request, whole_number(request.query, "limit", 100))
    return respond([entry_json(entry) for entry in entries])


async def show(request: web.Request) -> web.Response:
    """GET /{index} → one entry."""
    return respond(entry_json(await find_entry(request)))


async def proof(request: web.Request) -> web.Response:
    """GET /{index}/proof → a C2SP tlog-proof file that can be checked without this node."""
    entry = await find_entry(request, proof=True)
    await request.app[LOG].checkpoint()  # a new entry may not be under one yet
    text = await request.app[LOG].proof_file(entry.index)
    return web.Response(
        text=text,
        headers={"Content-Disposition": f'attachment; filename="entry-{entry.index}.tlog-proof"'},
    )


async def checkpoint(request: web.Request) -> web.Response:
    """GET /checkpoint → the latest signed checkpoint (C2SP signed note)."""
    await permitted(request, Action.READ_LOG)
    await record_reading(request, {"checkpoint": True})
    return web.Response(text=await request.app[LOG].checkpoint())


async def find_entries(request: web.Request, limit: int) -> list[Entry]:
    """Search the log with the request's query, and put the search on record."""
    await permitted(request, Action.READ_LOG)
    terms = search_terms(request.query)
    entries = await request.app[LOG].search(**terms, limit=min(max(limit, 1), MAX_PAGE))
    asked = {name: str(value) for name, value in terms.items() if value is not None}
    await record_reading(
        request, {"asked": asked, "entries": len(entries)}, patient=terms["patient"], study=terms["study"]
    )
    return entries


async def find_entry(request: web.Request, *, proof: bool = False) -> Entry:
    """The entry that the path names; the reading is on record before anybody sees it. Raises NotFound."""
    await permitted(request, Action.READ_LOG)
    index = whole_number(request.match_info, "index", 0)
    entry = await request.app[LOG].entry(index)
    if entry is None:
        raise NotFound(N_("The log has no such entry."), mend=N_("Search the log."))
    event = entry.event
    detail = {"asked": {"entry": index}, "proof": proof}
    await record_reading(request, detail, patient=event.patient, study=event.study)
    return entry


async def record_reading(
    request: web.Request,
    detail: Mapping[str, Any],
    *,
    patient: str | None = None,
    study: str | None = None,
) -> None:
    """Put on record that this person read the log, and what of it."""
    await request.app[LOG].record(
        Event(
            EventKind.LOG_READ,
            current_person(request).actor,
            patient=patient,
            study=study,
            address=address_of(request),
            detail=detail,
        )
    )


def search_terms(query: Mapping[str, str]) -> dict[str, Any]:
    """What `Log.search` takes, from a query. Raises Invalid."""
    text = {name: query.get(name, "").strip()[:200] or None for name in ("patient", "study", "actor")}
    kind = query.get("kind") or None
    before = query.get("before") or None
    return {
        **text,
        "kind": choice_of(EventKind, kind, "kind") if kind else None,
        "since": moment_of(query.get("since"), "since"),
        "until": moment_of(query.get("until"), "until", end_of_day=True),
        "before": whole_number(query, "before", 0) if before else None,
    }


def entry_json(entry: Entry) -> Json:
    """An entry as the API gives it."""
    event = entry.event
    return {
        "index": entry.index,
        "at": entry.at.isoformat(),
        "leaf": entry.leaf.hex(),
        "kind": event.kind.value,
        "actor": event.actor,
        "outcome": event.outcome.value,
        "patient": event.patient,
        "study": event.study,
        "purpose": event.purpose.value if event.purpose else None,
        "address": event.address,
        "reason": event.reason,
        "detail": dict(event.detail),
    }


ROUTES = [
    web.get("/api/v1/log", search),
    web.get("/api/v1/log/checkpoint", checkpoint),
    web.get(r"/api/v1/log/{index:\d{1,12}}", show),
    web.get(r"/api/v1/log/{index:\d{1,12}}/proof", proof),
]
