"""Patient names in memory: the only place where names are searched with wildcards.

A name is folded once (NFC, case, trailing delimiters) and each of its component groups (alphabetic,
ideographic, phonetic; PS3.5 §6.2.1) stands as an entry of its own in one sorted list, so that `wang*` is two
bisections. On disk names lie sealed; this list is never written.
"""

from __future__ import annotations

import fnmatch
import re
import unicodedata
from bisect import bisect_left, insort
from collections.abc import Iterable

MAX_NAMES = 1_000_000
"""Past this the table stops growing and says so: the search then opens rows instead."""
MAX_GROUPS = 3
_LAST = "\U0010ffff"


class NameTable:
    """Folded names of studies, sorted. Not thread-safe: it lives on the event loop."""

    def __init__(self) -> None:
        self._entries: list[tuple[str, str]] = []
        self.complete = True

    def __len__(self) -> int:
        return len(self._entries)

    def load(self, names: Iterable[tuple[str, str]]) -> None:
        """Replace everything by (study, name) pairs."""
        self._entries = sorted((folded, study) for study, name in names for folded in folded_groups(name))
        self.complete = len(self._entries) <= MAX_NAMES
        del self._entries[MAX_NAMES:]

    def add(self, study: str, name: str) -> None:
        """Add one study's name."""
        for folded in folded_groups(name):
            if len(self._entries) >= MAX_NAMES:
                self.complete = False
                return
            insort(self._entries, (folded, study))

    def remove(self, study: str, name: str) -> None:
        """Take one study's name out; nothing happens when it is not there."""
        for folded in folded_groups(name):
            at = bisect_left(self._entries, (folded, study))
            if self._entries[at : at + 1] == [(folded, study)]:
                del self._entries[at]

    def match(self, pattern: str) -> frozenset[str] | None:
        """Studies one of whose name groups matches; None when the table is not complete.

        `pattern` may hold `*` and `?`; with `=` in it every given group must match.
        """
        if not self.complete:
            return None
        found: frozenset[str] | None = None
        for group in folded_groups(pattern):
            hits = frozenset(self._search(group))
            found = hits if found is None else found & hits
        return frozenset() if found is None else found

    def _search(self, pattern: str) -> Iterable[str]:
        prefix = re.split(r"[*?]", pattern, maxsplit=1)[0]
        low = bisect_left(self._entries, (prefix,))
        high = bisect_left(self._entries, (prefix + _LAST,)) if prefix else len(self._entries)
        rest = pattern[len(prefix) :]
        if rest == "*":
            return (study for _, study in self._entries[low:high])
        inner = pattern.strip("*")
        if pattern == f"*{inner}*" and not re.search(r"[*?]", inner):
            return (study for name, study in self._entries if inner in name)
        matches = wildcard(pattern).fullmatch
        return (study for name, study in self._entries[low:high] if matches(name))


def folded_groups(name: str) -> tuple[str, ...]:
    """The non-empty component groups of a PN value, folded for comparison."""
    folded = (fold(group) for group in name.split("=", MAX_GROUPS)[:MAX_GROUPS])
    return tuple(dict.fromkeys(group for group in folded if group))


def fold(text: str) -> str:
    """One spelling for all ways to write the same name."""
    return unicodedata.normalize("NFC", text).casefold().strip().rstrip("^ ")


def wildcard(pattern: str) -> re.Pattern[str]:
    """PS3.4 §C.2.2.2.4: `*` stands for any characters, `?` for one; everything else for itself.

    `fnmatch` writes it without backtracking between stars, so a hostile pattern costs no more than a kind one.
    """
    return re.compile(fnmatch.translate(pattern.replace("[", "[[]")))
