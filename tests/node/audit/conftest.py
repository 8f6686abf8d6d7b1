"""Real logs on SQLite files for the audit tests."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pytest

from consent.vocabulary import EventKind
from node.audit.log import Event, Log
from node.audit.note import Signer
from node.database import Database
from tests.support.clock import FakeClock
from tests.support.databases import database_in


@dataclass
class Bench:
    """A log, and the file it lies in."""

    log: Log
    file: Path
    clock: FakeClock

    async def fill(self, count: int) -> None:
        """Append `count` entries about as many patients."""
        async with self.log.database.write() as tx:
            await self.log.append_many(tx, [opened(n) for n in range(count)])

    def alter(self, statement: str, values: Sequence[object] = ()) -> None:
        """Change the tables behind the log's back, as somebody with the database file would."""
        with sqlite3.connect(self.file) as connection:
            connection.execute(statement, values)
        connection.close()

    def another(self, name: str = "accord/a-general") -> Log:
        """The same log as a second process has it: own connections, same file."""
        database = Database(f"sqlite+aiosqlite:///{self.file}")
        return Log(database, key=AUDIT_KEY, origin=name, signer=signer(name), clock=self.clock)


AUDIT_KEY = sha256(b"audit key").digest()


def signer(name: str) -> Signer:
    """A log key that depends on its name alone."""
    return Signer(name, sha256(name.encode()).digest())


def opened(n: int) -> Event:
    """One entry about patient n."""
    return Event(
        EventKind.STUDY_OPENED,
        f"person:li{n % 3}@a-general",
        patient=f"pt_{n}",
        study=f"st_{n}",
        reason=f"round {n}",
        detail={"frames": n},
    )


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    file = tmp_path / "accord.db"
    database = database_in(file)
    clock = FakeClock()
    origin = "accord/a-general"
    yield Bench(Log(database, key=AUDIT_KEY, origin=origin, signer=signer(origin), clock=clock), file, clock)
    await database.close()
