"""Server-rendered pages: templates of every floor, the person's language, navigation, static files.

A floor puts its templates in its own `templates/<floor>/` folder and extends `base.html`; the building blocks are
the macros of `ui.html`. Static files are read once at start and served from memory by exact name, so no
request can reach the file system.
"""

from __future__ import annotations

import hashlib
import importlib.util
import mimetypes
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp_jinja2
import jinja2
from aiohttp import web
from aiohttp.typedefs import Handler

from consent.errors import Invalid
from consent.principals import Principal
from consent.vocabulary import Role
from node.web import text, words
from node.web.limits import public
from node.web.people import PRINCIPAL, SESSION
from node.web.problems import Problem
from node.web.text import LANGUAGES, N_, _
from node.web.trace import request_id

LANGUAGE_COOKIE: Final = "accord-language"
LANGUAGE_COOKIE_SECONDS: Final = 365 * 24 * 3600
MAX_NEXT_CHARS: Final = 2000
STATIC_TYPES: Final = {".css", ".js", ".svg", ".png", ".ico", ".webmanifest"}

SITE: web.AppKey[Site] = web.AppKey("site")


@dataclass(frozen=True)
class NavItem:
    """One line of the navigation: shown to `roles` (all when empty), under the heading `group`."""

    path: str
    label: str
    roles: tuple[Role, ...] = ()
    icon: str = "dot"
    group: str = ""
    lead: str = ""
    """What one does there, for the start page's tiles."""

    def shown_to(self, principal: Principal) -> bool:
        """Whether this person's role has the page."""
        return not self.roles or principal.role in self.roles


@dataclass(frozen=True)
class Part:
    """A piece of a page that another floor adds: a template and what it needs."""

    template: str
    context: Mapping[str, Any] = field(default_factory=dict)


Box = Callable[[web.Request, Any], Awaitable[Part | None]]
"""Makes a floor's part of somebody else's page: given the request and what the page is about (an Opening on the
study page, the Principal on the start page); None when it has nothing to show."""


@dataclass(frozen=True)
class StaticFile:
    """A file of the portal, held in memory."""

    body: bytes
    content_type: str
    digest: str


@dataclass(frozen=True)
class Site:
    """What every page of one application shares."""

    name: str
    nav: tuple[NavItem, ...] = ()
    boxes: Mapping[str, tuple[Box, ...]] = field(default_factory=dict)
    static: Mapping[str, StaticFile] = field(default_factory=dict)

    def url(self, name: str) -> str:
        """The address of a static file, with its digest so that browsers may keep it for ever."""
        return f"/static/{name}?v={self.static[name].digest}"


def install(
    app: web.Application,
    *,
    name: str,
    nav: Sequence[NavItem],
    packages: Sequence[str],
    boxes: Mapping[str, Sequence[Box]] | None = None,
) -> None:
    """Give `app` templates and static files of `packages` (those that have them) and its navigation."""
    slots = {slot: tuple(makers) for slot, makers in (boxes or {}).items()}
    site = Site(name, tuple(nav), slots, _read_static(packages))
    app[SITE] = site
    environment = aiohttp_jinja2.setup(
        app,
        loader=jinja2.ChoiceLoader(
            [jinja2.FileSystemLoader(folder) for folder in _folders(packages, "templates")]
        ),
        extensions=["jinja2.ext.i18n", "jinja2.ext.do"],
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        default_helpers=False,
    )
    # Not Jinja's "new style": that takes every message for markup and for a format, and ours may be data.
    environment.install_gettext_callables(text.page_text, text.page_plural, pgettext=text.page_text_in)
    environment.filters.update(
        moment=text.format_moment,
        until=text.format_until,
        date=text.format_date,
        delta=text.format_delta,
        number=text.format_number,
        word=words.word,
        gettext=text.page_text,
        member=lambda node, names: names.get(node, node),
        person_name=text.format_person_name,
        bytes=text.format_bytes,
        tone=words.tone,
        actor=words.actor,
    )
    environment.globals.update(static=site.url, languages=LANGUAGES)
    app.add_routes([web.get("/static/{name:.+}", static_file), web.post("/language", choose_language)])


