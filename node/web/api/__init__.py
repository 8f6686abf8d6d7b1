"""The doors for people at one hospital: the JSON API and the portal's pages, as one table of contents.

Format: docs/formats/http-api.md. Handlers read the request, call one service and shape the answer; decisions,
records and log entries are the services' own.
"""

from __future__ import annotations

from typing import Final

from aiohttp import web

from node.web import openapi
from node.web.api import care, consents, devices, keys, log, session, storage, studies
from node.web.portal.routes import NAV
from node.web.portal.routes import ROUTES as PAGES

__all__ = ["NAV", "ROUTES"]

ROUTES: Final[list[web.RouteDef]] = [
    *session.ROUTES,
    *studies.ROUTES,
    *care.ROUTES,
    *consents.ROUTES,
    *log.ROUTES,
    *devices.ROUTES,
    *keys.ROUTES,
    *storage.ROUTES,
    web.get("/api/openapi.json", openapi.serving("/api/", "Accord")),
    *PAGES,
]
