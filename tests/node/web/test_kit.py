"""The frame around every door: who comes in, what is refused, what is said and what is never said."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest
import structlog
from aiohttp import web
from prometheus_client import CollectorRegistry
from yarl import URL

from consent.errors import Conflict, Corrupt, Denied, Invalid, NotFound, Unavailable
from consent.vocabulary import Action, EventKind, Grade, Outcome, Purpose, Right, Role
from node.web.kit import HttpMetrics, Limits, body_limit, make_app, public, read_json, respond, streaming
from node.web.listener import Listener
from node.web.pages import local_path
from node.web.people import COOKIE
from node.web.problems import problem_of
from node.web.security import CONTENT_SECURITY_POLICY
from node.web.text import negotiate
from node.web.words import WORDS
from tests.node.web.conftest import Hospital
from tests.support.node import PASSWORD
from tests.support.portal import portal

PAGE = {"Accept": "text/html"}


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Denied("x"), 403),
        (Denied("x", code="sign-in-needed"), 401),
        (NotFound("x"), 404),
        (Conflict("x"), 409),
        (Corrupt("x"), 422),
        (Invalid("x"), 400),
        (Invalid("x", code="too-large"), 413),
        (Unavailable("x"), 503),
        (TimeoutError(), 503),
        (ValueError("Zhang San"), 500),
    ],
    ids=lambda value: (
        getattr(value, "code", None) or type(value).__name__ if isinstance(value, Exception) else ""
    ),
)
def test_families_become_statuses_and_nothing_unexpected_is_repeated(error: Exception, status: int) -> None:
    """Doors know families only; what is no family becomes a 500 without its words."""
    problem = problem_of(error, safe_method=False)

    assert problem.status == status
    assert "Zhang" not in json.dumps(problem.document("id"))


@pytest.mark.requirement("V3")
async def test_every_answer_carries_the_security_headers(hospital: Hospital) -> None:
    """Pages, JSON, errors, redirects and static files alike."""
    async with hospital.site.stranger() as client:
        for path in ("/sign-in", "/api/v1/studies", "/nothing", "/", "/static/portal.css", "/static/nothing"):
            async with client.get(path, headers=PAGE, allow_redirects=False) as answer:
                assert answer.headers["Content-Security-Policy"] == CONTENT_SECURITY_POLICY, path
                assert answer.headers["X-Content-Type-Options"] == "nosniff", path
                assert answer.headers["Referrer-Policy"] == "same-origin", path
                assert answer.headers["Server"] == "accord", path
                assert len(answer.headers["X-Request-Id"]) == 16, path


@pytest.mark.requirement("V3", "U7")
async def test_everything_is_closed_to_strangers_but_the_threshold(hospital: Hospital) -> None:
    """Every route that is not marked public answers 401, or sends a browser to the sign-in page."""
    open_paths = set()
    async with hospital.site.stranger() as client:
        for route in hospital.site.app.router.routes():
            path = route.resource.canonical if route.resource else ""
            for name in ("{study}", "{opening}", "{consent}", "{login}", "{ae_title}", "{token}"):
                path = path.replace(name, "x")
            path = path.replace("{index}", "1").replace("{sop_uid}", "1.2").replace("{frame}", "1")
            path = path.replace("{name}", "nothing.css").replace("{proposal}", 32 * "0")
            async with client.request(route.method, path, allow_redirects=False) as answer:
                if answer.status != 401:
                    open_paths.add((route.method, path))
        async with client.get("/studies?PatientID=1", headers=PAGE, allow_redirects=False) as answer:
            assert answer.status == 303
            assert URL(answer.headers["Location"]).query["next"] == "/studies?PatientID=1"

    assert {path for _method, path in open_paths} == {
        "/sign-in",
        "/language",
        "/static/nothing.css",
        "/api/v1/session",
    }
    assert ("GET", "/api/v1/session") not in open_paths


@pytest.mark.requirement("U7")
async def test_sign_in_gives_a_strict_cookie_and_wrong_pairs_give_words(hospital: Hospital) -> None:
    """Secure, HttpOnly, SameSite=Strict, __Host-; a wrong pair is 4xx with what to do and no cookie."""
    async with hospital.site.stranger() as client:
        form = {"login": "li", "password": PASSWORD, "next": "/studies"}
        async with client.post("/sign-in", data=form, allow_redirects=False) as answer:
            cookie = answer.headers["Set-Cookie"]
            assert answer.status == 303 and answer.headers["Location"] == "/studies"
        async with client.post("/sign-in", data={**form, "password": "wrong"}, headers=PAGE) as answer:
            page = await answer.text()
            assert answer.status in (401, 403) and "Set-Cookie" not in answer.headers

    assert cookie.startswith(f"{COOKIE}=")
    assert {"Secure", "HttpOnly", "SameSite=Strict", "Path=/"} <= {part.strip() for part in cookie.split(";")}
    assert "The login or the password is wrong." in page and PASSWORD not in page


async def test_sign_out_ends_the_session_at_the_server(hospital: Hospital) -> None:
    """The old cookie is worth nothing afterwards."""
    async with hospital.site.client("li") as client:
        cookie = client.cookie_jar.filter_cookies(URL(hospital.site.url))[COOKIE].value
        async with client.post("/sign-out", allow_redirects=False) as answer:
            assert answer.status == 303
        async with client.get("/api/v1/session", headers={"Cookie": f"{COOKIE}={cookie}"}) as answer:
            assert answer.status == 401


FORGERIES = {
    "no token": ({"X-CSRF-Token": ""}, 403),
    "wrong token": ({"X-CSRF-Token": "0" * 64}, 403),
    "another origin": ({"Origin": "https://evil.example"}, 403),
    "null origin": ({"Origin": "null"}, 403),
    "cross-site fetch": ({"Sec-Fetch-Site": "cross-site"}, 403),
    "same-site fetch": ({"Sec-Fetch-Site": "same-site"}, 403),
    "own page": ({"Sec-Fetch-Site": "same-origin"}, 303),
    "a script without a browser": ({}, 303),
}


@pytest.mark.requirement("U7")
@pytest.mark.parametrize(("headers", "status"), FORGERIES.values(), ids=FORGERIES.keys())
async def test_requests_that_change_something_must_come_from_our_own_pages(
    hospital: Hospital, headers: dict[str, str], status: int
) -> None:
    """Origin, Sec-Fetch-Site and the token are all asked."""
    async with (
        hospital.site.client("li") as client,
        client.post("/sign-out", headers=headers, allow_redirects=False) as answer,
    ):
        assert answer.status == status


async def test_token_in_a_form_field_counts(hospital: Hospital) -> None:
    """Pages work without scripts."""
    session = await hospital.site.sessions.sign_in("li", PASSWORD, "127.0.0.1")
    async with hospital.site.stranger() as client:
        cookie = {"Cookie": f"{COOKIE}={session.cookie}"}
        form = {"csrf": session.csrf}
        async with client.post("/sign-out", data=form, headers=cookie, allow_redirects=False) as answer:
            assert answer.status == 303


async def test_sign_in_from_another_site_is_refused(hospital: Hospital) -> None:
    """Nobody is signed in to somebody else's account behind their back."""
    async with hospital.site.stranger() as client:
        form = {"login": "li", "password": PASSWORD}
        async with client.post("/sign-in", data=form, headers={"Origin": "https://evil.example"}) as answer:
            assert answer.status == 403


