"""The peer door: who gets in, what it bounds, and what is on record of those who do not."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import aiohttp
import pytest
import pytest_asyncio

from consent.errors import Denied, Invalid, NotFound, Unavailable
from consent.vocabulary import EventKind
from federation.channel import Channel
from federation.client import PeerClient
from federation.doorway import HURRY_SECONDS, Doorway
from federation.keys import DOORWAY, MEMBERS
from federation.members import LOOK_SECONDS, Members
from federation.protocol import MAX_BODY_BYTES, PREFIX
from federation.service import MEMBER_ROUTES, make_peer_app, peer_listener
from node.clock import TrustedClock
from node.identity import Identity, client_context
from tests.federation.conftest import identity_of
from tests.support.region import Hospital, Region, region

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Region]:
    async with region(tmp_path_factory.mktemp("region"), nodes=("a-general", "b-central")) as built:
        yield built


@pytest_asyncio.fixture(loop_scope="module")
async def r(shared: Region) -> AsyncIterator[Region]:
    """One region serves the whole module; what a test broke is mended after it."""
    yield shared
    await shared.restore()


def context(target: Hospital, identity: Identity | None, *, device: bool = False) -> ssl.SSLContext:
    """What a caller with this identity would use to reach `target`."""
    pair = None
    if identity is not None:
        now = datetime.now(UTC)
        pair = identity.issue_device_certificate("CT1", now) if device else identity.leaf(["127.0.0.1"], now)
    return client_context([target.node.identity.authority_pem], pair)


async def status(target: Hospital, tls: ssl.SSLContext, path: str = f"{PREFIX}/roster") -> int:
    async with (
        aiohttp.ClientSession() as session,
        session.get(target.entry.url + path, ssl=tls, server_hostname=target.id) as response,
    ):
        return response.status


async def refusals(r: Region, target: Hospital) -> list[str]:
    """Why others were refused since the test began (the clock moves on between tests)."""
    for _ in range(100):
        found = await target.log.search(kind=EventKind.PEER_REFUSED, since=r.clock.now())
        if found:
            return [entry.event.reason for entry in found]
        await asyncio.sleep(0.02)
    return []


@pytest.mark.requirement("E1", "T2")
async def test_unlisted_node_is_refused_and_on_record(r: Region) -> None:
    """A node with certificates of its own making is refused in the handshake, by every member; the log says so."""
    stranger = await identity_of("d-unlisted")
    for target in (r.a, r.b):
        with pytest.raises(aiohttp.ClientError):
            await status(target, context(target, stranger))
        assert any("not under the authority" in words for words in await refusals(r, target))


@pytest.mark.requirement("E1", "T2")
async def test_caller_without_a_certificate_is_refused(r: Region) -> None:
    """A hospital's peer door is mutual: without a certificate nothing is answered."""
    with pytest.raises(aiohttp.ClientError):
        await status(r.a, context(r.a, None))


@pytest.mark.requirement("E1")
async def test_device_certificate_of_a_member_is_refused(r: Region) -> None:
    """A modality's certificate, though under B's authority, does not speak for B."""
    assert await status(r.a, context(r.a, r.b.node.identity, device=True)) == 403
    assert any("not its node's own" in words for words in await refusals(r, r.a))


@pytest.mark.requirement("E1")
async def test_open_connection_does_not_outlive_a_suspension(r: Region) -> None:
    """A connection from before the suspension is refused at its next request."""
    tls = context(r.a, r.b.node.identity)
    url = f"{r.a.entry.url}{PREFIX}/checkpoint"
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session:
        async with session.get(url, ssl=tls, server_hostname="a-general") as response:
            assert response.status == 200
            await response.read()
        await r.hub.authority.suspend("b-central", by="person:op@hub", reason="incident")
        await r.a.following.refresh()
        async with session.get(url, ssl=tls, server_hostname="a-general") as response:
            assert response.status == 403


@pytest.mark.requirement("E1", "T2")
async def test_caller_refuses_a_server_that_is_not_the_member(r: Region) -> None:
    """B calls A, and another node answers at A's address: B says so and sends nothing."""
    r.a.wire.target = r.hub.listener.port

    with pytest.raises(Denied) as caught:
        await r.b.client.get("a-general", f"{PREFIX}/roster")
    assert caught.value.code == "peer-certificate"
    assert any("pins" in words for words in await refusals(r, r.b))


