"""What a permit owes. The rules name the obligations; `node.gateway` carries them out.

In a rule an obligation is a word of the `@obligation` annotation, several separated by commas: `watermark`,
`deidentify`, `notify:security-officer`, `review`, `expire:grant`, `expire:emergency`. A word that is not known
makes the policy invalid, so that a misspelt duty never vanishes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime

from consent.errors import Invalid
from consent.vocabulary import Role


@dataclass(frozen=True)
class Watermark:
    """Every picture shown or printed bears who, when and which patient, burned in."""


@dataclass(frozen=True)
class Deidentify:
    """Only the de-identified form leaves the gateway."""


@dataclass(frozen=True)
class ExpireAt:
    """What was opened closes at `moment`."""

    moment: datetime


@dataclass(frozen=True)
class Notify:
    """Whoever holds `role` is told now."""

    role: Role


@dataclass(frozen=True)
class ReviewWithin:
    """Somebody else reviews this within `hours`."""

    hours: float


Obligation = Watermark | Deidentify | ExpireAt | Notify | ReviewWithin


@dataclass(frozen=True)
class Ends:
    """The moments and terms that obligation words refer to in one decision."""

    grant: datetime | None
    emergency: datetime | None
    review_hours: float


Duty = Callable[[Ends], Obligation]
"""An obligation word, read from a rule and waiting for the decision's moments."""


def parse_duties(annotation: str) -> tuple[Duty, ...]:
    """Read an `@obligation` annotation. Raises Invalid for a word that is not known."""
    return tuple(_duty(word) for part in annotation.split(",") if (word := part.strip()))


def settle(duties: Iterable[Duty], ends: Ends) -> tuple[Obligation, ...]:
    """Turn duties into obligations: each once, and of several ends the earliest."""
    owed = list(dict.fromkeys(duty(ends) for duty in duties))
    moments = [item.moment for item in owed if isinstance(item, ExpireAt)]
    others = tuple(item for item in owed if not isinstance(item, ExpireAt))
    return (*others, ExpireAt(min(moments))) if moments else others


def _duty(word: str) -> Duty:
    if word in _PLAIN:
        return _PLAIN[word]
    verb, _, role = word.partition(":")
    if verb == "notify" and role in set(Role):
        notice = Notify(Role(role))
        return lambda _ends: notice
    raise Invalid(
        f"The rules owe {word!r}, which is not an obligation.",
        mend=f"Use one of: {', '.join(_PLAIN)}, notify:<role>.",
    )


def _at(moment: datetime | None) -> ExpireAt:
    if moment is None:
        raise Invalid("A rule owes an expiry that this decision does not have.")
    return ExpireAt(moment)


_PLAIN: dict[str, Duty] = {
    "watermark": lambda _ends: Watermark(),
    "deidentify": lambda _ends: Deidentify(),
    "review": lambda ends: ReviewWithin(ends.review_hours),
    "expire:grant": lambda ends: _at(ends.grant),
    "expire:emergency": lambda ends: _at(ends.emergency),
}
