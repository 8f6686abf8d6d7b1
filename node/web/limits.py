"""Bounds for everything that comes in by HTTP, and the marks by which a handler changes its own.

`Limits` bounds connections (enforced by `listener`); `RouteRules` bounds one route and says who may come
(enforced by `people` and `kit`). A handler without a mark is closed: it needs a signed-in person, takes at most
`DEFAULT_BODY_BYTES`, and takes a bearer token only under the API prefixes of `SCOPES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from aiohttp import web

DEFAULT_BODY_BYTES: Final = 256 * 1024
BODY_DEADLINE_SECONDS: Final = 30.0
SCOPES: Final = {"/api/": "api", "/dicom-web/": "dicomweb"}
"""Path prefixes where a bearer token is taken, and the scope it must have."""


@dataclass(frozen=True)
class Limits:
    """How much one listener takes. Seconds and counts."""

    header_deadline_seconds: float = 10.0
    keepalive_seconds: float = 30.0
    handshake_seconds: float = 10.0
    stalled_write_seconds: float = 60.0
    connections_total: int = 1024
    connections_per_peer: int = 128
    shutdown_seconds: float = 5.0


@dataclass(frozen=True)
class RouteRules:
    """What one route asks of a request before its handler sees it."""

    public: bool = False
    any_password: bool = False
    body_bytes: int = DEFAULT_BODY_BYTES
    streaming: bool = False


_CLOSED: Final = RouteRules()
_MARK: Final = "__accord_route__"
H = TypeVar("H", bound=Callable[..., Any])


def rules_of(request: web.Request) -> RouteRules:
    """The rules of the route that this request matched."""
    return rules_of_handler(request.match_info.handler)


def rules_of_handler(handler: Callable[..., Any]) -> RouteRules:
    """The rules that a handler is marked with."""
    rules = getattr(handler, _MARK, _CLOSED)
    assert isinstance(rules, RouteRules)
    return rules


def public(handler: H) -> H:
    """Anybody may come, signed in or not."""
    return _mark(handler, public=True)


def with_one_time_password(handler: H) -> H:
    """A person who still has to choose a password may come (everything else sends them to that page)."""
    return _mark(handler, any_password=True)


def body_limit(size_bytes: int) -> Callable[[H], H]:
    """The body may have up to `size_bytes`; more is refused with 413 before the handler runs."""
    return lambda handler: _mark(handler, body_bytes=size_bytes)


def streaming(handler: H) -> H:
    """The handler reads the body itself as it comes and bounds it itself."""
    return _mark(handler, streaming=True)


def _mark(handler: H, **changes: Any) -> H:
    rules: RouteRules = getattr(handler, _MARK, _CLOSED)
    setattr(handler, _MARK, replace(rules, **changes))
    return handler
