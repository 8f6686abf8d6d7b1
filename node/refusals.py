"""What one request or association is refused: the first reasons in full, then counts, so that no sender of junk fills the
log and none is lost in the count.

A `Source` carries its `Refusals`. `refused` gives the entries that a refusal makes now, `summary` those that are owed at
the end, one for each code, with `repeats` saying how many (as `node.dicom.gate` does for associations).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Final

from consent.errors import AccordError
from consent.vocabulary import EventKind, Outcome
from node.audit.event import Event

if TYPE_CHECKING:
    from node.arrival import Source

IN_FULL: Final = 10
"""Refusals of one source that have an entry of their own."""
MAX_OWED: Final = 1_000
OWED_SECONDS: Final = 60.0
"""A count is written down at the latest after so many refusals, or so much time, though the source goes on."""


@dataclass
class Refusals:
    """How many refusals of one source are on record, and which are owed: by code, how many and the last words."""

    told: int = 0
    owed: dict[str, tuple[int, str]] = field(default_factory=dict)
    since: float = 0.0

    @property
    def due(self) -> bool:
        """Whether what is owed should be written down now."""
        waited = monotonic() - self.since
        return bool(self.owed) and (
            waited >= OWED_SECONDS or sum(count for count, _ in self.owed.values()) >= MAX_OWED
        )


def refused(error: AccordError, source: Source) -> tuple[Event, ...]:
    """The entries that this refusal makes now: its own, a count, or none yet."""
    refusals = source.refusals
    if refusals.told < IN_FULL:
        refusals.told += 1
        return (_event(source, error.code, error.message),)
    if not refusals.owed:
        refusals.since = monotonic()
    count, _ = refusals.owed.get(error.code, (0, ""))
    refusals.owed[error.code] = (count + 1, error.message)
    return summary(source) if refusals.due else ()


def summary(source: Source) -> tuple[Event, ...]:
    """The counts that are owed, at the end of a request or an association; afterwards none is."""
    owed, source.refusals.owed = source.refusals.owed, {}
    return tuple(_event(source, code, words, repeats=count) for code, (count, words) in owed.items())


def _event(source: Source, code: str, words: str, **more: int) -> Event:
    return Event(
        EventKind.INSTANCE_REFUSED,
        source.principal.actor,
        Outcome.REFUSED,
        address=source.address or None,
        reason=words,
        detail={"channel": source.channel, "code": code, **more},
    )
