"""The log's tables. What they mean is said in docs/formats/log.md; only `node.audit` touches them."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Integer, LargeBinary, String, Table, Text

from node.database import UtcDateTime, metadata

Big = BigInteger().with_variant(Integer, "sqlite")

log_state = Table(
    "log_state",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("origin", Text, nullable=False),
    Column("size", Big, nullable=False),
    Column("frontier", LargeBinary, nullable=False),
)
log_entry = Table(
    "log_entry",
    metadata,
    Column("position", Big, primary_key=True, autoincrement=False),
    Column("at", UtcDateTime, nullable=False, index=True),
    Column("leaf", LargeBinary, nullable=False),
    Column("kind", LargeBinary, nullable=False, index=True),
    Column("actor", LargeBinary, nullable=False, index=True),
    Column("patient", LargeBinary, index=True),
    Column("study", LargeBinary, index=True),
    Column("sealed", LargeBinary, nullable=False),
)
log_hash = Table(
    "log_hash",
    metadata,
    Column("level", Integer, primary_key=True, autoincrement=False),
    Column("position", Big, primary_key=True, autoincrement=False),
    Column("hash", LargeBinary, nullable=False),
)
"""The hashes of tile levels ≥ 1 (level 0 is log_entry.leaf)."""
log_checkpoint = Table(
    "log_checkpoint",
    metadata,
    Column("size", Big, primary_key=True, autoincrement=False),
    Column("at", UtcDateTime, nullable=False),
    Column("note", Text, nullable=False),
)
log_cosignature = Table(
    "log_cosignature",
    metadata,
    Column("size", Big, primary_key=True, autoincrement=False),
    Column("name", String(255), primary_key=True),
    Column("at", UtcDateTime, nullable=False),
    Column("line", Text, nullable=False),
)
log_cursor = Table(
    "log_cursor",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("position", Big, nullable=False),
)
witness_state = Table(
    "witness_state",
    metadata,
    Column("origin", String(255), primary_key=True),
    Column("origin_hash", String(64), nullable=False, unique=True),
    Column("size", Big, nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Column("note", Text, nullable=False),
)
"""The latest checkpoint that this node has cosigned, per log."""
