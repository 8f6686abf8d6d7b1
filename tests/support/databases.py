"""Databases with every table, without the cost of making the tables for each test."""

from __future__ import annotations

import sqlite3
from functools import cache
from pathlib import Path

from sqlalchemy import create_engine
from sqlalchemy.pool import StaticPool

from node.database import Database, metadata


def database_in(file: Path) -> Database:
    """A database in `file`: the one that lies there, else an empty one with each table that a loaded module defines."""
    if not file.exists():
        file.write_bytes(_empty(len(metadata.tables)))
    return Database(f"sqlite+aiosqlite:///{file}")


@cache
def _empty(tables: int) -> bytes:
    """The file of an empty database. `tables` is how many there are by now: a module loaded later adds its own."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    with engine.connect() as connection:
        metadata.create_all(connection)
        connection.commit()
        made = connection.connection.driver_connection
        assert isinstance(made, sqlite3.Connection)
        content = made.serialize()
    engine.dispose()
    return content
