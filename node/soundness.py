"""Whether the database's own pages hold together; its search trees made anew from its tables.

A damaged search tree makes rows vanish from answers without a word, so it is looked for and not waited for. SQLite checks
itself (`PRAGMA integrity_check`), on a connection of its own that has no page in memory, in a thread of low priority. A tree
holds nothing that its table does not: each gets a new root and is filled again. Tables that somebody can fill from
elsewhere are given up likewise. Leaves to `rebuilding` which tables those are.

Invariants: a look writes nothing; what is mended is one transaction, kept only when SQLite finds what it leaves to be
whole; no row of a table that is kept is written. PostgreSQL is left to its own means (page checksums, pg_amcheck).
"""

from __future__ import annotations

import asyncio
import os
import re
import sqlite3
import threading
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import structlog

from consent.errors import Corrupt, Sentence
from consent.vocabulary import EventKind, Outcome
from node.audit.event import Detail, Event
from node.audit.log import Log
from node.database import DAMAGED, READ_MEND, RUNBOOK, WRITE_MEND, Database, errors_in_words

MAX_MESSAGES = 1000
"""What one look hears of SQLite at most."""
MAX_VACUUM_BYTES = 256 * 1024 * 1024
"""A larger file is not written anew to be rid of pages that nothing uses: its copy would be held in memory."""
MAX_TOLD = 20
BUSY_SECONDS = 15.0
NICE = 10
INTERRUPT_SECONDS = 0.05

_UNUSED = re.compile(r"Page \d+(?: is|:) never used")
_NAMED = re.compile(r"(?:from|in) index (\S+)$")
_ROOTED = re.compile(r"(?:On tree page|Tree) (\d+)\b")
_HELPER = "accord_new_trees"
_TREE = "accord_new_tree"
T = TypeVar("T")
logger = structlog.get_logger()


@dataclass(frozen=True)
class Damage:
    """What is damaged: `names` for people, the `tables` that this concerns (themselves or their search trees), and whether
    the `file` is damaged beyond that.

    `unused` says that pages are lost to use, which harms nobody. `looked` is False where nothing can be looked at, `finished`
    is False when the time was over first.
    """

    names: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    file: bool = False
    unused: bool = False
    looked: bool = True
    finished: bool = True

    @property
    def sound(self) -> bool:
        """Whether nothing was found."""
        return not (self.tables or self.file)


LOST = Damage(("database",), file=True)
"""A file that SQLite cannot read at all."""


def damaged(damage: Damage) -> Corrupt:
    """The error for damage that cannot be made good from within."""
    names = ", ".join(damage.names[:MAX_TOLD])
    return Corrupt(Sentence("The database is damaged: %(names)s.", names=names), mend=RUNBOOK, code=DAMAGED)


class Soundness:
    """Looks at one node's database, and mends it where that can be done from what is whole."""

    def __init__(self, database: Database) -> None:
        self._database = database
        url = database.engine.url
        self._file = Path(url.database) if url.get_backend_name() == "sqlite" and url.database else None

    async def look(self, *, limit_seconds: float | None = None) -> Damage:
        """Read every page; with a limit, no longer than that. Raises Unavailable when there is no file or the disk fails."""
        if self._file is None:
            return Damage(looked=False)
        found = await _apart(self._file, _found, limit_seconds=limit_seconds, otherwise=LOST)
        return Damage(finished=False) if found is None else found

    async def mend(self, damage: Damage, *, emptied: Collection[str] = (), keep: bool = True) -> Damage:
        """Make the search trees of the damaged tables anew; return what is still damaged.

        Those of `emptied` that are damaged themselves are left without rows. Without `keep` it is only tried. Other writers
        wait meanwhile. Raises Unavailable when the database cannot be written.
        """
        if self._file is None or damage.sound:
            return damage
        trees = frozenset(emptied)
        async with self._database.writers_waiting():
            left = damage
            if damage.tables:
                tried = await _apart(
                    self._file, lambda one: _mended(one, damage, trees, keep=keep), otherwise=damage
                )
                left = tried or damage
            if keep and not left.tables and (left.file or left.unused):
                left = await _apart(self._file, _compacted, otherwise=left) or left
        return left


@dataclass(frozen=True)
class Kept:
    """What was `found` damaged, and what of it is `left` because it cannot be mended from within."""

    found: Damage
    left: Damage


