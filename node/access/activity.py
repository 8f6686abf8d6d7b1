"""What each device did lately, kept over restarts and for other processes.

The table is not sealed: it is shown, and decides nothing but which wipe certificate is older than the last image (`wiping`).
`node.dicom.watch` writes it from the log and from its own memory; registry, portal and command line read it. A day is a
calendar day in the node's time zone; counts of another day than today count as none.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import Any

from sqlalchemy import BigInteger, Column, Integer, String, Table, Text

from node.database import UtcDateTime, metadata

activity_table = Table(
    "device_activity",
    metadata,
    Column("ae_title", String(16), primary_key=True),
    Column("last_seen", UtcDateTime),
    Column("last_address", String(64)),
    Column("associated", Integer, nullable=False),
    Column("day", String(10), nullable=False),
    Column("instances", Integer, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("refusals", Integer, nullable=False),
    Column("refused", UtcDateTime),
    Column("refused_address", String(64)),
    Column("refusal", Text),
)


@dataclass(frozen=True)
class Refusal:
    """The latest refusal of a device. `codes` and `values` give its words (`admission.WORDS`) in any language;
    `reason` and `mend` are those of the log, in English."""

    at: datetime
    address: str
    reason: str
    mend: str = ""
    codes: tuple[str, ...] = ()
    values: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Activity:
    """One device's row. `associated` counts its open associations when it was written."""

    ae_title: str
    day: date
    last_seen: datetime | None = None
    last_address: str = ""
    associated: int = 0
    instances: int = 0
    size_bytes: int = 0
    refusals: int = 0
    refusal: Refusal | None = None

    def on(self, day: date) -> Activity:
        """The same with today's counts: none, when the row is of an earlier day."""
        return self if self.day >= day else replace(self, day=day, instances=0, size_bytes=0, refusals=0)

    def seen(self, at: datetime, address: str = "") -> Activity:
        """The same, seen at `at`, unless it has been seen later."""
        if self.last_seen is not None and at < self.last_seen:
            return self
        return replace(self, last_seen=at, last_address=address or self.last_address)


def today(moment: datetime) -> date:
    """The calendar day of a moment, in the node's zone."""
    return moment.astimezone().date()


def activity_of(row: Any) -> Activity:
    """Read a row of `activity_table`."""
    return Activity(
        row.ae_title,
        date.fromisoformat(row.day),
        row.last_seen,
        row.last_address or "",
        row.associated,
        row.instances,
        row.size_bytes,
        row.refusals,
        _refusal_of(row),
    )


def values_of(activity: Activity) -> dict[str, Any]:
    """The values of a row."""
    refusal = activity.refusal
    return {
        "ae_title": activity.ae_title,
        "last_seen": activity.last_seen,
        "last_address": activity.last_address,
        "associated": activity.associated,
        "day": activity.day.isoformat(),
        "instances": activity.instances,
        "size_bytes": activity.size_bytes,
        "refusals": activity.refusals,
        "refused": refusal.at if refusal else None,
        "refused_address": refusal.address if refusal else None,
        "refusal": json.dumps(_plain(refusal), ensure_ascii=False) if refusal else None,
    }


def _refusal_of(row: Any) -> Refusal | None:
    if row.refused is None:
        return None
    told = json.loads(row.refusal)
    return Refusal(
        row.refused,
        row.refused_address or "",
        told["reason"],
        told["mend"],
        tuple(told["codes"]),
        tuple((name, value) for name, value in told["values"]),
    )


def _plain(refusal: Refusal) -> dict[str, Any]:
    return {
        "reason": refusal.reason,
        "mend": refusal.mend,
        "codes": refusal.codes,
        "values": refusal.values,
    }
