"""What SQLite says of its own pages, and new roots for its search trees: on one connection, and blocking.

A search tree holds nothing that its table does not: each gets a new, empty root and is filled again. Tables that somebody can
fill from elsewhere are given up likewise. Leaves to `soundness` which connection, which thread and who hears of it.

Invariants: a look writes nothing; what is mended is one transaction, kept only when SQLite finds what it leaves to be
whole; no row of a table that is kept is written; no tree is given up that contradicts an irreplaceable table.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass

from node.database import WRITE_MEND, errors_in_words

MAX_MESSAGES = 1000
"""What one look hears of SQLite at most."""
MAX_VACUUM_BYTES = 256 * 1024 * 1024
"""A larger file is not written anew to be rid of pages that nothing uses: its copy would be held in memory."""

_UNUSED = re.compile(r"Page \d+(?: is|:) never used")
_NAMED = re.compile(r"(?:from|in) index (\S+)$")
_ROOTED = re.compile(r"(?:On tree page|Tree) (\d+)\b")
_HELPER = "accord_new_trees"
_TREE = "accord_new_tree"


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


def look(connection: sqlite3.Connection) -> Damage:
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


def mend(
    connection: sqlite3.Connection,
    damage: Damage,
    emptied: frozenset[str],
    *,
    keep: bool,
    irreplaceable: frozenset[str] = frozenset(),
    witness: tuple[str, str] | None = None,
) -> Damage:
    """New trees for every table that is damaged; what is left is the tables that are damaged themselves.

    So are those of the `irreplaceable` that one of their whole trees contradicts: it may be the tree that is right, and
    the only place where a key's true name still stands. Where the two differ in a name that the `witness` (table, column) knows
    from the table and not from the tree, the tree is wrong.
    """
    suspects = irreplaceable.intersection(damage.tables)
    broken = {table for table in suspects if _contradicted(connection, table, witness)}
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
    return "", Damage(left, left) if left else look(connection)


def _contradicted(connection: sqlite3.Connection, table: str, witness: tuple[str, str] | None) -> bool:
    """Whether a search tree that can be read has another key for a row than the table, and may be right."""
    schema = connection.execute(
        "SELECT name FROM sqlite_schema WHERE type = 'index' AND tbl_name = ?", (table,)
    )
    for (index,) in schema.fetchall():
        columns = [name for _, _, name in connection.execute(f"PRAGMA index_info({_quoted(index)})")]
        listed = ", ".join(map(_quoted, columns))
        wanted = f"SELECT rowid, {listed} FROM {_quoted(table)}"  # noqa: S608 - names out of the schema, quoted
        try:
            # Both columns and row number stand in the tree: the table is not asked.
            tree = dict(_tuples(connection, f"{wanted} INDEXED BY {_quoted(index)}"))
        except sqlite3.DatabaseError:
            continue  # with this tree nothing can be decided, and nothing is lost
        try:
            rows = _tuples(connection, f"{wanted} NOT INDEXED")
            differing = [(key, tree[row]) for row, key in rows if tree.get(row, key) != key]
            known = _known(connection, witness) if differing else frozenset()
        except sqlite3.DatabaseError:
            return True
        place = columns.index(witness[1]) if witness is not None and witness[1] in columns else None
        if not all(_vouched(ours, theirs, place, known) for ours, theirs in differing):
            return True
    return False


def _known(connection: sqlite3.Connection, witness: tuple[str, str] | None) -> frozenset[object]:
    if witness is None:
        return frozenset()
    table, column = map(_quoted, witness)
    # The table itself, in the order of its rows: its own trees may be what is damaged.
    rows = connection.execute(f"SELECT {column} FROM {table} NOT INDEXED")  # noqa: S608 - named by our own tables
    return frozenset(name for (name,) in rows)


def _vouched(
    ours: tuple[object, ...], theirs: tuple[object, ...], place: int | None, known: frozenset[object]
) -> bool:
    """Whether a table's key and a tree's differ in nothing but a name, and it is the table's that is known."""
    if place is None or ours[place] not in known or theirs[place] in known:
        return False
    return ours[:place] + ours[place + 1 :] == theirs[:place] + theirs[place + 1 :]


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


def compact(connection: sqlite3.Connection) -> Damage:
    """The file written anew from its trees, where it is small: free pages and those that nothing uses come right."""
    (pages,), (size,) = (
        connection.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "page_size")
    )
    if pages * size <= MAX_VACUUM_BYTES:
        with errors_in_words("write", WRITE_MEND):
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return look(connection)


def _tuples(connection: sqlite3.Connection, statement: str) -> Iterator[tuple[int, tuple[object, ...]]]:
    """Row number and key of each row."""
    return ((row, tuple(key)) for row, *key in connection.execute(statement))


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
