"""The two answers to "may I": a permit with what it owes, or a refusal with its words. Never a bare bool."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar

from consent.errors import Denied, Sentences
from consent.obligations import ExpireAt, Obligation


@dataclass(frozen=True)
class Permit:
    """Yes, and what is owed for it. `reasons` are the words of the rules that permitted."""

    obligations: tuple[Obligation, ...] = ()
    reasons: tuple[str, ...] = ()
    permitted: ClassVar[bool] = True

    @property
    def expires(self) -> datetime | None:
        """When what was permitted ends by itself, or None."""
        return next((owed.moment for owed in self.obligations if isinstance(owed, ExpireAt)), None)

    def owes(self, kind: type[Obligation]) -> bool:
        """Whether an obligation of this kind is owed."""
        return any(isinstance(owed, kind) for owed in self.obligations)

    def or_raise(self) -> Permit:
        """Return itself, so that `decide(...).or_raise()` gives a permit or raises."""
        return self


@dataclass(frozen=True)
class Deny:
    """No, and why, in sentences that the person refused can read."""

    reasons: tuple[str, ...]
    permitted: ClassVar[bool] = False

    def or_raise(self) -> Permit:
        """Raise Denied with the reasons."""
        raise Denied(Sentences(self.reasons), reasons=self.reasons)


Verdict = Permit | Deny
