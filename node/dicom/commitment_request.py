"""Storage commitment as its user: ask a peer whether instances are safe with it, and hear its report (PS3.4 Annex J).

The report comes on the association of the request, or on one of the peer's own, which `report_listener` takes. Only what a
report names as safe is safe; without a report nothing is. Serves `accord send --commit` and the edge agent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from uuid import uuid4

from consent.errors import Denied, Unavailable
from node.safety import Reference

from .commitment_forms import INSTANCE, REQUEST, Asked, Report, read_report, write_asked
from .messages import Command, Verb
from .negotiation import LITTLE_ENDIAN, STORAGE_COMMITMENT
from .report_listener import ReportListener
from .requestor import Call, Peer
from .sender import status_words
from .statuses import UNRECOGNIZED_OPERATION

REPORT_SECONDS = 60.0
"""How long a commitment report is waited for."""
HERE_SECONDS = 3.0
"""How long before that on the association of the request, when it may come on another one too."""


async def commit(
    peer: Peer,
    references: Sequence[Reference],
    *,
    seconds: float = REPORT_SECONDS,
    reports: ReportListener | None = None,
) -> Report:
    """Ask `peer` whether these instances are safe with it, and wait for its report (PS3.4 Annex J).

    The report comes on this association or, when `reports` listens, on one of the peer's own. What is not among its
    `safe` is not promised. Raises Unavailable when the peer offers no storage commitment, cannot be reached, or does
    not report within `seconds`; Denied when it refuses.
    """
    asked = Asked(f"2.25.{uuid4().int}", tuple(dict.fromkeys(references)))
    if reports is None:
        report = await _asked(peer, asked, seconds)
    else:
        with reports.expecting(asked.transaction) as elsewhere:
            report = await _asked(peer, asked, min(seconds, HERE_SECONDS), elsewhere)
            if report is None:
                report = await _reported(elsewhere, seconds)
    if report is None:
        raise Unavailable(
            f"The peer did not report in time{_turned_away(reports)}.",
            mend="It may report to a listening device: set --listen-port to the port that it knows; or ask again later.",
            code="no-report",
        )
    return report


async def _asked(
    peer: Peer, asked: Asked, seconds: float, elsewhere: asyncio.Future[Report] | None = None
) -> Report | None:
    """Ask; wait for the report on the same association, unless it comes `elsewhere`. None: it did not come here in time."""
    async with Call(peer, [(STORAGE_COMMITMENT, LITTLE_ENDIAN)]) as call:
        if not call.contexts:
            raise Unavailable("The peer does not offer storage commitment.", code="no-commitment")
        context = call.contexts[0]
        request = Command(Verb.N_ACTION_RQ, 0, STORAGE_COMMITMENT, INSTANCE, has_data=True, type_id=REQUEST)
        answer = await call.request(request, context, write_asked(asked, context.transfer_syntax))
        if answer.status != 0:
            raise Denied(f"The peer does not take the request: {status_words(answer)}.", code="not-committed")
        if elsewhere is None:
            return await _report(call, asked, seconds)
        here = asyncio.create_task(_report(call, asked, seconds))
        try:
            either: list[asyncio.Future[Any]] = [here, elsewhere]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if elsewhere.done():
                return elsewhere.result()
            return await here
        except Unavailable:  # it ended this association; it may still call
            return None
        finally:
            here.cancel()
            await asyncio.gather(here, return_exceptions=True)


async def _report(call: Call, asked: Asked, seconds: float) -> Report | None:
    """The report of this transaction; others that come before it are answered and passed over."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while (message := await call.incoming(seconds)) is not None:
                if message.command.verb != Verb.N_EVENT_REPORT_RQ:
                    await call.respond(message, UNRECOGNIZED_OPERATION)
                    continue
                report = read_report(message.data, message.context.transfer_syntax)
                await call.respond(message, 0)
                if report.transaction == asked.transaction:
                    return report
    return None


async def _reported(elsewhere: asyncio.Future[Report], seconds: float) -> Report | None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            return await asyncio.shield(elsewhere)
    return None


def _turned_away(reports: ReportListener | None) -> str:
    if reports is None or not reports.turned_away:
        return ""
    return f"; somebody else did and was turned away: {reports.turned_away}"
