"""The live state of every device: associated now, last seen, instances and refusals today, the latest reason.

What is open now lives in the `Gate`'s memory; what was done is read from the log and kept in `device_activity`, so that
it survives a restart and other processes see it. `look` is a timed duty. It also ends the associations of devices
that were put out of use or registered otherwise, within its interval, and tells the log of refusals that were only counted.

Invariants: an entry of the log is counted once; the numbers of today are those of the node's calendar day.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import timedelta

from sqlalchemy import delete, insert, select, update

from consent.errors import Conflict
from consent.vocabulary import EventKind
from node.access.activity import Activity, Refusal, activity_of, activity_table, today, values_of
from node.access.admission import reexamine
from node.access.device_registry import DeviceRegistry, Survey
from node.access.live import LiveDevice, live_devices, of_today, places_of, refusals_in, whole
from node.audit.event import Entry, Event
from node.audit.following import News, news, settle
from node.audit.log import Log
from node.clock import Clock
from node.database import Database, Tx

from .gate import AssociationView, Gate

READER = "devices"
REFUSALS = (EventKind.ASSOCIATION_REFUSED, EventKind.INPUT_REFUSED, EventKind.INSTANCE_REFUSED)
KINDS = (EventKind.ASSOCIATION_ACCEPTED, EventKind.INSTANCES_STORED, *REFUSALS)
MAX_READINGS = 20
"""How often one look goes on reading when it is behind."""
SEEN_STEP = timedelta(seconds=15)
"""How exactly the table knows when a device with an open association was last heard."""


class DeviceWatch:
    """Watches the devices of one node. Use `look` as a job; `close` once the doors are shut."""

    def __init__(
        self, *, database: Database, log: Log, clock: Clock, registry: DeviceRegistry, gate: Gate
    ) -> None:
        self._database = database
        self._log = log
        self._clock = clock
        self._registry = registry
        self._gate = gate
        self._written: dict[str, Activity] | None = None
        self._settled = -1

    async def look(self) -> None:
        """A job: bring the table up to the log and the gate; end what must not go on."""
        await self._tell(self._gate.late())
        # Before the registrations: who comes in meanwhile is no older than they.
        if views := self._gate.associations:
            await self._expel(views, await self._registry.survey())
        for _ in range(MAX_READINGS):
            if not await self._fold():
                return

    async def live(self) -> tuple[LiveDevice, ...]:
        """Every device as of now."""
        survey = await self._registry.survey()
        known = dict(await self._known())
        places = places_of(survey)
        for event, count in self._gate.untold:
            if title := _device_of(event, places):
                activity = of_today(known, title, self._clock.now())
                known[title] = replace(activity, refusals=activity.refusals + count)
        return live_devices(survey, self._heard(known), self._gate.associations, self._clock.now())

    async def close(self) -> None:
        """Write down what is known when the node stops: nobody is associated any more."""
        await self._tell(self._gate.late(everything=True))
        await self._fold()

    async def _tell(self, late: list[Event]) -> None:
        """Put on record what was only counted. What cannot be now stays counted."""
        try:
            while late:
                await self._log.record(late[0])
                del late[0]
        finally:
            self._gate.put_off(late)

    async def _expel(self, views: Iterable[AssociationView], survey: Survey) -> None:
        """End the associations of devices that would not be let in the same now: put out of use, or changed since."""
        devices = {device.ae_title: device for device in survey.devices}
        own, now = self._registry.ae_title, self._clock.now()
        for view in views:
            if view.knock is None or view.principal is None or view.cut is None:
                continue
            refused = reexamine(
                devices.get(view.device), view.knock, view.principal, own_ae_title=own, now=now
            )
            if refused is None:
                continue
            event = self._gate.refusal(
                refused.code,
                refused.message,
                view.address,
                kind=EventKind.ASSOCIATION_REFUSED,
                tls=view.tls,
                more=refused.detail,
            )
            view.cut()
            if event is not None:
                await self._log.record(event)

    async def _fold(self) -> bool:
        """Count new entries of the log; return whether there are more."""
        read = await news(self._log, READER, KINDS)
        if read.since != self._settled:  # another process has written since, or this is the first look
            self._written, self._settled = None, read.since
        known = await self._known()
        if not read.worth_settling and not self._stirred(known):
            return False
        survey = await self._registry.survey()
        places = places_of(survey)
        fresh = dict(known)
        for entry in read.entries:
            if title := _device_of(entry.event, places):
                fresh[title] = _counted(of_today(fresh, title, entry.at), entry)
        registered = {device.ae_title for device in survey.devices} | set(survey.altered)
        fresh = {title: one for title, one in self._heard(fresh).items() if title in registered}
        changed = {title: one for title, one in fresh.items() if _moved(known.get(title), one)}
        gone = known.keys() - fresh.keys()
        if not changed and not gone and not read.worth_settling:
            return False
        try:
            await self._write(read, changed.values(), gone)
        except Conflict:  # another process counted these entries: its rows are the newer ones
            self._written = None
            return False
        self._written = {title: changed.get(title) or known[title] for title in fresh}
        self._settled = read.upto
        return read.more

    def _stirred(self, known: Mapping[str, Activity]) -> bool:
        """Whether the gate knows something that the table does not: most looks at a quiet door end here."""
        heard = self._heard(known)
        return any(_moved(known.get(title), one) for title, one in heard.items())

    async def _write(self, read: News, changed: Iterable[Activity], gone: Iterable[str]) -> None:
        table = activity_table.c.ae_title
        async with self._database.write() as tx:
            await settle(self._log, tx, read)
            for one in changed:
                await _put(tx, one)
            for title in gone:
                await tx.execute(delete(activity_table).where(table == title))

    async def _known(self) -> Mapping[str, Activity]:
        if self._written is None:
            async with self._database.read() as tx:
                rows = (await tx.execute(select(activity_table))).all()
            self._written = {row.ae_title: activity_of(row) for row in rows}
        return self._written

    def _heard(self, known: Mapping[str, Activity]) -> dict[str, Activity]:
        """What the gate knows better than the log: who is associated, and was heard last."""
        now = self._clock.now()
        open_now = Counter(view.device for view in self._gate.associations)
        heard = dict(self._gate.heard)
        for view in self._gate.associations:
            heard[view.device] = max(heard.get(view.device, (view.since, "")), (view.last_seen, view.address))
        fresh = {
            title: one if one.associated == open_now[title] else replace(one, associated=open_now[title])
            for title, one in known.items()
        }
        for title, (at, address) in heard.items():
            activity = replace(of_today(fresh, title, now), associated=open_now[title])
            fresh[title] = activity.seen(at, address)
        return fresh


def _counted(activity: Activity, entry: Entry) -> Activity:
    """The activity with one entry of the log. An entry of an earlier day is not among today's numbers."""
    event, of_today = entry.event, activity.day == today(entry.at)
    if event.kind in REFUSALS:
        if not refusals_in(event):
            return activity
        refusals = activity.refusals + (refusals_in(event) if of_today else 0)
        return replace(activity, refusals=refusals, refusal=_refusal_of(entry))
    seen = activity.seen(entry.at, event.address or "")
    if event.kind is EventKind.INSTANCES_STORED and of_today:
        return replace(
            seen,
            instances=seen.instances + whole(event, "instances"),
            size_bytes=seen.size_bytes + whole(event, "bytes"),
        )
    return seen


