"""Patient names in memory: the only place where names are searched with wildcards.

A name is folded once (NFC, case, trailing delimiters) and each of its component groups (alphabetic,
ideographic, phonetic; PS3.5 §6.2.1) stands as an entry of its own in one sorted list, so that `wang*` is two
bisections. On disk names lie sealed; this list is never written.
"""

from __future__ import annotations

import asyncio
import fnmatch
import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from sys import intern

MAX_NAMES = 1_000_000
"""Past this the table stops growing and says so: the search then opens rows instead."""
MAX_GROUPS = 3
SLICE_NAMES = 5_000
"""Names compared before other work on the event loop has its turn: about a millisecond."""
_LAST = "\U0010ffff"
_WORD_ENDS = re.compile(r"[\s^=*?.,'`’()-]+")


class NameTable:
    """Folded names of studies, sorted, with the date of each. Not thread-safe: it lives on the event loop.

    A search lets other work have its turn between slices, and goes on behind the last name that it saw: names
    that come or go meanwhile move nothing out of its way.
    """

    def __init__(self) -> None:
        self._entries: list[tuple[str, str, str]] = []
        self.complete = True

    def __len__(self) -> int:
        return len(self._entries)

    def load(self, names: Iterable[tuple[str, str, str]]) -> None:
        """Replace everything by (study, name, date) triples; dates are YYYYMMDD or ""."""
        self._entries = sorted(
            (folded, study, intern(date)) for study, name, date in names for folded in folded_groups(name)
        )
        self.complete = len(self._entries) <= MAX_NAMES
        del self._entries[MAX_NAMES:]

    def add(self, study: str, name: str, date: str) -> None:
        """Add one study's name; one that is there keeps its date."""
        for folded in folded_groups(name):
            at = bisect_left(self._entries, (folded, study))
            if self._at(at) == (folded, study):
                continue
            if len(self._entries) >= MAX_NAMES:
                self.complete = False
                return
            self._entries.insert(at, (folded, study, intern(date)))

    def remove(self, study: str, name: str) -> None:
        """Take one study's name out; nothing happens when it is not there."""
        for folded in folded_groups(name):
            at = bisect_left(self._entries, (folded, study))
            if self._at(at) == (folded, study):
                del self._entries[at]

    def _at(self, place: int) -> tuple[str, str] | None:
        return self._entries[place][:2] if place < len(self._entries) else None

    async def match(self, pattern: str) -> dict[str, str] | None:
        """Studies one of whose name groups matches, with their dates; None when the table is not complete.

        `pattern` may hold `*` and `?`; with `=` in it every given group must match.
        """
        if not self.complete:
            return None
        found: dict[str, str] | None = None
        for group in folded_groups(pattern):
            hits = await self._search(group)
            found = hits if found is None else {study: found[study] for study in found.keys() & hits.keys()}
        return found or {}

    async def match_fuzzily(self, value: str) -> dict[str, str] | None:
        """Studies whose name has, for every word of `value`, a word that begins with it; None as for `match`.

        See `fuzzy`. Every name is looked at, slice by slice.
        """
        if not self.complete:
            return None
        matches = fuzzy(value)
        found: dict[str, str] = {}
        at = 0
        while at < len(self._entries):
            piece = self._entries[at : at + SLICE_NAMES // 5]
            found.update((study, date) for name, study, date in piece if matches(name))
            await asyncio.sleep(0)
            at = bisect_right(self._entries, piece[-1])
        return found

    async def _search(self, pattern: str) -> dict[str, str]:
        prefix = re.split(r"[*?]", pattern, maxsplit=1)[0]
        matches = _test(pattern, prefix)
        found: dict[str, str] = {}
        at = bisect_left(self._entries, (prefix,))
        while True:
            high = bisect_left(self._entries, (prefix + _LAST,)) if prefix else len(self._entries)
            piece = self._entries[at : min(at + SLICE_NAMES, high)]
            found.update((study, date) for name, study, date in piece if matches is None or matches(name))
            if at + SLICE_NAMES >= high:
                return found
            await asyncio.sleep(0)
            at = bisect_right(self._entries, piece[-1])


def _test(pattern: str, prefix: str) -> Callable[[str], object] | None:
    """What a folded name with this prefix must pass; None when the prefix says it all."""
    if pattern == f"{prefix}*":
        return None
    inner = pattern.strip("*")
    if pattern == f"*{inner}*" and not re.search(r"[*?]", inner):
        return lambda name: inner in name
    return wildcard(pattern).fullmatch


def folded_groups(name: str) -> tuple[str, ...]:
    """The non-empty component groups of a PN value, folded for comparison."""
    folded = (fold(group) for group in name.split("=", MAX_GROUPS)[:MAX_GROUPS])
    return tuple(dict.fromkeys(group for group in folded if group))


def fuzzy(value: str) -> Callable[[str], bool]:
    """Fuzzy matching of names (PS3.4 §C.2.2.2.1.1 leaves the rule to us): every word that is asked for begins a word of
    one and the same component group, in any order, whatever the case, accents and punctuation.

    So `jose garcia`, `Garcia^Jo` and `GARCÍA*` all find `García Márquez^José`.
    """
    wanted = name_words(value)

    def matches(name: str) -> bool:
        words = name_words(name)
        return bool(wanted) and all(any(word.startswith(one) for word in words) for one in wanted)

    return matches


def name_words(text: str) -> tuple[str, ...]:
    """The words of a name without case, accents, delimiters, wildcards and punctuation."""
    bare = "".join(one for one in unicodedata.normalize("NFKD", text) if not unicodedata.combining(one))
    return tuple(word for word in _WORD_ENDS.split(bare.casefold()) if word)


def fold(text: str) -> str:
    """One spelling for all ways to write the same name."""
    return unicodedata.normalize("NFC", text).casefold().strip().rstrip("^ ")


def wildcard(pattern: str) -> re.Pattern[str]:
    """PS3.4 §C.2.2.2.4: `*` stands for any characters, `?` for one; everything else for itself.

    `fnmatch` writes it without backtracking between stars, so a hostile pattern costs no more than a kind one.
    """
    return re.compile(fnmatch.translate(pattern.replace("[", "[[]")))
