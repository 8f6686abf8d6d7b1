"""Bringing a database to this version's schema: fresh, again, from an older one, and never from a newer one."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, text

from consent.errors import Conflict
from node.database import Database
from ops import migrate as migrating
from ops.migrate import migrate
from ops.schema import metadata
from tests.support.cli import accord

NEXT = '''"""A later revision."""

import sqlalchemy as sa
from alembic import op

revision = "9999"
down_revision = "{head}"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("person", sa.Column("nickname", sa.Text(), nullable=True))
    {more}
'''


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(f"sqlite+aiosqlite:///{tmp_path / 'accord.db'}")
    yield database
    await database.close()


def later_version(folder: Path, monkeypatch: pytest.MonkeyPatch, head: str, more: str = "") -> None:
    """From here on the installation has one more revision than the shipped ones."""
    shutil.copytree(migrating._LOCATION, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "versions" / "9999_later.py").write_text(NEXT.format(head=head, more=more), "utf-8")
    monkeypatch.setattr(migrating, "_LOCATION", folder)


@pytest.mark.requirement("F3")
async def test_a_fresh_database_gets_exactly_the_tables_of_the_code(database: Database) -> None:
    """Nothing that the code has is missing after the shipped revisions, and nothing is left over."""
    head = await migrate(database)

    def difference(connection: Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection), metadata))

    async with database.engine.connect() as connection:
        assert await connection.run_sync(difference) == []
    assert head


async def test_a_second_run_changes_nothing(database: Database, tmp_path: Path) -> None:
    """The same revision, no copy, the data still there."""
    head = await migrate(database)
    await _add_person(database)
    assert await migrate(database) == head
    assert await _people(database) == ["dr.li"]
    assert list(tmp_path.glob("*before*")) == []


async def test_an_upgrade_keeps_the_data_and_leaves_a_copy_of_before(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy is a whole database of the old revision that can be put back in place."""
    head = await migrate(database)
    await _add_person(database)
    later_version(tmp_path / "later", monkeypatch, head)
    assert await migrate(database) == "9999"
    assert await _people(database) == ["dr.li"]
    [copy] = tmp_path.glob("*before*")
    assert copy.name == f"accord-before-{head}.db"
    with sqlite3.connect(copy) as before:
        assert before.execute("SELECT version_num FROM alembic_version").fetchall() == [(head,)]
        assert before.execute("SELECT login FROM person").fetchall() == [("dr.li",)]
        assert "nickname" not in [row[1] for row in before.execute("PRAGMA table_info(person)")]


async def test_an_upgrade_that_fails_leaves_the_old_schema_and_data(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of a revision is never in force: it is one transaction."""
    head = await migrate(database)
    await _add_person(database)
    later_version(tmp_path / "later", monkeypatch, head, more='op.execute("SELECT * FROM no_such_table")')
    with pytest.raises(Exception, match="no_such_table"):
        await migrate(database)
    async with database.read() as tx:
        columns = [row[1] for row in await tx.execute(text("PRAGMA table_info(person)"))]
        assert "nickname" not in columns
        assert (await tx.execute(text("SELECT version_num FROM alembic_version"))).scalar_one() == head
    assert await _people(database) == ["dr.li"]


async def test_a_newer_database_is_refused_and_left_alone(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older installation does not touch what a newer one made, and says what to do."""
    head = await migrate(database)
    with monkeypatch.context() as newer:
        later_version(tmp_path / "later", newer, head)
        await migrate(database)
    with pytest.raises(Conflict, match="newer version") as refused:
        await migrate(database)
    assert "restore the copy" in refused.value.mend


def test_the_command_line_says_that_the_database_is_newer(folder: Path) -> None:
    """Every command refuses with the family's exit code instead of a traceback."""
    with sqlite3.connect(folder / "accord.db") as database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
    said = accord("user", "list", folder)
    assert (said.code, said.out) == (5, "")
    assert "newer version of Accord" in said.err


async def _add_person(database: Database) -> None:
    async with database.write() as tx:
        columns = {row[1]: (row[2], row[3]) for row in await tx.execute(text("PRAGMA table_info(person)"))}
        needed = {name: 0 if "INT" in kind else "" for name, (kind, not_null) in columns.items() if not_null}
        values = {**needed, "login": "dr.li"}
        names = ", ".join(values)
        await tx.execute(
            text(f"INSERT INTO person ({names}) VALUES ({', '.join(':' + name for name in values)})"), values
        )


async def _people(database: Database) -> list[str]:
    async with database.read() as tx:
        return [row.login for row in await tx.execute(text("SELECT login FROM person"))]
