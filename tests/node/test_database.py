"""The database: what goes wrong below comes up as Unavailable, in words."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import Connection, text

import node.database
from consent.errors import Unavailable
from node.database import Database


@pytest.mark.requirement("F4")
async def test_a_database_that_cannot_be_opened_is_unavailable(tmp_path: Path) -> None:
    """Reading and writing both say so; neither lets the driver's error through."""
    database = Database(f"sqlite+aiosqlite:///{tmp_path}/nowhere/node.db")
    with pytest.raises(Unavailable, match="cannot be read now"):
        async with database.read() as tx:
            await tx.execute(text("SELECT 1"))
    with pytest.raises(Unavailable, match="cannot write now"):
        async with database.write() as tx:
            await tx.execute(text("SELECT 1"))
    await database.close()


@pytest.mark.requirement("F4")
async def test_a_database_that_another_process_holds_is_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits for the writer too long is told, and may write once it is free."""
    monkeypatch.setattr(node.database, "BUSY_TIMEOUT_SECONDS", 0)
    database = Database(f"sqlite+aiosqlite:///{tmp_path}/node.db")
    async with database.write() as tx:
        await tx.execute(text("CREATE TABLE kept (number INTEGER)"))
    other = sqlite3.connect(tmp_path / "node.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match="locked"):
        async with database.write() as tx:
            await tx.execute(text("INSERT INTO kept VALUES (1)"))
    other.execute("COMMIT")
    other.close()
    async with database.write() as tx:
        await tx.execute(text("INSERT INTO kept VALUES (1)"))
    await database.close()


async def test_work_in_one_piece_is_a_transaction(tmp_path: Path) -> None:
    """It commits whole or not at all, takes turns with other writers, and its failures come up in the same words."""
    database = Database(f"sqlite+aiosqlite:///{tmp_path}/node.db")
    async with database.write() as tx:
        await tx.execute(text("CREATE TABLE kept (number INTEGER)"))

    def add(connection: Connection) -> int:
        before = connection.execute(text("SELECT count(*) FROM kept")).scalar_one()
        connection.execute(text("INSERT INTO kept VALUES (:number)"), {"number": before})
        return int(before)

    def fail(connection: Connection) -> None:
        add(connection)
        raise Unavailable("not this time")

    async def add_apart() -> None:
        async with database.write() as tx:
            await tx.run_sync(add)

    with pytest.raises(Unavailable, match="not this time"):
        await database.write_in_one(fail)
    async with asyncio.TaskGroup() as group:
        for _ in range(20):
            group.create_task(database.write_in_one(add))
            group.create_task(add_apart())
    async with database.read() as tx:
        numbers = (await tx.execute(text("SELECT number FROM kept ORDER BY number"))).scalars().all()
    assert list(numbers) == list(range(40))
    await database.close()


@pytest.mark.requirement("F4")
async def test_work_in_one_piece_says_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `write` does, when another process holds the database, and goes on when it is free."""
    monkeypatch.setattr(node.database, "BUSY_TIMEOUT_SECONDS", 0)
    database = Database(f"sqlite+aiosqlite:///{tmp_path}/node.db")
    await database.write_in_one(
        lambda connection: connection.execute(text("CREATE TABLE kept (number INTEGER)"))
    )
    other = sqlite3.connect(tmp_path / "node.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match="locked"):
        await database.write_in_one(lambda connection: None)
    other.execute("COMMIT")
    other.close()
    await database.write_in_one(lambda connection: None)
    await database.close()
