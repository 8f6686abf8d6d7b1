"""The OpenAPI 3.1 document of what an application serves below a prefix, made from its own route table.

Paths, methods and parameters are the router's, words are the handlers' docstrings, so it cannot name what is not there. What
neither says, `described` adds to a handler: query parameters, media types, statuses.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final, TypeVar

from aiohttp import web

from node.web.limits import rules_of_handler

VERSION: Final = "3.1.0"
DISTRIBUTION: Final = "accord-imaging"
PROBLEM: Final = "application/problem+json"
_MARK: Final = "__accord_described__"
_GROUP = re.compile(r"\(\?P<(\w+)>")
_CALL = re.compile(r"((?:GET|POST|PUT|DELETE)\b(?:[^→:{]|\{[^}]*\})*)(?:(?:→|:)\s*(.*))?")
_BRACES = re.compile(r"\{[^}]*\}")
_ASKED = re.compile(r"[?&|]\s*(\w+)=?")
H = TypeVar("H", bound=Callable[..., Any])


@dataclass(frozen=True)
class Parameter:
    """A query parameter. `kind` is a JSON type, or the values it may have."""

    name: str
    meaning: str
    kind: str | Sequence[str] = "string"
    many: bool = False

    def document(self) -> dict[str, Any]:
        """The Parameter Object."""
        one = {"type": self.kind} if isinstance(self.kind, str) else {"type": "string", "enum": [*self.kind]}
        schema = {"type": "array", "items": one} if self.many else one
        return {"name": self.name, "in": "query", "description": self.meaning, "schema": schema}


@dataclass(frozen=True)
class Described:
    """What a handler takes and gives beyond its docstring: media types by status, and those of the body it reads."""

    query: Sequence[Parameter] = ()
    answers: Mapping[int, Sequence[str]] = field(default_factory=lambda: {200: ("application/json",)})
    body: Sequence[str] = ()


def described(
    *, query: Sequence[Parameter] = (), answers: Mapping[int, Sequence[str]], body: Sequence[str] = ()
) -> Callable[[H], H]:
    """Say of a handler what it takes and gives."""

    def mark(handler: H) -> H:
        setattr(handler, _MARK, Described(query, answers, body))
        return handler

    return mark


def serving(prefix: str, title: str) -> Callable[[web.Request], Any]:
    """A handler that answers with the document of this application's routes below `prefix`."""

    async def openapi(request: web.Request) -> web.Response:
        """Describe this interface as an OpenAPI document."""
        return web.json_response(document(request.app, prefix, title), headers={"Cache-Control": "no-cache"})

    return openapi


def document(app: web.Application, prefix: str, title: str) -> dict[str, Any]:
    """The document of every route below `prefix`, in order of their paths."""
    paths: dict[str, dict[str, Any]] = {}
    for method, path, pattern, handler in sorted(_routes(app, prefix), key=lambda route: route[:2]):
        paths.setdefault(path, {})[method.lower()] = _operation(method, path, pattern, handler)
    return {
        "openapi": VERSION,
        "info": {"title": title, "version": _version()},
        "servers": [{"url": "/"}],
        "security": [{"token": []}, {"session": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "description": "`accord token create`"},
                "session": {"type": "apiKey", "in": "cookie", "name": "__Host-accord"},
            },
            "schemas": {"Problem": _PROBLEM_SCHEMA},
            "responses": {
                "Problem": {
                    "description": "Why it was not done, in words (RFC 9457).",
                    "content": {PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}}},
                }
            },
        },
    }


def _routes(app: web.Application, prefix: str) -> Iterator[tuple[str, str, str, Callable[..., Any]]]:
    for route in app.router.routes():
        resource = route.resource
        if resource is None or route.method in ("HEAD", "*") or not resource.canonical.startswith(prefix):
            continue
        pattern = resource.get_info().get("pattern")
        yield route.method, resource.canonical, pattern.pattern if pattern else "", route.handler


def _operation(method: str, path: str, pattern: str, handler: Callable[..., Any]) -> dict[str, Any]:
    said: Described = getattr(handler, _MARK, Described())
    summary, call, rest = _words(handler)
    query = said.query or [
        Parameter(name, "") for name in dict.fromkeys(_ASKED.findall(_BRACES.sub("", call)))
    ]
    operation: dict[str, Any] = {
        "operationId": _operation_id(method, path),
        "summary": summary,
        "parameters": [
            *({"name": name, "in": "path", "required": True, "schema": {"type": "string", "pattern": f"^{one}$"}}
              for name, one in _groups(pattern)),
            *(parameter.document() for parameter in query),
        ],
        "responses": {
            **{str(status): _response(status, kinds) for status, kinds in said.answers.items()},
            "default": {"$ref": "#/components/responses/Problem"},
        },
    }  # fmt: skip
    if description := "\n\n".join(part for part in (call and f"`{call}`", rest.strip()) if part):
        operation["description"] = description
    if said.body:
        operation["requestBody"] = {"required": True, "content": {kind: {} for kind in said.body}}
    if rules_of_handler(handler).public:
        operation["security"] = []
    return operation


def _words(handler: Callable[..., Any]) -> tuple[str, str, str]:
    """Summary, the call as the docstring writes it (`GET ?patient= → …`), and the rest of the docstring."""
    plain = inspect.unwrap(handler)
    first, _, rest = (inspect.getdoc(plain) or "").partition("\n")
    written = _CALL.fullmatch(first)
    if written is None:
        return first, "", rest
    meaning = written[2] or plain.__name__.replace("_", " ").strip()
    return meaning[:1].upper() + meaning[1:].rstrip(".") + ".", written[1].strip(), rest


def _response(status: int, kinds: Sequence[str]) -> dict[str, Any]:
    meaning = {
        200: "Done.",
        202: "Done in part.",
        206: "The range that was asked for.",
        409: "Nothing was stored.",
    }
    return {"description": meaning.get(status, "Done."), "content": {kind: {} for kind in kinds}}


def _operation_id(method: str, path: str) -> str:
    words = re.findall(r"[a-z0-9]+", path.lower().replace("{", "by-"))
    return "-".join((method.lower(), *words))


def _groups(pattern: str) -> Iterator[tuple[str, str]]:
    """The named groups of a route's pattern: name and expression."""
    for match in _GROUP.finditer(pattern):
        depth, at = 1, match.end()
        while depth and at < len(pattern):
            step = pattern[at]
            if step == "\\":
                at += 1
            elif step in "()":
                depth += 1 if step == "(" else -1
            at += 1
        yield match[1], pattern[match.end() : at - 1]


def _version() -> str:
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:  # run from its sources, not installed
        return "0"


_PROBLEM_SCHEMA: Final = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "request"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "mend": {"type": "string", "description": "What to do about it."},
        "reasons": {"type": "array", "items": {"type": "string"}, "description": "The words of a decision."},
        "request": {"type": "string", "description": "The number to ask hospital IT about."},
    },
}
