"""The pages on which a one-time sign-in is asked for, decided, handed over, and told to its person."""

from __future__ import annotations

import re

import pytest

from consent.vocabulary import EventKind
from tests.node.web.conftest import Hospital
from tests.node.web.test_pages import PAGE, fetch, send
from tests.support.node import PASSWORD

pytestmark = pytest.mark.requirement("U7", "F6")

WHY = "called from ward 3; the head nurse stands beside her"


async def test_from_the_request_to_the_notice(hospital: Hospital) -> None:
    """IT asks and sees no secret; the officer decides and sees it once; the person is told, and says no."""
    hospital.node.clock.tick(days=2)
    async with hospital.site.client("it", **PAGE) as it:
        _where, page = await send(it, "/people/li", 200, do="one-time")
        assert "A second person decides" in page and 'id="secret"' not in page
        await send(it, "/people/li", 400, do="ask", reason="x")
        _where, page = await send(it, "/people/li", 200, do="ask", reason=WHY)
        assert "Asked for a one-time sign-in for li" in page and 'id="secret"' not in page
        await send(it, f"/sign-ins/{32 * '0'}", 403, voice="approve")
    async with hospital.site.client("sec", **PAGE) as officer:
        assert 'href="/sign-ins"' in await fetch(officer, "/")
        page = await fetch(officer, "/sign-ins")
        assert WHY in page
        proposal = re.search(r'action="(/sign-ins/[0-9a-f]{32})"', page)
        assert proposal is not None
        _where, page = await send(officer, proposal[1], 200, voice="approve")
        secret = re.search(r'id="secret">([^<]+)<', page)
        assert secret is not None and secret[1] not in await fetch(officer, "/sign-ins")
        await send(officer, proposal[1], 409, voice="approve")
        await send(officer, proposal[1], 400, voice="perhaps")
        assert "One-time sign-in for an account in use" in await fetch(officer, "/")
    await told(hospital, secret[1])


async def told(hospital: Hospital, secret: str) -> None:
    session = await hospital.site.sessions.sign_in("li", secret, "x")
    assert session.must_change_password
    await hospital.node.registry.set_password("li", PASSWORD)
    async with hospital.site.client("li", **PAGE) as client:
        for path in ("/", "/account"):
            page = await fetch(client, path)
            assert "A one-time sign-in was made for your account" in page
            assert "it asked for it and sec made it" in page
        await send(client, "/account/reset", 400, asked="perhaps")
        await send(client, "/account/reset", asked="no")
        assert "A one-time sign-in was made" not in await fetch(client, "/")
    (entry,) = await hospital.node.events(EventKind.SIGN_IN_RESET_DISOWNED)
    assert entry.event.actor.startswith("person:li@")


async def test_a_new_password_says_that_tokens_ended(hospital: Hospital) -> None:
    """Their person must know why a program stopped working."""
    await hospital.node.registry.create_token("li", {"api"})
    async with hospital.site.client("li", **PAGE) as client:
        fresh = {"password": PASSWORD + " new", "again": PASSWORD + " new"}
        where, _page = await send(client, "/account/password", old=PASSWORD, **fresh)
        assert where == "/account?changed=1&tokens=1"
    session = await hospital.site.sessions.sign_in("li", PASSWORD + " new", "x")
    async with hospital.site.stranger(Cookie=f"__Host-accord={session.cookie}", **PAGE) as client:
        assert "Your tokens for programs have ended too" in await fetch(client, where)
