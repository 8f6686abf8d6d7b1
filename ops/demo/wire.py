"""A wire between two sites that the demonstration can cut or spoil: a TCP relay on loopback.

It reads nothing (what passes is TLS); it can refuse to pass anything, or flip one bit of what passes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

PIECE_BYTES = 64 * 1024


class Wire:
    """Relays connections to `port`. Set `cut` to stop all traffic, call `spoil` to flip one bit of it."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._writers: set[asyncio.StreamWriter] = set()
        self._flip_after: int | None = None
        self.flipped = 0
        self.cut = False
        self.port = 0

    def spoil(self, after_bytes: int = 100_000) -> None:
        """Flip one bit of what the target sends, after that many more bytes."""
        self._flip_after = after_bytes

    def break_now(self) -> None:
        """Stop passing anything and drop what is connected."""
        self.cut = True
        for writer in list(self._writers):
            writer.close()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Wire]:
        """Listen on a free port of 127.0.0.1 until the block ends."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            self.break_now()
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.cut:
            writer.close()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.close()
            return
        both = {writer, far_writer}
        self._writers |= both
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass(reader, far_writer, spoilable=False))
                group.create_task(self._pass(far_reader, writer, spoilable=True))
        finally:
            self._writers -= both
            for end in both:
                end.close()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, spoilable: bool
    ) -> None:
        with suppress(OSError):
            while piece := await reader.read(PIECE_BYTES):
                if self.cut:
                    break
                writer.write(self._maybe_spoiled(piece) if spoilable else piece)
                await writer.drain()
        writer.close()

    def _maybe_spoiled(self, piece: bytes) -> bytes:
        if self._flip_after is None:
            return piece
        self._flip_after -= len(piece)
        if self._flip_after > 0:
            return piece
        self._flip_after = None
        self.flipped += 1
        middle = len(piece) // 2
        return piece[:middle] + bytes([piece[middle] ^ 1]) + piece[middle + 1 :]
