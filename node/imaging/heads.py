"""Data sets of one series are built alike: their heads differ in a few values, and only those need to be read again.

A `Head` remembers one data set up to its pixels, element by element; `changes` lays another one beside it. Leaves what
the values mean to `attributes` and `model_lines`. Pure; bounded by MAX_HEAD_BYTES and MAX_PIECES.

Invariant: a data set that `changes` answers for is one that `elements` would read to its pixels, with the same tags in the same
order; where it does not answer, the data set must be read as if there were no other.
"""

from __future__ import annotations

from dataclasses import dataclass

from consent.errors import Invalid

from .elements import PIXEL_DATA, Buffer, Element, Form, elements, header, header_bytes

MAX_HEAD_BYTES = 64 * 1024
MAX_PIECES = 1_000
LONGER_BYTES = 1024
"""So much longer than the one before a head may be."""


@dataclass(frozen=True)
class Changes:
    """How a data set differs: `elements` by their place in the head, as they lie in `data`, which is the head alone."""

    data: bytes
    elements: tuple[tuple[int, Element], ...]


@dataclass(frozen=True)
class Head:
    """The top level of a data set up to its pixels, which `pixels` says are there.

    A piece is an element as it lies, tag to last byte of the value; of Pixel Data it is what stands before the value.
    """

    form: Form
    tags: tuple[int, ...]
    pieces: tuple[bytes, ...]
    pixels: bool
    size: int

    @classmethod
    def of(cls, data: Buffer, form: Form) -> Head | None:
        """Remember a data set that was read already; None when it is not worth it (long) or names an element twice."""
        tags: list[int] = []
        starts: list[int] = []
        end = len(data)
        pixels = False
        for element in elements(data, form):
            tags.append(element.tag)
            starts.append(element.start - header_bytes(element, form))
            if element.tag in PIXEL_DATA:
                pixels, end = True, element.start
                break
        if not tags or end > MAX_HEAD_BYTES or len(tags) > MAX_PIECES or len(set(tags)) < len(tags):
            return None
        pieces = (bytes(data[a:b]) for a, b in zip(starts, [*starts[1:], end], strict=True))
        return cls(form, tuple(tags), tuple(pieces), pixels, end)

    def place(self, tag: int) -> int:
        """Where an element stands among the others, from 0; their number when it is not there."""
        return self.tags.index(tag) if tag in self.tags else len(self.tags)

    def value(self, tag: int) -> bytes:
        """The value of an element; b"" when it is empty or not there."""
        place = self.place(tag)
        if place == len(self.tags):
            return b""
        piece = self.pieces[place]
        return piece[header(piece, 0, len(piece), self.form).start :]

    def changes(self, data: Buffer) -> Changes | None:
        """What differs in `data`, which is encoded in the same form; None when it is not built alike."""
        head = bytes(data[: self.size + LONGER_BYTES])
        size = len(head)
        found = []
        position = 0
        for number, piece in enumerate(self.pieces):
            if head.startswith(piece, position):
                position += len(piece)
                continue
            try:
                element = header(head, position, size, self.form)
            except Invalid:
                return None
            tag, _, start, length = element
            # An undefined length is longer than anything that is there.
            if tag != self.tags[number] or tag in PIXEL_DATA or length > size - start:
                return None
            found.append((number, element))
            position = start + length
        if not self.pixels and position != len(data):
            return None
        return Changes(head[:position], tuple(found))
