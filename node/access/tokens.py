"""API tokens: `acc_` and 256 random bits, kept only as a hash, with scopes and an end."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any

from sqlalchemy import Column, ForeignKey, String, Table

from consent.errors import Invalid, Sentence
from node.access.rows import seal_columns
from node.database import UtcDateTime, metadata

PREFIX = "acc_"
RANDOM_BYTES = 32
MAX_TOKEN_CHARACTERS = 128
SCOPES = frozenset({"api", "dicomweb"})
DEFAULT_DAYS = 30.0

token_table = Table(
    "token",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("hash", String(64), nullable=False, unique=True),
    Column("login", String(64), ForeignKey("person.login"), nullable=False, index=True),
    Column("scopes", String(200), nullable=False),
    Column("created", UtcDateTime, nullable=False),
    Column("expires", UtcDateTime, nullable=False),
    Column("revoked", UtcDateTime),
    *seal_columns(),
)


@dataclass(frozen=True)
class Token:
    """One token, without its secret."""

    id: str
    login: str
    scopes: frozenset[str]
    created: datetime
    expires: datetime
    revoked: datetime | None


def token_of(row: Any) -> Token:
    """Read a row of `token_table`."""
    return Token(row.id, row.login, frozenset(row.scopes.split()), row.created, row.expires, row.revoked)


def new_secret() -> str:
    """A fresh bearer token."""
    return PREFIX + secrets.token_urlsafe(RANDOM_BYTES)


def secret_hash(secret: str) -> str:
    """What is kept of a secret with 256 bits: SHA-256, hex. Nothing slower is needed at this length."""
    return sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def check_scopes(scopes: Iterable[str]) -> frozenset[str]:
    """Return the scopes. Raises Invalid when none is given or one is not known."""
    wanted = frozenset(scopes)
    if not wanted or not wanted <= SCOPES:
        raise Invalid(
            "A token needs scopes that exist.",
            mend=Sentence("Use one or more of: %(choices)s.", choices=", ".join(sorted(SCOPES))),
            code="scope",
        )
    return wanted
