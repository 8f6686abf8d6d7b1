"""Trusted time: never earlier than the last moment this node, or a witness, has vouched for.

A clock that was set back must not revive an expired grant, so `now()` is the maximum of the system clock,
the time of the log's newest entry and what witnesses agree has passed (docs/decisions/0008-trusted-time.md). Made in
`ops.foundation`; everything else receives a `Clock` or a `datetime`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Where time comes from."""

    def now(self) -> datetime:
        """Return the present moment, aware, in UTC."""
        ...


class TrustedClock:
    """The system clock with a floor that only rises."""

    def __init__(self, floor: datetime | None = None) -> None:
        self._floor = floor or datetime.fromtimestamp(0, UTC)

    def now(self) -> datetime:
        """Return max(system clock, floor)."""
        return max(datetime.now(UTC), self._floor)

    def raise_floor(self, moment: datetime) -> None:
        """Accept a moment that witnesses agree on, or that the log's newest entry bears."""
        self._floor = max(self._floor, moment)

    @property
    def behind_seconds(self) -> float:
        """How far the system clock lies behind the floor (0 when it does not)."""
        return max(0.0, (self._floor - datetime.now(UTC)).total_seconds())
