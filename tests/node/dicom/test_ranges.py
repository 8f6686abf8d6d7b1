"""Byte ranges by the grammar of RFC 9110."""

from __future__ import annotations

import pytest

from node.dicom.ranges import span_of


@pytest.mark.parametrize(
    ("header", "span"),
    [
        ("bytes=0-0", (0, 1, 10)), ("bytes=9-", (9, 1, 10)), ("bytes=-99", (0, 10, 10)), (None, None), ("bytes=-", None),
        ("bytes=5-2", None), ("bytes=a-b", None), ("items=0-1", None), ("bytes=" + "9" * 30 + "-", None),
    ],
)  # fmt: skip
def test_ranges_are_read_by_the_grammar(header: str | None, span: tuple[int, int, int] | None) -> None:
    """RFC 9110 §14.1.2: what is no range is as if it were not there."""
    assert span_of(header, 10) == span
