"""A registry, sessions and care over a real database and log, with quick password hashing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from nacl.pwhash import argon2id

from consent.vocabulary import EventKind
from node.access.care import Care
from node.access.passwords import Passwords
from node.access.registry import Registry
from node.access.sessions import Sessions
from node.audit.event import Event
from node.audit.log import Log
from node.audit.note import Signer
from node.database import Database
from tests.support.clock import FakeClock
from tests.support.databases import database_in
from tests.support.seeds import ROWS

NODE = "a-general"
GOOD = "correct horse battery"


@dataclass(frozen=True)
class Desk:
    """What the tests of this folder work with."""

    database: Database
    log: Log
    clock: FakeClock
    registry: Registry
    sessions: Sessions
    care: Care

    async def events(self, kind: EventKind) -> list[Event]:
        return [entry.event for entry in await self.log.entries() if entry.event.kind is kind]


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    database = database_in(tmp_path / "accord.db")
    clock = FakeClock()
    log = Log(database, key=bytes(32), origin=NODE, signer=Signer(NODE, bytes(32)), clock=clock)
    passwords = Passwords(passes=1, memory_bytes=argon2id.MEMLIMIT_MIN)
    yield Desk(
        database,
        log,
        clock,
        Registry(database, log, clock, key=ROWS, node=NODE, ae_title="A_GENERAL", passwords=passwords),
        Sessions(database, log, clock, key=ROWS, node=NODE, passwords=passwords),
        Care(database, log, clock, key=ROWS),
    )
    await log.close()
    passwords.close()
    await database.close()
