"""Sign-in and sessions, kept at the server.

A session is 256 random bits in the browser's cookie and their hash in the database. It ends after 15 idle minutes,
after 12 hours, at sign-out, when the account is closed, and when the password changes. The CSRF token is derived
from the cookie's value, so it needs no place of its own. Cookie attributes are the web door's. Rows are sealed
(`rows`), the moment of last use too: a session or an account altered outside raises RowAltered.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any
from weakref import WeakValueDictionary

from sqlalchemy import (
    Boolean,
    Column,
    ColumnElement,
    ForeignKey,
    Integer,
    String,
    Table,
    or_,
    select,
    update,
)

from consent.errors import Denied, Invalid, Sentence
from consent.policy import Parameters
from consent.principals import Principal
from consent.vocabulary import EventKind, Outcome
from node.access.passwords import MAX_PASSWORD_BYTES, Pace, Passwords
from node.access.people import LOGIN, Person, person_of, person_table
from node.access.rows import Reading, Rows, labelled, seal_columns
from node.access.tokens import secret_hash
from node.audit.log import Event, Log
from node.clock import Clock
from node.database import Database, Tx, UtcDateTime, metadata

COOKIE_BYTES = 32
MAX_COOKIE_CHARACTERS = 128
TOUCH_EVERY = timedelta(seconds=30)
"""How finely idleness is measured: an active session is written at most this often."""

session_table = Table(
    "session",
    metadata,
    Column("hash", String(64), primary_key=True),
    Column("login", String(64), ForeignKey("person.login"), nullable=False, index=True),
    Column("credentials", Integer, nullable=False),
    Column("second_factor", Boolean, nullable=False),
    Column("must_change", Boolean, nullable=False),
    Column("address", String(64), nullable=False),
    Column("created", UtcDateTime, nullable=False),
    Column("seen", UtcDateTime, nullable=False),
    Column("expires", UtcDateTime, nullable=False),
    *seal_columns(),
)


@dataclass(frozen=True)
class Session:
    """A living session. `cookie` is the browser's secret; `csrf` goes into forms and the X-CSRF-Token header."""

    principal: Principal
    cookie: str = field(repr=False)
    csrf: str = field(repr=False)
    expires: datetime
    must_change_password: bool