@pytest.mark.requirement("U7")
async def test_bearer_tokens_work_only_where_their_scope_reaches(hospital: Hospital) -> None:
    """An api token opens the API and nothing else; unknown ones open nothing; no CSRF token is needed."""
    registry = hospital.node.registry
    tokens = {scope: await registry.create_token("li", [scope]) for scope in ("api", "dicomweb")}
    async with hospital.site.stranger() as client:

        async def status(path: str, token: str, method: str = "GET") -> int:
            headers = {"Authorization": f"Bearer {token}"}
            async with client.request(method, path, headers=headers, allow_redirects=False) as answer:
                return answer.status

        assert await status("/api/v1/studies", tokens["api"]) == 200
        assert await status("/api/v1/studies", tokens["dicomweb"]) == 403
        assert await status("/studies", tokens["api"]) == 403
        assert await status("/api/v1/session", tokens["api"], "DELETE") == 204
        assert await status("/api/v1/studies", "acc_unknown") == 401
        assert await status("/api/v1/studies", "x" * 600) == 401


@pytest.mark.requirement("U7")
async def test_one_time_sign_in_leads_to_the_first_password_and_nowhere_else(hospital: Hospital) -> None:
    """Until a password is chosen every page leads to the form and the API refuses; then everything opens."""
    secret = await hospital.node.registry.create_one_time("li", approval="p-1")
    async with hospital.site.stranger(**PAGE) as client:
        async with client.post(
            "/sign-in", data={"login": "li", "password": secret}, allow_redirects=False
        ) as answer:
            assert answer.headers["Location"] == "/first-password"
            cookie = answer.headers["Set-Cookie"].partition(";")[0]
        session = await hospital.site.sessions.session(cookie.partition("=")[2])
        assert session is not None
        mine = {"Cookie": cookie}
        async with client.get("/studies", headers=mine, allow_redirects=False) as answer:
            assert answer.headers["Location"] == "/first-password"
        async with client.get("/api/v1/studies", headers=mine) as answer:
            assert (answer.status, (await answer.json())["type"]) == (
                403,
                "urn:accord:problem:password-change-needed",
            )
        weak = {"csrf": session.csrf, "password": "short", "again": "short"}
        async with client.post("/first-password", data=weak, headers=mine) as answer:
            assert answer.status == 400 and "12" in await answer.text()
        good = {"csrf": session.csrf, "password": PASSWORD + "!", "again": PASSWORD + "!"}
        async with client.post("/first-password", data=good, headers=mine, allow_redirects=False) as answer:
            assert answer.headers["Location"] == "/"
            fresh = {"Cookie": answer.headers["Set-Cookie"].partition(";")[0]}
        async with client.get("/studies", headers=fresh) as answer:
            assert answer.status == 200


