"""Conditions that are looked at on an interval, and become findings while they last.

Disk, clock, timed duties, certificates of devices, and once a day the whole log and the database under it. What is over is
resolved by itself; damage to log or database stays open for a person.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from node.access.certificates import EXPIRING
from node.access.device_registry import DeviceRegistry
from node.access.devices import Device, DeviceState
from node.audit.log import Log
from node.clock import TrustedClock
from node.config import Settings
from node.deeds import log_altered
from node.soundness import damaged, keep_sound
from ops.doctor import MAX_CLOCK_BEHIND_SECONDS, MIN_FREE_BYTES
from ops.findings import Findings
from ops.findingtables import FindingKind, Severity, Sighting

if TYPE_CHECKING:
    from node.jobs import JobStatus

LOW_FREE_BYTES: Final = 5 * MIN_FREE_BYTES
"""From here on a disk is called nearly full; below MIN_FREE_BYTES it is an incident."""
FAILING_LOOKS: Final = 2
"""A duty must fail at so many looks in a row: one lost connection is not worth a person's time."""
GRAVE_JOBS: Final = {"access-rows": "access-rows"}
"""Duties that fail because somebody had the database, and the code of the words for it."""
WATCHED: Final = (
    FindingKind.DISK_LOW,
    FindingKind.CERTIFICATE_EXPIRING,
    FindingKind.CERTIFICATE_ENDED,
    FindingKind.CLOCK_BEHIND,
    FindingKind.JOB_FAILING,
)


@dataclass
class Checks:
    """The conditions of one node. `folders` are the places whose disks count, by name; `jobs` gives their states, which
    only the running node knows."""

    findings: Findings
    registry: DeviceRegistry
    log: Log
    clock: TrustedClock
    folders: Mapping[str, Path]
    jobs: Callable[[], Iterable[JobStatus]] | None = None
    free_bytes: Callable[[Path], int] = field(default=lambda path: shutil.disk_usage(path).free)
    _failing: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        settings: Settings,
        findings: Findings,
        registry: DeviceRegistry,
        log: Log,
        clock: TrustedClock,
        jobs: Callable[[], Iterable[JobStatus]] | None = None,
    ) -> Checks:
        """The conditions of the node with these settings."""
        roots = settings.storage_roots
        places = (f"root {number}" if len(roots) > 1 else "packs" for number in range(1, len(roots) + 1))
        folders = {"database": settings.folder, **dict(zip(places, roots, strict=True))}
        return cls(findings, registry, log, clock, folders, jobs)

    async def look(self) -> None:
        """A job: look at every condition."""
        now = self.clock.now()
        survey = await self.registry.survey()
        disks = await asyncio.to_thread(
            lambda: tuple(self._disks(now))
        )  # a disk that hangs must not hang the node
        seen = [*disks, *certificates(survey.devices, now), *self._clock(now), *self._jobs(now)]
        watched = [kind for kind in WATCHED if self.jobs is not None or kind is not FindingKind.JOB_FAILING]
        await self.findings.observe(watched, seen)
        await self.findings.prune()

    async def verify_log(self) -> None:
        """A job: recompute the whole log; what was altered is on record, and so becomes a finding."""
        found = await self.log.verify()
        if not found.ok:
            await self.log.record(log_altered(found.faults, "job:verify"))

    async def verify_database(self) -> None:
        """A job: have the database read every page of itself; search trees that are damaged are made anew. What was found is
        on record, and so becomes a finding. Raises Corrupt when it cannot be mended, Unavailable.
        """
        left = (await keep_sound(self.log.database, self.log, "job:soundness")).left
        if not left.sound:
            raise damaged(left)

    def _disks(self, now: datetime) -> Iterable[Sighting]:
        for place, folder in self.folders.items():
            free = self.free_bytes(_existing(folder))
            if free < LOW_FREE_BYTES:
                severity = Severity.INCIDENT if free < MIN_FREE_BYTES else Severity.WARNING
                values = {"place": place, "free": f"{free / 1024**3:.1f} GiB"}
                yield Sighting(FindingKind.DISK_LOW, severity, place, "disk-low", now, values)

    def _clock(self, now: datetime) -> Iterable[Sighting]:
        behind = self.clock.behind_seconds
        if behind > MAX_CLOCK_BEHIND_SECONDS:
            values = {"behind": f"{behind:.0f}"}
            yield Sighting(FindingKind.CLOCK_BEHIND, Severity.WARNING, "clock", "clock-behind", now, values)

    def _jobs(self, now: datetime) -> Iterable[Sighting]:
        known = tuple(self.jobs()) if self.jobs is not None else ()
        for status in known:
            if status.name in GRAVE_JOBS and status.error:
                code, values = GRAVE_JOBS[status.name], {"reason": status.error}
                yield Sighting(FindingKind.JOB_FAILING, Severity.INCIDENT, status.name, code, now, values)
        failing = {one.name: one for one in known if one.error and one.name not in GRAVE_JOBS}
        self._failing = {name: self._failing.get(name, 0) + 1 for name in failing}
        for name, looks in self._failing.items():
            if looks >= FAILING_LOOKS:
                values = {"job": name, "reason": failing[name].error}
                yield Sighting(FindingKind.JOB_FAILING, Severity.NOTICE, name, "job-failing", now, values)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there: before the first study some are not."""
    return next((place for place in (folder, *folder.parents) if place.exists()), folder)


def certificates(devices: Iterable[Device], now: datetime) -> Iterable[Sighting]:
    """The certificates of devices in service that end within EXPIRING, or have ended."""
    for device in devices:
        ends = device.certificate_ends
        if ends is None or device.state is DeviceState.RETIRED or ends - now > EXPIRING:
            continue
        values = {"device": device.ae_title, "ends": ends.date().isoformat()}
        ended = ends <= now
        kind = FindingKind.CERTIFICATE_ENDED if ended else FindingKind.CERTIFICATE_EXPIRING
        yield Sighting(kind, Severity.WARNING, device.ae_title, kind.value, now, values)
