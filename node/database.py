"""The database: one engine by URL, transactions, and the few dialect differences.

Holds no table (each floor's `schema.py` does) and no rule. Writers take turns inside a process through one
lock and, on SQLite, across processes through BEGIN IMMEDIATE, so whoever appends to the log inside a
transaction sees the log's latest state. SQLite runs in WAL mode with synchronous=FULL: when a `write()`
block has ended without an error, what it wrote is durable.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any, TypeVar

from sqlalchemy import URL, BigInteger, Connection, Dialect, MetaData, create_engine, event
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.types import TypeDecorator

from consent.errors import AccordError, Corrupt, Sentence, Unavailable

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
READ_THREADS = 2
READ_MEND = "Try again; if it lasts, look at the disk and run `accord doctor`."
WRITE_MEND = "Free disk space or end the other process that uses this folder, then try again."
RUNBOOK = Sentence("Run accord doctor, and follow the runbook for a damaged database: damaged-database.md.")
DAMAGED = "database-damaged"
"""The code of the error for a database whose own pages do not hold together."""
_DAMAGED_SQLITE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_DAMAGED_STATES = frozenset({"XX001", "XX002"})
"""PostgreSQL, Appendix A: data_corrupted, index_corrupted."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_CARRIED = "accord-carried"


def microseconds(value: datetime) -> int:
    """An aware moment as whole microseconds since 1970."""
    return (value - _EPOCH) // timedelta(microseconds=1)


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC moment, stored as microseconds since 1970 so that every dialect gives the same back."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("naive datetime: give an aware one")
        return microseconds(value)

    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:
        return None if value is None else _EPOCH + timedelta(microseconds=value)


@dataclass
class Carried:
    """What a transaction has with it besides its statements.

    `rows` is the state of the sealed rows that it made, for the next log entry in it (`node.access.ledger`);
    `afterwards` is awaited once it has ended, either way, and before anybody hears how it ended; `began` (seconds,
    monotonic) is no later than what it reads.
    """

    began: float = field(default_factory=monotonic)
    rows: int | None = None
    committed: bool = False
    afterwards: list[Callable[[], Awaitable[None]]] = field(default_factory=list)


def carried(connection: Connection | Tx) -> Carried:
    """What the present transaction of this connection has with it."""
    found: Carried = connection.info.setdefault(_CARRIED, Carried())
    return found


