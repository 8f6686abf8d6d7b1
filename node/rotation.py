"""Rotation of the keys, on record: by age or when asked, then the rewrapping of study keys, then the end of old versions.

Holds the duty that runs in the node and how far it is; leaves keys to `vault.keys` and the event loop its turns. A grade that
is locked is passed over until two people have unlocked it. Everything here may be interrupted at any point and begun again,
also in another process: what is to be done is in the database, never in memory.

Invariants: a new version and its log entry are one transaction; a version that ends, likewise; one rewrapping at a time.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from consent.errors import AccordError
from consent.policy import Parameters
from consent.vocabulary import EventKind, Grade, Outcome
from node.audit.event import Detail
from node.audit.log import Event, Log
from node.clock import Clock
from node.database import Database
from node.policies import Policies
from node.vault.keys import REWRAP_BATCH, KeyRing

ACTOR = "job:keys"
MAX_NAMED = 20
"""Studies whose key does not open that one rewrapping puts on record one by one."""


@dataclass(frozen=True)
class Progress:
    """How far a rewrapping is: study keys moved, of how many. `error` says why the last one ended early."""

    running: bool = False
    moved: int = 0
    total: int = 0
    broken: int = 0
    started: datetime | None = None
    ended: datetime | None = None
    error: str = ""


class Rotation:
    """Rotates and rewraps the keys of one node."""

    def __init__(self, keys: KeyRing, database: Database, log: Log, policies: Policies, clock: Clock) -> None:
        self._keys = keys
        self._database = database
        self._log = log
        self._policies = policies
        self._clock = clock
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()
        self.progress = Progress()

    async def run(self) -> None:
        """The duty: rotate what is due by the policy, rewrap what is behind, end what wraps nothing any more."""
        for grade in await self._keys.due(max_ages(self._policies.parameters)):
            if not self._keys.locked(grade):
                await self.rotate(grade, ACTOR, cause="age")
        await self.rewrap()

    async def rotate(self, grade: Grade, actor: str, *, cause: str = "asked") -> int:
        """Make a new version for `grade` and put it on record; return its number. Study keys follow by `rewrap`.

        Raises Unavailable (locked, custody away, disk), Corrupt (the active version does not open); nothing changed then.
        """
        async with self._database.write() as tx:
            version = await self._keys.rotate(grade, tx)
            detail: dict[str, Detail] = {"grade": int(grade), "version": version, "cause": cause}
            await self._log.append(tx, Event(EventKind.KEY_ROTATED, actor, detail=detail))
        return version

    async def rewrap(self, batch: int = REWRAP_BATCH) -> Progress:
        """Bring every study key under its grade's active version, batch by batch; return how it went."""
        async with self._turn:
            behind = sum(one.behind for one in (await self._keys.status()).grades if not one.locked)
            self._show(Progress(True, 0, behind, started=self._clock.now()))
            broken: dict[str, None] = {}
            try:
                while True:
                    done = await self._keys.rewrap_batch(batch)
                    broken |= dict.fromkeys(done.broken)
                    if not done.moved:
                        break
                    self._show(replace(self.progress, moved=self.progress.moved + done.moved))
                    await asyncio.sleep(0)  # others who wait for the database or the loop come first
                await self._end(list(broken))
            except BaseException as error:  # cancelled too: what is shown must not stand at "running"
                words = str(error) if isinstance(error, AccordError) else type(error).__name__
                self._show(replace(self.progress, running=False, ended=self._clock.now(), error=words))
                raise
            self._show(
                replace(self.progress, running=False, broken=len(broken), ended=self._clock.now(), error="")
            )
            return self.progress

    async def changed(self, seen: Progress, wait_seconds: float) -> Progress:
        """The progress as soon as it is another than `seen`, or after a while what it is."""
        if self.progress == seen:
            try:
                async with asyncio.timeout(wait_seconds):
                    await self._changed.wait()
            except TimeoutError:
                pass
        return self.progress

    async def _end(self, broken: list[str]) -> None:
        async with self._database.write() as tx:
            ended = await self._keys.retire(tx)
            events = [
                Event(EventKind.KEY_DESTROYED, ACTOR, detail={"grade": int(grade), "version": version})
                for grade, version in ended
            ]
            events += [
                Event(
                    EventKind.INTEGRITY_FAILED,
                    ACTOR,
                    Outcome.FAILED,
                    study=study,
                    reason="The wrapped key of this study does not open; restore it from the keys' backup.",
                )
                for study in broken[:MAX_NAMED]
            ]
            if events:
                await self._log.append_many(tx, events)

    def _show(self, progress: Progress) -> None:
        self.progress = progress
        self._changed.set()
        self._changed = asyncio.Event()


def max_ages(parameters: Parameters) -> dict[Grade, timedelta]:
    """How old the active version of each grade may become."""
    usual = timedelta(days=parameters.kek_max_age_days)
    return {
        **dict.fromkeys(Grade, usual),
        Grade.RESTRICTED: timedelta(days=parameters.restricted_kek_max_age_days),
    }
