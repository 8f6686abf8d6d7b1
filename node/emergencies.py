"""Emergency accesses and their reviews, as the log holds them: one look-back for whoever asks.

The page of reviews and the escalation of an overdue one read the same entries, so that nothing escalates that
nobody could review. Decides nothing.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from consent.vocabulary import EventKind
from node.audit.log import Entry, Log

LOOKED_BACK = timedelta(days=366)
PAGE_ENTRIES = 500


async def openings(
    log: Log, now: datetime, *, actor: str | None = None, until: datetime | None = None
) -> list[Entry]:
    """Every emergency access within the look-back, of one actor or of all, before `until`; the newest first."""
    return await _all(log, EventKind.EMERGENCY_OPENED, now, actor=actor, until=until)


async def reviews(log: Log, now: datetime) -> dict[str, Entry]:
    """The review of each opening, by the opening's id."""
    found = await _all(log, EventKind.EMERGENCY_REVIEWED, now)
    return {str(entry.event.detail.get("opening")): entry for entry in found}


def opening_of(entry: Entry) -> str:
    """The id by which a review names this emergency access."""
    return str(entry.event.detail.get("opening"))


async def _all(
    log: Log,
    kind: EventKind,
    now: datetime,
    *,
    actor: str | None = None,
    until: datetime | None = None,
) -> list[Entry]:
    found: list[Entry] = []
    before: int | None = None
    while True:
        page = await log.search(
            kind=kind, actor=actor, since=now - LOOKED_BACK, until=until, before=before, limit=PAGE_ENTRIES
        )
        found += page
        if len(page) < PAGE_ENTRIES:
            return found
        before = page[-1].index
