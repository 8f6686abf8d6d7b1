"""Response headers and the check that an unsafe request was made by our own page (CSRF).

The policy allows our own scripts and styles and nothing else: no inline code, no frame around us, no foreign
host. A request that changes something with a session cookie must say `Sec-Fetch-Site: same-origin` or carry our
own Origin where the browser sends either, and must carry the session's token.
"""

from __future__ import annotations

import asyncio
import hmac
from typing import Final
from urllib.parse import urlsplit

from aiohttp import web

from consent.errors import Denied
from node.web.limits import BODY_DEADLINE_SECONDS
from node.web.text import N_
from node.web.trace import TRACE

CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS: Final = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    # Not no-referrer: under that policy browsers send "Origin: null" with our own forms.
    "Referrer-Policy": "same-origin",
    "Strict-Transport-Security": "max-age=31536000",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
TOKEN_HEADER: Final = "X-CSRF-Token"
TOKEN_FIELD: Final = "csrf"


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Signal handler for `on_response_prepare`: runs for streams and errors too."""
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers.setdefault("Cache-Control", "no-store")
    response.headers["Server"] = "accord"
    if TRACE in request:
        response.headers["X-Request-Id"] = request[TRACE].id


def check_origin(request: web.Request) -> None:
    """Raise Denied when the browser says that another site made this unsafe request."""
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None and site not in ("same-origin", "none"):
        raise _forged()
    origin = request.headers.get("Origin")
    if origin is not None and urlsplit(origin).netloc != request.host:
        raise _forged()


async def check_token(request: web.Request, expected: str) -> None:
    """Raise Denied unless the header, or the form's hidden field, carries the session's token."""
    given = request.headers.get(TOKEN_HEADER, "")
    if not given and request.content_type == "application/x-www-form-urlencoded":
        async with asyncio.timeout(BODY_DEADLINE_SECONDS):
            given = str((await request.post()).get(TOKEN_FIELD, ""))
    if not hmac.compare_digest(given.encode(), expected.encode()):
        raise Denied(
            N_("This form is no longer valid."),
            mend=N_("Reload the page and send it again."),
            code="csrf",
        )


def _forged() -> Denied:
    return Denied(
        N_("This request was made by another site."),
        mend=N_("Open the page here and do it from there."),
        code="csrf",
    )