@pytest.mark.requirement("E1")
async def test_hub_lets_strangers_only_join(r: Region) -> None:
    """At the hub a caller without a certificate reaches the door of joining and nothing else."""
    tls = client_context([r.hub.node.identity.authority_pem])
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{r.hub.entry.url}{PREFIX}/roster", ssl=tls, server_hostname="hub") as answer:
            assert answer.status == 403
        async with session.post(
            f"{r.hub.entry.url}{PREFIX}/join",
            json={"descriptor": "x", "code": "y"},
            ssl=tls,
            server_hostname="hub",
        ) as answer:
            assert answer.status == 400


BAD_BODIES: dict[str, tuple[bytes, str, int]] = {
    "too large": (b"{" + b" " * MAX_BODY_BYTES + b"}", "application/json", 413),
    "no json": (b"{'no json'}", "application/json", 400),
    "a list": (b"[]", "application/json", 400),
    "wrong type": (b'{"token": 7}', "application/json", 400),
    "no token": (b'{"token": "a.b.c"}', "application/json", 400),
    "a key twice": (b'{"token": "x", "token": "y"}', "application/json", 400),
    "a form": (b"token=x", "application/x-www-form-urlencoded", 415),
    "deep": (b"[" * 100_000, "application/json", 400),
}
BAD_RANGES = ("", "bytes=5-2", "bytes=0-1,3-4", "bytes=-5", "bytes=999999999-9999999999", "lines=1-2")


@pytest.mark.requirement("F4")
async def test_hostile_bodies_are_refused_in_words(r: Region) -> None:
    """Whatever a member sends, the answer is a problem document and the door stays open."""
    tls = context(r.a, r.b.node.identity)
    async with aiohttp.ClientSession() as session:
        for name, (body, content_type, expected) in BAD_BODIES.items():
            async with session.post(
                f"{r.a.entry.url}{PREFIX}/leases",
                data=body,
                headers={"Content-Type": content_type},
                ssl=tls,
                server_hostname="a-general",
            ) as response:
                assert response.status == expected, name
                problem = await response.json(content_type="application/problem+json")
                assert problem["detail"], name
    assert await status(r.a, tls) == 200


@pytest.mark.requirement("T2", "F4")
async def test_bad_ranges_are_refused(r: Region) -> None:
    """One bounded range within the pack is served; anything else is an error in words."""
    sharing = await r.share(fetch=False)
    tls = context(r.a, r.b.node.identity)
    url = f"{r.a.entry.url}{PREFIX}/packs/{sharing.grant.id}/bytes"
    async with aiohttp.ClientSession() as session:
        for wanted in BAD_RANGES:
            headers = {"Range": wanted} if wanted else {}
            async with session.get(url, headers=headers, ssl=tls, server_hostname="a-general") as response:
                assert response.status == 400, wanted
        # A range that only ends behind the pack is cut to it (RFC 9110 §14.1.2).
        headers = {"Range": "bytes=0-99999999999"}
        async with session.get(url, headers=headers, ssl=tls, server_hostname="a-general") as response:
            assert response.status == 206


@pytest.mark.requirement("F4")
async def test_member_that_answers_too_much_is_cut_off(r: Region) -> None:
    """An answer longer than the caller's bound is refused, not read to its end."""
    with pytest.raises(Invalid, match="longer than 100 bytes"):
        await r.b.client.get("a-general", f"{PREFIX}/roster", limit=100)


@pytest.mark.requirement("F4")
async def test_member_that_does_not_exist_or_answer_is_an_error_in_words(r: Region) -> None:
    """Unlisted, unreachable and unknown paths are three different errors, each with what to do."""
    with pytest.raises(Denied):
        await r.b.client.get("nowhere", f"{PREFIX}/roster")
    with pytest.raises(NotFound):
        await r.b.client.get("a-general", f"{PREFIX}/nothing")
    r.a.wire.cut()
    with pytest.raises(Unavailable) as caught:
        await r.b.client.get("a-general", f"{PREFIX}/roster")
    assert caught.value.mend


