"""The body of an answer: its length is known before the first byte, and it goes out in pieces of one size.

TLS in Python is fastest in pieces of WRITE_BYTES; what is smaller waits for its neighbours. A body that is not ended
is cut, never closed as if it were whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Self

from aiohttp import web

WRITE_BYTES = 256 * 1024


class Body:
    """`async with Body(…) as body`, write `length` bytes, `end`."""

    def __init__(
        self, request: web.Request, length: int, headers: Mapping[str, str], *, status: int = 200
    ) -> None:
        self._request = request
        self.response = web.StreamResponse(status=status, headers={"Cache-Control": "no-store", **headers})
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
        """Send `data` after what was written before, some of it perhaps later."""
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
