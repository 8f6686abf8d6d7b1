"""A database, a log and identities for the tests of one part."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from federation.roster import Member, own_entry
from node.audit.log import Log
from node.database import Database
from node.identity import Identity
from tests.support.clock import FakeClock
from tests.support.databases import database_in


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = database_in(tmp_path / "accord.db")
    yield database
    await database.close()


async def identity_of(node_id: str) -> Identity:
    """A node's keys, the same at every call."""

    async def secret(name: str) -> bytes:
        return hashlib.sha256(f"{node_id}/{name}".encode()).digest()

    return await Identity.load_or_create(secret, node_id, node_id.title())


def entry_of(identity: Identity, url: str = "https://127.0.0.1:9") -> Member:
    return own_entry(identity.public(), url)


def log_of(database: Database, identity: Identity, clock: FakeClock) -> Log:
    return Log(database, key=b"a" * 32, origin=identity.origin, signer=identity.log_signer, clock=clock)
