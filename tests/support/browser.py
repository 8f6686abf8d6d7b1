"""A real Chromium for tests: Debian's, driven by Playwright, that may speak to loopback only.

`async with chromium() as browser:` starts it once; `async with browser.page(...)` is a fresh profile. Every request
to another host is refused and fails the test, and so does every script error and console error.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Browser, ConsoleMessage, Page, Route, async_playwright, expect

EXECUTABLE = Path("/usr/bin/chromium")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE_MS = 15_000
"""How long a page may take on a busy machine; what is expected sooner is seen sooner."""
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})

needs_chromium = pytest.mark.skipif(not EXECUTABLE.exists(), reason="Chromium is not installed here")


@dataclass
class Chromium:
    """A running browser."""

    browser: Browser
    faults: list[str] = field(default_factory=list)
    """Requests that left loopback, and script and console errors, so far."""

    @asynccontextmanager
    async def page(
        self,
        base_url: str,
        *,
        locale: str = "en-GB",
        width: int = 1280,
        height: int = 800,
        scheme: Literal["light", "dark"] = "light",
        touch: bool = False,
    ) -> AsyncIterator[Page]:
        """A page in a fresh profile. The node's own certificate authority is not installed, so TLS errors pass."""
        context = await self.browser.new_context(
            base_url=base_url,
            locale=locale,
            viewport={"width": width, "height": height},
            color_scheme=scheme,
            has_touch=touch,
            ignore_https_errors=True,
        )
        await context.route("**/*", self._loopback_only)
        page = await context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.faults.append(f"script: {error}"))
        try:
            yield page
        finally:
            await context.close()

    async def _loopback_only(self, route: Route) -> None:
        parts = urlsplit(route.request.url)
        if parts.scheme in ("blob", "data") or parts.hostname in LOOPBACK:
            await route.continue_()
        else:
            self.faults.append(f"left loopback: {parts.hostname}")
            await route.abort()

    def _console(self, message: ConsoleMessage) -> None:
        # A refusal is an answer here, not a fault: browsers report every 4xx of a page or picture as an error.
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.faults.append(f"console: {message.text}")


@asynccontextmanager
async def chromium() -> AsyncIterator[Chromium]:
    """Start the browser; at the end, fail when anything went wrong in it."""
    expect.set_options(timeout=PATIENCE_MS)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=EXECUTABLE, headless=True, args=list(FLAGS)
        )
        running = Chromium(browser)
        try:
            yield running
        finally:
            await browser.close()
    assert running.faults == []
