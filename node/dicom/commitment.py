"""Storage commitment, push model: asked by N-ACTION, reported by N-EVENT-REPORT (PS3.4 Annex J).

The answer to the request says only that a report will come. It comes on the same association while that is open, else on
one to the device's registered address, tried again with growing pauses, also after a restart, and given up on record.
Whether instances are safe, and whether the device may ask, is the gateway's word, at the moment of the report.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Protocol

import structlog

from consent.errors import AccordError, Denied, Invalid, NotFound, Unavailable
from consent.principals import Principal
from consent.vocabulary import EventKind, Outcome
from node.audit.event import Event
from node.clock import Clock
from node.ingest import Source
from node.safety import Fate, Reference

from .channel import Channel
from .commitment_forms import INSTANCE, REQUEST, Report, read_asked, report_of, write_report
from .destinations import CallableDevices
from .messages import Command, Context, Message, Verb, at_once
from .negotiation import LITTLE_ENDIAN, STORAGE_COMMITMENT
from .pdu import Roles
from .promises import Promise, Promises
from .services import EventLog
from .statuses import SUCCESS

HERE_AFTER_SECONDS = 0.1
"""How long the peer may take to release after its request, before it is reported to on the same association."""
FIRST_PAUSE = timedelta(seconds=5)
LONGEST_PAUSE = timedelta(hours=1)
MAX_ATTEMPTS = 100
"""About four days of them."""
DELIVERED_AT_ONCE = 20

logger = structlog.get_logger()


class Safekeeping(Protocol):
    """What of the gateway says whether instances are safe (`node.gateway.Gateway`)."""

    async def may_commit(self, who: Principal, address: str | None) -> None:
        """Raises Denied."""
        ...

    async def fates(
        self, who: Principal, references: Sequence[Reference], address: str | None
    ) -> tuple[Fate, ...]:
        """Raises Denied."""
        ...


class Commitment:
    """Takes requests and delivers reports. `flushed` returns when everything acknowledged is in the index."""

    def __init__(
        self,
        safekeeping: Safekeeping,
        promises: Promises,
        devices: CallableDevices,
        log: EventLog,
        clock: Clock,
        flushed: Callable[[], Awaitable[None]],
    ) -> None:
        self._safekeeping = safekeeping
        self._promises = promises
        self._devices = devices
        self._log = log
        self._clock = clock
        self._flushed = flushed
        self._telling: set[str] = set()

    async def serve(self, message: Message, source: Source, channel: Channel) -> int:
        """Take one N-ACTION, answer it, and report here if the peer stays. Raises an error family before the answer."""
        command, who = message.command, source.principal
        if command.type_id != REQUEST:
            raise Invalid("Storage commitment has one action: to ask for it.", code="no-such-action")
        if command.sop_instance_uid != INSTANCE:
            raise NotFound("Not the storage commitment instance.")
        asked = await asyncio.to_thread(read_asked, message.data, message.context.transfer_syntax)
        await self._safekeeping.may_commit(who, source.address or None)
        now = self._clock.now()
        promise = await self._promises.owe(who.id, asked, now, now + FIRST_PAUSE)
        await channel.respond(message, SUCCESS)
        await asyncio.sleep(HERE_AFTER_SECONDS)
        if channel.listens:
            self._telling.add(promise.id)
            try:
                await self._report_here(promise, who, message.context, source.address, channel)
            except AccordError as error:  # the duty tries again
                logger.info("commitment_not_reported_here", reason=error.code)
            finally:
                self._telling.discard(promise.id)
        return SUCCESS

    async def deliver(self) -> None:
        """A duty: report what is due to the devices that left before they were told."""
        told_here = frozenset(
            self._telling
        )  # a large report to a slow peer: due meanwhile, and not owed twice
        due = await self._promises.due(self._clock.now(), DELIVERED_AT_ONCE)
        for owed in due.altered:  # first on record, then out of the table, where they would be due for ever
            reason = "A commitment report that was owed was altered in the database and cannot be made."
            await self._log.record(
                Event(EventKind.STORAGE_COMMITTED, f"device:{owed.ae_title}", Outcome.FAILED, reason=reason)
            )
            await self._promises.kept(owed)
        away: set[str] = set()
        for promise in due.promises:
            if promise.id in told_here:
                continue
            if promise.ae_title not in away and not await self._deliver(promise):
                away.add(promise.ae_title)

    async def _report_here(
        self, promise: Promise, who: Principal, context: Context, address: str, channel: Channel
    ) -> None:
        report = await self._report(promise, who, address)
        data = await asyncio.to_thread(write_report, report, context.transfer_syntax)
        answer = await channel.request(context, _event(report), at_once(data), len(data))
        await self._told(promise, answer.status)

    async def _deliver(self, promise: Promise) -> bool:
        """Call the device and report; False when it is away, and everything that it is owed waits."""
        try:
            device = await self._devices.callable(promise.ae_title)
            roles = [Roles(STORAGE_COMMITMENT, scu=False, scp=True)]
            async with device.call([(STORAGE_COMMITMENT, LITTLE_ENDIAN)], roles=roles) as call:
                if not call.contexts:
                    raise Unavailable("The device takes no commitment reports.")
                context = call.contexts[0]
                report = await self._report(promise, device.principal, device.peer.host)
                data = await asyncio.to_thread(write_report, report, context.transfer_syntax)
                answer = await call.request(_event(report), context, data)
            await self._told(promise, answer.status)
        except AccordError as error:
            # A peer that rejects the association may be restarting; the rules mean what they say.
            if isinstance(error, Denied) and error.code == Denied.code:
                await self._given_up(promise, error)
            else:
                await self._postponed(promise, error)
                return False
        return True

    async def _report(self, promise: Promise, who: Principal, address: str) -> Report:
        await self._flushed()
        fates = await self._safekeeping.fates(who, promise.asked.references, address or None)
        return report_of(promise.asked, fates)

    async def _told(self, promise: Promise, status: int) -> None:
        """The device has the report; what it says to it changes nothing."""
        if status != SUCCESS:
            logger.warning("commitment_report_disliked", device=promise.ae_title, status=f"{status:04X}")
        await self._promises.kept(promise)

    async def _postponed(self, promise: Promise, error: AccordError) -> None:
        if promise.attempts + 1 >= MAX_ATTEMPTS:
            await self._given_up(promise, error)
            return
        pause = min(FIRST_PAUSE * 2 ** min(promise.attempts, 16), LONGEST_PAUSE)
        now = self._clock.now()
        await self._promises.again(promise, now + pause)
        await self._promises.wait_for(promise.ae_title, now, now + pause)
        logger.info("commitment_report_postponed", device=promise.ae_title, reason=error.code)

    async def _given_up(self, promise: Promise, error: AccordError) -> None:
        await self._log.record(
            Event(
                EventKind.STORAGE_COMMITTED,
                f"device:{promise.ae_title}",
                Outcome.FAILED,
                reason=f"The report could not be delivered: {error.message}",
                detail={"instances": len(promise.asked.references), "attempts": promise.attempts + 1},
            )
        )
        await self._promises.kept(promise)


def _event(report: Report) -> Command:
    return Command(
        Verb.N_EVENT_REPORT_RQ, 0, STORAGE_COMMITMENT, INSTANCE, has_data=True, type_id=report.event
    )
