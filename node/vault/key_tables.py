"""The tables of wrapped keys. What is wrapped under what: docs/formats/keystore.md."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Index, Integer, LargeBinary, String, Table

from node.database import UtcDateTime, metadata

ACTIVE, DECRYPT_ONLY, DESTROYED = "active", "decrypt-only", "destroyed"
NODE_ROOT, TWO_PERSON_ROOT = "node", "two-person"

vault_kek = Table(
    "vault_kek",
    metadata,
    Column("grade", Integer, primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("state", String(16), nullable=False),
    Column("root", String(16), nullable=False),
    Column("wrapped", LargeBinary, nullable=True),
    Column("created", UtcDateTime, nullable=False),
    Column("destroyed", UtcDateTime, nullable=True),
)
vault_study_key = Table(
    "vault_study_key",
    metadata,
    Column("study", String(80), primary_key=True),
    Column("grade", Integer, primary_key=True),
    Column("kek_version", Integer, nullable=False),
    Column("wrapped", LargeBinary, nullable=False),
    Column("created", UtcDateTime, nullable=False),
    Index("ix_vault_study_key_grade_kek_version", "grade", "kek_version"),
)
vault_secret = Table(
    "vault_secret",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("wrapped", LargeBinary, nullable=False),
    Column("created", UtcDateTime, nullable=False),
)
vault_regrade = Table(
    "vault_regrade",
    metadata,
    Column("study", String(80), primary_key=True),
    Column("grade", Integer, nullable=False),
    Column("generation", Integer, nullable=False),
    Column("made_key", Boolean, nullable=False),
    Column("actor", String(200), nullable=False),
    Column("created", UtcDateTime, nullable=False),
)
"""Studies whose objects are being sealed anew under another grade: what a crash leaves is finished or taken back."""
