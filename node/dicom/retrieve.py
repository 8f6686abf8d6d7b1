"""C-GET and C-MOVE: instances sent by C-STORE sub-operations (PS3.4 §C.4.2 and §C.4.3).

One retrieval opens each study at the gateway, for the device that asks and for the one that is to get it, and sends what
the gateway hands over: as it is stored where the receiver takes that, else uncompressed. The peer hears how it goes after
each instance, and may cancel. Leaves the decision, the record and the reading to the gateway; C-MOVE's own association to
`destinations`.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, suppress
from typing import Protocol

from consent.errors import Invalid, NotFound
from consent.principals import Principal
from consent.vocabulary import Action, Purpose
from node.index import InstanceRow, Level, Match, Pseudonyms, Query
from node.index.query import is_wild, uids
from node.ingest import Source
from node.openings import Opening

from .channel import Channel
from .find import UNIQUE_KEYS, level_of, require_hierarchy
from .identifiers import Identifier, failed_instances, read_identifier
from .messages import CANCELLED, Message, Verb
from .negotiation import GET, LITTLE_ENDIAN, MOVE
from .pdu import MAX_CONTEXTS
from .suboperations import Back, Nobody, Part, Progress, Receiver, Sending, Streaming, Transcoder

MAX_STUDIES = 500
"""Studies that one retrieval may name; a patient with more is retrieved study by study."""
MAX_INSTANCES = 65_535
"""Sub-operations are counted in 16 bits (PS3.7 §E.1)."""
AT_ONCE = 8
"""Retrievals that read at the same time, over all associations; further ones wait their turn."""
AT_ONCE_OF_ONE = 3
"""Of these for one device: however slowly it takes what it asked for, it leaves turns to the others."""


class Releasing(Streaming, Protocol):
    """What of the gateway finds, opens and hands over (`node.gateway.Gateway`)."""

    def find(
        self, who: Principal, query: Query, purpose: Purpose, address: str | None
    ) -> AsyncGenerator[Match, None]: ...

    async def open(
        self,
        who: Principal,
        study: str,
        *,
        action: Action,
        purpose: Purpose,
        address: str | None,
        recipient: Principal | None,
    ) -> Opening:
        """Open a study. Raises NotFound, Denied."""
        ...

    async def rows(
        self, opening: Opening, series_uid: str = "", sop_uid: str = ""
    ) -> tuple[InstanceRow, ...]: ...

    async def close_opening(self, opening: Opening) -> None: ...


class Destination(Protocol):
    """A device that a C-MOVE may send to (`node.dicom.destinations`)."""

    @property
    def principal(self) -> Principal:
        """The device as the rules see it."""
        ...

    def call(
        self, pairs: Sequence[tuple[str, str | tuple[str, ...]]]
    ) -> AbstractAsyncContextManager[Receiver]:
        """An association with it, proposing `pairs`. Raises Unavailable or Denied on entering."""
        ...


class Destinations(Protocol):
    """Finds the device that a C-MOVE names."""

    async def find(self, ae_title: str, asker: Principal, address: str) -> Destination:
        """Raises NotFound with code `unknown-destination`, on record, when it is no device that this node may call."""
        ...


class Retrieve:
    """Answers C-GET and C-MOVE."""

    def __init__(
        self,
        gateway: Releasing,
        pseudonyms: Pseudonyms,
        transcoder: Transcoder,
        destinations: Destinations,
    ) -> None:
        self._gateway = gateway
        self._pseudonyms = pseudonyms
        self._transcoder = transcoder
        self._destinations = destinations
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._turns_of: defaultdict[str, asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(AT_ONCE_OF_ONE)
        )
        self._converting = asyncio.Semaphore(1)

    async def serve(self, message: Message, source: Source, channel: Channel) -> int:
        """Carry out one retrieval; return the final status. Raises an error family before anything is sent."""
        syntax = message.context.abstract_syntax
        identifier = read_identifier(message.data, message.context.transfer_syntax)
        root = GET.get(syntax) or MOVE[syntax]
        level = level_of(identifier, root)
        require_hierarchy(identifier, root, level)
        asker, address = source.principal, source.address
        destination: Destination | None = None
        if message.command.verb == Verb.C_MOVE_RQ:
            destination = await self._destinations.find(message.command.destination, asker, address)
        recipient = destination.principal if destination is not None else None
        async with self._turns_of[asker.id], self._turns:
            parts = await self._open(identifier, level, source, recipient)
            try:
                progress = Progress(sum(len(part.rows) for part in parts))
                if progress.remaining > MAX_INSTANCES:
                    raise Invalid(
                        f"More than {MAX_INSTANCES} instances at once; retrieve by series.",
                        code="too-many-instances",
                    )
                async with self._receiver(destination, channel, parts) as receiver:
                    sending = Sending(
                        self._gateway,
                        self._transcoder,
                        receiver,
                        progress,
                        message,
                        channel,
                        self._converting,
                    )
                    await sending.run(parts)
            finally:
                for part in parts:
                    await self._gateway.close_opening(part.opening)
        return await _finish(message, channel, progress)

    async def _open(
        self, identifier: Identifier, level: Level, source: Source, recipient: Principal | None
    ) -> list[Part]:
        """Open every study that is asked for and is here. Raises Denied when one of them may not be retrieved."""
        who = source.principal
        parts: list[Part] = []
        try:
            for study in await self._studies(identifier, level, source):
                try:
                    opening = await self._gateway.open(
                        who,
                        study,
                        action=Action.DOWNLOAD,
                        purpose=who.purpose,
                        address=source.address or None,
                        recipient=recipient,
                    )
                except NotFound:
                    continue
                parts.append(Part(opening, ()))
                parts[-1] = Part(opening, await self._rows(opening, identifier, level))
        except BaseException:
            for part in parts:
                await self._gateway.close_opening(part.opening)
            raise
        return parts

    async def _studies(self, identifier: Identifier, level: Level, source: Source) -> list[str]:
        if level is not Level.PATIENT:
            named = uids(_required(identifier, Level.STUDY))
            return list(dict.fromkeys(self._pseudonyms.study(uid) for uid in named))
        who = source.principal
        query = Query.of(Level.STUDY, {"PatientID": _required(identifier, Level.PATIENT)})
        found: list[str] = []
        async with aclosing(self._gateway.find(who, query, who.purpose, source.address or None)) as matches:
            async for match in matches:
                if len(found) == MAX_STUDIES:
                    raise Invalid(
                        f"More than {MAX_STUDIES} studies at once; retrieve by study.",
                        code="too-many-instances",
                    )
                found.append(match.study)
        return found

    async def _rows(self, opening: Opening, identifier: Identifier, level: Level) -> tuple[InstanceRow, ...]:
        """What of an opened study is asked for; nothing where it is not here."""
        below = level in (Level.SERIES, Level.INSTANCE)
        named = frozenset(uids(_required(identifier, Level.INSTANCE))) if level is Level.INSTANCE else None
        rows: dict[str, InstanceRow] = {}
        for series_uid in uids(_required(identifier, Level.SERIES)) if below else [""]:
            with suppress(NotFound):
                found = await self._gateway.rows(opening, series_uid)
                rows |= {
                    row.sop_instance_uid: row
                    for row in found
                    if named is None or row.sop_instance_uid in named
                }
        return tuple(rows.values())

    @asynccontextmanager
    async def _receiver(
        self, destination: Destination | None, channel: Channel, parts: Sequence[Part]
    ) -> AsyncIterator[Receiver]:
        if destination is None:
            yield Back(channel)
        elif any(part.rows for part in parts):
            async with destination.call(_pairs(parts)) as receiver:
                yield receiver
        else:
            yield Nobody()


async def _finish(message: Message, channel: Channel, progress: Progress) -> int:
    """Send the final response: the counts, and the instances that failed."""
    status = progress.status
    if progress.remaining and channel.cancelled(message):
        status = CANCELLED
    data = failed_instances(progress.failed, message.context.transfer_syntax) if progress.failed else None
    words = f"{len(progress.failed)} could not be sent" if progress.failed else ""
    await channel.respond(message, status, words, data=data, suboperations=progress.counts)
    return status


def _pairs(parts: Sequence[Part]) -> list[tuple[str, str | tuple[str, ...]]]:
    """What to propose to a destination: each class as it is stored, then uncompressed, as many as an association holds."""
    stored = dict.fromkeys(
        (row.sop_class_uid, row.transfer_syntax_uid) for part in parts for row in part.rows
    )
    plain = dict.fromkeys((sop_class, tuple(LITTLE_ENDIAN)) for sop_class, _ in stored)
    pairs: list[tuple[str, str | tuple[str, ...]]] = [*stored, *plain]
    return pairs[:MAX_CONTEXTS]


def _required(identifier: Identifier, level: Level) -> str:
    """The unique key of a level. Raises Invalid without one."""
    value = identifier.keys.get(UNIQUE_KEYS[level], "")
    if not value or is_wild(value):
        raise Invalid(f"Give {UNIQUE_KEYS[level]}.", code="identifier")
    return value
