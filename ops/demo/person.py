"""Somebody at a browser, as the demonstration plays them: signs in over HTTPS and uses the JSON API."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Self

import aiohttp

from node.tls import client_context

TIMEOUT_SECONDS = 60.0


class Refused(Exception):
    """The server said no: `status` and the problem document (RFC 9457)."""

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        super().__init__(f"{status} {problem.get('detail') or problem.get('title')}")
        self.status = status
        self.problem = problem


@dataclass(frozen=True)
class Picture:
    """An image answer."""

    content: bytes
    media_type: str


class Person:
    """One signed-in session. Use as `async with Person.at(...) as person`."""

    def __init__(self, portal: str, authority_pem: str, login: str, password: str) -> None:
        self.portal = portal
        self.login = login
        self._password = password
        jar = aiohttp.CookieJar(unsafe=True)
        connector = aiohttp.TCPConnector(ssl=client_context([authority_pem]))
        self._session = aiohttp.ClientSession(
            connector=connector, cookie_jar=jar, timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
        )
        self._csrf = ""

    async def __aenter__(self) -> Self:
        await self.sign_in()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def sign_in(self) -> None:
        """Begin a session. Raises Refused."""
        answer = await self.post("/api/v1/session", {"login": self.login, "password": self._password})
        self._csrf = answer["csrf"]

    async def close(self) -> None:
        """Drop the connections; the session ends by itself."""
        await self._session.close()

    async def get(self, path: str, **query: str | int | float) -> Any:
        """A JSON answer. Raises Refused."""
        async with self._session.get(self.portal + path, params=query, headers=self._headers()) as response:
            return await _json(response)

    async def post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Send JSON, get JSON. Raises Refused."""
        async with self._session.post(
            self.portal + path, json=body or {}, headers=self._headers()
        ) as response:
            return await _json(response)

    async def picture(self, path: str, **query: str | int | float) -> Picture:
        """An image answer. Raises Refused."""
        async with self._session.get(self.portal + path, params=query, headers=self._headers()) as response:
            if response.status != 200:
                await _json(response)
            return Picture(await response.read(), response.content_type)

    async def page(self, path: str) -> str:
        """A page as a browser would get it."""
        headers = {"Accept": "text/html"}
        async with self._session.get(self.portal + path, headers=headers) as response:
            return await response.text()

    async def events(self, path: str) -> AsyncIterator[str]:
        """Server-sent events: the data of each."""
        timeout = aiohttp.ClientTimeout(total=None, sock_read=TIMEOUT_SECONDS)
        headers = {**self._headers(), "Accept": "text/event-stream"}
        async with self._session.get(self.portal + path, headers=headers, timeout=timeout) as response:
            if response.status != 200:
                await _json(response)
            async for line in response.content:
                if line.startswith(b"data:"):
                    yield line[5:].strip().decode()

    def _headers(self) -> dict[str, str]:
        headers = {"Accept": "application/json", "Origin": self.portal}
        return {**headers, "X-CSRF-Token": self._csrf} if self._csrf else headers


async def _json(response: aiohttp.ClientResponse) -> Any:
    if response.status == 204:
        return None
    try:
        value = await response.json(content_type=None)
    except ValueError:
        value = {"title": (await response.text())[:300]}
    if response.status >= 400:
        raise Refused(response.status, value)
    return value
