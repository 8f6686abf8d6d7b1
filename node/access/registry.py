"""The registry: the people and tokens of one node; its devices are `device_registry`'s.

Every change and its log entry share one transaction. Every question reads the database anew, because the command
line changes it from another process. Every row is sealed (`rows`): one altered outside raises RowAltered, from
whatever method meets it. Holds no session (`sessions`) and no treatment relationship (`care`).
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

from sqlalchemy import bindparam, select

from consent.errors import Conflict, Denied, Invalid, NotFound, Sentence
from consent.policy import Parameters
from consent.principals import Principal
from consent.vocabulary import EventKind, Role
from node.access.device_registry import DeviceRegistry
from node.access.passwords import Passwords, check_password
from node.access.people import Person, check_person, person_of, person_table
from node.access.rows import Reading, Rows, labelled
from node.access.tokens import (
    DEFAULT_DAYS,
    MAX_TOKEN_CHARACTERS,
    Token,
    check_scopes,
    new_secret,
    secret_hash,
    token_of,
    token_table,
)
from node.audit.log import Event, Log
from node.clock import Clock
from node.database import Database, Tx

_OWNER_OF_TOKEN = (
    select(person_table, *labelled(token_table, "token_"))
    .join(token_table, token_table.c.login == person_table.c.login)
    .where(
        token_table.c.hash == bindparam("secret_hash"),
        token_table.c.revoked.is_(None),
        token_table.c.expires > bindparam("now"),
        person_table.c.disabled.is_(None),
    )
)

ONE_TIME_LASTS = timedelta(hours=72)
ONE_TIME_BYTES = 16
ALONE = frozenset({Role.ADMINISTRATOR, Role.RESEARCHER, Role.HUB_OPERATOR})
"""Roles for which one person may make a one-time sign-in also when the account is in use: they see no patient."""


class Registry(DeviceRegistry):
    """Accounts, devices and tokens. `key` seals the rows, `node` is this node's id, `ae_title` its AE title."""

    def __init__(
        self,
        database: Database,
        log: Log,
        clock: Clock,
        *,
        key: bytes,
        node: str,
        ae_title: str,
        passwords: Passwords,
        parameters: Parameters | None = None,
    ) -> None:
        super().__init__(Rows(database, key, log), log, clock, node=node, ae_title=ae_title)
        self.passwords = passwords
        self._parameters = parameters or Parameters()

    # People

    async def add_person(
        self,
        login: str,
        name: str,
        role: Role,
        department: str | None = None,
        password: str | None = None,
        *,
        must_change_password: bool = False,
        by: str = "system",
    ) -> Person:
        """Make an account. Without a password nobody can sign in until `create_one_time` or `set_password`.

        Raises Invalid for a bad login, name, role or password; Conflict when the login is taken.
        """
        check_person(login, name, role, department)
        stored = await self._hashed(login, password)
        async with self._rows.writing() as tx:
            if await self._row(tx, login) is not None:
                raise Conflict(
                    Sentence("The login %(login)s is taken.", login=login),
                    mend="Choose another one.",
                    code="login-taken",
                )
            values = {
                "login": login,
                "name": name,
                "role": role.value,
                "department": department,
                "password": stored,
                "credentials": 1,
                "must_change": must_change_password,
                "created": self._clock.now(),
            }
            await self._rows.insert(tx, person_table, values)
            await self._tell(tx, EventKind.PERSON_ADDED, by, {"login": login, "role": role.value})
        return await self.person(login)

    async def person(self, login: str) -> Person:
        """One account. Raises NotFound."""
        row = await self._checked(login)
        if row is None:
            raise NotFound("There is no such account.", mend="Check the login: accord user add makes one.")
        return person_of(row)

    async def people(self) -> list[Person]:
        """Every account, by login."""
        query = select(person_table).order_by(person_table.c.login)
        return await self._rows.read(
            lambda on: [person_of(on.check(person_table, row)) for row in on.execute(query).all()]
        )

    async def principal(self, login: str) -> Principal:
        """The person as the rules see them, without a second factor. Raises NotFound."""
        return (await self.person(login)).principal(self.node)

    async def set_password(self, login: str, password: str, *, by: str | None = None) -> int:
        """Set a password. Every session and every token of the person ends; a one-time sign-in is spent.

        Returns how many tokens ended. Raises Invalid for a weak one, NotFound without an account.
        """
        stored, by = await self._hashed(login, password), by or f"person:{login}@{self.node}"
        changes = {"password": stored, "must_change": False, "one_time": None, "one_time_until": None}
        async with self._rows.writing() as tx:
            await self._change_in(tx, login, changes, by, "password")
            return await self._end_tokens(tx, login, by)

    async def proves(self, login: str, password: str) -> bool:
        """Whether `password` is the person's present one, for confirming a change."""
        row = await self._checked(login)
        return await self.passwords.matches(None if row is None else row.password, password)

    async def create_one_time(
        self,
        login: str,
        *,
        by: str = "system",
        asked_by: str = "",
        approval: str = "",
        tx: Tx | None = None,
    ) -> str:
        """Return a secret with which the person signs in once and must then choose a password.

        For an account in use every session and token ends, it is an alarm, and the person is told. `approval` is the
        proposal that a second person approved, `asked_by` who had asked (`resets`). Raises NotFound, and Denied for an
        account in use that needs a second person.
        """
        secret, now = secrets.token_urlsafe(ONE_TIME_BYTES), self._clock.now()
        changes: dict[str, Any] = {"one_time": secret_hash(secret), "one_time_until": now + ONE_TIME_LASTS}
        async with self._rows.writing(tx) as own:
            row = await self._known(own, login)
            if row.password is None:
                await self._change_in(own, login, changes, by, "one-time sign-in")
                return secret
            if Role(row.role) not in ALONE and not approval:
                raise Denied(
                    "For an account in use a second person decides about a one-time sign-in.",
                    mend="Ask for it on the page People; a security officer or chief physician hands it over.",
                    code="second-person",
                )
            told = {"reset_at": now, "reset_asked_by": asked_by or by, "reset_by": by, "reset_told": False}
            await self._change_in(own, login, changes | told, by, "one-time sign-in")
            ended = await self._end_tokens(own, login, by)
            detail = {"login": login, "asked_by": asked_by or by, "approval": approval, "tokens_ended": ended}
            await self._tell(own, EventKind.SIGN_IN_RESET, by, detail)
            return secret

    async def answer_reset(self, login: str, *, asked: bool, address: str | None = None) -> None:
        """The person says whether they had asked for their last one-time sign-in. That they had not is an alarm."""
        by = f"person:{login}@{self.node}"
        async with self._rows.writing() as tx:
            row = await self._known(tx, login)
            if row.reset_at is None or row.reset_told:
                return
            await self._rows.update(tx, person_table, row, {"reset_told": True})
            kind = EventKind.SIGN_IN_RESET_CONFIRMED if asked else EventKind.SIGN_IN_RESET_DISOWNED
            detail = {"login": login, "asked_by": row.reset_asked_by, "by": row.reset_by}
            await self._log.append(tx, Event(kind, by, address=address, detail=detail))

    async def disable(self, login: str, *, by: str = "system") -> None:
        """Close an account: its sessions are over and its tokens revoked, also should it be opened again."""
        async with self._rows.writing() as tx:
            await self._change_in(tx, login, {"disabled": self._clock.now()}, by, "disabled")
            await self._end_tokens(tx, login, by)

    async def enable(self, login: str, *, by: str = "system") -> None:
        """Open a closed account again; its old sessions and tokens stay over."""
        await self._change(login, {"disabled": None}, by, "enabled")

    # Tokens

    async def create_token(
        self, login: str, scopes: Iterable[str], days: float = DEFAULT_DAYS, *, by: str = "system"
    ) -> str:
        """Return a new bearer token; it is shown this once. Raises Invalid or NotFound."""
        wanted = check_scopes(scopes)
        longest = self._parameters.token_max_days
        if not 0 < days <= longest:
            raise Invalid(
                Sentence("A token lives at most %(longest)s days.", longest=format(longest, "g")),
                mend="Ask for fewer.",
                code="token-days",
            )
        await self.person(login)
        secret, now = new_secret(), self._clock.now()
        async with self._rows.writing() as tx:
            token_id = secrets.token_hex(8)
            values = {
                "id": token_id,
                "hash": secret_hash(secret),
                "login": login,
                "scopes": " ".join(sorted(wanted)),
                "created": now,
                "expires": now + timedelta(days=days),
            }
            await self._rows.insert(tx, token_table, values)
            detail = {"token": token_id, "login": login, "scopes": sorted(wanted), "days": days}
            await self._tell(tx, EventKind.TOKEN_CREATED, by, detail)
        return secret

    async def tokens_of(self, login: str) -> list[Token]:
        """The tokens of one person, newest first."""
        mine = select(token_table).where(token_table.c.login == login)
        newest = mine.order_by(token_table.c.created.desc())
        return await self._rows.read(
            lambda on: [token_of(on.check(token_table, row)) for row in on.execute(newest).all()]
        )

    async def revoke_token(self, token_id: str, *, by: str = "system") -> None:
        """End a token. Raises NotFound."""
        async with self._rows.writing() as tx:
            living = select(token_table).where(token_table.c.id == token_id, token_table.c.revoked.is_(None))
            row = (await self._rows.select(tx, living.with_for_update())).one_or_none()
            if row is None:
                raise NotFound("There is no such token.")
            await self._revoke(tx, row, by)

    async def principal_of_token(self, secret: str) -> tuple[Principal, frozenset[str]] | None:
        """The owner and the scopes of a living token of an active account; None for any other."""
        if len(secret) > MAX_TOKEN_CHARACTERS:
            return None
        asked = {"secret_hash": secret_hash(secret), "now": self._clock.now()}

        def living(on: Reading) -> Any:
            found = on.execute(_OWNER_OF_TOKEN, asked).one_or_none()
            return on.check(person_table, on.check(token_table, found, "token_"))

        row = await self._rows.look_up(living)
        if row is None:
            return None
        return person_of(row).principal(self.node), frozenset(row.token_scopes.split())

    async def _hashed(self, login: str, password: str | None) -> str | None:
        if password is None:
            return None
        check_password(password, login)
        return await self.passwords.hash(password)

    async def _change(self, login: str, changes: Mapping[str, Any], by: str, what: str) -> None:
        """Change an account; its sessions made before are over."""
        async with self._rows.writing() as tx:
            await self._change_in(tx, login, changes, by, what)

    async def _end_tokens(self, tx: Tx, login: str, by: str) -> int:
        """Revoke every living token of a person; return how many."""
        mine = select(token_table).where(token_table.c.login == login, token_table.c.revoked.is_(None))
        ended = 0
        for row in await self._rows.select(tx, mine.with_for_update()):
            # An altered token is refused wherever it is shown; it must not keep an account or a password.
            if await self._rows.holds(tx, token_table, row):
                await self._revoke(tx, row, by)
                ended += 1
        return ended

    async def _known(self, tx: Tx, login: str) -> Any:
        row = await self._row(tx, login, lock=True)
        if row is None:
            raise NotFound("There is no such account.", mend="Check the login.")
        return await self._rows.read(lambda on: on.check(person_table, row), tx=tx)

    async def _change_in(self, tx: Tx, login: str, changes: Mapping[str, Any], by: str, what: str) -> None:
        row = await self._known(tx, login)
        change = {"credentials": row.credentials + 1, **changes}
        await self._rows.update(tx, person_table, row, change)
        await self._tell(tx, EventKind.PERSON_CHANGED, by, {"login": login, "what": what})

    async def _checked(self, login: str) -> Any:
        query = select(person_table).where(person_table.c.login == login)
        return await self._rows.read(lambda on: on.check(person_table, on.execute(query).one_or_none()))

    async def _row(self, tx: Tx, login: str, *, lock: bool = False) -> Any:
        query = select(person_table).where(person_table.c.login == login)
        return (await self._rows.select(tx, query.with_for_update() if lock else query)).one_or_none()

    async def _revoke(self, tx: Tx, row: Any, by: str) -> None:
        await self._rows.update(tx, token_table, row, {"revoked": self._clock.now()})
        await self._tell(tx, EventKind.TOKEN_REVOKED, by, {"token": row.id})
