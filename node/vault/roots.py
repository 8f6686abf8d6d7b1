"""Roots of the archive: folders that hold every pack, who they say they are, and which of them are in sync.

Holds the identity file, what is found at a configured path, and the membership that the node remembers in its
database. Leaves the packs to `blobs` and what follows from all this to `replicas`. Blocking, but for the ledger.

Invariants: an identity is written whole or not at all; a membership is replaced in one transaction; a folder that is
another node's, or not known to be empty, is never taken for a new root. Format: docs/formats/replicas.md.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Integer,
    String,
    Table,
    Text,
    delete,
    insert,
    select,
)

from consent.errors import Corrupt, Sentence, Unavailable
from consent.signed import canonical_json, parse_json
from node.database import Database, UtcDateTime, metadata
from node.vault.blobs import NAME_PATTERN, disk_errors, sync_folder

IDENTITY_NAME = ".accord-root.json"
MAX_IDENTITY_BYTES = 4096
MAX_ROOTS = 9
SAVE_SECONDS = 30.0
_ROOT_ID = re.compile(r"rt_[0-9a-f]{32}")

vault_root = Table(
    "vault_root",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("number", Integer, nullable=False),
    Column("path", Text, nullable=False),
    Column("in_sync", Boolean, nullable=False),
    Column("since", UtcDateTime, nullable=False),
    Column("mounted", Boolean, nullable=False),
)
vault_membership = Table(
    "vault_membership",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("epoch", BigInteger, nullable=False),
    Column("quorum", Integer, nullable=False),
)


class Place(StrEnum):
    """What is found where a root is configured."""

    ROOT = "root"
    EMPTY = "empty"
    AWAY = "away"
    FOREIGN = "foreign"


@dataclass(frozen=True)
class Identity:
    """Who a root is; see docs/formats/replicas.md."""

    id: str
    node: str
    epoch: int
    created: datetime


@dataclass(frozen=True)
class Found:
    """What stands at a path, and in words what is wrong with it."""

    place: Place
    identity: Identity | None = None
    words: str = ""


@dataclass(frozen=True)
class RootRow:
    """What the node remembers of a root: `since` when it is in sync, or is not."""

    id: str
    number: int
    path: str
    in_sync: bool
    since: datetime
    mounted: bool = False


@dataclass(frozen=True)
class Membership:
    """Which roots there are, and how many of those in sync must have a group before it is answered for."""

    epoch: int = 0
    quorum: int = 0
    roots: tuple[RootRow, ...] = ()

    @property
    def in_sync(self) -> frozenset[str]:
        """Ids of the roots in sync."""
        return frozenset(root.id for root in self.roots if root.in_sync)

    def root(self, root_id: str) -> RootRow | None:
        """One root, when it is remembered."""
        return next((root for root in self.roots if root.id == root_id), None)


class Ledger(Protocol):
    """Where the membership is remembered. Called from threads; when `save` returns it is durable."""

    def save(self, membership: Membership) -> None:
        """Replace what is remembered. Raises Unavailable; then the old one holds."""
        ...


class DatabaseLedger:
    """The membership in the node's database. Made on the event loop that runs the database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._loop = asyncio.get_running_loop()

    async def load(self) -> Membership:
        """What is remembered; empty before the first time."""
        return await self._database.read_in_one(_loaded)

    def save(self, membership: Membership) -> None:
        """See `Ledger.save`. Never call it on the event loop's own thread."""
        writing = asyncio.run_coroutine_threadsafe(
            self._database.write_in_one(lambda connection: remember(connection, membership)), self._loop
        )
        try:
            writing.result(SAVE_SECONDS)
        except TimeoutError as error:
            writing.cancel()
            raise Unavailable(
                "Which storage roots are in sync cannot be written down now.",
                mend="Look at the database and its disk, then try again.",
                code="storage",
            ) from error


