"""Reading what came in a query, a form or a path: each value checked, each bound named, nothing echoed back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta
from enum import Enum
from typing import Any, Final, TypeVar

from consent.errors import Invalid, Sentence
from node.web.text import N_

MAX_WHOLE: Final = 10**9
E = TypeVar("E", bound=Enum)


def choice_of(words: type[E], value: object, name: str) -> E:
    """One word of an enumeration. Raises Invalid naming the field and what it may be."""
    try:
        return words(value)
    except ValueError:
        allowed = ", ".join(str(word.value) for word in words)
        raise Invalid(
            Sentence("%(name)s is not one of its values.", name=name),
            mend=Sentence("Use one of: %(choices)s.", choices=allowed),
        ) from None


def choices_of(words: type[E], values: list[str], name: str) -> frozenset[E]:
    """Several words of an enumeration."""
    return frozenset(choice_of(words, value, name) for value in values)


def whole_number(query: Mapping[str, str], name: str, default: int) -> int:
    """A whole number from 0; the default when absent."""
    value = query.get(name)
    if value is None or value == "":
        return default
    if not value.isdecimal() or int(value[:12]) > MAX_WHOLE or len(value) > 12:
        raise Invalid(
            Sentence("%(name)s is not a whole number from 0.", name=name),
            mend=Sentence("Use 0 to %(most)s.", most=MAX_WHOLE),
        )
    return int(value)


def number(query: Mapping[str, str], name: str, bound: float) -> float | None:
    """A finite number of at most `bound` in size; None when absent."""
    value = query.get(name)
    if value is None or value == "":
        return None
    try:
        result = float(value[:32])
    except ValueError:
        raise Invalid(Sentence("%(name)s is not a number.", name=name)) from None
    if not math.isfinite(result) or abs(result) > bound:
        raise Invalid(
            Sentence("%(name)s is out of range.", name=name),
            mend=Sentence("Use -%(most)s to %(most)s.", most=format(bound, "g")),
        )
    return result


def moment_of(value: object, name: str, *, end_of_day: bool = False) -> datetime | None:
    """An ISO 8601 time or date (in the node's zone unless it names one); None when empty.

    With `end_of_day`, a bare date means the end of that day.
    """
    if value is None or value == "":
        return None
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 2**36:
        return datetime.fromtimestamp(value, UTC)
    try:
        if not isinstance(value, str) or len(value) > 40:
            raise ValueError
        if len(value) == 10:
            moment = datetime.combine(date.fromisoformat(value), time()).astimezone()
            return (moment + timedelta(days=1) if end_of_day else moment).astimezone(UTC)
        return datetime.fromisoformat(value).astimezone(UTC)
    except (ValueError, OverflowError):
        raise Invalid(
            Sentence("%(name)s is not a date or time.", name=name),
            mend=N_("Write it like 2027-03-31 or 2027-03-31T08:00:00Z."),
        ) from None


def text_of(form: Mapping[str, Any], name: str, *, limit: int = 500, needed: str = "") -> str:
    """A form's field without surrounding spaces. Raises Invalid when it is too long, or missing and `needed`
    (a sentence for the person) is given."""
    value = str(form.get(name, "")).strip()
    if len(value) > limit:
        raise Invalid(
            Sentence("%(name)s is longer than %(limit)s characters.", name=name, limit=limit),
            mend=N_("Shorten it."),
        )
    if needed and not value:
        raise Invalid(needed, code="missing")
    return value
