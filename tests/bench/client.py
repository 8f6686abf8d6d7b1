"""An HTTP/1.1 client that costs next to nothing: one socket, one receive buffer, no copies. Plain or TLS.

It keeps its connection, as viewers do, so a TLS handshake is paid once and not by each request.
"""

from __future__ import annotations

import re
import socket
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

BUFFER_BYTES = 1024 * 1024
FRESH_SECONDS = 0.5
"""Orthanc closes a connection that is idle for a second: older ones are made anew, before the clock starts."""
_LENGTH = re.compile(rb"(?i)\r\ncontent-length:\s*(\d+)")


@dataclass(frozen=True)
class Web:
    """A DICOMweb service: where, with which headers, and whom a client trusts (None: plain HTTP)."""

    host: str
    port: int
    headers: Mapping[str, str] = field(default_factory=dict)
    context: ssl.SSLContext | None = field(default=None, compare=False)
    root: str = "/dicom-web"


@dataclass(frozen=True)
class Answer:
    """Times in seconds from the first byte sent; `size_bytes` of the body; the body itself when it was asked for."""

    status: int
    first_byte_seconds: float
    seconds: float
    size_bytes: int
    body: bytes = b""


class Client:
    """One connection to a service."""

    def __init__(self, web: Web) -> None:
        self._web = web
        self._buffer = bytearray(BUFFER_BYTES)
        self._socket: socket.socket | None = None
        self._used = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection; the next request makes a new one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def connect(self) -> socket.socket:
        """Connect now unless there is a fresh connection, so that the next request does not pay for it."""
        if time.perf_counter() - self._used > FRESH_SECONDS:
            self.close()
        if self._socket is None:
            made = socket.create_connection((self._web.host, self._web.port), timeout=120)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._web.context is not None:
                made = self._web.context.wrap_socket(made, server_hostname="localhost")
            self._socket = made
            self._used = time.perf_counter()
        return self._socket

    def get(self, path: str, accept: str, *, keep: bool = False) -> Answer:
        """GET below the service's root; `keep` also returns the body."""
        return self._request("GET", path, {"Accept": accept}, (), keep)

    def post(self, path: str, content_type: str, body: Sequence[bytes]) -> Answer:
        """POST the pieces of `body` as one."""
        headers = {
            "Accept": "application/dicom+json",
            "Content-Type": content_type,
            "Content-Length": str(sum(map(len, body))),
        }
        return self._request("POST", path, headers, body, keep=False)

    def _request(
        self, method: str, path: str, headers: Mapping[str, str], body: Sequence[bytes], keep: bool
    ) -> Answer:
        to = self.connect()
        lines = [f"{method} {self._web.root}{path} HTTP/1.1", "Host: localhost"]
        lines += [f"{name}: {value}" for name, value in {**self._web.headers, **headers}.items()]
        began = time.perf_counter()
        to.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        for piece in body:
            to.sendall(piece)
        return self._answer(to, began, keep)

    def _answer(self, to: socket.socket, began: float, keep: bool) -> Answer:
        view = memoryview(self._buffer)
        head, first = b"", 0.0
        while b"\r\n\r\n" not in head:
            got = to.recv_into(self._buffer)
            first = first or time.perf_counter() - began
            if not got:
                raise ConnectionError("the server closed the connection")
            head += bytes(view[:got])
        head, _, rest = head.partition(b"\r\n\r\n")
        kept = [rest]
        size = len(rest)
        length = _LENGTH.search(head)
        tail = rest[-5:]
        while size < int(length[1]) if length else not self._ended(head, tail):
            got = to.recv_into(self._buffer)
            if not got:
                self.close()
                break
            size += got
            tail = (tail + bytes(view[max(0, got - 5) : got]))[-5:]
            if keep:
                kept.append(bytes(view[:got]))
        seconds = time.perf_counter() - began
        body = b"".join(kept) if keep else b""
        if keep and b"chunked" in head.lower():
            body = _joined(body)
        if b"connection: close" in head.lower():
            self.close()
        self._used = time.perf_counter()
        return Answer(int(head.split(b" ", 2)[1]), first, seconds, size, body)

    @staticmethod
    def _ended(head: bytes, tail: bytes) -> bool:
        if b"chunked" in head.lower():
            return tail.endswith(b"0\r\n\r\n")
        return head.split(b" ", 2)[1] in (b"204", b"304")


def _joined(chunked: bytes) -> bytes:
    out = []
    while chunked:
        line, _, rest = chunked.partition(b"\r\n")
        size = int(line, 16)
        if not size:
            break
        out.append(rest[:size])
        chunked = rest[size + 2 :]
    return b"".join(out)
