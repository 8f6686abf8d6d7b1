"""Who is asking: the session cookie or a bearer token becomes a Principal on the request.

Routes are closed unless marked `public`. Holds no password and no rule about studies: `node.access` keeps
accounts and sessions, `consent.decision` decides. A bearer token works only under the prefixes of
`limits.SCOPES` and only with that scope, and needs no CSRF token because no browser sends it by itself.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from aiohttp import web
from aiohttp.typedefs import Handler

from consent.errors import AccordError, Denied
from consent.principals import Principal
from consent.vocabulary import Role
from node.web.keys import REGISTRY, SESSIONS
from node.web.limits import SCOPES, rules_of
from node.web.security import SAFE_METHODS, check_origin, check_token
from node.web.text import N_

if TYPE_CHECKING:
    from node.access.sessions import Session

COOKIE: Final = "__Host-accord"
PRINCIPAL: web.RequestKey[Principal] = web.RequestKey("principal", Principal)
SESSION: web.RequestKey[Session] = web.RequestKey("session")
MAX_CREDENTIAL_CHARS: Final = 512
FIRST_PASSWORD_PATH: Final = "/first-password"
SIGN_IN_PATH: Final = "/sign-in"


def current_person(request: web.Request) -> Principal:
    """The principal of this request. Raises Denied (401) when nobody is signed in."""
    principal: Principal | None = request.get(PRINCIPAL)
    if principal is None:
        raise sign_in_needed()
    return principal


def require_role(request: web.Request, *roles: Role) -> Principal:
    """The principal, if it has one of `roles`; for pages that only these roles have. Studies go by `decide`."""
    principal = current_person(request)
    if principal.role not in roles:
        raise Denied(
            N_("Your role does not include this page."),
            mend=N_("If you need it for your work, ask your hospital's administrator."),
            code="role",
        )
    return principal


def session_of(request: web.Request) -> Session | None:
    """The browser session behind this request, if there is one."""
    return request.get(SESSION)


def address_of(request: web.Request) -> str:
    """The peer's network address, for the log."""
    return request.remote or ""


def anonymous_id(request: web.Request) -> str:
    """A short name for the session that says nothing about the person (watermark, viewing session)."""
    value = request.cookies.get(COOKIE, "") or request.headers.get("Authorization", "")
    return hashlib.sha256(value.encode()).hexdigest()[:12]


def give_cookie(response: web.StreamResponse, value: str) -> None:
    """Set the session cookie: only over TLS, not for scripts, not from other sites."""
    response.set_cookie(COOKIE, value, path="/", secure=True, httponly=True, samesite="Strict")


def take_cookie(response: web.StreamResponse) -> None:
    """Remove the session cookie."""
    response.del_cookie(COOKIE, path="/", secure=True, httponly=True, samesite="Strict")


@web.middleware
async def people_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Find the person, check that an unsafe request is theirs, and close what is not public."""
    rules = rules_of(request)
    unsafe = request.method not in SAFE_METHODS
    authorization = request.headers.get("Authorization")
    if authorization is not None:
        request[PRINCIPAL] = await _bearer(request, authorization)
    else:
        session = await _session(request)
        if unsafe:
            check_origin(request)
            if session is not None and not rules.public:
                await check_token(request, session.csrf)
        if session is not None and session.must_change_password and not (rules.public or rules.any_password):
            return _first_password(request)
    if not rules.public and request.match_info.http_exception is None and request.get(PRINCIPAL) is None:
        if wants_page(request) and not unsafe:
            raise web.HTTPSeeOther(f"{SIGN_IN_PATH}?next={quote(request.path_qs, safe='')}")
        raise sign_in_needed()
    return await handler(request)


async def still_there(request: web.Request) -> bool:
    """Whether who made this request is signed in as the same person now; for answers that go on. Keeps no session awake."""
    person: Principal | None = request.get(PRINCIPAL)
    if person is None:  # a public route
        return True
    try:
        if (authorization := request.headers.get("Authorization")) is not None:
            return await _bearer(request, authorization) == person
        session = await request.app[SESSIONS].session(request.cookies.get(COOKIE, ""), awake=False)
    except AccordError:  # the browser comes back and is told
        return False
    return session is not None and session.principal == person


def wants_page(request: web.Request) -> bool:
    """Whether to answer with a page: a browser asks, and not for the API."""
    if request.path.startswith((*SCOPES, "/viewer/frames/")):
        return False
    return "text/html" in request.headers.get("Accept", "")


def sign_in_needed() -> Denied:
    """The 401."""
    return Denied(
        N_("Nobody is signed in."), mend=N_("Sign in, or send a bearer token."), code="sign-in-needed"
    )


async def _session(request: web.Request) -> Session | None:
    value = request.cookies.get(COOKIE, "")
    if not value or len(value) > MAX_CREDENTIAL_CHARS:
        return None
    session = await request.app[SESSIONS].session(value)
    if session is not None:
        request[SESSION] = session
        request[PRINCIPAL] = session.principal
    return session


async def _bearer(request: web.Request, authorization: str) -> Principal:
    scheme, _sep, token = authorization.partition(" ")
    if scheme.lower() != "bearer" or not token or len(token) > MAX_CREDENTIAL_CHARS:
        raise _token_refused(N_("The Authorization header is not a bearer token."))
    found = await request.app[REGISTRY].principal_of_token(token.strip())
    if found is None:
        raise _token_refused(N_("This token is unknown, revoked or expired."))
    principal, scopes = found
    needed = next((scope for prefix, scope in SCOPES.items() if request.path.startswith(prefix)), None)
    if needed is None or needed not in scopes:
        raise Denied(
            N_("This token may not be used here."),
            mend=N_("Create a token with the scope for this address."),
            code="scope",
        )
    return principal


def _token_refused(message: str) -> Denied:
    return Denied(message, mend=N_("Create a new token on your account page."), code="token-refused")


def _first_password(request: web.Request) -> web.StreamResponse:
    if wants_page(request):
        raise web.HTTPSeeOther(FIRST_PASSWORD_PATH)
    raise Denied(
        N_("A password must be chosen first."),
        mend=N_("Open the portal, sign in and choose one."),
        code="password-change-needed",
    )