class Sessions:
    """Signs people in and knows them again."""

    def __init__(
        self,
        database: Database,
        log: Log,
        clock: Clock,
        *,
        key: bytes,
        node: str,
        passwords: Passwords,
        parameters: Parameters | None = None,
    ) -> None:
        self._rows = Rows(database, key, log)
        self._log = log
        self._clock = clock
        self._node = node
        self._passwords = passwords
        self._pace = Pace()
        self._turns: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()
        terms = parameters or Parameters()
        self._idle = timedelta(minutes=terms.session_idle_minutes)
        self._absolute = timedelta(hours=terms.session_hours)

    async def sign_in(self, login: str, password: str, address: str, code: str | None = None) -> Session:
        """Start a session with a password, or once with a one-time secret (then a password must be chosen).

        Raises Denied with one and the same sentence for every wrong pair, Denied `sign-in-paced` while an
        account must wait at this address, Invalid for a second-factor code, which no account has yet.
        """
        if code:
            raise Invalid("This account has no second factor.", mend="Leave the code empty.", code="code")
        login = login.strip().casefold()
        # What was typed as the login may be a password, or very long: only what could be a login is kept.
        account = login if LOGIN.fullmatch(login) else "?"
        # One attempt at a time for an account at an address: many at once must not slip past the pause.
        async with self._turns.setdefault((account, address), asyncio.Lock()):
            now = self._clock.now()
            await self._check_pace(account, address, now)
            person, once = await self._proved(login, password)
            if person is None:
                self._pace.failed(account, address, now)
                await self._refused(account, address, "wrong login or password")
                raise Denied(
                    "The login or the password is wrong.", mend="Check both and try again.", code="sign-in"
                )
            self._pace.succeeded(account, address)
        return await self._begin(person, address, once)

    async def session(self, cookie: str, *, awake: bool = True) -> Session | None:
        """The session behind a cookie, or None when there is none or it has ended. Using it keeps it `awake`."""
        if not 0 < len(cookie) <= MAX_COOKIE_CHARACTERS:
            return None
        now = self._clock.now()

        def living(on: Reading) -> Any:
            row = on.check(session_table, on.execute(self._living(cookie, now)).one_or_none(), "session_")
            return on.check(person_table, row)

        row = await self._rows.read(living)
        if row is None:
            return None
        if awake and now - row.session_seen >= TOUCH_EVERY:
            await self._touch(row.session_hash, now)
        return self._session(
            person_of(row), cookie, row.session_expires, row.session_must_change, row.session_second_factor
        )

    async def sign_out(self, cookie: str) -> None:
        """End a session; an unknown one is already over."""
        found = await self.session(cookie)
        async with self._rows.writing() as tx:
            await self._delete(tx, session_table.c.hash == secret_hash(cookie))
            if found is not None:
                await self._log.append(tx, Event(EventKind.SIGNED_OUT, found.principal.actor))

    async def end_all(self, login: str) -> None:
        """End every session of a person."""
        async with self._rows.writing() as tx:
            await self._delete(tx, session_table.c.login == login)

    async def sweep(self) -> int:
        """Delete sessions that have ended; returns how many."""
        now = self._clock.now()
        ended = or_(session_table.c.expires <= now, session_table.c.seen <= now - self._idle)
        async with self._rows.writing() as tx:
            return await self._delete(tx, ended, counted=False)

    async def _delete(self, tx: Tx, condition: ColumnElement[bool], *, counted: bool = True) -> int:
        rows = await self._rows.select(tx, select(session_table).where(condition).with_for_update())
        await self._rows.delete(tx, session_table, *rows, counted=counted)
        return len(rows)

    async def _touch(self, hashed: str, now: datetime) -> None:
        async with self._rows.writing() as tx:
            mine = session_table.c.hash == hashed
            row = (
                await self._rows.select(tx, select(session_table).where(mine).with_for_update())
            ).one_or_none()
            if row is not None:
                await self._rows.update(tx, session_table, row, {"seen": now}, counted=False)

    async def _proved(self, login: str, password: str) -> tuple[Person | None, bool]:
        """The active person whom the pair proves, and whether by the one-time secret, which is now spent."""
        if not LOGIN.fullmatch(login) or len(password) > MAX_PASSWORD_BYTES:
            return None, False
        query = select(person_table).where(person_table.c.login == login)
        row = await self._rows.read(lambda on: on.check(person_table, on.execute(query).one_or_none()))
        if row is not None and row.disabled is None and await self._spend_one_time(row, password):
            return person_of(row), True
        right = await self._passwords.matches(None if row is None else row.password, password)
        return (person_of(row), False) if row and right and row.disabled is None else (None, False)

    async def _spend_one_time(self, row: Any, password: str) -> bool:
        offered = secret_hash(password)
        if row.one_time is None or not hmac.compare_digest(row.one_time, offered):
            return False
        unspent = select(person_table).where(
            person_table.c.login == row.login,
            person_table.c.one_time == offered,
            person_table.c.one_time_until > self._clock.now(),
        )
        async with self._rows.writing() as tx:
            # Read anew: of two who offer it at once, the second finds it spent.
            present = (await self._rows.select(tx, unspent.with_for_update())).one_or_none()
            if present is None:
                return False
            spent = {"one_time": None, "one_time_until": None}
            await self._rows.update(tx, person_table, present, spent)
            return True

    async def _begin(self, person: Person, address: str, once: bool) -> Session:
        cookie, now = secrets.token_urlsafe(COOKIE_BYTES), self._clock.now()
        must_change = once or person.must_change_password
        async with self._rows.writing() as tx:
            values = {
                "hash": secret_hash(cookie),
                "login": person.login,
                "credentials": person.credentials,
                "second_factor": False,
                "must_change": must_change,
                "address": address[:64],
                "created": now,
                "seen": now,
                "expires": now + self._absolute,
            }
            await self._rows.insert(tx, session_table, values)
            mine = update(person_table).where(person_table.c.login == person.login)
            await tx.execute(mine.values(signed_in=now))
            actor = person.principal(self._node).actor
            await self._log.append(tx, Event(EventKind.SIGNED_IN, actor, address=address))
        return self._session(person, cookie, now + self._absolute, must_change, False)

    async def _check_pace(self, account: str, address: str, now: datetime) -> None:
        seconds = self._pace.wait_seconds(account, address, now)
        if seconds == 0.0:
            return
        if self._pace.first_refusal(account, address):
            await self._refused(account, address, "too many wrong passwords from here")
        raise Denied(
            "Too many wrong passwords from here.",
            mend=Sentence("Wait %(seconds)s seconds and try again.", seconds=max(1, round(seconds))),
            code="sign-in-paced",
        )

    async def _refused(self, account: str, address: str, reason: str) -> None:
        actor = "person:?" if account == "?" else f"person:{account}@{self._node}"
        refusal = Event(
            EventKind.SIGN_IN_REFUSED, actor, outcome=Outcome.REFUSED, address=address, reason=reason
        )
        await self._log.record(refusal)

    def _living(self, cookie: str, now: datetime) -> Any:
        return (
            select(person_table, *labelled(session_table, "session_"))
            .join(session_table, session_table.c.login == person_table.c.login)
            .where(
                session_table.c.hash == secret_hash(cookie),
                session_table.c.expires > now,
                session_table.c.seen > now - self._idle,
                session_table.c.credentials == person_table.c.credentials,
                person_table.c.disabled.is_(None),
            )
        )

    def _session(
        self, person: Person, cookie: str, expires: datetime, must_change: bool, second_factor: bool
    ) -> Session:
        csrf = hmac.digest(cookie.encode(), b"accord/csrf/v1", sha256).hex()
        principal = person.principal(self._node, second_factor=second_factor)
        return Session(principal, cookie, csrf, expires, must_change)
