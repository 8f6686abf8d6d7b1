"""That a sealed row is the newest of its kind, and that none is missing: digests of all rows, kept with every change.

Rows lie in buckets by the value of one column. For each bucket a sealed state counts its changes and holds a digest of
its rows' seals, a sum of pseudorandom numbers modulo 2^256 (MSet-Add-Hash: Clarke et al., ASIACRYPT 2003), so that a
change costs one subtraction and one addition whatever the bucket holds. One more state does the same over all buckets;
its count goes into the log with the next entry of the transaction, where nobody can take it back.
Format: docs/formats/access-rows.md.

Invariants: states are written in the transaction of the row; a bucket is compared with its rows before one of
them is believed, at most PROVED_SECONDS earlier; a count that was seen committed never gets smaller.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from time import monotonic
from typing import Any, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Integer,
    LargeBinary,
    Row,
    String,
    Table,
    insert,
    literal,
    select,
    union_all,
    update,
)

from node.access.rowseal import UNREADABLE, RowAltered, RowSeal, group_column, row_name, rows_of
from node.database import Carried, carried, metadata

BUCKETS: Final = 1024
"""Of each table. What does not fit makes the rows of one bucket unbelievable, not the table."""
PROVED_SECONDS: Final = 1.0
"""How long a comparison serves the rows it was made with; a row that was not among them has it made anew."""
MAX_PROVED_ROWS: Final = 200_000
LEAP: Final = 2**32
"""How far counts are moved on when rows are accepted as they are: beyond any that a process can have seen."""
TOTAL: Final = ("", 0)
_MODULUS: Final = 2**256
_NONCE_BYTES: Final = 12

row_state = Table(
    "row_state",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("bucket", Integer, primary_key=True, autoincrement=False),
    Column("changes", BigInteger, nullable=False),
    Column("sealed", LargeBinary, nullable=False),
)

Place = tuple[str, int]
"""A table's name and a bucket of it; TOTAL stands for all of them."""


@dataclass(frozen=True)
class State:
    """How often a bucket was changed, and how many rows with which digest it holds now."""

    changes: int = 0
    digest: int = 0
    rows: int = 0

    def after(self, digest: int, rows: int, *, counted: bool = True) -> State:
        """The state after a change by this much."""
        # Below zero only after rows were taken out unseen, and then nothing fits any more anyway.
        return State(self.changes + counted, (self.digest + digest) % _MODULUS, max(0, self.rows + rows))


@dataclass(frozen=True)
class Change:
    """A row put in its place (`added` is its seal), taken from it (`removed`), or both."""

    place: Place
    added: bytes | None = None
    removed: bytes | None = None


