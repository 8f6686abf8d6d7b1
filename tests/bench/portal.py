"""A person at the portal: signs in, opens a study in the viewer, and scrolls through its frames.

It goes the way that a browser goes: the sign-in form, the search, the viewer's page, and from that page the address of the
frames. What is timed are the frames alone.
"""

from __future__ import annotations

import html
import http.client
import json
import re
from dataclasses import replace
from urllib.parse import urlencode

from node.web.people import COOKIE
from tests.bench.client import Web
from tests.bench.nodes import READER
from tests.bench.servers import Server

PICTURE = "image/webp,application/problem+json"
WAIT_SECONDS = 60.0
_DATA = re.compile(r'<script type="application/json" id="viewer-data">(.*?)</script>', re.DOTALL)


def viewer(server: Server, study_uid: str) -> Web:
    """Open the study in the viewer; return where its frames are, with the cookie: `/<SOP UID>/<frame>` below it."""
    assert server.web is not None
    cookie = {"Cookie": _sign_in(server)}
    found = json.loads(_ask(server, "GET", f"/api/v1/studies?StudyInstanceUID={study_uid}", cookie)[1])
    page = _ask(server, "GET", f"/viewer/{found[0]['study']}", {**cookie, "Accept": "text/html"})[1].decode()
    data = _DATA.search(page)
    if data is None:
        raise RuntimeError("the viewer's page names no frames")
    return replace(server.web, headers=cookie, root=json.loads(html.unescape(data[1]))["frames"])


def _sign_in(server: Server) -> str:
    form = urlencode({"login": READER, "password": server.password, "next": "/"})
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    cookies, _ = _ask(server, "POST", "/sign-in", headers, form, expected=303)
    return next(one.partition(";")[0] for one in cookies if one.startswith(f"{COOKIE}="))


def _ask(
    server: Server,
    method: str,
    path: str,
    headers: dict[str, str],
    body: str | None = None,
    expected: int = 200,
) -> tuple[list[str], bytes]:
    """The cookies and the body of an answer. Raises RuntimeError for another status than expected."""
    assert server.web is not None
    connection = http.client.HTTPSConnection(
        server.web.host, server.web.port, timeout=WAIT_SECONDS, context=server.web.context
    )
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        if answer.status != expected:
            raise RuntimeError(f"{method} {path.partition('?')[0]} was answered {answer.status}")
        return answer.headers.get_all("Set-Cookie") or [], content
    finally:
        connection.close()
