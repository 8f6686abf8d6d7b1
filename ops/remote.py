"""Asking a node that runs, by its own API: for what only the running process can do, such as taking keys into memory.

Trusts the node's own authority and nobody else. Errors come back as the families they left as.
"""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from consent.errors import AccordError, Conflict, Denied, Invalid, NotFound, Unavailable
from node.config import load_settings
from ops.foundation import opened

WAIT_SECONDS = 120.0
MAX_TOKEN_BYTES = 256
MAX_ANSWER_BYTES = 1024 * 1024
FAMILIES: dict[int, type[AccordError]] = {
    400: Invalid,
    401: Denied,
    403: Denied,
    404: NotFound,
    409: Conflict,
    413: Invalid,
}


async def ask_running(folder: Path, token_file: Path, method: str, path: str, body: Any = None) -> Any:
    """One request to the node that runs in `folder`, as the person whose API token the file holds; return its JSON.

    Raises the family that the node answered with; Unavailable when it does not answer.
    """
    async with opened(folder, upgrade=False) as node:
        authority = node.identity.authority_pem
    return _ask(folder, _token(token_file), authority, method, path, body)


def _ask(folder: Path, token: str, authority: str, method: str, path: str, body: Any) -> Any:
    port = load_settings(folder).http.port
    request = urllib.request.Request(
        f"https://localhost:{port}{path}",
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
    )
    context = ssl.create_default_context(cadata=authority)
    try:
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        with opener.open(request, timeout=WAIT_SECONDS) as answer:
            return json.loads(answer.read(MAX_ANSWER_BYTES) or b"null")
    except urllib.error.HTTPError as error:
        raise _family(error) from error
    except OSError as error:
        raise Unavailable(
            f"The node in {folder} does not answer at port {port}.",
            mend="Start it: accord serve DIR; or correct http.port in node.toml.",
            code="not-running",
        ) from error


def _family(error: urllib.error.HTTPError) -> AccordError:
    try:
        problem = json.loads(error.read(MAX_ANSWER_BYTES))
        words, mend = str(problem["detail"]), str(problem.get("mend", ""))
        code = str(problem.get("type", "")).rpartition(":")[2] or None
    except (ValueError, KeyError, TypeError):
        words, mend, code = f"The node answered {error.code}.", "", None
    return FAMILIES.get(error.code, Unavailable)(words, mend=mend, code=code)


def _token(file: Path) -> str:
    try:
        token = file.read_text("ascii")[:MAX_TOKEN_BYTES].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise NotFound(
            f"The token {file} is not there.", mend="Make one: accord token create DIR --scope api …"
        ) from error
    if not token:
        raise Invalid(f"{file} is empty.")
    return token
