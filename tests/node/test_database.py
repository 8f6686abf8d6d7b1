"""The database: what goes wrong below comes up as Unavailable, in words."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import text

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
