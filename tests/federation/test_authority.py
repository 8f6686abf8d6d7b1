"""The hub's authority and the members that follow it."""

from __future__ import annotations

import secrets
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from consent.errors import AccordError, Conflict, Corrupt, Denied, Invalid, Unavailable
from consent.signed import peek, sign
from consent.vocabulary import EventKind
from federation.authority import Authority
from federation.joining import describe, read_invitation
from federation.members import Members
from federation.roster import HUB, Anchor, Roster, Standing
from node.audit.note import Signer
from node.database import Database
from node.identity import Identity
from tests.federation.conftest import entry_of, identity_of, log_of
from tests.federation.test_roster import anchor_of
from tests.support.clock import FakeClock
from tests.support.databases import database_in

KEYS = tuple(Ed25519PrivateKey.generate() for _ in range(2))


class Hub:
    """The parts of a hub that the roster needs."""

    def __init__(
        self, database: Database, identity: Identity, clock: FakeClock, signers: int, anchor: Anchor
    ) -> None:
        log = log_of(database, identity, clock)
        self.log = log
        self.clock = clock
        self.entry = entry_of(identity)
        self.members = Members(database=database, log=log, clock=clock, node_id=identity.node_id)
        self.authority = Authority(
            database=database,
            log=log,
            clock=clock,
            members=self.members,
            anchor=anchor,
            signers=KEYS[:signers],
        )

    async def invitation_code(self) -> str:
        return (await self.authority.invite(self.entry)).body.code

    async def admit(self, node_id: str, code: str | None = None) -> Identity:
        identity = await identity_of(node_id)
        token = describe(
            entry_of(identity),
            region="north",
            key=identity.signing,
            record_id=secrets.token_hex(16),
            now=self.clock.now(),
        ).token
        await self.authority.admit(token, code or await self.invitation_code())
        return identity


@pytest.fixture
async def hub(database: Database, clock: FakeClock) -> Hub:
    hub = Hub(database, await identity_of("hub"), clock, 1, anchor_of(KEYS[:1], 1))
    await hub.authority.found(hub.entry)
    return hub


@pytest.mark.requirement("E1")
async def test_founding_lists_the_hub(hub: Hub) -> None:
    """Version 1 of a region's roster lists the hub, in its role; founding again changes nothing."""
    await hub.authority.found(hub.entry)

    assert hub.members.version == 1
    assert hub.members.current().by_id["hub"].roles[-1] == HUB


@pytest.mark.requirement("E1")
async def test_invited_node_is_listed_and_followed(hub: Hub, tmp_path: Path, clock: FakeClock) -> None:
    """A node with an invitation is on the next version, and accepts that version offline by the region's keys."""
    invitation = read_invitation((await hub.authority.invite(hub.entry)).token, clock.now())
    identity = await hub.admit("a-general", invitation.body.code)
    database = database_in(tmp_path / "a.db")
    members = Members(
        database=database, log=log_of(database, identity, clock), clock=clock, node_id="a-general"
    )

    await members.trust(invitation.body.anchor)
    assert await members.accept(hub.members.tokens, source="hub")

    assert members.version == 2
    assert members.hub() is not None and members.hub().id == "hub"
    assert members.keys_of("hub") == (hub.entry.signing_key,)
    assert not await members.accept(hub.members.tokens, source="hub")
    await database.close()


@pytest.mark.requirement("E1")
async def test_code_works_for_one_node_only(hub: Hub) -> None:
    """A used code admits nobody else; the same node may repeat itself when the answer was lost."""
    code = await hub.invitation_code()
    await hub.admit("a-general", code)
    await hub.admit("a-general", code)

    with pytest.raises(Denied) as caught:
        await hub.admit("b-central", code)
    assert caught.value.code == "join-code"
    assert set(hub.members.current().by_id) == {"hub", "a-general"}


@pytest.mark.requirement("E1")
async def test_expired_or_unknown_code_is_refused(hub: Hub, clock: FakeClock) -> None:
    """A code ends after its hours; one that was never given is worth nothing."""
    code = await hub.invitation_code()
    clock.tick(hours=73)

    for wrong in (code, "never given"):
        with pytest.raises(Denied):
            await hub.admit("a-general", wrong)


@pytest.mark.requirement("E1")
async def test_descriptor_signed_by_another_is_refused(hub: Hub, clock: FakeClock) -> None:
    """Nobody lists a node whose signing key they do not hold."""
    a, b = await identity_of("a-general"), await identity_of("b-central")
    token = describe(
        entry_of(a), region="north", key=b.signing, record_id=secrets.token_hex(16), now=clock.now()
    ).token

    with pytest.raises(Corrupt):
        await hub.authority.admit(token, await hub.invitation_code())


