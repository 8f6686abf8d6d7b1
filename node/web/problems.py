"""From error families to HTTP: a status, an RFC 9457 problem document, or the words for an error page.

Doors map families only, so this file knows no leaf of any floor. What is not an Accord error becomes a bare
500 that names the request id: nothing of an unexpected exception is shown, because it may hold patient data.
"""

from __future__ import annotations

import json
import traceback
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from aiohttp import web

from consent.errors import AccordError, Conflict, Corrupt, Denied, Invalid, NotFound, Unavailable
from node.web.text import N_

STATUS: Final[dict[type[AccordError], int]] = {
    Denied: 403,
    NotFound: 404,
    Conflict: 409,
    Corrupt: 422,
    Invalid: 400,
    Unavailable: 503,
}
CODE_STATUS: Final = {
    "sign-in-needed": 401,
    "sign-in": 401,
    "token-refused": 401,
    "too-large": 413,
    "unsupported-media-type": 415,
    "not-acceptable": 406,
    "video": 406,
    "no-decoder": 406,
    "photometric": 406,
    "no-such-range": 416,
    "too-many-requests": 429,
    "sign-in-paced": 429,
}
"""Codes that HTTP has a word of its own for."""

TITLES: Final = {
    400: N_("This cannot be read"),
    401: N_("Please sign in"),
    403: N_("Access refused"),
    404: N_("Not found"),
    405: N_("Not possible here"),
    406: N_("None of the accepted forms is offered"),
    409: N_("That does not fit the present state"),
    413: N_("Too large"),
    415: N_("This kind of content is not taken here"),
    416: N_("There is nothing at this range"),
    422: N_("The content does not match its proof"),
    429: N_("Too many attempts"),
    500: N_("Something went wrong here"),
    503: N_("Not available just now"),
}
RETRY_AFTER_SECONDS: Final = 5


@dataclass(frozen=True)
class Problem:
    """What went wrong, for the person or program that asked. `reasons` are the words of a decision."""

    status: int
    code: str
    title: str
    detail: str
    mend: str = ""
    reasons: tuple[str, ...] = ()

    def document(self, request_id: str) -> dict[str, Any]:
        """The RFC 9457 object; `mend`, `reasons` and `request` are extension members."""
        document: dict[str, Any] = {
            "type": f"urn:accord:problem:{self.code}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "request": request_id,
        }
        if self.mend:
            document["mend"] = self.mend
        if self.reasons:
            document["reasons"] = list(self.reasons)
        return document

    def headers(self) -> dict[str, str]:
        """Headers that belong to the status."""
        if self.status == 401:
            return {"WWW-Authenticate": 'Bearer realm="accord"'}
        if self.status in (429, 503):
            return {"Retry-After": str(RETRY_AFTER_SECONDS)}
        return {}

    def response(self, request_id: str) -> web.Response:
        """The problem as application/problem+json."""
        return web.Response(
            status=self.status,
            body=json.dumps(self.document(request_id), ensure_ascii=False).encode(),
            content_type="application/problem+json",
            headers=self.headers(),
        )


def problem_of(error: BaseException, *, safe_method: bool = True) -> Problem:
    """Translate any exception. `safe_method`: a GET that meets corruption met our own bytes, not the asker's."""
    if isinstance(error, AccordError):
        status = _status_of(error)
        if isinstance(error, Corrupt) and safe_method:
            status = 500
        reasons = error.reasons if isinstance(error, Denied) else ()
        return Problem(status, error.code, _title(status), error.message, error.mend, reasons)
    if isinstance(error, web.HTTPException):
        return Problem(error.status, _slug(error.status), _title(error.status), _detail(error.status))
    if isinstance(error, TimeoutError):
        return Problem(503, "timeout", _title(503), N_("It took too long."), N_("Try again in a moment."))
    return Problem(
        500,
        "internal",
        _title(500),
        N_("The node met an error that it did not expect. Nothing that was acknowledged is lost."),
        N_("Try again. If it happens again, tell your hospital IT the request number."),
    )


def where(error: BaseException) -> str:
    """File, line and function of the innermost frames, without any value: safe for the log."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    return " > ".join(f"{_tail(frame.filename)}:{frame.lineno} {frame.name}" for frame in frames)


def _tail(filename: str) -> str:
    return "/".join(filename.split("/")[-2:])


def _status_of(error: AccordError) -> int:
    if error.code in CODE_STATUS:
        return CODE_STATUS[error.code]
    for family, status in STATUS.items():
        if isinstance(error, family):
            return status
    return 500


def _title(status: int) -> str:
    return TITLES.get(status) or HTTPStatus(status).phrase


def _slug(status: int) -> str:
    return HTTPStatus(status).phrase.lower().replace(" ", "-")


def _detail(status: int) -> str:
    match status:
        case 404:
            return N_("There is nothing at this address.")
        case 405:
            return N_("This address does not take that kind of request.")
        case 413:
            return N_("The request is larger than this address takes.")
        case _:
            return HTTPStatus(status).description