def look_at(path: Path, node: str, *, was_mounted: bool = False) -> Found:
    """Say what stands at `path`. Changes nothing."""
    try:
        if not path.is_dir():
            return Found(Place.AWAY, words="The folder is not there.")
        if was_mounted and not os.path.ismount(path):
            return Found(Place.AWAY, words="Its disk is not mounted.")
        identity = read_identity(path)
        if identity is None:
            if _holds_packs(path):
                return Found(Place.FOREIGN, words="It holds packs and does not say whose: no identity file.")
            return Found(Place.EMPTY)
    except Corrupt as error:
        return Found(Place.FOREIGN, words=error.message)
    except OSError as error:
        return Found(
            Place.AWAY, words=Sentence("It cannot be read: %(fault)s.", fault=os.strerror(error.errno or 0))
        )
    if identity.node != node:
        return Found(
            Place.FOREIGN, identity, Sentence("It belongs to the node %(node)s.", node=identity.node)
        )
    return Found(Place.ROOT, identity)


def new_identity(node: str, now: datetime) -> Identity:
    """Make up who a new root is."""
    return Identity(f"rt_{secrets.token_hex(16)}", node, 0, now)


def read_identity(path: Path) -> Identity | None:
    """The identity in a root; None where there is none. Raises Corrupt, OSError."""
    try:
        with (path / IDENTITY_NAME).open("rb") as file:
            data = file.read(MAX_IDENTITY_BYTES + 1)
    except FileNotFoundError:
        return None
    try:
        content = parse_json(data)
        if (content["format"], content["version"]) != ("accord-root", 1) or len(data) > MAX_IDENTITY_BYTES:
            raise ValueError("format")
        if _ROOT_ID.fullmatch(content["id"]) is None or not isinstance(content["epoch"], int):
            raise ValueError("field")
        created = datetime.fromtimestamp(content["created"], UTC)
        return Identity(content["id"], str(content["node"]), content["epoch"], created)
    except (ValueError, KeyError, TypeError, OverflowError, OSError, Corrupt) as error:
        raise Corrupt("Its identity file is damaged.", code="root-identity") from error


def write_identity(path: Path, identity: Identity) -> None:
    """Write who a root is, durably. Raises Unavailable."""
    content = {
        "created": int(identity.created.timestamp()),
        "epoch": identity.epoch,
        "format": "accord-root",
        "id": identity.id,
        "node": identity.node,
        "version": 1,
    }
    temporary = path / f"{IDENTITY_NAME}.new"
    with disk_errors("mark a storage root"):
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, canonical_json(content))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.rename(path / IDENTITY_NAME)
        sync_folder(path)


def stamp(path: Path, epoch: int) -> None:
    """Note in a root that it takes part in this membership. Raises Unavailable, Corrupt."""
    with disk_errors("mark a storage root"):
        identity = read_identity(path)
    if identity is not None and identity.epoch < epoch:
        write_identity(path, replace(identity, epoch=epoch))


def _holds_packs(path: Path) -> bool:
    return any(
        NAME_PATTERN.fullmatch(entry.name) is not None
        for folder in os.scandir(path)
        if folder.is_dir(follow_symlinks=False) and len(folder.name) == 2
        for entry in os.scandir(folder)
    )


def _loaded(connection: Connection) -> Membership:
    row = connection.execute(select(vault_membership)).first()
    if row is None:
        return Membership()
    roots = connection.execute(select(vault_root).order_by(vault_root.c.number)).all()
    return Membership(
        row.epoch,
        row.quorum,
        tuple(RootRow(one.id, one.number, one.path, one.in_sync, one.since, one.mounted) for one in roots),
    )


def remember(connection: Connection, membership: Membership) -> None:
    """Replace what is remembered, in the caller's transaction."""
    connection.execute(delete(vault_root))
    connection.execute(delete(vault_membership))
    connection.execute(
        insert(vault_membership).values(id=1, epoch=membership.epoch, quorum=membership.quorum)
    )
    for root in membership.roots:
        connection.execute(
            insert(vault_root).values(
                id=root.id,
                number=root.number,
                path=root.path,
                in_sync=root.in_sync,
                since=root.since,
                mounted=root.mounted,
            )
        )
