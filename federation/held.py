"""What is kept of a grant at its holder: the table, the states it goes through, how it is read, and how the log tells of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import BigInteger, Column, Integer, String, Table, Text, select

from consent.errors import NotFound
from consent.grants import Grant
from consent.principals import Principal
from consent.signed import Signed
from consent.vocabulary import EventKind, Purpose
from federation.protocol import ShredReceipt
from federation.roster import Member
from node.audit.event import Event
from node.database import Database, UtcDateTime, metadata


class HeldState(StrEnum):
    """How a grant stands at its holder."""

    GRANTED = "granted"
    HELD = "held"
    ENDED = "ended"
    SHREDDED = "shredded"


LIVING = (HeldState.GRANTED, HeldState.HELD)

held_grant = Table(
    "held_grant",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("home", String(32), nullable=False),
    Column("study", String(40), nullable=False, index=True),
    Column("person", String(120), nullable=False),
    Column("request", String(32), nullable=False),
    Column("state", String(16), nullable=False, index=True),
    Column("received", UtcDateTime, nullable=False),
    Column("expires", UtcDateTime, nullable=False),
    Column("size_bytes", BigInteger, nullable=False, default=0),
    Column("faults", Integer, nullable=False, default=0),
    Column("words", Text, nullable=False, default=""),
    Column("receipt", Text),
    Column("receipt_taken", UtcDateTime),
)


@dataclass(frozen=True)
class HeldStudy:
    """A study shared with this hospital, as its people see it."""

    grant: str
    home: str
    study: str
    person: str
    request: str
    state: HeldState
    purpose: Purpose
    rights: tuple[str, ...]
    expires: datetime
    size_bytes: int
    words: str

    def require(self, who: Principal) -> None:
        """Raise NotFound unless it is shared with this person."""
        if who.id != self.person:
            raise NotFound("There is no such grant here.", code="grant")


async def held_row(database: Database, grant_id: str) -> Any:
    """How a grant is kept here. Raises NotFound."""
    async with database.read() as tx:
        row = (await tx.execute(select(held_grant).where(held_grant.c.id == grant_id))).first()
    if row is None:
        raise NotFound("There is no such grant here.", code="grant")
    return row


async def living_rows(database: Database, home: str, study: str) -> list[Any]:
    """The grants over one study that have not ended here."""
    query = select(held_grant).where(
        held_grant.c.home == home, held_grant.c.study == study, held_grant.c.state.in_(LIVING)
    )
    async with database.read() as tx:
        return list((await tx.execute(query)).all())


def received_event(member: Member, grant: Signed[Grant], address: str | None) -> Event:
    body = grant.body
    return Event(
        EventKind.GRANT_RECEIVED,
        f"member:{member.id}",
        study=body.study,
        purpose=body.purpose,
        address=address,
        detail={
            "grant": grant.id,
            "digest": grant.digest,
            "home": body.home,
            "person": body.person,
            "rights": sorted(body.rights),
            "expires": grant.expires.isoformat() if grant.expires else "",
        },
    )


def shredded_event(row: Any, purpose: Purpose | None, receipt: Signed[ShredReceipt]) -> Event:
    return Event(
        EventKind.COPY_SHREDDED,
        "job:sweep",
        study=row.study,
        purpose=purpose,
        reason=receipt.body.reason,
        detail={
            "grant": row.id,
            "home": row.home,
            "receipt": receipt.digest,
            "method": receipt.body.method,
            "size_bytes": receipt.body.size_bytes,
        },
    )
