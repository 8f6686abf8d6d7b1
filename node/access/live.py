"""A device with what it does now, put together from its registration and its activity.

Pure: `node.dicom.watch` and the command line give the parts. Also which device a place belongs to, and how many refusals
one entry of the log stands for, which whoever counts refusals must know.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from node.access.activity import Activity, Refusal, today
from node.access.admission import WORDS
from node.access.device_registry import Survey
from node.access.devices import TRANSITIONS, Device
from node.audit.event import Event

if TYPE_CHECKING:
    from node.dicom.gate import AssociationView

HARMLESS: Final = frozenset({"idle"})
"""Codes of associations that this node ended without anything being wrong with the device."""
Speak = Callable[[str], str]
"""Gives a sentence in somebody's language."""


@dataclass(frozen=True)
class LiveDevice:
    """A device with what it does. `associated` counts its open associations; `associations` are those that this
    process itself serves."""

    device: Device
    activity: Activity
    associated: int
    associations: tuple[AssociationView, ...] = ()

    @property
    def last_seen(self) -> datetime | None:
        """When it was last heard of under its own name, address and certificate."""
        return self.activity.last_seen

    @property
    def troubled(self) -> bool:
        """Whether it was refused today and has not come in since."""
        refusal = self.activity.refusal
        if refusal is None or not self.activity.refusals:
            return False
        return self.last_seen is None or refusal.at > self.last_seen

    def to_json(self, speak: Speak = str) -> dict[str, Any]:
        """For programs; the words of the latest refusal are put through `speak`."""
        device, activity = self.device, self.activity
        ends, former, refusal = device.certificate_ends, device.former, activity.refusal
        return {
            "ae_title": device.ae_title,
            "address": device.address,
            "department": device.department,
            "services": sorted(device.services),
            "purpose": device.purpose.value,
            "port": device.port,
            "state": device.state.value,
            "since": _iso(device.since),
            "state_reason": device.state_reason,
            "may_become": sorted(TRANSITIONS[device.state]),
            "registered": _iso(device.registered),
            "channel": "TLS" if device.fingerprint else "plain",
            "plain_reason": device.plain_reason,
            "fingerprint": device.fingerprint,
            "certificate_ends": _iso(ends),
            "former_fingerprint": former.fingerprint if former else None,
            "former_until": _iso(former.until) if former else None,
            "agent": device.agent,
            "associated": self.associated,
            "associations": [_association(view) for view in self.associations],
            "last_seen": _iso(self.last_seen),
            "last_address": activity.last_address or None,
            "instances_today": activity.instances,
            "bytes_today": activity.size_bytes,
            "refusals_today": activity.refusals,
            "troubled": self.troubled,
            "latest_refusal": _refusal(refusal, speak) if refusal else None,
        }


def live_devices(
    survey: Survey,
    activities: Mapping[str, Activity],
    associations: Iterable[AssociationView],
    now: datetime,
    *,
    running: bool = True,
) -> tuple[LiveDevice, ...]:
    """Devices with their activities. `running` is False when no node runs: then nobody is associated."""
    by_device: dict[str, list[AssociationView]] = {}
    for view in associations:
        by_device.setdefault(view.device, []).append(view)
    found = []
    for device in survey.devices:
        activity = of_today(activities, device.ae_title, now)
        views = tuple(by_device.get(device.ae_title, ()))
        found.append(LiveDevice(device, activity, activity.associated if running else 0, views))
    return tuple(found)


def of_today(known: Mapping[str, Activity], title: str, at: datetime) -> Activity:
    """The activity on the day of `at`; an entry of an earlier day than the row's counts for the row's."""
    activity = known.get(title)
    return Activity(title, today(at)) if activity is None else activity.on(today(at))


def refusal_words(refusal: Refusal, speak: Speak) -> list[tuple[str, str]]:
    """Each thing that was wrong and its way out."""
    values = dict(refusal.values)
    try:
        said = [
            (speak(WORDS[code].fault) % values, speak(WORDS[code].mend) % values) for code in refusal.codes
        ]
    except (KeyError, TypeError, ValueError):  # written by another version, whose words have other places
        said = []
    return said or [(speak(refusal.reason), speak(refusal.mend))]


def places_of(survey: Survey) -> dict[str, str]:
    """The device at each address that exactly one device has."""
    hosts = [(device.host, device.ae_title) for device in survey.devices if device.host]
    often = Counter(host for host, _ in hosts)
    return {host: title for host, title in hosts if often[host] == 1}


def refusals_in(event: Event) -> int:
    """How many refusals an entry stands for: itself and those before it, or repeats alone; none when it is harmless."""
    if event.detail.get("code") in HARMLESS:
        return 0
    repeats = whole(event, "repeats")
    return repeats or 1 + whole(event, "unlogged")


def whole(event: Event, name: str) -> int:
    """A count in an event's detail; 0 where there is none."""
    value = event.detail.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0


def _refusal(refusal: Refusal, speak: Speak) -> dict[str, Any]:
    faults = [{"words": fault, "mend": mend} for fault, mend in refusal_words(refusal, speak)]
    return {"at": refusal.at.isoformat(), "address": refusal.address, "faults": faults}


def _association(view: AssociationView) -> dict[str, Any]:
    return {
        "address": view.address,
        "tls": view.tls,
        "since": view.since.isoformat(),
        "last_seen": view.last_seen.isoformat(),
        "stored": view.stored,
        "refused": view.refused,
    }


def _iso(moment: datetime | None) -> str | None:
    return moment.isoformat() if moment is not None else None
