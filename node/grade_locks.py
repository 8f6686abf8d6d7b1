"""Unlocking and locking the grade that two people guard, on record.

Holds who did it and what must be forgotten when it is locked; leaves passphrases to `vault.custody.two_person`. A wrong
passphrase and a stranger are on record before they are told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from consent.errors import Denied, NotFound
from consent.vocabulary import EventKind, Grade, Outcome
from node.audit.event import Detail
from node.audit.log import Event, Log
from node.clock import Clock
from node.completion import to_its_end
from node.vault.custody.two_person import TwoPersonKeystore
from node.vault.keys import KeyRing


@dataclass(frozen=True)
class LockState:
    """A guarded grade: who holds it, whether it is locked, whose passphrase waits for a second one ("" nobody's)."""

    grade: Grade
    locked: bool
    holders: tuple[str, ...]
    waiting: str


class GradeLocks:
    """The guarded grades of one node; there is at most one."""

    def __init__(
        self, keystores: Mapping[Grade, TwoPersonKeystore], keys: KeyRing, log: Log, clock: Clock
    ) -> None:
        self._keystores = keystores
        self._keys = keys
        self._log = log
        self._clock = clock

    def states(self) -> tuple[LockState, ...]:
        """Every guarded grade."""
        now = self._clock.now()
        return tuple(
            LockState(
                grade, keystore.locked, keystore.holders, keystore.waiting(now) if keystore.locked else ""
            )
            for grade, keystore in self._keystores.items()
        )

    async def unlock(
        self, grade: Grade, login: str, passphrase: bytes, actor: str, address: str | None = None
    ) -> bool:
        """Take one holder's passphrase; return whether the grade is unlocked now. It takes two different holders.

        Raises NotFound (no such guarded grade), Denied (no holder, wrong passphrase), Conflict, Unavailable.
        """
        keystore = self._keystore(grade)
        try:
            done = await asyncio.to_thread(keystore.offer, login, passphrase, self._clock.now())
        except Denied as error:
            await self._record(grade, actor, address, Outcome.REFUSED, {"code": error.code}, error.message)
            raise
        await self._record(grade, actor, address, Outcome.DONE, {"holder": login, "unlocked": done})
        return done

    async def lock(self, grade: Grade, actor: str, address: str | None = None) -> None:
        """Forget the grade's keys at once. Raises NotFound."""
        keystore = self._keystore(grade)
        try:  # a passphrase that is being tried holds the keystore for as long as that takes
            await to_its_end(asyncio.to_thread(keystore.lock))
        finally:
            self._keys.forget(grade)
        detail: dict[str, Detail] = {"grade": int(grade)}
        await self._log.record(Event(EventKind.GRADE_LOCKED, actor, address=address, detail=detail))

    def _keystore(self, grade: Grade) -> TwoPersonKeystore:
        keystore = self._keystores.get(grade)
        if keystore is None:
            raise NotFound(
                f"Grade {grade.name.lower()} is not guarded by two people here.",
                mend="Set it up with accord keys two-person.",
                code="not-guarded",
            )
        return keystore

    async def _record(
        self,
        grade: Grade,
        actor: str,
        address: str | None,
        outcome: Outcome,
        detail: Mapping[str, Detail],
        reason: str = "",
    ) -> None:
        await self._log.record(
            Event(
                EventKind.GRADE_UNLOCKED,
                actor,
                outcome,
                address=address,
                reason=reason,
                detail={"grade": int(grade), **detail},
            )
        )
