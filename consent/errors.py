"""The error families. Leaves live where they are raised; doors (HTTP, DIMSE, command line) map families only.

Every error carries a sentence for the person who meets it (`message`), what to do about it (`mend`), and a
stable slug (`code`) for machines. None of the three may hold a patient identifier.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self


class Sentence(str):
    """A sentence with its values filled in that still knows its words, so that a door can say it in another language.

    `Sentence("The login %(login)s is taken.", login=login)`. The words are looked up in the catalogues as they stand.
    """

    words: str
    values: dict[str, object]

    def __new__(cls, words: str, **values: object) -> Self:
        sentence = super().__new__(cls, words % values)
        sentence.words, sentence.values = words, values
        return sentence


class Sentences(str):
    """Sentences after one another, each of which a door can say in another language."""

    parts: tuple[str, ...]

    def __new__(cls, parts: Iterable[str]) -> Self:
        parts = tuple(parts)
        text = super().__new__(cls, " ".join(parts))
        text.parts = parts
        return text


class AccordError(Exception):
    """Base of every error that a person or a peer may be shown."""

    code = "error"

    def __init__(self, message: str, *, mend: str = "", code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.mend = mend
        if code is not None:
            self.code = code

    def __str__(self) -> str:
        return f"{self.message} {self.mend}".strip()


class Denied(AccordError):
    """The rules say no. `reasons` are the words of the decision, one per rule that spoke."""

    code = "denied"

    def __init__(
        self, message: str, *, reasons: tuple[str, ...] = (), mend: str = "", code: str | None = None
    ) -> None:
        super().__init__(message, mend=mend, code=code)
        self.reasons = reasons


class NotFound(AccordError):
    """What was asked for is not here, or the asker may not know that it is."""

    code = "not-found"


class Conflict(AccordError):
    """The state of things forbids it now: already exists, wrong state, stale version."""

    code = "conflict"


class Corrupt(AccordError):
    """A digest, tag, signature or proof does not match: the bytes are not what was written."""

    code = "corrupt"


class Invalid(AccordError):
    """The input breaks its format or a named bound."""

    code = "invalid"


class Unavailable(AccordError):
    """A needed part cannot answer now: disk full, peer away, too busy."""

    code = "unavailable"