async def keep_sound(
    database: Database, log: Log, actor: str, *, emptied: Collection[str] = (), mend: bool = True
) -> Kept:
    """Look, mend what can be mended, put it on record; without `mend` it is only tried. Raises Unavailable.

    Where even the log cannot be written, the operators' log says it.
    """
    soundness = Soundness(database)
    found = await soundness.look()
    if found.sound:
        return Kept(found, found)
    left = await soundness.mend(found, emptied=emptied, keep=mend)
    mended = mend and left.sound
    names = (found if left.sound else left).names[:MAX_TOLD]
    logger.error("database damaged", names=names, mended=mended)
    words = Sentence("The database is damaged.")
    if mended:
        words = Sentence("Parts of the database were damaged and were made anew.")
    detail: dict[str, Detail] = {"database": list(names), "mended": mended, "mendable": left.sound}
    event = Event(EventKind.INTEGRITY_FAILED, actor, Outcome.FAILED, reason=words, detail=detail)
    with suppress(Corrupt):
        await log.record(event)
    return Kept(found, left)


async def _apart(
    file: Path,
    work: Callable[[sqlite3.Connection], T],
    *,
    limit_seconds: float | None = None,
    otherwise: T,
) -> T | None:
    """Do something on a connection of its own in a thread that gives way to others.

    None when the time was over first; `otherwise` where the file lets nothing be done.
    """
    connections: list[sqlite3.Connection] = []
    threads = ThreadPoolExecutor(1, thread_name_prefix="soundness", initializer=_give_way)
    running = asyncio.get_running_loop().run_in_executor(
        threads, lambda: _done(file, work, connections, otherwise)
    )
    try:
        await asyncio.wait([running], timeout=limit_seconds)
        if not running.done():
            return None
        return running.result()
    finally:
        while not running.done():  # its time is over, or the node stops
            for connection in connections:
                with suppress(sqlite3.ProgrammingError):  # closed this moment
                    connection.interrupt()
            await asyncio.sleep(INTERRUPT_SECONDS)
        running.exception()  # looked at, whoever waits
        threads.shutdown(wait=False)


def _done(
    file: Path, work: Callable[[sqlite3.Connection], T], connections: list[sqlite3.Connection], otherwise: T
) -> T:
    try:
        with errors_in_words("be looked at", READ_MEND), closing(_connect(file)) as connection:
            connections.append(connection)
            for pragma in ("synchronous=FULL", "secure_delete=ON", "temp_store=MEMORY", "cache_size=-16384"):
                connection.execute(f"PRAGMA {pragma}")
            return work(connection)
    except Corrupt:
        return otherwise


def _connect(file: Path) -> sqlite3.Connection:
    return sqlite3.connect(
        f"file:{quote(str(file))}?mode=rw", uri=True, timeout=BUSY_SECONDS, isolation_level=None
    )


def _give_way() -> None:
    """Linux: of this thread alone, which ends with what it does."""
    with suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)


def _found(connection: sqlite3.Connection) -> Damage:
    """SQLite's own words, by the tables that they are about."""
    said = _said(connection)
    unused = any(_UNUSED.fullmatch(words) for words in said or ())
    if said is not None and all(_UNUSED.fullmatch(words) for words in said):
        return Damage(unused=unused)
    schema = connection.execute("SELECT type, name, tbl_name, rootpage FROM sqlite_schema").fetchall()
    names: set[str] = set()
    tables = [name for kind, name, _, _ in schema if kind == "table"]
    bad = {table: _said(connection, table) for table in tables}
    concerned = tuple(sorted(table for table, said in bad.items() if said != []))
    for table in concerned:
        names |= _named(bad[table], {root: name for _, name, of, root in schema if of == table}) or {table}
    # What no table shows by itself is in the list of free pages, or two have the same page.
    return Damage(tuple(sorted(names)) or LOST.names, concerned, not concerned, unused)


def _named(said: list[str] | None, roots: dict[int, str]) -> set[str]:
    """The trees that SQLite's words are about, as far as they say so."""
    found: set[str] = set()
    for words in said or ():
        if named := _NAMED.search(words):
            found.add(named[1])
        elif (rooted := _ROOTED.search(words)) and int(rooted[1]) in roots:
            found.add(roots[int(rooted[1])])
    return found


