"""Signed tree heads of our own log: made when the log grew, cosigned by witnesses, and proofs under them.

Invariant: no checkpoint is signed that contradicts an earlier one or the entries themselves. Before signing, the
stored hashes must still give the last checkpoint's root, and a part of the entries (all new ones, and a window
that wanders over the old ones) is opened and hashed again; otherwise signing stops and Corrupt says why.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, func, insert, select

from consent.errors import Corrupt, NotFound, Unavailable
from node.audit.evidence import ProofFile, independent
from node.audit.merkle import Frontier, consistency_ranges, inclusion_ranges, leaf_hash, root_of
from node.audit.note import (
    Checkpoint,
    Note,
    NoteSignature,
    SignatureType,
    Verifier,
    Vouched,
    open_checkpoint,
    parse_signatures,
)
from node.audit.tables import log_checkpoint, log_cosignature, log_entry, log_hash
from node.audit.tiles import TILE_WIDTH, Load, Tile, range_hashes, root_hash
from node.database import Tx

if TYPE_CHECKING:
    from node.audit.log import Log

RECHECKED_ENTRIES = 2048


class Checkpoints:
    """The signed heads of `log`."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._recheck_from = 0

    async def make(self) -> str:
        """The latest checkpoint with its cosignatures; a new one is signed and stored when the log has grown.

        Raises Corrupt when the stored log contradicts itself: then nothing is signed.
        """
        log = self._log
        async with log.database.read() as tx:
            last = await _last(tx)
            if last is not None and last.size == await log.size(tx):
                return await self._with_cosignatures(tx, last)
            await self._recheck(tx, 0 if last is None else last.size)
        async with log.database.write() as tx:
            frontier = await log.frontier(tx)
            last = await _last(tx)
            if last is None or last.size < frontier.size:
                await self._check_history(tx, frontier, last)
                await self._sign(tx, frontier)
                last = await _last(tx)
            elif last.size > frontier.size:
                raise _lost(last.size, frontier.size)
            return await self._with_cosignatures(tx, last)

    async def latest(self, tx: Tx | None = None) -> str | None:
        """The latest checkpoint signed so far, with its cosignatures; None when there is none."""
        async with self._log.reading(tx) as connection:
            last = await _last(connection)
            return None if last is None else await self._with_cosignatures(connection, last)

    async def add_cosignatures(
        self, size: int, lines: str, witnesses: Iterable[Verifier]
    ) -> tuple[Vouched, ...]:
        """Keep the cosignature lines that a witness returned for the checkpoint of `size`.

        Lines by keys that are not among `witnesses` are ignored. Returns what was kept. Raises NotFound when there is
        no such checkpoint, Invalid when the lines are malformed, Corrupt when a known witness's line fails.
        """
        async with self._log.database.write() as tx:
            row = await _at(tx, size)
            note = Note(Note.parse(row.note).text, parse_signatures(lines))
            kept = [one for one in note.verify(witnesses) if one.at is not None]
            for one in kept:
                signature = _line_of(note, one.verifier)
                same = (log_cosignature.c.size == size) & (log_cosignature.c.name == one.verifier.name)
                await tx.execute(delete(log_cosignature).where(same))
                await tx.execute(
                    insert(log_cosignature).values(
                        size=size, name=one.verifier.name, at=one.at, line=signature.line
                    )
                )
            return tuple(kept)

    async def prove_inclusion(self, index: int, size: int) -> list[bytes]:
        """RFC 6962 §2.1.1. Raises Invalid when `index` is not inside a log of `size`, or `size` is too large."""
        async with self._log.database.read() as tx:
            return await range_hashes(inclusion_ranges(index, size), size, self.loader(tx))

    async def prove_consistency(self, old: int, new: int) -> list[bytes]:
        """RFC 6962 §2.1.2."""
        async with self._log.database.read() as tx:
            return await range_hashes(consistency_ranges(old, new), new, self.loader(tx))

    async def tile(self, tile: Tile) -> bytes:
        """The bytes of a tile. Raises NotFound when the log is not as large."""
        async with self._log.database.read() as tx:
            return await self.loader(tx)(tile)

    async def proof_file(self, index: int, *, quorum: int = 0, disclose: bool = True) -> str:
        """Portable evidence for the entry at `index`, under the best cosigned checkpoint that covers it.

        `disclose` puts the record itself into the file. Raises NotFound when there is no such entry, Unavailable
        when no checkpoint that covers it has `quorum` cosignatures yet.
        """
        async with self._log.database.read() as tx:
            query = select(log_entry.c.sealed).where(log_entry.c.position == index)
            sealed = (await tx.execute(query)).scalar_one_or_none()
            if sealed is None:
                raise NotFound(f"There is no log entry {index}.")
            record = self._log.sealer.open(index, sealed)
            row = await _best(tx, index, quorum)
            proof = await range_hashes(inclusion_ranges(index, row.size), row.size, self.loader(tx))
            note = await self._with_cosignatures(tx, row)
        return str(ProofFile(index, tuple(proof), note, record if disclose else None))

    def loader(self, tx: Tx) -> Load:
        """Loads tiles out of the tables."""

        async def load(tile: Tile) -> bytes:
            column, table = (log_entry.c.leaf, log_entry) if tile.level == 0 else (log_hash.c.hash, log_hash)
            query = select(column).where(
                table.c.position >= tile.start, table.c.position < tile.start + tile.width
            )
            if tile.level:
                query = query.where(log_hash.c.level == tile.level)
            hashes = (await tx.execute(query.order_by(table.c.position))).scalars().all()
            if len(hashes) != tile.width:
                raise NotFound(f"The log does not have tile {tile.path}.")
            return b"".join(hashes)

        return load

    async def _sign(self, tx: Tx, frontier: Frontier) -> None:
        log, now = self._log, self._log.clock.now()
        text = Checkpoint(log.origin, frontier.size, frontier.root).text
        note = Note(text, (log.signer.sign(text, now),))
        await tx.execute(insert(log_checkpoint).values(size=frontier.size, at=now, note=str(note)))

    async def _check_history(self, tx: Tx, frontier: Frontier, last: Any) -> None:
        if await root_hash(frontier.size, self.loader(tx)) != frontier.root:
            raise _contradiction("its stored hashes do not give its root")
        if last is None:
            return
        checkpoint, _ = open_checkpoint(last.note, [self._log.signer.verifier])
        if await root_hash(checkpoint.size, self.loader(tx)) != checkpoint.root:
            raise _contradiction(f"it no longer fits its checkpoint of size {checkpoint.size}")

    async def _recheck(self, tx: Tx, signed: int) -> None:
        size = await self._log.size(tx)
        if size < signed:
            raise _lost(signed, size)
        window = self._recheck_from
        await self._recheck_entries(tx, window, min(window + RECHECKED_ENTRIES, size))
        await self._recheck_entries(tx, max(window + RECHECKED_ENTRIES, signed - signed % TILE_WIDTH), size)
        self._recheck_from = window + RECHECKED_ENTRIES if window + RECHECKED_ENTRIES < size else 0

    async def _recheck_entries(self, tx: Tx, start: int, end: int) -> None:
        """Open and hash the entries of [start, end), a tile at a time; full tiles must give their stored hash."""
        for index in range(start // TILE_WIDTH, -(-end // TILE_WIDTH)):
            first = index * TILE_WIDTH
            query = select(log_entry.c.position, log_entry.c.leaf, log_entry.c.sealed).where(
                log_entry.c.position >= first, log_entry.c.position < first + TILE_WIDTH
            )
            rows = (await tx.execute(query.order_by(log_entry.c.position))).all()
            for position, row in enumerate(rows, first):
                if row.position != position:
                    raise _contradiction(f"entry {position} is missing")
                if self._leaf_of(position, row.sealed) != row.leaf:
                    raise _contradiction(f"entry {position} was altered")
            if len(rows) == TILE_WIDTH:
                stored = await self.loader(tx)(Tile(1, index // TILE_WIDTH, index % TILE_WIDTH + 1))
                if root_of(row.leaf for row in rows) != stored[-32:]:
                    raise _contradiction(
                        f"entries {first} to {first + TILE_WIDTH - 1} do not give their hash"
                    )

    def _leaf_of(self, position: int, sealed: bytes) -> bytes | None:
        try:
            return leaf_hash(self._log.sealer.open(position, sealed))
        except Corrupt:
            return None

    async def _with_cosignatures(self, tx: Tx, row: Any) -> str:
        query = select(log_cosignature.c.line).where(log_cosignature.c.size == row.size)
        lines = (await tx.execute(query.order_by(log_cosignature.c.at, log_cosignature.c.name))).scalars()
        return str(row.note) + "".join(lines)


def cosigners(note: str, log: Verifier, witnesses: Sequence[Verifier]) -> tuple[Vouched, ...]:
    """Who of `witnesses`, other than the log itself, has cosigned a checkpoint. Raises as `open_checkpoint`."""
    _, vouched = open_checkpoint(note, [log, *witnesses])
    return independent(vouched)


def _line_of(note: Note, verifier: Verifier) -> NoteSignature:
    assert verifier.type is SignatureType.COSIGNATURE_V1
    return next(s for s in note.signatures if (s.name, s.key_id) == (verifier.name, verifier.key_id))


async def _last(tx: Tx) -> Any:
    return (await tx.execute(select(log_checkpoint).order_by(log_checkpoint.c.size.desc()).limit(1))).first()


async def _at(tx: Tx, size: int) -> Any:
    row = (await tx.execute(select(log_checkpoint).where(log_checkpoint.c.size == size))).first()
    if row is None:
        raise NotFound(f"There is no checkpoint of size {size}.")
    return row


async def _best(tx: Tx, index: int, quorum: int) -> Any:
    count = func.count(log_cosignature.c.name)
    query = (
        select(log_checkpoint, count.label("cosigned"))
        .outerjoin(log_cosignature, log_cosignature.c.size == log_checkpoint.c.size)
        .where(log_checkpoint.c.size > index)
        .group_by(log_checkpoint.c.size, log_checkpoint.c.at, log_checkpoint.c.note)
        .order_by(count.desc(), log_checkpoint.c.size.desc())
        .limit(1)
    )
    row = (await tx.execute(query)).first()
    if row is None or row.cosigned < quorum:
        raise Unavailable(
            f"No checkpoint that covers entry {index} has {quorum} cosignatures yet.",
            mend="Try again after the next checkpoint.",
        )
    return row


def _lost(signed: int, size: int) -> Corrupt:
    return _contradiction(f"{signed} entries were vouched for and {size} are there")


def _contradiction(why: str) -> Corrupt:
    return Corrupt(
        f"The log contradicts itself: {why}. No checkpoint is signed.",
        mend="Run `accord log verify` to see what was altered.",
        code="log-altered",
    )
