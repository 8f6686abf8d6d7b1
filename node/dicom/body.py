"""The body of an answer: it goes out in pieces of one size, and mostly its length is known before the first byte.

TLS in Python is fastest in pieces of WRITE_BYTES; what is smaller waits for its neighbours. A body that is not ended
is cut, never closed as if it were whole.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from aiohttp import web

from node.dicom.multipart import MultipartWriter
from node.dicom.ranges import Span, span_of

WRITE_BYTES = 256 * 1024
FRESH = {"Cache-Control": "no-store"}
"""What a person may see changes with every grant, so no cache may answer for us."""


class Body:
    """`async with Body(…) as body`, write `length` bytes, `end`. Without a length it goes out in chunks."""

    def __init__(
        self, request: web.Request, length: int | None, headers: Mapping[str, str], *, status: int = 200
    ) -> None:
        self._request = request
        self.wanted = request.method != "HEAD"
        self.response = web.StreamResponse(status=status, headers={**FRESH, **headers})
        if length is None:
            self.response.enable_chunked_encoding()
        else:
            self.response.content_length = length
        self._waiting: list[bytes | memoryview] = []
        self._size = 0

    async def __aenter__(self) -> Self:
        await self.response.prepare(self._request)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._waiting.clear()

    async def write(self, data: bytes | memoryview) -> None:
        """Send `data` after what was written before, some of it perhaps later; nothing in answer to HEAD."""
        if not self.wanted:
            return
        view = memoryview(data)
        if self._size:
            room = WRITE_BYTES - self._size
            self._waiting.append(view[:room])
            self._size += min(room, len(view))
            view = view[room:]
            if self._size == WRITE_BYTES:
                await self._flush()
        whole = len(view) - len(view) % WRITE_BYTES
        for start in range(0, whole, WRITE_BYTES):
            await self.response.write(view[start : start + WRITE_BYTES])
        if whole < len(view):
            self._waiting.append(view[whole:])
            self._size = len(view) - whole

    async def end(self) -> web.StreamResponse:
        """Send the rest; the answer is whole."""
        await self._flush()
        await self.response.write_eof()
        return self.response

    async def _flush(self) -> None:
        if self._waiting:
            piece = self._waiting[0] if len(self._waiting) == 1 else b"".join(self._waiting)
            self._waiting, self._size = [], 0
            await self.response.write(piece)


@dataclass(frozen=True)
class Piece:
    """One part of a multipart answer, or its only body; `location` is its own address."""

    content_type: str
    body: bytes
    location: str = ""


async def send_one(request: web.Request, piece: Piece) -> web.StreamResponse:
    """Answer with one body that is in memory, or with the range of it that was asked for."""
    span = span_asked(request, len(piece.body))
    headers = {"Content-Type": piece.content_type, **range_headers(span)}
    if piece.location:
        headers["Content-Location"] = piece.location
    body = memoryview(piece.body)
    if span is not None:
        body = body[span.offset : span.offset + span.length]
    async with Body(request, len(body), headers, status=200 if span is None else 206) as answer:
        await answer.write(body)
        return await answer.end()


async def send_parts(request: web.Request, part_type: str, pieces: Sequence[Piece]) -> web.StreamResponse:
    """Answer with parts that are in memory."""
    writer = MultipartWriter(part_type)
    heads = [
        writer.head(piece.content_type, len(piece.body), first=number == 0, location=piece.location)
        for number, piece in enumerate(pieces)
    ]
    end = writer.end()
    length = sum(len(piece.body) for piece in pieces) + sum(map(len, heads)) + len(end)
    async with Body(request, length, {"Content-Type": writer.content_type}) as answer:
        for head, piece in zip(heads, pieces, strict=True):
            await answer.write(head)
            await answer.write(piece.body)
        await answer.write(end)
        return await answer.end()


async def stream_parts(
    request: web.Request, part_type: str, pieces: AsyncGenerator[Piece, None]
) -> web.StreamResponse:
    """Answer with parts as they are made. The first is made before the status goes out."""
    writer = MultipartWriter(part_type)
    async with aclosing(pieces):
        piece = await anext(pieces, None)
        async with Body(request, None, {"Content-Type": writer.content_type}) as answer:
            first = True
            while piece is not None:
                await answer.write(
                    writer.head(piece.content_type, len(piece.body), first=first, location=piece.location)
                )
                await answer.write(piece.body)
                first, piece = False, await anext(pieces, None)
            await answer.write(writer.end())
            return await answer.end()


def span_asked(request: web.Request, total: int) -> Span | None:
    """The range of a body that a request asks for; ranges are of GET alone (RFC 9110 §14.2). Raises Invalid (416)."""
    return span_of(request.headers.get("Range") if request.method == "GET" else None, total)


def range_headers(span: Span | None) -> dict[str, str]:
    """What is said of ranges: that they are taken, and which this is."""
    headers = {"Accept-Ranges": "bytes"}
    return headers if span is None else {**headers, "Content-Range": span.content_range}