@pytest.mark.requirement("E1")
async def test_hint_is_tried_when_the_roster_address_does_not_answer(r: Region) -> None:
    """An address from discovery serves when the listed one is dead, and only to the member that is pinned."""
    r.a.wire.cut()
    hints = {"a-general": f"https://127.0.0.1:{r.a.listener.port}"}
    client = PeerClient(
        members=r.b.members,
        channel=r.b.channel,
        log=r.b.log,
        hints=lambda member: (hints[member.id],),
    )
    try:
        assert await client.get("a-general", f"{PREFIX}/roster")
        hints["a-general"] = f"https://127.0.0.1:{r.hub.listener.port}"
        with pytest.raises(Denied) as caught:
            await client.get("a-general", f"{PREFIX}/roster")
        assert caught.value.code == "peer-certificate"
    finally:
        await client.close()


@pytest.mark.requirement("E1")
async def test_roster_is_fetched_from_another_member_while_the_hub_is_away(r: Region) -> None:
    """A suspension spreads though the hub is unreachable: any member's copy of the roster does."""
    await r.hub.authority.renew()
    await r.hub.authority.suspend("b-central", by="person:op@hub", reason="incident")
    await r.hub.authority.reinstate("b-central", by="person:op@hub", reason="checked")
    await r.a.following.refresh()
    assert r.b.members.version < r.a.members.version
    r.hub.wire.cut()

    await r.b.following.refresh()

    assert r.b.members.version == r.a.members.version


@pytest.mark.requirement("E1")
async def test_scan_does_not_flood_the_log(r: Region) -> None:
    """Fifty refused calls from one address make one entry now, and the next entry counts the rest."""
    tls = context(r.a, r.b.node.identity, device=True)
    for _ in range(50):
        assert await status(r.a, tls) == 403
    assert len(await refusals(r, r.a)) == 1
    r.clock.tick(seconds=61)
    await status(r.a, tls)

    entries = await r.a.log.search(kind=EventKind.PEER_REFUSED, limit=2)
    assert [entry.event.detail["unlogged_before"] for entry in entries] == [49, 0]


@pytest.mark.requirement("E1")
async def test_roster_that_another_process_accepted_is_known_at_the_next_call(r: Region) -> None:
    """A node without a roster looks at its database when it is called, and again when its own command line asks."""
    running = Members(
        database=r.a.node.database, log=r.a.log, clock=r.clock, node_id=r.a.id
    )  # a process that started before `accord join` wrote the roster
    channel = Channel(identity=r.a.node.identity, members=running, hosts=["127.0.0.1"], clock=TrustedClock())
    services = {DOORWAY: Doorway(members=running, log=r.a.log, clock=r.clock), MEMBERS: running}
    app = make_peer_app(routes=MEMBER_ROUTES, services=services)
    async with peer_listener(app, "127.0.0.1", 0, channel=channel) as door:
        url = f"https://127.0.0.1:{door.port}{PREFIX}/roster"
        own = client_context(
            [r.a.node.identity.authority_pem], r.a.node.identity.leaf(["127.0.0.1"], datetime.now(UTC))
        )
        async with aiohttp.ClientSession() as session:
            async with session.get(url, ssl=own, server_hostname=r.a.id) as response:
                assert response.status == 200
                assert (await response.json())["tokens"] == list(r.a.members.tokens)
            await r.hub.authority.suspend("b-central", by="person:op@hub", reason="a newer roster")
            await r.a.following.refresh()
            await asyncio.sleep(LOOK_SECONDS)
            async with session.get(url, ssl=own, server_hostname=r.a.id) as response:
                assert (await response.json())["tokens"] == list(r.a.members.tokens)
        assert running.version == r.a.members.version


@pytest.mark.requirement("E1")
async def test_unknown_caller_makes_the_node_fetch_the_roster_once_in_a_while(r: Region) -> None:
    """A hospital that joined a minute ago is unknown until the roster is fresh; a scan fetches it no more often."""
    doorway = Doorway(members=r.a.members, log=r.a.log, clock=r.clock)
    fetched: list[datetime] = []
    doorway.hold(lambda: fetched.append(r.clock.now()))
    for _ in range(3):
        await doorway.refuse("10.0.0.1", Denied("unknown", code="peer-handshake"))
    await doorway.refuse("10.0.0.2", Denied("suspended", code="peer-suspended"))
    assert len(fetched) == 1
    r.clock.tick(seconds=HURRY_SECONDS)
    await doorway.refuse("10.0.0.2", Denied("unlisted", code="peer-unlisted"))
    assert len(fetched) == 2
