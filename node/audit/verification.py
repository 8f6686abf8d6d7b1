"""The sweep over the whole log that finds and names what was altered, deleted or put in.

Every record is opened and hashed again; every stored hash, every signed checkpoint and every cosignature is
compared with what the records give. Reads one snapshot in pieces; holds O(log size) hashes in memory.
Finds any change to the tables that was made without the audit key, and any made with it that a checkpoint
contradicts. It trusts no row to be readable: a damaged one is a fault, not an exception.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Select, select

from consent.errors import AccordError
from consent.vocabulary import EventKind
from node.audit.event import read_record
from node.audit.merkle import HASH_BYTES, Frontier, leaf_hash
from node.audit.note import Checkpoint, Note, Verifier, open_checkpoint, parse_signatures
from node.audit.tables import log_checkpoint, log_cosignature, log_entry, log_hash, log_state
from node.audit.tiles import TILE_HEIGHT
from node.database import Tx

if TYPE_CHECKING:
    from node.audit.log import Log

PIECE = 1000
MAX_FAULTS = 100
MAX_GAP = 100_000
_LOST = bytes(HASH_BYTES)
_UNREADABLE = (TypeError, ValueError, OverflowError)


@dataclass(frozen=True)
class Verification:
    """What the sweep found.

    `root` is the recomputed one, `checkpoints` how many signed ones fit it, and `cosigned` the largest size that one
    of the given witnesses has vouched for.
    """

    size: int
    root: bytes
    checkpoints: int
    cosigned: int
    faults: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.faults


async def verify(log: Log, witnesses: Iterable[Verifier] = ()) -> Verification:
    """Recompute the whole log. Cosignatures by `witnesses` are checked; others are left out of account."""
    async with log.database.read() as tx:
        sweep = _Sweep(log, tx, list(witnesses))
        await sweep.heads()
        if await sweep.entries():
            await sweep.hashes()
        return sweep.result()


class _Sweep:
    """One run: the tree as the records give it, what the tables claim, and the faults so far."""

    def __init__(self, log: Log, tx: Tx, witnesses: list[Verifier]) -> None:
        self._log = log
        self._tx = tx
        self._witnesses = witnesses
        self._faults: list[str] = []
        self._frontier = Frontier()
        self._heads: list[Checkpoint] = []
        self._good_heads = 0
        self._wrong_heads: list[int] = []
        self._cosigned = 0
        self._expected: dict[tuple[int, int], bytes] = {}
        self._access_rows = 0

    async def heads(self) -> None:
        """Check the signature of every checkpoint and cosignature; keep the heads for the walk."""
        lines: dict[int, str] = {}
        query = select(log_cosignature.c.size, log_cosignature.c.line)
        for row in await self._rows(query, "The cosignatures"):
            lines[row.size] = lines.get(row.size, "") + row.line
        heads = select(log_checkpoint.c.size, log_checkpoint.c.note).order_by(log_checkpoint.c.size)
        for row in await self._rows(heads, "The checkpoints"):
            self._read_head(row.size, row.note, lines.pop(row.size, ""))
        for size in lines:
            self._fault(f"Checkpoint {size} is missing: only its cosignatures are left.")

    async def entries(self) -> bool:
        """Go through the entries in order; False when so many are missing that the walk had to end."""
        states = await self._rows(select(log_state), "The log's state")
        size = states[0].size if states else 0
        self._pass_heads()
        last: int | None = None
        while rows := await self._piece(last):
            last = rows[-1][0]
            if not await asyncio.to_thread(self._take, rows, size):
                return False
        if not self._fill(size):
            return False
        if states:
            self._check_state(states[0])
        for head in self._heads:
            self._fault(f"A checkpoint vouches for {head.size} entries, but the log has {size}.")
        return True

    async def hashes(self) -> None:
        """Compare the stored hashes of tile levels ≥ 1 with the recomputed ones."""
        for row in await self._rows(select(log_hash), "The stored hashes"):
            name = f"Hash {row.position} of tile level {row.level}"
            expected = self._expected.pop((row.level, row.position), None)
            if expected is None:
                self._fault(f"{name} was put in.")
            elif expected != row.hash:
                self._fault(f"{name} does not fit its entries.")
        for level, position in self._expected:
            self._fault(f"Hash {position} of tile level {level} is missing.")

    def result(self) -> Verification:
        """Put the findings together."""
        if self._wrong_heads:
            first, count = self._wrong_heads[0], len(self._wrong_heads)
            self._fault(
                f"{count} signed checkpoint(s) do not fit the entries, the first one of size {first}."
            )
        faults = tuple(self._faults[:MAX_FAULTS])
        if len(self._faults) > MAX_FAULTS:
            faults += (f"… and {len(self._faults) - MAX_FAULTS} more.",)
        return Verification(
            self._frontier.size, self._frontier.root, self._good_heads, self._cosigned, faults
        )

    async def _piece(self, last: int | None) -> list[tuple[int, Any]]:
        """The next rows by position; None stands for a row that cannot be read."""
        query = select(log_entry).order_by(log_entry.c.position).limit(PIECE)
        if last is not None:
            query = query.where(log_entry.c.position > last)
        try:
            return [(row.position, row) for row in (await self._tx.execute(query)).all()]
        except _UNREADABLE:
            positions = await self._tx.execute(query.with_only_columns(log_entry.c.position))
            return [(position, await self._row(position)) for position in positions.scalars().all()]

    async def _row(self, position: int) -> Any:
        try:
            query = select(log_entry).where(log_entry.c.position == position)
            return (await self._tx.execute(query)).first()
        except _UNREADABLE:
            return None

    async def _rows(self, query: Select[Any], what: str) -> Sequence[Any]:
        try:
            return list((await self._tx.execute(query)).all())
        except _UNREADABLE:
            self._fault(f"{what} cannot be read.")
            return ()

    def _read_head(self, size: int, note: object, cosignatures: str) -> None:
        try:
            # A damaged row may hold no text at all.
            head, _ = open_checkpoint(note if isinstance(note, str) else "", [self._log.signer.verifier])
        except AccordError:
            self._fault(f"Checkpoint {size} was altered: the log's signature does not hold.")
            return
        if (head.origin, head.size) != (self._log.origin, size):
            self._fault(f"Checkpoint {size} was altered: it is another one's text.")
            return
        self._heads.append(head)
        try:
            if cosignatures and Note(head.text, parse_signatures(cosignatures)).verify(self._witnesses):
                self._cosigned = max(self._cosigned, size)
        except AccordError:
            self._fault(f"A cosignature of checkpoint {size} was altered.")

    def _take(self, rows: Sequence[tuple[int, Any]], size: int) -> bool:
        for position, row in rows:
            if not 0 <= position < size:
                self._fault(f"Entry {position} was put in: the log has {size} entries.")
                continue
            if not self._fill(position):
                return False
            self._grow(self._leaf_of(position, row))
        return True

    def _fill(self, until: int) -> bool:
        """Account for the entries that should stand before `until` and do not."""
        start = self._frontier.size
        if start < until:
            what = f"Entry {start} is" if until == start + 1 else f"Entries {start} to {until - 1} are"
            self._fault(f"{what} missing.")
        if until - start > MAX_GAP:
            return False
        for _ in range(start, until):
            self._grow(_LOST)
        return True

    def _leaf_of(self, index: int, row: Any) -> bytes:
        if row is None:
            self._fault(f"Entry {index} was altered: its row cannot be read.")
            return _LOST
        try:
            record = self._log.sealer.open(index, row.sealed)
            at, event = read_record(record)
        except AccordError:
            self._fault(f"Entry {index} was altered: its record does not open.")
            whole = isinstance(row.leaf, bytes) and len(row.leaf) == HASH_BYTES
            return row.leaf if whole else _LOST
        if event.rows is not None:
            # A change has a count of its own, a note has not.
            noted = event.kind is EventKind.ACCESS_ROWS_SEALED
            if event.rows < self._access_rows + (not noted):
                self._fault(f"Entry {index} was made after older access rows had been put back.")
            self._access_rows = event.rows
        leaf = leaf_hash(record)
        if leaf != row.leaf:
            self._fault(f"Entry {index} was altered: its leaf hash does not fit its record.")
        for column, value in {"at": at, **self._log.blinded(event)}.items():
            if getattr(row, column) != value:
                self._fault(f"Entry {index} was altered: its {column} column does not fit its record.")
        return leaf

    def _grow(self, leaf: bytes) -> None:
        for (height, position), value in self._frontier.append(leaf):
            if height % TILE_HEIGHT == 0:
                self._expected[(height // TILE_HEIGHT, position)] = value
        self._pass_heads()

    def _pass_heads(self) -> None:
        """Compare the root with the checkpoint of this size, if there is one."""
        if self._heads and self._heads[0].size == self._frontier.size:
            head = self._heads.pop(0)
            if head.root == self._frontier.root:
                self._good_heads += 1
            else:
                self._wrong_heads.append(head.size)

    def _check_state(self, state: Any) -> None:
        if state.origin != self._log.origin:
            self._fault(f"The log is of {state.origin!r}, not of {self._log.origin!r}.")
        if state.frontier != self._frontier.to_bytes():
            self._fault("The log's frontier does not fit its entries.")

    def _fault(self, words: str) -> None:
        self._faults.append(words)
