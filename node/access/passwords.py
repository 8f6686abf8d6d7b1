"""Passwords: argon2id in one worker thread with a bounded queue, and the growing pause after wrong ones.

One thread and a short queue bound the memory and processor time that strangers can make this node spend. The
pause belongs to an account *and* an address, so that nobody can lock a clinician out from elsewhere.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar

from nacl.exceptions import InvalidkeyError
from nacl.pwhash import argon2id

from consent.errors import Invalid, Sentence, Unavailable

# RFC 9106 §4 and OWASP: above 19 MiB with two passes; one lane, because libsodium has no more.
ARGON2_PASSES = 3
ARGON2_MEMORY_BYTES = 32 * 1024 * 1024
MAX_WAITING = 32

MIN_PASSWORD_CHARACTERS = 12
MAX_PASSWORD_BYTES = 512

FREE_ATTEMPTS = 3
MAX_PAUSE_SECONDS = 60.0
MAX_REMEMBERED = 10_000
FORGET_AFTER = timedelta(hours=1)

V = TypeVar("V")


class Passwords:
    """Hashes and checks. `close` ends the worker."""

    def __init__(self, *, passes: int = ARGON2_PASSES, memory_bytes: int = ARGON2_MEMORY_BYTES) -> None:
        self._passes = passes
        self._memory_bytes = memory_bytes
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="argon2id")
        self._waiting = 0
        self._decoy: str | None = None

    async def hash(self, password: str) -> str:
        """The PHC string of `password`. Raises Unavailable when too many wait."""
        return await self._run(lambda: self._hash(password))

    async def matches(self, stored: str | None, password: str) -> bool:
        """Whether `password` is the stored one. Without a stored one it takes as long and is False."""
        return await self._run(lambda: self._matches(stored, password))

    def close(self) -> None:
        """End the worker thread."""
        self._worker.shutdown(wait=True, cancel_futures=True)

    async def _run(self, work: Callable[[], V]) -> V:
        if self._waiting >= MAX_WAITING:
            raise Unavailable("Too many people sign in at this moment.", mend="Try again in a few seconds.")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._worker, work)
        finally:
            self._waiting -= 1

    def _hash(self, password: str) -> str:
        secret = _bytes(password)
        return argon2id.str(secret, opslimit=self._passes, memlimit=self._memory_bytes).decode("ascii")

    def _matches(self, stored: str | None, password: str) -> bool:
        if stored is None:
            # The same work as for a real account: the time must not tell which logins exist.
            self._decoy = self._decoy or self._hash("no such account")
        known = stored or self._decoy or ""
        try:
            return argon2id.verify(known.encode("ascii"), _bytes(password)) and stored is not None
        except InvalidkeyError:
            return False


def check_password(password: str, login: str) -> None:
    """Raise Invalid, saying why, for a password that is too short, too long, or close to the login."""
    if len(password) < MIN_PASSWORD_CHARACTERS:
        raise Invalid(
            Sentence("The password has fewer than %(least)s characters.", least=MIN_PASSWORD_CHARACTERS),
            mend="Take a few words that only you would put together.",
            code="weak-password",
        )
    if len(_bytes(password)) > MAX_PASSWORD_BYTES:
        raise Invalid(
            Sentence("The password is longer than %(most)s bytes.", most=MAX_PASSWORD_BYTES),
            code="weak-password",
        )
    if login.casefold() in password.casefold() or len(set(password)) < 4:
        raise Invalid(
            "The password holds the login, or hardly more than one character.",
            mend="Take a few words that only you would put together.",
            code="weak-password",
        )


def _bytes(password: str) -> bytes:
    # A JSON body can smuggle in lone surrogates; they are a wrong password, not a crash.
    return password.encode("utf-8", "surrogatepass")


@dataclass
class _Failures:
    count: int
    last: datetime
    told: bool = False


class Pace:
    """How long an account must wait at an address after wrong passwords: 1 s, 2 s, 4 s … up to a minute.

    Kept in memory and bounded; a right password forgets the wrong ones. Never a lock: care must go on.
    """

    def __init__(self) -> None:
        self._failures: OrderedDict[tuple[str, str], _Failures] = OrderedDict()

    def wait_seconds(self, login: str, address: str, now: datetime) -> float:
        """How long to wait still; 0 when the next attempt may be made."""
        known = self._failures.get((login, address))
        if known is None:
            return 0.0
        return max(0.0, (known.last + _pause(known.count) - now).total_seconds())

    def first_refusal(self, login: str, address: str) -> bool:
        """Whether this is the first attempt refused in this pause: only that one needs an entry in the log."""
        known = self._failures.get((login, address))
        first = known is not None and not known.told
        if known is not None:
            known.told = True
        return first

    def failed(self, login: str, address: str, now: datetime) -> None:
        """Remember a wrong password."""
        known = self._failures.pop((login, address), None)
        before = known.count if known is not None and now - known.last <= FORGET_AFTER else 0
        self._failures[login, address] = _Failures(before + 1, now)
        while len(self._failures) > MAX_REMEMBERED:
            self._failures.popitem(last=False)

    def succeeded(self, login: str, address: str) -> None:
        """Forget the wrong ones."""
        self._failures.pop((login, address), None)


def _pause(count: int) -> timedelta:
    if count < FREE_ATTEMPTS:
        return timedelta()
    return timedelta(seconds=min(MAX_PAUSE_SECONDS, 2.0 ** min(count - FREE_ATTEMPTS, 16)))