async def test_problem_documents_for_programs_and_pages_for_browsers(hospital: Hospital) -> None:
    """RFC 9457 by default; a designed page when a browser asks; the API never answers with a page."""
    async with hospital.site.client("li") as client:
        async with client.get("/nothing") as answer:
            document = await answer.json(content_type="application/problem+json")
            assert answer.status == document["status"] == 404
            assert document["request"] == answer.headers["X-Request-Id"]
        async with client.get("/nothing", headers=PAGE) as answer:
            assert answer.status == 404 and "There is nothing at this address." in await answer.text()
        async with client.get("/api/v1/log", headers=PAGE) as answer:
            assert answer.content_type == "application/problem+json"


async def test_unexpected_errors_are_told_without_their_words(
    hospital: Hospital, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither the answer nor the log line repeats what an exception says: it may hold a patient's name."""

    async def broken(_request: web.Request) -> web.Response:
        raise RuntimeError("Zhang^San 19700102")

    with structlog.testing.capture_logs() as lines:
        async with (
            portal(hospital.node, routes=[web.get("/broken", broken)]) as site,
            site.client("li") as client,
            client.get("/broken", headers=PAGE) as answer,
        ):
            page = await answer.text()

    assert answer.status == 500 and "Zhang" not in page
    assert [line for line in lines if line["event"] == "unexpected" and "test_kit.py" in line["at"]]
    assert "Zhang" not in json.dumps(lines, default=str) + "".join(capsys.readouterr())


@pytest.mark.requirement("F6")
async def test_one_log_line_and_one_count_per_request_by_route_template(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the line nor the counter holds a path, a query or a person."""
    capture = structlog.testing.LogCapture()
    own = structlog.wrap_logger(None, processors=[capture], wrapper_class=structlog.BoundLogger)
    monkeypatch.setattr("node.web.kit._log", own)
    async with (
        hospital.site.client("li") as client,
        client.get(f"/studies/{hospital.study}?secret=Zhang", headers=PAGE) as answer,
    ):
        assert answer.status == 200
    async with asyncio.timeout(5):  # the line is written when the answer is out
        while not (told := [line for line in capture.entries if line["event"] == "request"]):
            await asyncio.sleep(0.01)

    assert [(line["method"], line["route"], line["status"]) for line in told] == [
        ("GET", "/studies/{study}", 200)
    ]
    assert not any(word in json.dumps(told) for word in (hospital.study, "Zhang", "li@", "P-0001"))
    counter = hospital.site.metrics.requests.labels("GET", "/studies/{study}", "200")
    assert counter._value.get() == 1


@public
@body_limit(100)
async def echo(request: web.Request) -> web.Response:
    return respond(await read_json(request))


async def test_bodies_past_the_limit_of_their_route_are_refused() -> None:
    """By the announced length at once, by the real length when none is announced."""
    app = make_app(routes=[web.post("/echo", echo)], services={}, people=False)
    async with Listener(app, "127.0.0.1", 0) as listener:

        async def post(head: bytes, body: bytes) -> bytes:
            reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
            writer.write(
                b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" + head + body
            )
            answer = await reader.readuntil(b"\r\n")
            writer.close()
            return answer

        chunk = b"c8\r\n" + b" " * 200 + b"\r\n0\r\n\r\n"
        assert b" 413 " in await post(b"Content-Length: 101\r\n\r\n", b"")
        assert b" 413 " in await post(b"Transfer-Encoding: chunked\r\n\r\n", chunk)
        assert b" 200 " in await post(b"Content-Length: 2\r\n\r\n", b"{}")
        assert b" 400 " in await post(b"Content-Length: 2\r\n\r\n", b"{]")


async def test_machine_listeners_have_no_pages_and_always_answer_with_problems() -> None:
    """people=False: for peers and metrics."""

    async def broken(_request: web.Request) -> web.Response:
        raise Denied("No.", reasons=("Because.",))

    app = make_app(routes=[web.get("/x", broken)], services={}, people=False)
    async with Listener(app, "127.0.0.1", 0, limits=Limits()) as listener:
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        writer.write(b"GET /x HTTP/1.1\r\nHost: x\r\nAccept: text/html\r\nConnection: close\r\n\r\n")
        answer = await reader.read()
        writer.close()

    assert b" 403 " in answer and b"application/problem+json" in answer and b"Because." in answer


@pytest.mark.requirement("F4")
@pytest.mark.parametrize("host", [b"\xff\xff\xff\xfflhost", b"a:port"], ids=["no-text", "no-port"])
async def test_host_that_is_none_is_refused_and_no_fault_of_ours(host: bytes) -> None:
    """Answers name addresses of this node as the client knows it: one that names none is told so, before any handler."""

    async def address(request: web.Request) -> web.Response:
        return respond({"at": str(request.url.origin())})

    app = make_app(routes=[web.get("/address", address)], services={}, people=False)
    async with Listener(app, "127.0.0.1", 0) as listener:
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        writer.write(b"GET /address HTTP/1.1\r\nHost: " + host + b"\r\nConnection: close\r\n\r\n")
        head = await reader.readline()
        writer.close()
    assert head.split()[1] == b"400"


@pytest.mark.requirement("F4")
async def test_client_that_goes_in_the_middle_of_its_body_is_no_error_of_ours() -> None:
    """Counted under a status of its own, also when a group of tasks was reading; no operator is woken by a 500."""

    async def take(request: web.Request) -> web.Response:
        async with asyncio.TaskGroup():
            await request.content.read()
        return respond({})

    metrics = HttpMetrics(CollectorRegistry())
    routes = [web.post("/take", streaming(take)), web.post("/read", take)]
    app = make_app(routes=routes, services={}, people=False, metrics=metrics)
    async with Listener(app, "127.0.0.1", 0) as listener:
        for path in ("/take", "/read"):
            _, writer = await asyncio.open_connection("127.0.0.1", listener.port)
            writer.write(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf".encode())
            await asyncio.sleep(0.1)
            writer.transport.abort()
            count = metrics.requests.labels("POST", path, "499")
            async with asyncio.timeout(5):
                while not count._value.get():
                    await asyncio.sleep(0.01)
    assert all(
        sample.labels["status"] == "499" for family in metrics.requests.collect() for sample in family.samples
    )


async def test_answer_that_breaks_off_is_cut_and_not_ended_well() -> None:
    """A receiver must not take half an answer for the whole."""

    async def half(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"half")
        raise Corrupt("The rest is not what was written.")

    app = make_app(routes=[web.get("/half", half)], services={}, people=False)
    async with Listener(app, "127.0.0.1", 0) as listener:
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        writer.write(b"GET /half HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b""
        with contextlib.suppress(ConnectionError):
            answer = await asyncio.wait_for(reader.read(), 3)
        writer.close()

    assert not answer.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize(
    ("header", "language"),
    [
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh-CN"),
        ("en-GB,en;q=0.9", "en"),
        ("fr,zh-TW;q=0.5", "zh-CN"),
        ("fr", "en"),
        ("", "en"),
        ("zh;q=0,en", "en"),
        ("zh;q=x," * 50, "en"),
    ],
)
def test_language_follows_the_browser(header: str, language: str) -> None:
    """RFC 9110 §12.5.4, with English for everybody else."""
    assert negotiate(header) == language


@pytest.mark.requirement("F6")
async def test_chosen_language_is_remembered_over_the_browsers(hospital: Hospital) -> None:
    """A cookie keeps the explicit choice; only offered languages are taken, only local ways back."""
    async with hospital.site.stranger(**{"Accept-Language": "zh-CN"}) as client:
        async with client.get("/sign-in") as answer:
            assert '<html lang="zh-CN">' in await answer.text()
        form = {"language": "en", "next": "//evil.example/x"}
        async with client.post("/language", data=form, allow_redirects=False) as answer:
            assert answer.headers["Location"] == "/"
            cookie = answer.headers["Set-Cookie"].partition(";")[0]
        async with client.get("/sign-in", headers={"Cookie": cookie}) as answer:
            assert '<html lang="en">' in await answer.text()
        async with client.post("/language", data={"language": "xx"}) as answer:
            assert answer.status == 400


@pytest.mark.parametrize(
    "value",
    [
        "",
        "https://evil.example",
        "//evil.example",
        "/\\evil",
        "/a\nb",
        "javascript:alert(1)",
        "/" * 3000,
        None,
    ],
)
def test_sign_in_sends_nobody_to_another_site(value: str | None) -> None:
    """Anything but a path on this site becomes the start page."""
    assert local_path(value) == "/"


async def test_roles_see_only_their_own_navigation(hospital: Hospital) -> None:
    """The links are a convenience; the pages refuse by themselves."""
    expected = {"li": {"/studies"}, "sec": {"/log", "/emergencies"}, "it": {"/people", "/devices", "/care"}}
    for login, paths in expected.items():
        async with hospital.site.client(login, **PAGE) as client:
            async with client.get("/") as answer:
                page = await answer.text()
            for path in {path for group in expected.values() for path in group}:
                assert (f'href="{path}"' in page) == (path in paths), (login, path)
            for path in {"/log", "/people", "/devices", "/care", "/emergencies"} - paths:
                async with client.get(path) as answer:
                    assert answer.status == 403, (login, path)


def test_every_word_of_the_vocabulary_has_a_name_on_the_pages() -> None:
    """Nobody reads a code where a word belongs."""
    for words in (Role, EventKind, Action, Purpose, Right, Grade, Outcome):
        assert {word for word in words if word not in WORDS} == set()
