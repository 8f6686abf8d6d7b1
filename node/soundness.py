"""Whether the database's own pages hold together: looked at, mended from what is whole, and put on record.

A damaged search tree makes rows vanish from answers without a word, so it is looked for and not waited for. SQLite checks
itself, on a connection of its own that has no page in memory, in a thread of low priority. Leaves to `search_trees` what is
done there, and to `rebuilding` which tables can be filled from elsewhere.

Invariant: nothing that was found is passed over; where the log cannot be written the operators' log has it. PostgreSQL is left
to its own means (page checksums, pg_amcheck).
"""

from __future__ import annotations

import asyncio
import os
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
from node import search_trees
from node.audit.event import Detail, Event
from node.audit.log import Log
from node.database import DAMAGED, READ_MEND, RUNBOOK, Database, errors_in_words
from node.index.tables import STUDIES
from node.search_trees import LOST, Damage
from node.vault.key_tables import vault_kek, vault_regrade, vault_secret, vault_study_key

MAX_TOLD = 20
BUSY_SECONDS = 15.0
NICE = 10
INTERRUPT_SECONDS = 0.05

KEY_TABLES = frozenset(table.name for table in (vault_kek, vault_study_key, vault_secret, vault_regrade))
"""What stands there stands nowhere else: not even a search tree of theirs is given up against doubt."""
STUDY_NAMES = (STUDIES.name, STUDIES.c.study.name)
"""The index knows every study that has a key, by a table of its own."""

T = TypeVar("T")
logger = structlog.get_logger()


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
        found = await _apart(self._file, search_trees.look, limit_seconds=limit_seconds, otherwise=LOST)
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
                    self._file,
                    lambda one: search_trees.mend(
                        one, damage, trees, keep=keep, irreplaceable=KEY_TABLES, witness=STUDY_NAMES
                    ),
                    otherwise=damage,
                )
                left = tried or damage
            if keep and not left.tables and (left.file or left.unused):
                left = await _apart(self._file, search_trees.compact, otherwise=left) or left
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
