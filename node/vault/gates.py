"""Gates at studies: appends pass side by side; whoever writes a study anew closes its gate and is alone.

For one event loop. Other processes are kept out by the node's own lock (`ops.lock`).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from consent.errors import Conflict


class Gates:
    """One gate a study, open unless somebody is alone there."""

    def __init__(self) -> None:
        self._inside: Counter[str] = Counter()
        self._closed: dict[str, asyncio.Event] = {}
        self._left = asyncio.Event()

    async def enter(self, study: str) -> None:
        """Wait until the gate is open, and pass. `leave` must follow."""
        while (closed := self._closed.get(study)) is not None:
            await closed.wait()
        self._inside[study] += 1

    def leave(self, study: str) -> None:
        """Come out."""
        self._inside[study] -= 1
        if not self._inside[study]:
            del self._inside[study]
            self._left.set()

    @asynccontextmanager
    async def alone(self, study: str) -> AsyncIterator[None]:
        """Close the gate, wait until everybody has left, and open it at the end. Raises Conflict when it is closed."""
        if study in self._closed:
            raise Conflict(
                "This study is being written anew already.", mend="Try again in a moment.", code="busy-study"
            )
        reopened = self._closed[study] = asyncio.Event()
        try:
            while self._inside[study]:
                self._left.clear()
                await self._left.wait()
            yield
        finally:
            del self._closed[study]
            reopened.set()