def _refusal_of(entry: Entry) -> Refusal:
    event, detail = entry.event, entry.event.detail
    codes, values = detail.get("faults"), detail.get("values")
    return Refusal(
        entry.at,
        event.address or "",
        event.reason,
        str(detail.get("mend", "")),
        tuple(str(code) for code in codes) if isinstance(codes, list | tuple) else (),
        tuple((str(name), str(value)) for name, value in values.items())
        if isinstance(values, Mapping)
        else (),
    )


def _device_of(event: Event, places: Mapping[str, str]) -> str:
    """Which registered device an entry is about: the one that did it, was named, or has that address alone."""
    kind, _, name = event.actor.partition(":")
    if kind == "device":
        return name
    named = event.detail.get("device")
    return str(named) if named else places.get(event.address or "", "")


def _moved(before: Activity | None, after: Activity) -> bool:
    """Whether a row is worth writing: anything but a little more time."""
    if before is None or replace(before, last_seen=after.last_seen) != after:
        return True
    if after.last_seen is None or before.last_seen is None:
        return after.last_seen is not before.last_seen
    return after.last_seen - before.last_seen >= SEEN_STEP


async def _put(tx: Tx, one: Activity) -> None:
    values = values_of(one)
    mine = activity_table.c.ae_title == one.ae_title
    if (await tx.execute(update(activity_table).where(mine).values(values))).rowcount == 0:
        await tx.execute(insert(activity_table).values(values))