@pytest.mark.requirement("E1")
async def test_taken_id_is_refused(hub: Hub, clock: FakeClock) -> None:
    """A second node cannot take a listed id with other keys, and keeps its code."""
    await hub.admit("a-general")
    other = await identity_of("other")
    log_key = Signer("accord/a-general", secrets.token_bytes(32)).verifier.vkey
    entry = replace(entry_of(other), id="a-general", log_vkey=log_key)
    token = describe(
        entry, region="north", key=other.signing, record_id=secrets.token_hex(16), now=clock.now()
    ).token

    with pytest.raises(Conflict) as caught:
        await hub.authority.admit(token, await hub.invitation_code())
    assert caught.value.code == "join-taken"


@pytest.mark.requirement("E1")
async def test_suspended_member_is_nobody_until_reinstated(hub: Hub) -> None:
    """Suspension is the next roster version, on record; reinstating is another."""
    await hub.admit("a-general")

    await hub.authority.suspend("a-general", by="person:op@hub", reason="key stolen")
    assert not hub.members.is_active("a-general")
    assert hub.members.current().by_id["a-general"].status is Standing.SUSPENDED
    with pytest.raises(Denied, match="suspended"):
        hub.members.member("a-general")
    await hub.authority.reinstate("a-general", by="person:op@hub", reason="new keys checked")
    assert hub.members.is_active("a-general")
    assert await hub.log.search(kind=EventKind.MEMBER_SUSPENDED)


@pytest.mark.requirement("E1")
async def test_expired_roster_leaves_nobody_trusted(hub: Hub, clock: FakeClock) -> None:
    """Whoever is cut off from the hub for longer than the roster lasts trusts nobody; renewing avoids it."""
    await hub.admit("a-general")
    clock.tick(days=8)
    await hub.authority.renew()
    clock.tick(days=13)
    assert hub.members.is_active("a-general")

    clock.tick(days=2)
    assert not hub.members.is_active("a-general")
    with pytest.raises(Unavailable) as caught:
        hub.members.current()
    assert caught.value.code == "roster-expired"


@pytest.mark.requirement("E1")
async def test_refused_roster_is_on_record(hub: Hub, clock: FakeClock) -> None:
    """A roster that does not hold is refused and logged; the one in force stays."""
    forged = Roster(9, (hub.entry,), hub.members.current().anchor)
    token = sign(
        forged,
        record_id=secrets.token_hex(16),
        issuer="north",
        key=Ed25519PrivateKey.generate(),
        issued=clock.now(),
        expires=clock.now() + timedelta(days=1),
    ).token

    with pytest.raises(Corrupt):
        await hub.members.accept([token], source="somebody")
    assert hub.members.version == 1
    (entry,) = await hub.log.search(kind=EventKind.ROSTER_REFUSED)
    assert entry.event.detail["source"] == "somebody"


@pytest.mark.requirement("E1")
async def test_two_key_roster_waits_for_the_second_signature(database: Database, clock: FakeClock) -> None:
    """With one of two needed keys at the hub, a change is a draft until the other key's holder signs it."""
    hub = Hub(database, await identity_of("hub"), clock, 1, anchor_of(KEYS, 2))
    await hub.authority.found(hub.entry)
    assert hub.members.version == 0
    (draft,) = await hub.authority.draft()
    _header, _, claims = peek(draft)

    second = sign(
        Roster.from_json(claims["body"]),
        record_id=claims["id"],
        issuer=claims["iss"],
        key=KEYS[1],
        issued=clock.now(),
        expires=clock.now() + timedelta(days=14),
    ).token
    with pytest.raises(Corrupt):
        await hub.authority.cosign(draft)
    assert await hub.authority.cosign(second)
    assert hub.members.version == 1


@pytest.mark.requirement("E1")
@pytest.mark.parametrize("damage", ["cut", "edited", "expired", "empty"])
async def test_damaged_invitation_says_what_to_do(damage: str, hub: Hub, clock: FakeClock) -> None:
    """An invitation that was cut, edited or has expired is refused, and the words say to ask for another."""
    token = (await hub.authority.invite(hub.entry)).token
    body = token.split(".")
    damaged = {
        "cut": token[: len(token) // 2],
        "edited": ".".join([body[0], body[1][:-4] + "AAAA", body[2]]),
        "expired": token,
        "empty": "",
    }[damage]
    if damage == "expired":
        clock.tick(days=4)

    with pytest.raises(AccordError) as caught:
        read_invitation(damaged, clock.now())
    assert isinstance(caught.value, Invalid | Corrupt)
    assert caught.value.mend
