"""Asking a node that runs, by its own API: for what only the running process can do, such as taking keys into memory.

Trusts the node's own authority and nobody else. Errors come back as the families they left as.
"""

from __future__ import annotations

import json
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consent.errors import AccordError, Conflict, Denied, Invalid, NotFound, Unavailable
from node.config import load_settings
from ops.doors import LOOPBACK_NAMES, url_of
from ops.foundation import opened

if TYPE_CHECKING:
    import aiohttp

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
    return await _ask(folder, _token(token_file), authority, method, path, body)


async def _ask(folder: Path, token: str, authority: str, method: str, path: str, body: Any) -> Any:
    import aiohttp  # commands that ask nobody need not load it

    settings = load_settings(folder).http
    context = ssl.create_default_context(cadata=authority)
    timeout = aiohttp.ClientTimeout(total=WAIT_SECONDS)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, trust_env=False) as session,
            session.request(
                method,
                url_of(settings.host, settings.port, path),
                json=body,
                headers={"Authorization": f"Bearer {token}"},
                ssl=context,
                server_hostname=LOOPBACK_NAMES[
                    0
                ],  # in every certificate of a node, whatever its settings say
            ) as response,
        ):
            answer = await _read(response)
    except (aiohttp.ClientError, OSError) as error:  # a time that is up among them
        raise Unavailable(
            f"The node in {folder} does not answer at port {settings.port}.",
            mend="Start it: accord serve DIR; or correct http.port in node.toml.",
            code="not-running",
        ) from error
    if response.status >= 400:
        raise _family(response.status, answer)
    return json.loads(answer or b"null")


async def _read(response: aiohttp.ClientResponse) -> bytes:
    parts, size = [], 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > MAX_ANSWER_BYTES:
            raise Unavailable("The node's answer is larger than any that is expected.")
        parts.append(part)
    return b"".join(parts)


def _family(status: int, answer: bytes) -> AccordError:
    try:
        problem = json.loads(answer)
        words, mend = str(problem["detail"]), str(problem.get("mend", ""))
        code = str(problem.get("type", "")).rpartition(":")[2] or None
    except (ValueError, KeyError, TypeError):
        words, mend, code = f"The node answered {status}.", "", None
    return FAMILIES.get(status, Unavailable)(words, mend=mend, code=code)


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
