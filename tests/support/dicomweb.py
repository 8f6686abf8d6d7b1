"""A DICOMweb client for tests, as plain as the standard: what is sent and what comes back is not softened by a library."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterable
from email import message_from_bytes
from typing import Any, Self

import aiohttp

from tests.support.dicom import Instance

DICOM = "application/dicom"
AS_STORED = f'multipart/related; type="{DICOM}"; transfer-syntax=*'
_BOUNDARY = "a-boundary-of-the-tests"


class DicomWeb:
    """One person's or program's view of a node's DICOMweb service."""

    def __init__(self, root: str, token: str, context: ssl.SSLContext, address: str | None = None) -> None:
        self._root = f"{root}/dicom-web"
        self._address = (address, 0) if address else None
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._context = context

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            headers=self._headers,
            timeout=aiohttp.ClientTimeout(total=60),
            connector=aiohttp.TCPConnector(family=socket.AF_INET, local_addr=self._address),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def request(
        self, method: str, path: str, *, accept: str = "application/dicom+json", **more: Any
    ) -> tuple[int, bytes, str]:
        """Status, body and content type of any request below the service's root."""
        headers = {"Accept": accept, **more.pop("headers", {})}
        async with self._session.request(
            method, self._root + path, headers=headers, ssl=self._context, **more
        ) as response:
            return response.status, await response.read(), response.headers.get("Content-Type", "")

    async def store(self, files: Iterable[bytes | Instance]) -> tuple[int, bytes]:
        """STOW-RS of DICOM files; status and body of the answer."""
        parts = [one.file() if isinstance(one, Instance) else one for one in files]
        head = f"--{_BOUNDARY}\r\nContent-Type: {DICOM}\r\n\r\n".encode()
        body = b"".join(head + part + b"\r\n" for part in parts) + f"--{_BOUNDARY}--\r\n".encode()
        content_type = f'multipart/related; type="{DICOM}"; boundary={_BOUNDARY}'
        status, answer, _ = await self.request(
            "POST", "/studies", data=body, headers={"Content-Type": content_type}
        )
        return status, answer

    async def retrieve(self, path: str) -> tuple[int, list[bytes]]:
        """WADO-RS as stored; status and the parts (the body itself when it is no multipart)."""
        status, body, content_type = await self.request("GET", path, accept=AS_STORED)
        return status, parts_of(body, content_type) if status == 200 else [body]


def parts_of(body: bytes, content_type: str) -> list[bytes]:
    """The bodies of a multipart/related answer."""
    header = message_from_bytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n")
    mark = b"--" + str(header.get_param("boundary")).encode()
    return [piece.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n") for piece in body.split(mark)[1:-1]]
