"""multipart/related (RFC 2387, PS3.18 §8.7.1.1), both ways: parts out of a stream, and parts into one.

Pure: bytes in, parts out. The parser holds at most one part; how large one may be, its headers and their number
are bounded. The writer knows the length of everything before the first byte is sent.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from consent.errors import Invalid

MAX_PART_BYTES = 1024 * 1024 * 1024
MAX_PARTS = 50_000
MAX_HEADER_BYTES = 8 * 1024
MAX_HEADERS = 16
MAX_BOUNDARY_BYTES = 200  # RFC 2046 §5.1.1 says 70; Orthanc sends 73
MAX_PREAMBLE_BYTES = 4 * 1024

_BOUNDARY = re.compile(rf"[0-9A-Za-z'()+_,./:=? -]{{1,{MAX_BOUNDARY_BYTES}}}")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


@dataclass(frozen=True)
class Part:
    """One part: header names in lower case, and its bytes."""

    headers: Mapping[str, str]
    body: bytes | bytearray = field(repr=False)


class MultipartParser:
    """Feed it what arrives; it gives complete parts. Call `finish` at the end of the stream."""

    def __init__(
        self, boundary: str, *, max_part_bytes: int = MAX_PART_BYTES, max_parts: int = MAX_PARTS
    ) -> None:
        if not _BOUNDARY.fullmatch(boundary):
            raise Invalid("The multipart boundary is missing or malformed.", code="multipart")
        self._delimiter = b"\r\n--" + boundary.encode()
        self._max_part_bytes = max_part_bytes
        self._parts_left = max_parts
        # The delimiter begins with the line end before it; the first one may stand at the very start.
        self._buffer = bytearray(b"\r\n")
        self._searched = 0
        self._in_part = False
        self._ended = False

    def feed(self, data: bytes) -> Iterator[Part]:
        """Yield the parts that `data` completes. Raises Invalid when the stream is malformed or passes a bound."""
        if self._ended:
            return  # an epilogue is to be ignored (RFC 2046 §5.1.1)
        self._buffer += data
        while not self._ended:
            at = self._buffer.find(self._delimiter, self._searched)
            if at < 0:
                self._searched = max(0, len(self._buffer) - len(self._delimiter))
                self._require_bounds(len(self._buffer))
                return
            after = at + len(self._delimiter)
            line_end = self._buffer.find(b"\r\n", after, after + MAX_HEADER_BYTES)
            closing = self._buffer[after : after + 2] == b"--"
            if not closing and line_end < 0:
                # The line of the delimiter has not come whole yet.
                self._searched = at
                self._require_bounds(at)
                if len(self._buffer) - after > MAX_HEADER_BYTES:
                    raise _malformed("a boundary line has no end")
                return
            if not closing and self._buffer[after:line_end].strip(b" \t"):
                # Bytes of a part that only begin like the boundary.
                self._searched = at + 1
                continue
            was_in_part, self._in_part, self._ended = self._in_part, not closing, closing
            # The line end stays: an empty part's delimiter needs it.
            done, self._buffer = _cut(self._buffer, after if closing else line_end)
            self._searched = 0
            if was_in_part:
                yield self._part(done, at)

    @property
    def held_bytes(self) -> int:
        """How much of the stream waits here for the rest of its part."""
        return len(self._buffer)

    def finish(self) -> None:
        """Say that the stream has ended. Raises Invalid when it was cut short."""
        if not self._ended:
            raise _malformed("it ends before its closing boundary")

    def _require_bounds(self, size: int) -> None:
        bound = self._max_part_bytes + MAX_HEADER_BYTES if self._in_part else MAX_PREAMBLE_BYTES
        if size > bound:
            raise _malformed(
                "a part is too large" if self._in_part else "it does not begin with its boundary"
            )

    def _part(self, lines: bytearray, end: int) -> Part:
        """The part whose headers and body lie before `end` in `lines`, which becomes its body."""
        self._parts_left -= 1
        if self._parts_left < 0:
            raise _malformed("it has too many parts")
        blank = lines.find(b"\r\n\r\n", 0, min(end + 4, MAX_HEADER_BYTES))
        if blank < 0:
            raise _malformed("a part has no header, or too long a one")
        start = blank + 4
        if end - start > self._max_part_bytes:
            raise _malformed("a part is too large")
        headers = _headers(bytes(lines[2:blank]))
        del lines[max(start, end) :]  # an empty body shares the line end with its delimiter
        del lines[:start]
        return Part(headers, lines)


@dataclass(frozen=True)
class MultipartWriter:
    """Frames parts of known length. The boundary is new each time, so that no image can hold it on purpose."""

    part_type: str
    boundary: str = field(default_factory=lambda: f"accord-{secrets.token_hex(12)}")

    @property
    def content_type(self) -> str:
        """The Content-Type of the whole."""
        return f'multipart/related; type="{self.part_type}"; boundary={self.boundary}'

    def head(self, content_type: str, length: int, *, first: bool, location: str = "") -> bytes:
        """What stands before a part of `length` bytes, which has the address `location`."""
        lines = f"--{self.boundary}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n"
        lines += f"Content-Location: {location}\r\n\r\n" if location else "\r\n"
        return lines.encode() if first else b"\r\n" + lines.encode()

    def end(self) -> bytes:
        """What stands after the last part."""
        return f"\r\n--{self.boundary}--\r\n".encode()


def _cut(buffer: bytearray, at: int) -> tuple[bytearray, bytearray]:
    """What lies before `at`, and what lies from there on. Only the shorter is copied: a part may be a gigabyte."""
    if at > len(buffer) - at:
        rest = buffer[at:]
        del buffer[at:]
        return buffer, rest
    before = buffer[:at]
    del buffer[:at]
    return before, buffer


def parameters(header: str) -> tuple[str, dict[str, str]]:
    """A media type and its parameters, names in lower case, quotes removed. Raises Invalid when malformed."""
    pieces = _split(header)
    media_type = pieces[0].strip().lower()
    found: dict[str, str] = {}
    for piece in pieces[1:]:
        name, equals, value = piece.partition("=")
        name, value = name.strip().lower(), value.strip()
        if not equals or not _TOKEN.fullmatch(name):
            raise Invalid("A media type parameter is malformed.", code="media-type")
        if value[:1] == '"':
            value = re.sub(r"\\(.)", r"\1", value[1:-1])
        found[name] = value
    return media_type, found


def _split(header: str, separator: str = ";") -> list[str]:
    """Split at separators outside quotes."""
    pieces = re.findall(rf'(?:[^{separator}"]|"(?:[^"\\]|\\.)*")+', header)
    if not pieces:
        raise Invalid("A media type is malformed.", code="media-type")
    return [str(piece) for piece in pieces]


def _headers(raw: bytes) -> dict[str, str]:
    lines = [line for line in raw.decode("latin-1").split("\r\n") if line]
    if len(lines) > MAX_HEADERS:
        raise _malformed("a part has too many headers")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not _TOKEN.fullmatch(name):
            raise _malformed("a part has a malformed header")
        headers[name.lower()] = value.strip()
    return headers


def _malformed(why: str) -> Invalid:
    return Invalid(f"The multipart body cannot be read: {why}.", code="multipart")
