"""The database: one engine by URL, transactions, and the few dialect differences.

Holds no table (each floor's `schema.py` does) and no rule. Writers take turns inside a process through one
lock and, on SQLite, across processes through BEGIN IMMEDIATE, so whoever appends to the log inside a
transaction sees the log's latest state. SQLite runs in WAL mode with synchronous=FULL: when a `write()`
block has ended without an error, what it wrote is durable.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from sqlalchemy import BigInteger, Connection, Dialect, Engine, MetaData, create_engine, event
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.types import TypeDecorator

from consent.errors import Unavailable

Tx = AsyncConnection
"""A connection inside a transaction. Functions that take a `Tx` never commit."""

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

T = TypeVar("T")
BUSY_TIMEOUT_SECONDS = 15
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC moment, stored as microseconds since 1970 so that every dialect gives the same back."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("naive datetime: give an aware one")
        return (value - _EPOCH) // timedelta(microseconds=1)

    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:
        return None if value is None else _EPOCH + timedelta(microseconds=value)


class Database:
    """Readers and one writer at a time over an engine made from `url`."""

    def __init__(self, url: str) -> None:
        self.url = url
        # An error's text reaches the operator's output: it must not carry the values of a statement.
        self._engine: AsyncEngine = create_async_engine(
            url, pool_size=8, max_overflow=8, hide_parameters=True, pool_reset_on_return=None
        )  # `read` and `write` end what they began: the pool need not roll back once more
        self._writer = asyncio.Lock()
        self._in_one: Engine | None = None
        self._thread: ThreadPoolExecutor | None = None
        if self._engine.dialect.name == "sqlite":
            event.listen(self._engine.sync_engine, "connect", _prepare_sqlite)
            address = self._engine.url.set(drivername="sqlite")
            self._in_one = create_engine(address, pool_size=1, hide_parameters=True)
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="database")
            event.listen(self._in_one, "connect", _prepare_sqlite)

    @property
    def engine(self) -> AsyncEngine:
        """The engine, for migrations."""
        return self._engine

    @asynccontextmanager
    async def write(self) -> AsyncIterator[Tx]:
        """A transaction that may write; commits on a clean exit, rolls back on an error.

        Raises Unavailable when the disk is full or another process holds the database too long.
        """
        with _write_errors():
            async with self._writer, self._engine.connect() as connection:
                try:
                    if self._engine.dialect.name == "sqlite":
                        await connection.exec_driver_sql("BEGIN IMMEDIATE")
                    else:
                        await connection.begin()
                    yield connection
                    await connection.commit()
                except BaseException:
                    await connection.rollback()
                    raise

    async def write_in_one(self, work: Callable[[Connection], T]) -> T:
        """A transaction like `write` that is all `work`, which may only use its connection: it may run in a thread.

        For what happens with every request: on SQLite each statement of `write` costs two hops between threads.
        """
        if self._in_one is None or self._thread is None:
            async with self.write() as tx:
                return await tx.run_sync(work)
        loop = asyncio.get_running_loop()
        with _write_errors():
            async with self._writer:
                return await loop.run_in_executor(self._thread, _written, self._in_one, work)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Tx]:
        """A connection for reading a consistent snapshot; never waits for the writer on SQLite.

        Raises Unavailable when the disk fails, or no connection comes free.
        """
        try:
            async with self._engine.connect() as connection:
                if self._engine.dialect.name == "sqlite":
                    await connection.exec_driver_sql("BEGIN")
                yield connection
                await connection.rollback()
        except (OperationalError, PoolTimeout) as error:
            raise Unavailable(
                f"The database cannot be read now ({_reason(error)}).",
                mend="Try again; if it lasts, look at the disk and run `accord doctor`.",
            ) from error

    async def create_tables(self, tables: MetaData = metadata) -> None:
        """Create every table from its definition: for tests; a node uses the migrations."""
        async with self.write() as tx:
            await tx.run_sync(_create, tables)

    async def close(self) -> None:
        """Close every connection."""
        if self._in_one is not None and self._thread is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._in_one.dispose)
            self._thread.shutdown()
        await self._engine.dispose()


def _written(engine: Engine, work: Callable[[Connection], T]) -> T:
    with engine.connect() as connection:
        try:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            result = work(connection)
            connection.commit()
        except BaseException:
            connection.rollback()
            raise
        return result


@contextmanager
def _write_errors() -> Iterator[None]:
    try:
        yield
    except (OperationalError, PoolTimeout) as error:
        raise Unavailable(
            f"The database cannot write now ({_reason(error)}).",
            mend="Free disk space or end the other process that uses this folder, then try again.",
        ) from error


def _create(connection: Connection, tables: MetaData) -> None:
    tables.create_all(connection)


def _reason(error: OperationalError | PoolTimeout) -> str:
    if isinstance(error, PoolTimeout):
        return "every connection is in use"
    return str(error.orig).split("\n", maxsplit=1)[0]


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # The driver's own transaction handling is switched off: it would start a deferred one at the first
    # write, which cannot be upgraded when another process wrote in between.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        "secure_delete=ON",
        f"busy_timeout={BUSY_TIMEOUT_SECONDS * 1000}",
        "temp_store=MEMORY",
        "cache_size=-16384",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