def render(
    request: web.Request, template: str, context: Mapping[str, Any] | None = None, *, status: int = 200
) -> web.Response:
    """Render a page of any floor for the person who asks.

    Every template also gets: `principal` (or None), `csrf`, `nav`, `node_name`, `lang`, `path`, `request_id`.
    """
    session = request.get(SESSION)
    principal: Principal | None = request.get(PRINCIPAL)
    site = request.app[SITE]
    page = {
        "principal": principal,
        "csrf": session.csrf if session is not None else "",
        "nav": _nav_for(site, principal),
        "node_name": site.name,
        "lang": text.language.get(),
        "path": request.path,
        "path_qs": request.path_qs,
        "request_id": request_id(request),
        **(context or {}),
    }
    response: web.Response = aiohttp_jinja2.render_template(template, request, page, status=status)
    return response


async def parts(request: web.Request, slot: str, subject: Any) -> list[Part]:
    """What the floors above add to the slot `study` or `home` of a page."""
    made = [await box(request, subject) for box in request.app[SITE].boxes.get(slot, ())]
    return [part for part in made if part is not None]


def render_problem(request: web.Request, problem: Problem) -> web.Response:
    """The designed page for an error."""
    response = render(request, "problem.html", {"problem": problem}, status=problem.status)
    response.headers.update(problem.headers())
    return response


def local_path(value: str | None, default: str = "/") -> str:
    """`value` when it is a path on this site, else `default`: sign-in must not send people elsewhere."""
    if not value or len(value) > MAX_NEXT_CHARS or not value.startswith("/") or "\\" in value:
        return default
    if value.startswith("//") or not value.isprintable() or urlsplit(value).netloc:
        return default
    return value


@web.middleware
async def language_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer in the language chosen before, or else the browser's."""
    chosen = request.cookies.get(LANGUAGE_COOKIE, "")
    if chosen not in LANGUAGES:
        chosen = text.negotiate(request.headers.get("Accept-Language", ""))
    token = text.language.set(chosen)
    try:
        return await handler(request)
    finally:
        text.language.reset(token)


@public
async def choose_language(request: web.Request) -> web.StreamResponse:
    """POST /language: remember the choice in a cookie and go back."""
    form = await request.post()
    chosen = str(form.get("language", ""))
    if chosen not in LANGUAGES:
        raise Invalid(N_("This language is not offered."), mend=N_("Choose English or Chinese."))
    response = web.HTTPSeeOther(local_path(str(form.get("next", "/"))))
    response.set_cookie(
        LANGUAGE_COOKIE, chosen, max_age=LANGUAGE_COOKIE_SECONDS, secure=True, httponly=True, samesite="Lax"
    )
    raise response


@public
async def static_file(request: web.Request) -> web.StreamResponse:
    """GET /static/{name}: from memory, for ever when the digest in the query is the file's."""
    found = request.app[SITE].static.get(request.match_info["name"])
    if found is None:
        raise web.HTTPNotFound
    lasting = request.query.get("v") == found.digest
    headers = {
        "ETag": f'"{found.digest}"',
        "Cache-Control": "public, max-age=31536000, immutable" if lasting else "no-cache",
    }
    if request.headers.get("If-None-Match") == headers["ETag"]:
        return web.Response(status=304, headers=headers)
    response = web.Response(body=found.body, content_type=found.content_type, headers=headers)
    response.enable_compression()
    return response


def _nav_for(site: Site, principal: Principal | None) -> list[tuple[str, list[NavItem]]]:
    if principal is None:
        return []
    groups: dict[str, list[NavItem]] = {}
    for item in site.nav:
        if item.shown_to(principal):
            groups.setdefault(item.group, []).append(item)
    return [(_(group), items) for group, items in groups.items()]


def _read_static(packages: Sequence[str]) -> dict[str, StaticFile]:
    files: dict[str, StaticFile] = {}
    for folder in _folders(packages, "static"):
        for path in sorted(folder.rglob("*")):
            if path.suffix not in STATIC_TYPES:
                continue
            body = path.read_bytes()
            kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
            digest = hashlib.sha256(body).hexdigest()[:16]
            files.setdefault(path.relative_to(folder).as_posix(), StaticFile(body, kind, digest))
    return files


def _folders(packages: Sequence[str], kind: str) -> list[Path]:
    folders = []
    for package in packages:
        spec = importlib.util.find_spec(package)
        for place in (spec.submodule_search_locations or []) if spec else []:
            folder = Path(place) / kind
            if folder.is_dir():
                folders.append(folder)
    return folders
