"""Messages between our own processes: small JSON objects with file descriptors, over a unix SOCK_SEQPACKET pair.

One packet is one message, so there is no framing to get wrong; whatever is large travels as sealed memory
(`sealed`). `Channel` blocks (child processes), `AsyncChannel` awaits (daemons). The other end's death is
`Closed`. A descriptor that is received belongs to the receiver.
"""

from __future__ import annotations

import array
import asyncio
import json
import os
import socket
from collections.abc import Sequence
from typing import Any

from consent.errors import Invalid, Unavailable

MAX_MESSAGE_BYTES = 160 * 1024
MAX_DESCRIPTORS = 4

Message = dict[str, Any]
Packet = tuple[Message, list[int]]


class Closed(Unavailable):
    """The process at the other end is gone."""

    def __init__(self) -> None:
        super().__init__("The process at the other end has ended.", code="closed")


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends; give one to a child by `pass_fds` or over another channel."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


class Channel:
    """The blocking end, for child processes."""

    def __init__(self, end: socket.socket) -> None:
        self.socket = end

    @classmethod
    def inherited(cls, descriptor: int) -> Channel:
        """The end that a parent passed down; not inherited further."""
        os.set_inheritable(descriptor, False)
        return cls(socket.socket(fileno=descriptor))

    def send(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        """Send one message; the descriptors stay open here. Raises Closed."""
        try:
            self.socket.sendmsg([_encode(message)], _ancillary(descriptors))
        except (BrokenPipeError, ConnectionResetError) as error:
            raise Closed from error

    def receive(self, timeout_seconds: float | None = None) -> Packet | None:
        """The next message, or None when none came in time. Raises Closed, Invalid."""
        self.socket.settimeout(timeout_seconds)
        try:
            return _receive(self.socket)
        except (TimeoutError, BlockingIOError):
            return None
        finally:
            self.socket.settimeout(None)

    def ask(self, message: Message, descriptors: Sequence[int] = (), *, timeout_seconds: float) -> Packet:
        """Send and wait for the answer. Raises Closed, or Unavailable when none comes in time."""
        self.send(message, descriptors)
        answer = self.receive(timeout_seconds)
        if answer is None:
            raise Unavailable("The other process did not answer in time.", code="no-answer")
        return answer

    def close(self) -> None:
        """Close this end."""
        self.socket.close()


class AsyncChannel:
    """The awaiting end, for a daemon. One reader and one writer at a time."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self.socket = end
        self._writer = asyncio.Lock()

    async def send(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        """Send one message; the descriptors stay open here. Raises Closed."""
        data = _encode(message)
        async with self._writer:
            while True:
                try:
                    self.socket.sendmsg([data], _ancillary(descriptors))
                    return
                except BlockingIOError:
                    await self._ready(writing=True)
                except OSError as error:
                    raise Closed from error

    async def receive(self) -> Packet:
        """The next message. Raises Closed, Invalid."""
        while True:
            try:
                return _receive(self.socket)
            except BlockingIOError:
                await self._ready(writing=False)
            except OSError as error:
                raise Closed from error

    def close(self) -> None:
        """Close this end; whoever waits on it gets Closed."""
        self.socket.close()

    async def _ready(self, *, writing: bool) -> None:
        loop = asyncio.get_running_loop()
        if self.socket.fileno() < 0:
            raise Closed
        ready: asyncio.Future[None] = loop.create_future()

        def now() -> None:
            if not ready.done():
                ready.set_result(None)

        add, remove = (
            (loop.add_writer, loop.remove_writer) if writing else (loop.add_reader, loop.remove_reader)
        )
        descriptor = self.socket.fileno()
        add(descriptor, now)
        try:
            await ready
        finally:
            remove(descriptor)


def _encode(message: Message) -> bytes:
    data = json.dumps(message, separators=(",", ":"), allow_nan=False).encode()
    if len(data) > MAX_MESSAGE_BYTES:
        raise Invalid("A message between processes is too long.")
    return data


def _ancillary(descriptors: Sequence[int]) -> list[tuple[int, int, Any]]:
    if not descriptors:
        return []
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]


def _receive(end: socket.socket) -> Packet:
    size = array.array("i").itemsize
    data, ancillary, flags, _ = end.recvmsg(
        MAX_MESSAGE_BYTES + 1, socket.CMSG_SPACE(MAX_DESCRIPTORS * size), socket.MSG_CMSG_CLOEXEC
    )
    descriptors = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(content[: len(content) - len(content) % size])
    if not data:
        raise Closed
    try:
        message = json.loads(data)
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or not isinstance(message, dict):
            raise ValueError
    except ValueError as error:
        for descriptor in descriptors:
            os.close(descriptor)
        raise Invalid("A message between processes is malformed.") from error
    return message, list(descriptors)