class Database:
    """Readers and one writer at a time over an engine made from `url`."""

    def __init__(self, url: str) -> None:
        self.url = url
        # An error's text reaches the operator's output: it must not carry the values of a statement.
        self._engine: AsyncEngine = create_async_engine(
            url, pool_size=8, max_overflow=8, hide_parameters=True, pool_reset_on_return=None
        )  # `read` and `write` end what they began: the pool need not roll back once more
        self._writer = asyncio.Lock()
        self._in_one: _InOne | None = None
        if self._engine.dialect.name == "sqlite":
            event.listen(self._engine.sync_engine, "connect", _prepare_sqlite)
            self._in_one = _InOne(self._engine.url)

    @property
    def engine(self) -> AsyncEngine:
        """The engine, for migrations."""
        return self._engine

    @asynccontextmanager
    async def write(self) -> AsyncIterator[Tx]:
        """A transaction that may write; commits on a clean exit, rolls back on an error.

        Raises Unavailable when the disk is full or another process holds the database too long.
        """
        with_it = Carried()
        try:
            with errors_in_words("write", WRITE_MEND):
                async with self._writer, self._engine.connect() as connection:
                    connection.info[_CARRIED] = with_it
                    try:
                        if self._engine.dialect.name == "sqlite":
                            await connection.exec_driver_sql("BEGIN IMMEDIATE")
                        else:
                            await connection.begin()
                        yield connection
                        await connection.commit()
                        with_it.committed = True
                    except BaseException:
                        await connection.rollback()
                        raise
        finally:
            for duty in with_it.afterwards:
                await duty()

    async def write_in_one(self, work: Callable[[Connection], T]) -> T:
        """A transaction like `write` that is all `work`, which may only use its connection: it may run in a thread.

        For what happens with every request: on SQLite each statement of `write` costs two hops between threads.
        """
        if self._in_one is None:
            async with self.write() as tx:
                return await tx.run_sync(work)
        with errors_in_words("write", WRITE_MEND):
            async with self._writer:
                return await self._in_one.write(work)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Tx]:
        """A connection for reading a consistent snapshot; never waits for the writer on SQLite.

        Raises Unavailable when the disk fails, or no connection comes free.
        """
        with_it = Carried()
        try:
            with errors_in_words("be read", READ_MEND):
                async with self._engine.connect() as connection:
                    connection.info[_CARRIED] = with_it
                    if self._engine.dialect.name == "sqlite":
                        await connection.exec_driver_sql("BEGIN")
                    else:
                        await connection.execution_options(isolation_level="REPEATABLE READ")
                    yield connection
                    await connection.rollback()
        finally:
            for duty in with_it.afterwards:
                await duty()

    async def read_in_one(self, work: Callable[[Connection], T]) -> T:
        """A snapshot like `read` that is all `work`; see `write_in_one`."""
        if self._in_one is None:
            async with self.read() as tx:
                return await tx.run_sync(work)
        with errors_in_words("be read", READ_MEND):
            return await self._in_one.read(work)

    async def look_up(self, work: Callable[[Connection], T]) -> T:
        """`read_in_one` for one SELECT by key: on SQLite it runs in place, which costs less than a hop to a thread.

        It waits for no writer. With every request; what may read many rows belongs in `read_in_one`.
        """
        if self._in_one is None:
            return await self.read_in_one(work)
        with errors_in_words("be read", READ_MEND):
            return self._in_one.look_up(work)

    async def purge_journal(self) -> bool:
        """Truncate SQLite's write-ahead log, which keeps older pages; return whether no reader held it for too long.

        On other databases there is nothing to do here.
        """
        if self._engine.dialect.name != "sqlite":
            return True
        with errors_in_words("write", WRITE_MEND):
            async with self._engine.connect() as connection:
                busy, *_ = (await connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")).one()
        return not busy

    @asynccontextmanager
    async def writers_waiting(self) -> AsyncIterator[None]:
        """Let no writer of this process have its turn, for work on the database as a whole."""
        async with self._writer:
            yield

    async def close(self) -> None:
        """Close every connection."""
        if self._in_one is not None:
            await self._in_one.close()
        await self._engine.dispose()


class _InOne:
    """Whole transactions on SQLite, each in one go in a thread: one for the writer, READ_THREADS for readers."""

    def __init__(self, url: URL) -> None:
        self._engine = create_engine(
            url.set(drivername="sqlite"),
            pool_size=2 + READ_THREADS,
            hide_parameters=True,
            pool_reset_on_return=None,
        )
        event.listen(self._engine, "connect", _prepare_sqlite)
        self._writing = ThreadPoolExecutor(1, thread_name_prefix="database-write")
        self._reading = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="database-read")
        self._own: Connection | None = None

    async def write(self, work: Callable[[Connection], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._writing, self._written, work)

    async def read(self, work: Callable[[Connection], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._reading, self._read, work)

    def look_up(self, work: Callable[[Connection], T]) -> T:
        if self._own is None:
            # A connection of the caller's thread, which sees with every SELECT what is committed by then.
            self._own = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        self._own.info[_CARRIED] = Carried()
        return work(self._own)

    async def close(self) -> None:
        if self._own is not None:
            self._own.close()
            self._own = None
        for threads in (self._reading, self._writing):
            await asyncio.to_thread(threads.shutdown)
        self._engine.dispose()

    def _written(self, work: Callable[[Connection], T]) -> T:
        with self._engine.connect() as connection:
            connection.info[_CARRIED] = Carried()
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            try:
                result = work(connection)
                connection.commit()
            except BaseException:
                connection.rollback()
                raise
            return result

    def _read(self, work: Callable[[Connection], T]) -> T:
        with self._engine.connect() as connection:
            connection.info[_CARRIED] = Carried()
            connection.exec_driver_sql("BEGIN")
            try:
                return work(connection)
            finally:
                connection.rollback()


@contextmanager
def errors_in_words(doing: str, mend: str) -> Iterator[None]:
    """What a database raises, as Corrupt when its bytes are not what was written, else Unavailable; our own mistakes as
    they are.
    """
    try:
        yield
    except (DBAPIError, PoolTimeout, sqlite3.DatabaseError) as error:
        known = _in_words(error, doing, mend)
        if known is None:
            raise
        raise known from error


def _in_words(
    error: DBAPIError | PoolTimeout | sqlite3.DatabaseError, doing: str, mend: str
) -> AccordError | None:
    if isinstance(error, PoolTimeout):
        return Unavailable(f"The database cannot {doing} now (every connection is in use).", mend=mend)
    raised = error.orig if isinstance(error, DBAPIError) else error
    if _is_damage(raised):
        return Corrupt(Sentence("The database is damaged."), mend=RUNBOOK, code=DAMAGED)
    if isinstance(error, OperationalError | sqlite3.OperationalError):
        reason = str(raised).split("\n", maxsplit=1)[0]
        return Unavailable(f"The database cannot {doing} now ({reason}).", mend=mend)
    return None


def _is_damage(raised: BaseException | None) -> bool:
    code = getattr(raised, "sqlite_errorcode", None) or 0
    if code & 0xFF in _DAMAGED_SQLITE or getattr(raised, "sqlstate", None) in _DAMAGED_STATES:
        return True
    # The driver's own words for text that is none; they go on with the value, which nobody may read.
    return isinstance(raised, sqlite3.OperationalError) and str(raised).startswith(
        "Could not decode to UTF-8"
    )


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