class Ledger:
    """The states under `key`, and what this process has seen of them."""

    def __init__(self, key: bytes) -> None:
        self.seal = RowSeal(key)
        self._element_key = _derive(key, b"accord/row-element/v1")
        self._cipher = AESGCM(_derive(key, b"accord/row-state/v1"))
        self._seen: dict[Place, tuple[int, float]] = {}
        self._proved: dict[Place, tuple[float, frozenset[bytes]]] = {}
        self._proved_rows = 0
        self._written: dict[Place, float] = {}
        self.put_back = False
        """Whether the log knows of later rows than there are: then none is believed (`sweep` finds out)."""

    def place(self, table: Table, group: Any) -> Place:
        """Where rows of a table with this value in their group column lie."""
        hashed = sha256(f"{table.name}|{group}".encode("utf-8", "surrogatepass")).digest()
        return table.name, int.from_bytes(hashed[:4], "big") % BUCKETS

    def place_of(self, table: Table, row: Any, prefix: str = "") -> Place:
        """Where a row lies."""
        return self.place(table, getattr(row, prefix + group_column(table)))

    def check(self, on: Connection, table: Table, row: Any, prefix: str = "", *, remember: bool) -> None:
        """Raise RowAltered unless this node wrote the row as it is, and has not replaced or deleted it since.

        `remember` is for a snapshot of our own: what a transaction sees of its own changes may be rolled back.
        """
        self.seal.check(table, row, prefix)
        place, mac = self.place_of(table, row, prefix), getattr(row, f"{prefix}mac")
        if self.put_back or getattr(row, f"{prefix}bucket") != place[1]:
            raise RowAltered(table.name, row_name(table, row, prefix))
        until, macs = self._proved.get(place, (0.0, frozenset()))
        if mac in macs and monotonic() < until:
            return
        if mac not in self.prove(on, table, place, remember=remember):
            raise RowAltered(table.name, row_name(table, row, prefix))

    def prove(self, on: Connection, table: Table, place: Place, *, remember: bool) -> frozenset[bytes]:
        """The seals of the rows that lie in a place, all and only those that should. Raises RowAltered."""
        state, macs = self._read(on, table, place)
        self._not_older(place, state, carried(on).began)
        if not self._fits(place, state, macs):
            # What somebody put in is refused by itself; it must not make the rows beside it unbelievable.
            macs = self._intact(on, table, place)
            if not self._fits(place, state, macs):
                raise _altered(place)
        proved = frozenset(macs)
        if remember:
            self._see(place, state)
            if self._written.get(place, 0.0) < carried(on).began:
                self._remember(place, proved)
        return proved

    def counts(self, on: Connection, table: Table, row: Any) -> bool:
        """Whether the digest of its place holds an altered row's seal: then its columns were altered, and it was not
        put in. False too where more is wrong with the place."""
        place = self.place_of(table, row)
        try:
            state, macs = self._read(on, table, place)
        except RowAltered:
            return False
        return row.mac in macs and self._fits(place, state, macs)

    def record(self, on: Connection, changes: Iterable[Change], *, counted: bool = True) -> None:
        """Bring the states up to date with changes of rows, in the transaction that makes them.

        With `counted`, the next log entry of the transaction says so. Raises RowAltered when a state is not ours, or
        an older one.
        """
        total = self._state(on, TOTAL, lock=True)
        self._not_older(TOTAL, total)
        by_place: dict[Place, tuple[int, int]] = {}
        for change in changes:
            digest, rows = by_place.get(change.place, (0, 0))
            for mac, sign in ((change.added, 1), (change.removed, -1)):
                if mac is not None:
                    digest, rows = digest + sign * self._element(change.place[0], mac), rows + sign
            by_place[change.place] = (digest, rows)
        turn = 0
        written = {}
        for place, (digest, rows) in by_place.items():
            before = self._state(on, place)
            self._not_older(place, before)
            after = before.after(digest, rows)
            turn += self.element_of_state(place, after) - self.element_of_state(place, before)
            self._put(on, place, after)
            written[place] = after
        written[TOTAL] = total.after(turn, 0, counted=counted)
        self._put(on, TOTAL, written[TOTAL])
        # Once the transaction has ended, what was replaced is not believed a moment longer.
        carried(on).afterwards.append(partial(self._written_down, carried(on), written))
        if counted:
            carried(on).rows = total.changes + 1

    async def _written_down(self, transaction: Carried, states: Mapping[Place, State]) -> None:
        for place, state in states.items():
            self._written[place] = monotonic()
            self._proved.pop(place, None)
            if transaction.committed:
                self._see(place, state)

    def reset(self, on: Connection, states: dict[Place, State], at_least: int) -> int:
        """Replace every state, after an inquiry; return the new count of changes, which is above `at_least`."""
        old: dict[Place, int] = {place: changes for place, (changes, _) in self._seen.items()}
        for row in on.execute(select(row_state.c.name, row_state.c.bucket, row_state.c.changes)):
            if isinstance(row.changes, int):
                old[(row.name, row.bucket)] = max(row.changes, old.get((row.name, row.bucket), 0))
        # Another process may have seen later counts than those that are there now.
        count = max(at_least, *old.values(), 0) + LEAP
        old.pop(TOTAL, None)
        digest = 0
        on.execute(row_state.delete())
        for place in old.keys() | states.keys():
            found = states.get(place, State())
            state = State(count, found.digest, found.rows)
            digest += self.element_of_state(place, state)
            self._put(on, place, state)
        self._put(on, TOTAL, State(count, digest % _MODULUS))
        carried(on).rows = count
        return count

    def digest_of(self, name: str, macs: Iterable[bytes]) -> State:
        """The state, without its count of changes, of a bucket that holds rows with these seals."""
        found = list(macs)
        return State(0, sum(self._element(name, mac) for mac in found) % _MODULUS, len(found))

    def opened(self, row: Row[Any] | Any) -> State:
        """Read a row of `row_state`. Raises RowAltered when this node did not write it."""
        place, sealed = (row.name, row.bucket), row.sealed
        try:
            plain = self._cipher.decrypt(
                sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], _context(place, row.changes)
            )
        except (InvalidTag, ValueError, TypeError) as error:
            raise _altered(place) from error
        return State(row.changes, int.from_bytes(plain[:32], "big"), int.from_bytes(plain[32:], "big"))

    def element_of_state(self, place: Place, state: State) -> int:
        """What a bucket adds to the digest over all; one that was never changed adds nothing."""
        if not state.changes:
            return 0
        plain = _context(place, state.changes) + b"|%d|%d" % (state.digest, state.rows)
        return int.from_bytes(hmac.digest(self._element_key, b"state|" + plain, sha256), "big")

    def not_older(self, place: Place, state: State, began: float) -> None:
        """Raise RowAltered when this process has seen a later state before `began`; else remember this one."""
        self._not_older(place, state, began)
        self._see(place, state)

    def _not_older(self, place: Place, state: State, began: float | None = None) -> None:
        changes, learned = self._seen.get(place, (0, 0.0))
        if state.changes < changes and (began is None or learned < began):
            raise _altered(place)

    def _see(self, place: Place, state: State) -> None:
        if state.changes > self._seen.get(place, (0, 0.0))[0]:
            self._seen[place] = (state.changes, monotonic())

    def _remember(self, place: Place, macs: frozenset[bytes]) -> None:
        if self._proved_rows > MAX_PROVED_ROWS:
            self._proved.clear()
            self._proved_rows = 0
        self._proved_rows += len(macs)
        self._proved[place] = (monotonic() + PROVED_SECONDS, macs)

    def _fits(self, place: Place, state: State, macs: list[Any]) -> bool:
        if len(macs) != state.rows or not all(isinstance(mac, bytes) for mac in macs):
            return False
        return self.digest_of(place[0], macs).digest == state.digest

    def _intact(self, on: Connection, table: Table, place: Place) -> list[Any]:
        rows = rows_of(on, select(table).where(table.c.bucket == place[1]))
        return list({row.mac for row in rows if self.seal.intact(table, row)})

    def _read(self, on: Connection, table: Table, place: Place) -> tuple[State, list[Any]]:
        """State and seals of a bucket in one statement, so of one moment."""
        name, bucket = place
        said = select(literal(1).label("kind"), row_state.c.changes, row_state.c.sealed).where(
            row_state.c.name == name, row_state.c.bucket == bucket
        )
        there = select(literal(2), literal(0), table.c.mac).where(table.c.bucket == bucket)
        state, macs = State(), []
        try:
            found = on.execute(union_all(said, there)).all()
        except UNREADABLE as error:
            raise _altered(place) from error
        for kind, changes, value in found:
            if kind == 1:
                state = self.opened(_StateRow(name, bucket, changes, value))
            else:
                macs.append(value)
        return state, macs

    def _state(self, on: Connection, place: Place, *, lock: bool = False) -> State:
        query = select(row_state).where(row_state.c.name == place[0], row_state.c.bucket == place[1])
        row = on.execute(query.with_for_update() if lock else query).one_or_none()
        return State() if row is None else self.opened(row)

    def _put(self, on: Connection, place: Place, after: State) -> None:
        nonce = os.urandom(_NONCE_BYTES)
        plain = after.digest.to_bytes(32, "big") + after.rows.to_bytes(8, "big")
        sealed = nonce + self._cipher.encrypt(nonce, plain, _context(place, after.changes))
        name, bucket = place
        here = (row_state.c.name == name) & (row_state.c.bucket == bucket)
        values = {"changes": after.changes, "sealed": sealed}
        if on.execute(update(row_state).where(here).values(values)).rowcount == 0:
            on.execute(insert(row_state).values(name=name, bucket=bucket, **values))

    def _element(self, name: str, mac: bytes) -> int:
        return int.from_bytes(
            hmac.digest(self._element_key, b"row|" + name.encode() + b"|" + mac, sha256), "big"
        )


@dataclass(frozen=True)
class _StateRow:
    name: str
    bucket: int
    changes: int
    sealed: bytes


def _altered(place: Place) -> RowAltered:
    return RowAltered(place[0], f"bucket {place[1]} of {BUCKETS}")


def _context(place: Place, changes: int) -> bytes:
    return f"{place[0]}|{place[1]}|{changes}".encode()


def _derive(key: bytes, info: bytes) -> bytes:
    return HKDF(SHA256(), length=32, salt=None, info=info).derive(key)
