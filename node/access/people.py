"""People who have an account: the table, and what a login, a name and a role must look like.

Leaves hashing to `passwords` and every change, with its log entry, to `registry`. `credentials` counts the changes
of password; a session made under an older count is over. `reset_…` say that somebody made a one-time sign-in for an
account in use.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Boolean, Column, Integer, String, Table, Text

from consent.errors import Invalid, Sentence
from consent.principals import PEOPLE, Principal
from consent.vocabulary import Role
from node.access.rows import UNSEALED, seal_columns
from node.database import UtcDateTime, metadata

MAX_NAME_CHARACTERS = 120
LOGIN = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}[a-z0-9]|[a-z0-9]")

person_table = Table(
    "person",
    metadata,
    Column("login", String(64), primary_key=True),
    Column("name", String(MAX_NAME_CHARACTERS), nullable=False),
    Column("role", String(32), nullable=False),
    Column("department", String(MAX_NAME_CHARACTERS)),
    Column("password", Text),
    Column("credentials", Integer, nullable=False),
    Column("must_change", Boolean, nullable=False),
    Column("one_time", String(64)),
    Column("one_time_until", UtcDateTime),
    Column("reset_at", UtcDateTime),
    Column("reset_asked_by", String(MAX_NAME_CHARACTERS)),
    Column("reset_by", String(MAX_NAME_CHARACTERS)),
    Column("reset_told", Boolean),
    Column("disabled", UtcDateTime),
    Column("created", UtcDateTime, nullable=False),
    Column("signed_in", UtcDateTime),
    *seal_columns(),
    info={UNSEALED: ("signed_in",)},  # shown, and decides nothing
)


@dataclass(frozen=True)
class Reset:
    """When a one-time sign-in was last made for an account in use, who asked for it and who made it.

    `told` says that the person has seen it and said whether they had asked.
    """

    at: datetime
    asked_by: str
    by: str
    told: bool


@dataclass(frozen=True)
class Person:
    """One account, without its secrets."""

    login: str
    name: str
    role: Role
    department: str | None
    active: bool
    must_change_password: bool
    created: datetime
    signed_in: datetime | None
    credentials: int
    has_password: bool
    reset: Reset | None = None

    def principal(self, node: str, *, second_factor: bool = False) -> Principal:
        """The person as the rules see them."""
        return Principal(
            self.login,
            self.role,
            self.name,
            node,
            self.department,
            second_factor=second_factor,
            active=self.active,
        )


def person_of(row: Any) -> Person:
    """Read a row of `person_table`."""
    return Person(
        row.login,
        row.name,
        Role(row.role),
        row.department,
        row.disabled is None,
        row.must_change,
        row.created,
        row.signed_in,
        row.credentials,
        row.password is not None,
        None
        if row.reset_at is None
        else Reset(row.reset_at, row.reset_asked_by, row.reset_by, bool(row.reset_told)),
    )


def check_person(login: str, name: str, role: Role, department: str | None) -> None:
    """Raise Invalid, saying which is wrong and how to mend it."""
    if not LOGIN.fullmatch(login):
        raise Invalid(
            "This is not a login.",
            mend="Use up to 64 of a-z, 0-9, '.', '_' and '-', like dr.li.",
            code="login",
        )
    if role not in PEOPLE:
        raise Invalid(
            Sentence("People cannot have the role %(role)s.", role=role.value),
            mend=Sentence("Use one of: %(choices)s.", choices=", ".join(sorted(PEOPLE))),
            code="role",
        )
    for what, text in (("name", name), ("department", department)):
        if text is not None and not (0 < len(text) <= MAX_NAME_CHARACTERS and text.isprintable()):
            raise Invalid(
                Sentence("The %(what)s is empty, too long or has control characters.", what=what),
                mend=Sentence("Give 1 to %(most)s characters.", most=MAX_NAME_CHARACTERS),
                code=what,
            )
