"""Bringing a database to this version's schema, and refusing one that is newer.

Migrations only go forward. Before an upgrade of a database that holds data, a SQLite file is copied beside
itself (`VACUUM INTO`), so that an operator can go back by putting the copy in place.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from sqlalchemy import Connection, inspect, text

from consent.errors import Conflict
from node.database import Database

if TYPE_CHECKING:
    from alembic.config import Config

_log = structlog.get_logger("migrate")
_LOCATION = Path(__file__).parent / "migrations"


@dataclass(frozen=True)
class Schema:
    """A database's revision (None: it holds nothing yet) and the newest that this version knows."""

    current: str | None
    head: str

    @property
    def older(self) -> bool:
        """Whether it must be upgraded before this version works on it."""
        return self.current != self.head


async def schema_of(database: Database) -> Schema:
    """Look at a database and change nothing. Raises Conflict when it is newer than this version."""
    known = _revisions()
    if database.engine.dialect.name == "sqlite" and not _file(database.url).exists():
        return Schema(None, known[-1])  # to connect would make it
    async with database.read() as tx:
        current = await tx.run_sync(_current)
    if current is not None and current not in known:
        raise Conflict(
            "The database was made by a newer version of Accord.",
            mend="Upgrade this installation, or restore the copy made before the upgrade.",
            code="newer-schema",
        )
    return Schema(current, known[-1])


async def migrate(database: Database) -> str:
    """Upgrade to the newest revision; return it. Raises Conflict when the database is newer than this version."""
    schema = await schema_of(database)
    current, head = schema.current, schema.head
    if not schema.older:
        return head
    if current is not None and database.engine.dialect.name == "sqlite":
        async with database.engine.connect() as connection:
            await _copy_aside(connection, database.url, current)
    async with database.write() as tx:
        await tx.run_sync(_upgrade)
    _log.info("database upgraded", from_revision=current, to_revision=head)
    return head


async def _copy_aside(connection: Any, url: str, revision: str) -> None:
    file = _file(url)
    copy = file.with_name(f"{file.stem}-before-{revision}.db")
    if not copy.exists():
        await connection.exec_driver_sql("VACUUM INTO ?", (str(copy),))


def _file(url: str) -> Path:
    return Path(url.partition(":///")[2])


def _revisions() -> list[str]:
    """The revisions of this version, oldest first: their files are named by number."""
    return sorted(file.name.partition("_")[0] for file in (_LOCATION / "versions").glob("[0-9]*_*.py"))


def _current(connection: Connection) -> str | None:
    # Not by Alembic: a start that has nothing to upgrade need not import it.
    if not inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return found


def _config(connection: Connection) -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_LOCATION))
    config.attributes["connection"] = connection
    return config


def _upgrade(connection: Connection) -> None:
    from alembic import command

    command.upgrade(_config(connection), "head")


def write_revision(connection: Connection, message: str, number: str) -> None:
    """For developers: write a revision with what the tables in code have and the database lacks."""
    from alembic import command

    command.revision(_config(connection), message=message, autogenerate=True, rev_id=number)
