"""The frame around every HTTP door: what a floor's `api` module imports to build handlers, and `make_app`.

From the outside in, a request passes: `trace` (request id, one log line, metrics), `language`, `problem` (errors to
problem+json or a page), `host` (is there one), `limit` and `body` (size, time)
and `people` (session or bearer to Principal, CSRF).
Routes are closed by default; see `limits` for the marks. A listener for machines (`people=False`) has no
sessions, pages or languages. Nothing here knows a study.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from consent.errors import AccordError, Invalid
from consent.signed import Json, parse_json
from node.web.events import CLOSING, STILL_THERE, Feed, StreamEvent, event_stream, last_event_id
from node.web.keys import METRICS, OPENINGS
from node.web.limits import (
    BODY_DEADLINE_SECONDS,
    DEFAULT_BODY_BYTES,
    Limits,
    body_limit,
    public,
    rules_of,
    streaming,
    with_one_time_password,
)
from node.web.listener import Listener, serve
from node.web.metrics import HttpMetrics
from node.web.openings import Openings
from node.web.pages import (
    Box,
    NavItem,
    Part,
    install,
    language_middleware,
    local_path,
    render,
    render_problem,
)
from node.web.people import (
    address_of,
    current_person,
    people_middleware,
    require_role,
    session_of,
    still_there,
    wants_page,
)
from node.web.problems import Problem, problem_of, where
from node.web.security import add_headers
from node.web.text import N_, _
from node.web.trace import TRACE, Trace, request_id

__all__ = [
    "DEFAULT_BODY_BYTES",
    "N_",
    "Box",
    "Feed",
    "HttpMetrics",
    "Limits",
    "Listener",
    "NavItem",
    "Part",
    "StreamEvent",
    "_",
    "address_of",
    "body_limit",
    "current_person",
    "event_stream",
    "last_event_id",
    "local_path",
    "make_app",
    "public",
    "read_json",
    "render",
    "request_id",
    "require_role",
    "respond",
    "serve",
    "session_of",
    "streaming",
    "with_one_time_password",
]

PORTAL_PACKAGES: Final = ("node.web.portal", "federation", "learning", "ops")
"""Packages whose `templates/` and `static/` folders the portal shows, where they exist."""

UNMATCHED: Final = "(none)"

_log = structlog.get_logger("http")


def make_app(
    *,
    routes: Iterable[web.AbstractRouteDef],
    services: Mapping[web.AppKey[Any], Any],
    nav: Sequence[NavItem] = (),
    boxes: Mapping[str, Sequence[Box]] | None = None,
    name: str = "Accord",
    packages: Sequence[str] = PORTAL_PACKAGES,
    metrics: HttpMetrics | None = None,
    people: bool = True,
) -> web.Application:
    """An application with the whole frame. `services` are put on it under their typed keys.

    `boxes` are parts that floors add to the pages of others, by slot: "home" (start page), "study" (study page).

    With `people=False` (peers, metrics) every route is open to whoever the listener's TLS lets in, errors are
    always problem+json, and there are no pages: the caller adds its own identification of the peer.
    """
    outer = [
        _trace_middleware,
        language_middleware,
        _problem_middleware,
        _host_middleware,
        _limit_middleware,
    ]
    inner = [people_middleware, _body_middleware] if people else [_body_middleware]
    app = web.Application(middlewares=[*outer, *inner], client_max_size=DEFAULT_BODY_BYTES)
    for key, service in services.items():
        app[key] = service
    app[METRICS] = metrics or HttpMetrics()
    app[CLOSING] = asyncio.Event()
    app[OPENINGS] = Openings()
    app[_PEOPLE] = people
    app.on_response_prepare.append(_mark_answered)
    app.on_response_prepare.append(add_headers)
    app.on_shutdown.append(_close_streams)
    if people:
        app[STILL_THERE] = still_there
        install(app, name=name, nav=nav, packages=packages, boxes=boxes)
    app.add_routes(routes)
    return app


_PEOPLE: web.AppKey[bool] = web.AppKey("people")

CLIENT_GONE: Final = 499
"""In our log and metrics alone: the client went before its answer. No fault of ours, so no 500."""


class AnswerCutShort(ConnectionResetError):
    """We cut the connection ourselves, since what we had begun to send cannot be completed."""


def respond(value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """`value` as JSON (UTF-8, not escaped)."""
    body = json.dumps(value, ensure_ascii=False).encode()
    return web.Response(status=status, body=body, content_type="application/json", headers=headers)


async def read_json(request: web.Request) -> Json:
    """The body as a JSON object. Raises Invalid (415 code for another content type)."""
    if request.content_type != "application/json" and not request.content_type.endswith("+json"):
        raise Invalid(
            N_("The body must be JSON."),
            mend=N_("Send Content-Type: application/json."),
            code="unsupported-media-type",
        )
    return parse_json(await request.read())


@web.middleware
async def _trace_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    trace = request[TRACE] = Trace()
    status = 500
    try:
        response = await handler(request)
        status = response.status
        return response
    except web.HTTPException as redirect:
        status = redirect.status
        raise
    except AnswerCutShort:
        raise
    except ConnectionError:
        status = CLIENT_GONE
        raise
    finally:
        _record(request, trace, status)


def _record(request: web.Request, trace: Trace, status: int) -> None:
    # The route's template, never the path: paths hold study ids and queries hold names.
    resource = request.match_info.route.resource
    route = resource.canonical if resource is not None else UNMATCHED
    seconds = trace.seconds
    request.app[METRICS].answered(request.method, route, status, seconds)
    _log.info(
        "request",
        method=request.method,
        route=route,
        status=status,
        milliseconds=round(seconds * 1000, 1),
        request=trace.id,
    )


@web.middleware
async def _problem_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return _answer(request, problem_of(error))
    except (AccordError, TimeoutError) as error:
        _end_if_answered(request, error)
        return _answer(request, problem_of(error, safe_method=request.method in ("GET", "HEAD")))
    except ConnectionError:
        raise
    except Exception as error:
        if _says_client_gone(error):
            raise ConnectionResetError("the client has gone") from error
        _log.error("unexpected", error=type(error).__name__, at=where(error), request=request_id(request))
        _end_if_answered(request, error)
        return _answer(request, problem_of(error))


def _answer(request: web.Request, problem: Problem) -> web.Response:
    if request.app[_PEOPLE] and wants_page(request):
        return render_problem(request, problem)
    spoken = Problem(
        problem.status,
        problem.code,
        _(problem.title),
        _(problem.detail),
        _(problem.mend),
        tuple(_(reason) for reason in problem.reasons),
    )
    return spoken.response(request_id(request))


def _end_if_answered(request: web.Request, error: Exception) -> None:
    """Cut the connection when the answer is under way: the receiver must not take it for whole."""
    if request[TRACE].answered:
        if request.transport is not None:
            request.transport.abort()
        raise AnswerCutShort("the answer could not be completed") from error


def _says_client_gone(error: Exception) -> bool:
    """Whether a group of tasks ended because the client did, and for nothing else."""
    return isinstance(error, ExceptionGroup) and error.split(ConnectionError)[1] is None


@web.middleware
async def _host_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse a request whose Host is none (RFC 9110 §7.2): answers name addresses of this node as the client knows it."""
    try:
        request.url.origin()
    except ValueError:
        raise web.HTTPBadRequest() from None
    return await handler(request)


@web.middleware
async def _limit_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Bound what any later `read()`, `json()` or `post()` of this request may take."""
    rules = rules_of(request)
    if not rules.streaming and (request.content_length or 0) > rules.body_bytes:
        raise web.HTTPRequestEntityTooLarge(rules.body_bytes)
    # aiohttp has this bound per application only; a clone would lose what later middlewares put on the request.
    request._client_max_size = rules.body_bytes
    return await handler(request)


@web.middleware
async def _body_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Read the body of an ordinary request at once: a client that drips it is cut at the deadline."""
    if request.can_read_body and not rules_of(request).streaming:
        async with asyncio.timeout(BODY_DEADLINE_SECONDS):
            await request.read()
    return await handler(request)


async def _mark_answered(request: web.Request, _response: web.StreamResponse) -> None:
    trace = request.get(TRACE)
    if trace is not None:
        trace.answered = True


async def _close_streams(app: web.Application) -> None:
    app[CLOSING].set()
