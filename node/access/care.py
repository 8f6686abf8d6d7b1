"""Treatment relationships: who treats which patient, since when, until when, and where that is known from.

Patients are pseudonyms. The rules ask `related`; without a relationship a clinician sees nothing of a patient.
Every change is an entry of the log. Rows are sealed (`rows`): one that this node did not write, or
has ended since, relates nobody.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Column, ForeignKey, Select, String, Table, select

from consent.errors import Invalid, NotFound
from consent.vocabulary import EventKind
from node.access.people import person_table
from node.access.rows import GROUP, Rows, seal_columns
from node.audit.log import Event, Log
from node.clock import Clock
from node.database import Database, Tx, UtcDateTime, metadata

MAX_PATIENT_CHARACTERS = 64

care_table = Table(
    "care",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("login", String(64), ForeignKey("person.login"), nullable=False, index=True),
    Column("patient", String(MAX_PATIENT_CHARACTERS), nullable=False, index=True),
    Column("source", String(32), nullable=False),
    Column("recorded_by", String(120), nullable=False),
    Column("begins", UtcDateTime, nullable=False),
    Column("ends", UtcDateTime),
    *seal_columns(),
    info={GROUP: "login"},
)


class CareSource(StrEnum):
    """Where a relationship is known from."""

    ENTERED = "entered"
    IMPORTED = "imported"


@dataclass(frozen=True)
class Relationship:
    """`login` treats `patient` in [begins, ends); an open end is None."""

    id: str
    login: str
    patient: str
    source: CareSource
    recorded_by: str
    begins: datetime
    ends: datetime | None


class Care:
    """The relationships of one node. `key` seals the rows; a row altered outside raises RowAltered."""

    def __init__(self, database: Database, log: Log, clock: Clock, *, key: bytes) -> None:
        self._rows = Rows(database, key, log)
        self._log = log
        self._clock = clock

    async def record(
        self,
        login: str,
        patient: str,
        until: datetime | None = None,
        by: str = "system",
        source: CareSource = CareSource.ENTERED,
        *,
        tx: Tx | None = None,
    ) -> Relationship:
        """Record that a person treats a patient from now on. With `tx`, in the caller's transaction.

        Raises NotFound without such an account, Invalid for an end that has passed or a bad pseudonym.
        """
        now = self._clock.now()
        if until is not None and until <= now:
            raise Invalid("This treatment relationship would be over already.", mend="Give a later end.")
        if not 0 < len(patient) <= MAX_PATIENT_CHARACTERS or not patient.isascii():
            raise Invalid("This is not a patient pseudonym.", code="patient")
        relationship = Relationship(secrets.token_hex(16), login, patient, source, by, now, until)
        async with self._rows.writing(tx) as own:
            await self._insert(own, relationship)
        return relationship

    async def end(self, login: str, patient: str, by: str = "system", *, reason: str = "") -> None:
        """End every present relationship of the two. Raises NotFound when there is none."""
        now = self._clock.now()
        async with self._rows.writing() as tx:
            present = await self._rows.select(tx, _present(login, now, patient).with_for_update())
            if not present:
                raise NotFound("There is no such treatment relationship.")
            for row in present:
                await self._rows.update(tx, care_table, row, {"ends": now})
            detail = {"login": login}
            event = Event(EventKind.CARE_ENDED, by, patient=patient, reason=reason, detail=detail)
            await self._log.append(tx, event)

    async def related(self, login: str, patient: str | None, now: datetime, *, tx: Tx | None = None) -> bool:
        """Whether the person treats the patient at `now`."""
        if patient is None:
            return False
        query = _present(login, now, patient).limit(1)
        row = await self._rows.read(lambda on: on.check(care_table, on.execute(query).first()), tx=tx)
        return row is not None

    async def patients_of(self, login: str, now: datetime | None = None) -> frozenset[str]:
        """The pseudonyms of all whom the person treats at `now` (default: the present)."""
        query = _present(login, now or self._clock.now())
        return await self._rows.read(
            lambda on: frozenset(on.check(care_table, row).patient for row in on.execute(query).all())
        )

    async def carers_of(self, patient: str) -> list[Relationship]:
        """Who treats a patient now, the longest first."""
        now = self._clock.now()
        query = select(care_table).where(
            care_table.c.patient == patient, care_table.c.begins <= now, _open(now)
        )
        ordered = query.order_by(care_table.c.begins)
        return await self._rows.read(
            lambda on: [_relationship(on.check(care_table, row)) for row in on.execute(ordered).all()]
        )

    async def _insert(self, tx: Tx, relationship: Relationship) -> None:
        known = select(person_table.c.login).where(person_table.c.login == relationship.login)
        if (await tx.execute(known)).first() is None:
            raise NotFound("There is no such account.", mend="Add it first: accord user add.")
        values = {
            "id": relationship.id,
            "login": relationship.login,
            "patient": relationship.patient,
            "source": relationship.source.value,
            "recorded_by": relationship.recorded_by,
            "begins": relationship.begins,
            "ends": relationship.ends,
        }
        await self._rows.insert(tx, care_table, values)
        detail = {
            "login": relationship.login,
            "source": relationship.source.value,
            "until": relationship.ends.isoformat() if relationship.ends else "",
        }
        event = Event(
            EventKind.CARE_RECORDED, relationship.recorded_by, patient=relationship.patient, detail=detail
        )
        await self._log.append(tx, event)


def _present(login: str, now: datetime, patient: str | None = None) -> Select[Any]:
    query = select(care_table).where(care_table.c.login == login, care_table.c.begins <= now, _open(now))
    return query if patient is None else query.where(care_table.c.patient == patient)


def _open(now: datetime) -> Any:
    return care_table.c.ends.is_(None) | (care_table.c.ends > now)


def _relationship(row: Any) -> Relationship:
    return Relationship(
        row.id, row.login, row.patient, CareSource(row.source), row.recorded_by, row.begins, row.ends
    )
