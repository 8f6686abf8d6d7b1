"""C-FIND: queries of the patient root and the study root information models (PS3.4 §C.4.1).

Queries are hierarchical: an identifier names one entity at each level above its own. Answers go out one after the other
as fast as the peer takes them, until it cancels or MAX_ANSWERS are out. Leaves matching to the index, what the asker may
find and the record of it to the gateway.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

from consent.errors import Invalid
from consent.principals import Principal
from consent.vocabulary import Purpose
from node.index import Level, Match, Query
from node.index.query import PATIENT_TOTALS, is_wild
from node.ingest import Source

from .channel import Channel
from .identifiers import (
    AVAILABILITY,
    LEVEL,
    RETRIEVE_AE_TITLE,
    Identifier,
    answer_element,
    read_identifier,
    write_identifier,
)
from .messages import CANCELLED, PENDING, Message
from .negotiation import DATE_TIME, EMPTY_VALUE, FIND, Root
from .statuses import OUT_OF_RESOURCES, SUCCESS

MAX_ANSWERS = 10_000
ANSWERED_AT_ONCE = 20
PENDING_WITH_WARNING = 0xFF01
LEVELS = {
    "PATIENT": Level.PATIENT,
    "STUDY": Level.STUDY,
    "SERIES": Level.SERIES,
    "IMAGE": Level.INSTANCE,
}
_ORDER = tuple(LEVELS.values())
UNIQUE_KEYS = {
    Level.PATIENT: "PatientID",
    Level.STUDY: "StudyInstanceUID",
    Level.SERIES: "SeriesInstanceUID",
    Level.INSTANCE: "SOPInstanceUID",
}


class Finder(Protocol):
    """What of the gateway answers queries (`node.gateway.Gateway`)."""

    def find(
        self, who: Principal, query: Query, purpose: Purpose, address: str | None
    ) -> AsyncGenerator[Match, None]:
        """Every answer that the asker may have. Raises Denied."""
        ...


@dataclass(frozen=True)
class Asked:
    """A query as it goes to the index, and whether something of it is not searched or answered by."""

    query: Query
    partly: bool


class Find:
    """Answers queries. `ae_title` is where the answers can be retrieved from: this node's."""

    def __init__(self, finder: Finder, ae_title: str) -> None:
        self._finder = finder
        self._ae_title = ae_title

    async def serve(self, message: Message, source: Source, channel: Channel) -> int:
        """Answer one C-FIND; return the final status. Raises an error family when it can have no answer."""
        context = message.context
        identifier = read_identifier(message.data, context.transfer_syntax)
        terms = channel.terms
        asked = ask(
            identifier,
            FIND[context.abstract_syntax],
            combined=terms.agreed(context.abstract_syntax, DATE_TIME),
            empty=terms.agreed(context.abstract_syntax, EMPTY_VALUE),
        )
        pending = PENDING_WITH_WARNING if asked.partly else PENDING
        who = source.principal
        answers = 0
        async with aclosing(
            self._finder.find(who, asked.query, who.purpose, source.address or None)
        ) as matches:
            async for match in matches:
                if channel.cancelled(message):
                    await channel.respond(message, CANCELLED, "Cancelled")
                    return CANCELLED
                if answers == MAX_ANSWERS:
                    words = f"There are more than {MAX_ANSWERS} answers; ask for less"
                    await channel.respond(message, OUT_OF_RESOURCES, words)
                    return OUT_OF_RESOURCES
                answers += 1
                if answers % ANSWERED_AT_ONCE == 0:
                    await asyncio.sleep(
                        0
                    )  # a peer that reads fast lets nobody else come in, nor its own cancel
                answer = self._answer(identifier, asked, match)
                data = write_identifier(answer, context.transfer_syntax, identifier.charset)
                await channel.respond(message, pending, data=data)
        await channel.respond(message, SUCCESS)
        return SUCCESS

    def _answer(self, identifier: Identifier, asked: Asked, match: Match) -> Mapping[int, tuple[str, Any]]:
        """The elements of one answer: what was asked for, the level, and where to get it (PS3.4 §C.4.1.1.3.2)."""
        values = {
            int(attribute.tag, 16): answer_element(attribute, match.values.get(attribute.keyword))
            for attribute in identifier.wanted
            if _ORDER.index(attribute.level) <= _ORDER.index(asked.query.level)
        }
        values[LEVEL] = ("CS", identifier.level)
        values[RETRIEVE_AE_TITLE] = ("AE", self._ae_title)
        if AVAILABILITY in identifier.asked:
            values[AVAILABILITY] = ("CS", "ONLINE")
        return values


def ask(identifier: Identifier, root: Root, *, combined: bool = False, empty: bool = False) -> Asked:
    """The query of an identifier. Raises Invalid, with code `identifier` when it does not fit the information model."""
    level = level_of(identifier, root)
    require_hierarchy(identifier, root, level)
    totals = PATIENT_TOTALS & {attribute.keyword for attribute in identifier.wanted}
    query = Query.of(
        level,
        identifier.keys,
        combined=combined,
        empty=empty,
        totals=bool(totals) and level is Level.PATIENT,
    )
    below = any(_ORDER.index(attribute.level) > _ORDER.index(level) for attribute in identifier.wanted)
    return Asked(query, bool(identifier.unknown or query.ignored or below))


def level_of(identifier: Identifier, root: Root) -> Level:
    """The level of an identifier. Raises Invalid when the information model has no such level."""
    level = LEVELS.get(identifier.level)
    if level is None or (level is Level.PATIENT and root is Root.STUDY):
        raise _unfit("Query/Retrieve Level missing, or not of this information model.")
    return level


def require_hierarchy(identifier: Identifier, root: Root, level: Level) -> None:
    """Raise Invalid unless each level above has one entity named (PS3.4 §C.4.1.2.1): relational queries are not done."""
    first = 0 if root is Root.PATIENT else 1
    for above in _ORDER[first : _ORDER.index(level)]:
        value = identifier.keys.get(UNIQUE_KEYS[above], "")
        if not value or is_wild(value) or "\\" in value:
            raise _unfit(f"Give one {UNIQUE_KEYS[above]}: relational queries are not done.")


def _unfit(words: str) -> Invalid:
    return Invalid(words, code="identifier")
