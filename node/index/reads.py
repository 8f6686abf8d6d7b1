"""Short reads for the paths that run thousands of times a minute.

A transaction through the asynchronous SQLite driver costs several thread hops (1.4 ms of CPU measured); a
look-up by primary key in WAL mode costs microseconds and never waits for a writer. So on SQLite point reads
run in place on a read-only connection, longer ones in a worker thread. Other databases use the async engine.
Every statement sees the newest committed state on its own; nothing here needs a snapshot over several.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from sqlalchemy import Connection, Engine, Executable, Row, Select, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import QueuePool

from node.database import READ_MEND, Database, errors_in_words

READERS = 4
BUSY_TIMEOUT_MILLISECONDS = 5000

Parameters = Mapping[str, Any]


class Reads:
    """Runs SELECTs; `close` when done."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._engine: Engine | None = None
        self._own: Connection | None = None
        self._texts: dict[Select[Any], tuple[str, tuple[str, ...]]] = {}
        if database.engine.dialect.name == "sqlite":
            self._engine = create_engine(
                database.engine.url.set(drivername="sqlite"),
                poolclass=QueuePool,
                pool_size=READERS,
                max_overflow=READERS,
                connect_args={"check_same_thread": False},
                isolation_level="AUTOCOMMIT",
                hide_parameters=True,
            )
            event.listen(self._engine, "connect", _prepare)

    async def point(self, statement: Executable, parameters: Parameters | None = None) -> Sequence[Row[Any]]:
        """A look-up by key that touches a handful of rows."""
        if self._engine is None:
            return await self._remote(statement, parameters)
        try:
            if self._own is None:
                self._own = self._engine.connect()
            return self._own.execute(statement, parameters or {}).all()
        except DBAPIError:
            with _errors_in_words():
                raise

    async def values(self, statement: Select[Any], parameters: Parameters) -> Sequence[tuple[Any, ...]]:
        """`point` for the look-up that every instance makes: the columns as SQLite itself gives them."""
        if self._engine is None:
            return [tuple(row) for row in await self._remote(statement, parameters)]
        try:
            if self._own is None:
                self._own = self._engine.connect()
            known = self._texts.get(statement)
            if known is None:
                made = statement.compile(dialect=self._engine.dialect)
                known = self._texts[statement] = (str(made), tuple(made.positiontup or ()))
            text, names = known
            driver = self._own.connection.driver_connection
            assert driver is not None
            found: list[tuple[Any, ...]] = driver.execute(
                text, [parameters[name] for name in names]
            ).fetchall()
            return found
        except (DBAPIError, sqlite3.DatabaseError):
            with _errors_in_words():
                raise

    async def rows(self, statement: Executable, parameters: Parameters | None = None) -> Sequence[Row[Any]]:
        """A read that may touch many rows."""
        if self._engine is None:
            return await self._remote(statement, parameters)
        return await asyncio.to_thread(self._local, self._engine, statement, parameters)

    def close(self) -> None:
        """Close the connections of this object; the database itself stays open."""
        if self._own is not None:
            self._own.close()
            self._own = None
        if self._engine is not None:
            self._engine.dispose()

    @staticmethod
    def _local(engine: Engine, statement: Executable, parameters: Parameters | None) -> Sequence[Row[Any]]:
        try:
            with engine.connect() as connection:
                return connection.execute(statement, parameters or {}).all()
        except DBAPIError:
            with _errors_in_words():
                raise

    async def _remote(self, statement: Executable, parameters: Parameters | None) -> Sequence[Row[Any]]:
        async with self._database.read() as tx:
            return (await tx.execute(statement, parameters or {})).all()


def _prepare(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    for pragma in (
        "query_only=ON",
        f"busy_timeout={BUSY_TIMEOUT_MILLISECONDS}",
        "temp_store=MEMORY",
        "cache_size=-8192",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _errors_in_words() -> AbstractContextManager[None]:
    """Entered where an error is on its way: every instance passes here, and pays nothing while all is well."""
    return errors_in_words("be read", READ_MEND)
