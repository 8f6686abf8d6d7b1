"""Byte ranges of a single body (RFC 9110 §14): one range is answered, several are answered whole. Pure."""

from __future__ import annotations

import re
from typing import NamedTuple

from consent.errors import Invalid

_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})")


class Span(NamedTuple):
    """A part of a body of `total` bytes."""

    offset: int
    length: int
    total: int

    @property
    def content_range(self) -> str:
        """The header of that name."""
        return f"bytes {self.offset}-{self.offset + self.length - 1}/{self.total}"


def span_of(header: str | None, total: int) -> Span | None:
    """What of a body of `total` bytes is asked for; None when all of it is, or in a way that is not answered in parts.

    Raises Invalid with code `no-such-range` (416) when there is nothing at the range.
    """
    match = _RANGE.fullmatch((header or "").strip())
    if match is None or match.group(1) == match.group(2) == "":
        return None
    first, last = match.groups()
    if not first:
        length = min(int(last), total)
        return _span(total - length, length, total)
    if last and int(last) < int(first):
        return None  # not a range by the grammar: as if it were not there
    end = min(int(last), total - 1) if last else total - 1
    return _span(int(first), end - int(first) + 1, total)


def _span(offset: int, length: int, total: int) -> Span:
    if length <= 0 or offset >= total:
        raise Invalid(
            f"There is nothing at this range; there are {total} bytes.",
            mend="Ask for less.",
            code="no-such-range",
        )
    return Span(offset, length, total)