def _said(connection: sqlite3.Connection, table: str = "") -> list[str] | None:
    """What SQLite says of the whole database or of one table, line by line; None when it gives up over it."""
    try:
        rows = connection.execute(
            f"PRAGMA integrity_check({_quoted(table) if table else MAX_MESSAGES})"
        ).fetchall()
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_CORRUPT:
            raise
        return None
    lines = [line for (text,) in rows for line in str(text).splitlines()]
    return [line for line in lines if line != "ok" and not line.startswith("***")]


def _mended(connection: sqlite3.Connection, damage: Damage, emptied: frozenset[str], *, keep: bool) -> Damage:
    """New trees for every table that is damaged; what is left is the tables that are damaged themselves."""
    broken: set[str] = set()
    while True:
        with errors_in_words("write", WRITE_MEND):
            connection.execute("BEGIN IMMEDIATE")
            try:
                failed, left = _round(connection, damage, broken, emptied)
                if left.sound and keep:
                    connection.execute("COMMIT")
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
        if not failed:
            return left
        broken.add(failed)  # begin again: SQLite promises nothing of a transaction that met damage


def _round(
    connection: sqlite3.Connection, damage: Damage, broken: set[str], emptied: frozenset[str]
) -> tuple[str, Damage]:
    """Do all of it, without the tables that are known to be broken; name the one that shows itself to be, if one does."""
    trees = _Trees(connection)
    for table in damage.tables:
        if table not in broken:
            if not trees.made_anew(table):
                return table, damage
        elif table in emptied:
            trees.begin_anew(table)
    trees.end()
    left = tuple(sorted(broken - emptied))
    return "", Damage(left, left) if left else _found(connection)


class _Trees:
    """Gives search trees new roots, inside a transaction. What hung on the old ones is used by nothing afterwards."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._execute = connection.execute
        self._connection = connection
        self._schema = self._execute("SELECT type, name, tbl_name, sql FROM sqlite_schema").fetchall()
        self._execute(f"CREATE TABLE {_HELPER} (a)")

    def end(self) -> None:
        """Leave nothing but the new trees."""
        self._execute(f"DROP TABLE {_HELPER}")

    def made_anew(self, table: str) -> bool:
        """Fill new trees from the table; False when the table itself is damaged: the transaction is of no use then."""
        indexes = [name for kind, name, of, _ in self._schema if kind == "index" and of == table]
        try:
            for index in indexes:
                self._graft(index)
            # The trees are empty now: whatever SQLite says beside that is about the table.
            said = _said(self._connection, table)
            if said is None or not all(_NAMED.search(words) for words in said):
                return False
            for index in indexes:
                # Alone it would first walk the old tree, and free pages that may be another's.
                self._execute(f"REINDEX {_quoted(index)}")
            return _said(self._connection, table) == []
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            return False

    def begin_anew(self, table: str) -> None:
        """The table and its trees as when they were made, without rows."""
        self._execute("PRAGMA writable_schema=ON")
        try:
            self._execute("DELETE FROM sqlite_schema WHERE tbl_name = ?", (table,))
        finally:
            self._execute("PRAGMA writable_schema=RESET")
        for _, _, of, made in self._schema:
            if of == table and made:
                self._execute(made)

    def _graft(self, index: str) -> None:
        """Let a tree begin at a new, empty page."""
        self._execute(f"CREATE INDEX {_TREE} ON {_HELPER} (a)")
        self._execute("PRAGMA writable_schema=ON")
        try:
            new = "SELECT rootpage FROM sqlite_schema WHERE name = ?"
            (root,) = self._execute(new, (_TREE,)).fetchone()
            self._execute("UPDATE sqlite_schema SET rootpage = ? WHERE name = ?", (root, index))
            self._execute("DELETE FROM sqlite_schema WHERE name = ?", (_TREE,))
        finally:
            self._execute("PRAGMA writable_schema=RESET")  # reads the schema anew, and guards it again


def _compacted(connection: sqlite3.Connection) -> Damage:
    """The file written anew from its trees, where it is small: free pages and those that nothing uses come right."""
    (pages,), (size,) = (
        connection.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "page_size")
    )
    if pages * size <= MAX_VACUUM_BYTES:
        with errors_in_words("write", WRITE_MEND):
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return _found(connection)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
