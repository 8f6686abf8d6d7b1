"""A wire that can be cut: a small TCP relay in front of a node, so that a test can take the node off the network.

It passes bytes and knows nothing of them (TLS goes through it end to end, as through any relay between hospitals).
"""

from __future__ import annotations

import asyncio
import contextlib


class Wire:
    """Relays one local port to another. `cut()` drops every connection and refuses new ones until `mend()`."""

    def __init__(self) -> None:
        self.target: int | None = None
        self.passed = 0
        self._server: asyncio.Server | None = None
        self._pipes: set[asyncio.Task[None]] = set()
        self._whole = True
        self._cut_at: int | None = None
        self._flip_at: int | None = None
        self.flipped = 0

    async def start(self) -> int:
        """Listen; return the port that others use."""
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        self.cut()
        assert self._server is not None
        self._server.close()
        await asyncio.gather(*self._pipes, return_exceptions=True)

    def cut(self) -> None:
        """Drop what is open, refuse what comes."""
        self._whole = False
        for pipe in self._pipes:
            pipe.cancel()

    def mend(self) -> None:
        """Relay again."""
        self._whole, self._cut_at, self._flip_at = True, None, None

    def cut_after(self, size_bytes: int) -> None:
        """Cut once that many more bytes have gone from the node to others."""
        self._cut_at = self.passed + size_bytes

    def flip_after(self, size_bytes: int) -> None:
        """Change one bit of what the node sends, once that many more bytes have gone."""
        self._flip_at = self.passed + size_bytes

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._pipes.add(task)
        task.add_done_callback(self._pipes.discard)
        try:
            if not self._whole or self.target is None:
                return
            inner, outer = await asyncio.open_connection("127.0.0.1", self.target)
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._pump(reader, outer, counted=False))
                    group.create_task(self._pump(inner, writer, counted=True))
            finally:
                outer.transport.abort()
        except* (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, counted: bool
    ) -> None:
        while data := await reader.read(16 * 1024):
            if counted:
                self.passed += len(data)
                if self._cut_at is not None and self.passed >= self._cut_at:
                    self.cut()
                    return
                if self._flip_at is not None and self.passed >= self._flip_at:
                    self._flip_at = None
                    self.flipped += 1
                    data = data[:-1] + bytes([data[-1] ^ 1])
            writer.write(data)
            await writer.drain()
        with contextlib.suppress(OSError):
            writer.write_eof()
