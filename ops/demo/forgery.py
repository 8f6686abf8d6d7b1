"""A forger at a hospital who holds all of its node's keys: rewrites one entry of the log, and all that hangs on it.

What comes out is sound in itself: every record opens, every hash fits, the checkpoint is signed by the log's own key,
and the node's own check finds nothing. What the forger cannot make is a proof that this log extends the one that
other members have cosigned. It works on a copy of the node's folder, so that the node itself is left alone.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path

from sqlalchemy import delete, insert, select, update

from consent.vocabulary import EventKind
from federation.client import PeerClient
from federation.witnessing import Witnessing
from node.audit.event import SALT_BYTES, Entry, Event
from node.audit.log import Log
from node.audit.merkle import Frontier, leaf_hash
from node.audit.tables import log_checkpoint, log_cosignature, log_entry, log_hash, log_state
from node.audit.tiles import TILE_HEIGHT
from node.database import Tx
from ops.exchange import build_witnessing
from ops.foundation import Foundation, opened
from ops.region import build_channel

MORE_ENTRIES = 2000
"""The true log goes on growing meanwhile; only a longer one is news to a witness."""


def copy_of(folder: Path, copy: Path) -> Path:
    """Copy settings, keys and database of a node that may be running; images are not needed."""
    copy.mkdir(mode=0o700)
    for path in folder.iterdir():
        if path.is_file() and not path.name.startswith(("accord.db", "lock")):
            shutil.copy2(path, copy)
    shutil.copytree(folder / "secrets", copy / "secrets")
    with (
        closing(sqlite3.connect(folder / "accord.db", timeout=15)) as source,
        closing(sqlite3.connect(copy / "accord.db")) as target,
    ):
        source.backup(target)
    return copy


@asynccontextmanager
async def as_the_node(folder: Path) -> AsyncIterator[tuple[Foundation, Witnessing]]:
    """Hold a node's keys, and call other members with its certificate."""
    async with opened(folder) as base:
        client = PeerClient(members=base.members, channel=build_channel(base), log=base.log)
        try:
            yield base, build_witnessing(base, base.members, client)
        finally:
            await client.close()
            await base.log.close()


async def rewrite(log: Log, entry: Entry, actor: str) -> None:
    """Make it appear that `actor` did what is on record at `entry`; sign a fresh checkpoint over a longer log."""
    forged = replace(entry.event, actor=actor)
    record = forged.to_record(entry.at, os.urandom(SALT_BYTES))
    leaf, sealed = leaf_hash(record), log.sealer.seal(entry.index, record)
    async with log.database.write() as tx:
        await tx.execute(
            update(log_entry)
            .where(log_entry.c.position == entry.index)
            .values(leaf=leaf, sealed=sealed, **log.blinded(forged))
        )
        await _regrow(tx)
        await log.append_many(tx, [Event(EventKind.LOG_READ, "system")] * MORE_ENTRIES)
    await log.checkpoint()


async def _regrow(tx: Tx) -> None:
    """The tree over the leaves as they are now, without the checkpoints and cosignatures that speak of the old one."""
    frontier, hashes = Frontier(), list[dict[str, object]]()
    for leaf in (await tx.execute(select(log_entry.c.leaf).order_by(log_entry.c.position))).scalars():
        for (height, position), value in frontier.append(leaf):
            if height % TILE_HEIGHT == 0:
                hashes.append({"level": height // TILE_HEIGHT, "position": position, "hash": value})
    for table in (log_hash, log_checkpoint, log_cosignature):
        await tx.execute(delete(table))
    if hashes:
        await tx.execute(insert(log_hash), hashes)
    await tx.execute(update(log_state).values(size=frontier.size, frontier=frontier.to_bytes()))
