"""Reading typed fields out of JSON that came from outside, with a named bound on each.

Every signed body is read through `Fields`, so a wrong type, a missing field or an absurd length is always the
same clear Invalid. Times are whole seconds since 1970 in JSON and aware UTC datetimes in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from enum import Enum
from typing import Any, TypeVar

from consent.errors import Invalid

MAX_TEXT_CHARACTERS = 4096
MAX_ITEMS = 10_000
MAX_UNIX_SECONDS = 2**36

E = TypeVar("E", bound=Enum)
V = TypeVar("V")


def whole(moment: datetime) -> datetime:
    """Return `moment` in UTC, cut to whole seconds: the resolution of every signed record."""
    if moment.tzinfo is None:
        raise Invalid("A time without a zone.", mend="Give an aware datetime.")
    return moment.astimezone(UTC).replace(microsecond=0)


def unix(moment: datetime) -> int:
    """Return whole seconds since 1970."""
    return int(whole(moment).timestamp())


class Fields:
    """One JSON object, named `what` in error messages."""

    def __init__(self, data: Mapping[str, Any], what: str) -> None:
        self._data = data
        self._what = what

    def text(self, name: str, *, limit: int = MAX_TEXT_CHARACTERS, empty: bool = False) -> str:
        """A string; empty only where `empty` says so."""
        return self._text(name, self._data.get(name), limit, empty)

    def optional_text(self, name: str, *, limit: int = MAX_TEXT_CHARACTERS) -> str | None:
        """A non-empty string, or None when absent or null."""
        value = self._data.get(name)
        return None if value is None else self._text(name, value, limit, False)

    def integer(self, name: str, *, low: int = 0, high: int = 2**53) -> int:
        """A whole number within [low, high]."""
        value = self._data.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self._bad(name, f"a whole number from {low} to {high}")
        return value

    def number(self, name: str, *, low: float = 0.0, high: float = 1e12) -> float:
        """A finite number within [low, high]."""
        value = self._data.get(name)
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
            raise self._bad(name, f"a number from {low} to {high}")
        return float(value)

    def flag(self, name: str) -> bool:
        """True or false."""
        value = self._data.get(name)
        if not isinstance(value, bool):
            raise self._bad(name, "true or false")
        return value

    def moment(self, name: str) -> datetime:
        """A time."""
        return datetime.fromtimestamp(self.integer(name, high=MAX_UNIX_SECONDS), UTC)

    def choice(self, name: str, words: type[E]) -> E:
        """One word of an enumeration."""
        return self._choice(name, self._data.get(name), words)

    def choices(self, name: str, words: type[E]) -> frozenset[E]:
        """A list of words of an enumeration, each once."""
        return frozenset(self._choice(name, item, words) for item in self._list(name, MAX_ITEMS))

    def texts(self, name: str, *, limit: int = MAX_ITEMS) -> tuple[str, ...]:
        """A list of non-empty strings."""
        return tuple(self._text(name, item, MAX_TEXT_CHARACTERS, False) for item in self._list(name, limit))

    def mapping(self, name: str) -> dict[str, Any]:
        """A JSON object as it stands."""
        value = self._data.get(name)
        if not isinstance(value, dict):
            raise self._bad(name, "an object")
        return value

    def objects(
        self, name: str, read: Callable[[dict[str, Any]], V], *, limit: int = MAX_ITEMS
    ) -> tuple[V, ...]:
        """A list of JSON objects, each through `read`."""
        items = self._list(name, limit)
        if not all(isinstance(item, dict) for item in items):
            raise self._bad(name, "a list of objects")
        return tuple(read(item) for item in items)

    def _list(self, name: str, limit: int) -> list[Any]:
        value = self._data.get(name)
        if not isinstance(value, list) or len(value) > limit:
            raise self._bad(name, f"a list of at most {limit} items")
        return value

    def _text(self, name: str, value: object, limit: int, empty: bool) -> str:
        if not isinstance(value, str) or len(value) > limit or (not value and not empty):
            raise self._bad(name, f"a text of at most {limit} characters")
        return value

    def _choice(self, name: str, value: object, words: type[E]) -> E:
        try:
            if isinstance(value, bool):
                raise ValueError
            return words(value)
        except ValueError:
            raise self._bad(name, "one of " + ", ".join(str(word.value) for word in words)) from None

    def _bad(self, name: str, wanted: str) -> Invalid:
        return Invalid(f"This {self._what}'s {name!r} is not {wanted}.")
