"""Lease requests that A must refuse, each with its words and its entry in the log."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from consent.errors import AccordError, Conflict, Corrupt, Denied, Invalid
from consent.signed import Signed, sign, verify
from consent.vocabulary import EventKind, Purpose
from federation import grants
from federation.envelope import open_sealed_for
from federation.protocol import Lease, LeaseRequest, lease_info
from federation.roster import Member
from node.audit.event import Event
from tests.support.region import Region, Sharing, nonce, region

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Region]:
    async with region(tmp_path_factory.mktemp("region")) as built:
        yield built


@pytest_asyncio.fixture(loop_scope="module")
async def r(shared: Region) -> AsyncIterator[Region]:
    """One region serves the whole module; what a test broke is mended after it."""
    yield shared
    await shared.restore()


async def body_of(r: Region, sharing: Sharing) -> LeaseRequest:
    manifest = await r.b.holdings.manifest(sharing.grant)
    return LeaseRequest(
        home="a-general",
        grant=sharing.grant.id,
        study=sharing.study,
        objects=(manifest.objects[0].object_id,),
        person=sharing.asker.id,
        purpose=Purpose.TREATMENT,
        opening="opening-1",
        nonce=nonce(),
        roster=r.b.members.version,
    )


def signed(
    r: Region,
    body: LeaseRequest,
    *,
    key: Ed25519PrivateKey | None = None,
    issuer: str = "b-central",
    ago: timedelta = timedelta(),
) -> str:
    issued = r.clock.now() - ago
    return sign(
        body,
        record_id=secrets.token_hex(16),
        issuer=issuer,
        key=key or r.b.node.identity.signing,
        issued=issued,
        expires=issued + timedelta(seconds=300),
    ).token


def holder(r: Region) -> Member:
    return r.a.members.member("b-central")


async def released(r: Region, token: str, member: Member | None = None) -> Signed[Lease]:
    return await r.a.leases.release(member or holder(r), token, "127.0.0.1")


@pytest.mark.requirement("E4")
async def test_lease_opens_only_for_the_holder_and_only_as_what_it_is(r: Region) -> None:
    """The keys open with B's HPKE key, under the grant, nonce and end that the lease names, and nowhere else."""
    sharing = await r.share()
    lease = (await released(r, signed(r, await body_of(r, sharing)))).body

    key = r.b.node.identity.hpke
    assert open_sealed_for(key, lease.sealed, lease.info)
    later = lease.until + timedelta(minutes=1)
    wrong = [
        (r.c.node.identity.hpke, lease.info),
        (key, lease_info(lease.grant, nonce(), lease.until)),
        (key, lease_info("0" * 64, lease.nonce, lease.until)),
        (key, lease_info(lease.grant, lease.nonce, later)),
    ]
    for other_key, info in wrong:
        with pytest.raises(Corrupt):
            open_sealed_for(other_key, lease.sealed, info)
    assert lease.until - r.clock.now() <= timedelta(minutes=15)


@pytest.mark.requirement("E4")
async def test_lease_never_outlives_the_grant(r: Region) -> None:
    """With three minutes of the grant left, the lease is for three minutes."""
    sharing = await r.share(lasts=timedelta(minutes=10))
    r.clock.tick(minutes=7)

    lease = await released(r, signed(r, await body_of(r, sharing)))

    assert lease.body.until == sharing.grant.expires


@pytest.mark.requirement("E4")
async def test_replayed_lease_request_is_refused(r: Region) -> None:
    """A request is answered once; the second time it is a replay, also with a new signature over its nonce."""
    sharing = await r.share()
    body = await body_of(r, sharing)
    token = signed(r, body)
    await released(r, token)

    for again in (token, signed(r, body)):
        with pytest.raises(Conflict) as caught:
            await released(r, again)
        assert caught.value.code == "replayed"
    assert len(await r.a.log.search(kind=EventKind.LEASE_RELEASED, study=sharing.study)) == 1


Change = Callable[[Region, LeaseRequest], str]


def changed(**changes: object) -> Change:
    return lambda r, body: signed(r, replace(body, **changes))  # type: ignore[arg-type]


BAD: dict[str, tuple[Change, type[AccordError], str]] = {
    "forged": (lambda r, b: signed(r, b, key=Ed25519PrivateKey.generate()), Corrupt, "bad-signature"),
    "of another member": (
        lambda r, b: signed(r, b, key=r.c.node.identity.signing, issuer="c-clinic"),
        Denied,
        "wrong-party",
    ),
    "stale": (lambda r, b: signed(r, b, ago=timedelta(seconds=121)), Invalid, "stale"),
    "expired": (lambda r, b: signed(r, b, ago=timedelta(hours=1)), Invalid, "expired"),
    "of the future": (lambda r, b: signed(r, b, ago=-timedelta(seconds=121)), Invalid, "not-yet-valid"),
    "for another home": (changed(home="c-clinic"), Denied, "wrong-party"),
    "unknown roster version": (changed(roster=999), Conflict, "unknown-roster"),
    "unknown grant": (changed(grant="0" * 32), Denied, "no-grant"),
    "another study": (changed(study="st_" + "a" * 26), Denied, "wrong-study"),
    "objects not granted": (changed(objects=("in_elsewhere",)), Denied, "not-granted"),
    "another person": (changed(person="somebody.else"), Denied, "denied"),
    "another purpose": (changed(purpose=Purpose.RESEARCH), Denied, "denied"),
    "not a token": (lambda r, b: "abc", Invalid, "invalid"),
}


@pytest.mark.requirement("E4")
async def test_bad_lease_requests_are_refused_and_on_record(r: Region) -> None:
    """Forged, stale, misdirected or overreaching requests get no key; each refusal is in A's log."""
    sharing = await r.share()
    body = await body_of(r, sharing)
    refused = len(await r.a.log.search(kind=EventKind.LEASE_REFUSED))
    for number, (name, (make, error, code)) in enumerate(BAD.items(), refused + 1):
        token = make(r, replace(body, nonce=nonce()))
        with pytest.raises(error) as caught:
            await released(r, token)
        assert caught.value.code == code, name
        assert len(await r.a.log.search(kind=EventKind.LEASE_REFUSED)) == number, name
    assert not await r.a.log.search(kind=EventKind.LEASE_RELEASED, study=sharing.study)


@pytest.mark.requirement("E4")
async def test_another_member_cannot_use_the_grant(r: Region) -> None:
    """C, a member in good standing, gets nothing out of B's grant."""
    sharing = await r.share()
    body = await body_of(r, sharing)
    token = signed(r, body, key=r.c.node.identity.signing, issuer="c-clinic")

    with pytest.raises(Denied) as caught:
        await released(r, token, r.a.members.member("c-clinic"))
    assert caught.value.code == "no-grant"


@pytest.mark.requirement("U2", "E2", "E4")
@pytest.mark.parametrize("how", ["expired", "revoked", "withdrawn", "suspended"])
async def test_dead_grant_gets_no_lease(r: Region, how: str) -> None:
    """Whatever ended the grant, the next lease is refused, without any message having been passed."""
    sharing = await r.share(lasts=timedelta(minutes=5))
    member = holder(r)
    r.b.wire.cut()
    match how:
        case "expired":
            r.clock.tick(minutes=5)
        case "revoked":
            await r.a.grants.revoke(sharing.owner, sharing.grant.id, "enough")
        case "withdrawn":
            await r.a.consents.withdraw(sharing.owner, sharing.consent, "patient called")
        case "suspended":
            await r.hub.authority.suspend("b-central", by="person:op@hub", reason="incident")
            await r.a.following.refresh()

    with pytest.raises(Denied):
        await released(r, signed(r, await body_of(r, sharing)), member)
    (latest,) = await r.a.log.search(kind=EventKind.LEASE_REFUSED, limit=1)
    assert latest.at == r.clock.now()


@pytest.mark.requirement("E4")
async def test_holder_takes_no_lease_that_answers_another_request(r: Region) -> None:
    """A lease with another nonce, of another issuer, or sealed for somebody else opens nothing at B."""
    sharing = await r.share()
    lease = await released(r, signed(r, await body_of(r, sharing)))
    kept = verify(lease.token, Lease, keys_of=r.b.members.keys_of, now=r.clock.now())
    assert kept.body == lease.body
    with pytest.raises(Corrupt):
        verify(lease.token, Lease, keys_of=lambda _issuer: (), now=r.clock.now())
    with pytest.raises(Corrupt) as caught:
        r.b.leased_keys._read({"token": lease.token}, sharing.grant, nonce(), r.clock.now())
    assert caught.value.code == "lease-mismatch"


@pytest.mark.requirement("E4")
async def test_key_that_runs_out_while_another_is_leased_breaks_no_call(r: Region) -> None:
    """Two pictures are asked for at once; the lease of one ends while the other's is on its way."""
    sharing = await r.share()
    first, second = [entry.object_id for entry in (await r.b.holdings.manifest(sharing.grant)).objects[:2]]
    leased = r.b.leased_keys

    async def keys(*names: str) -> Mapping[str, bytes]:
        return await leased.keys(
            "a-general", sharing.study, names, sharing.asker, Purpose.TREATMENT, "opening-7"
        )

    await keys(first)
    (opening,) = [one for key, one in leased._openings.items() if key[0] == "opening-7"]
    opening.keys = {first: opening.keys[first]}  # nothing was leased ahead
    lease = leased._lease

    async def slow(*arguments: Any) -> Any:
        leased._lease = lease  # type: ignore[method-assign]
        r.clock.tick(seconds=901)
        await keys(second)  # another call, which drops what has run out
        return await lease(*arguments)

    leased._lease = slow  # type: ignore[assignment, method-assign]
    found = await keys(first, second)

    assert set(found) == {first, second}
    assert all(len(key) == 32 for key in found.values())


@pytest.mark.requirement("E4", "A1")
async def test_revoked_grant_stays_revoked_when_its_row_is_set_back(r: Region) -> None:
    """Whoever edits the database cannot revive a grant: the log says that it was revoked."""
    sharing = await r.share()
    body = await body_of(r, sharing)
    await r.a.grants.revoke(sharing.owner, sharing.grant.id, "no longer needed")
    async with r.a.node.database.write() as tx:
        await r.a.node.records.mark(tx, sharing.grant.id, "active")

    with pytest.raises(Denied):
        await released(r, signed(r, body))


@pytest.mark.requirement("E4", "A1")
async def test_revocation_counts_however_many_came_after_it(
    r: Region, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other grants over the same study were revoked since, more than the log gives at once."""
    monkeypatch.setattr(grants, "REVOKED_PAGE", 2)
    sharing = await r.share()
    body = await body_of(r, sharing)
    await r.a.grants.revoke(sharing.owner, sharing.grant.id, "no longer needed")
    for number in range(3):
        detail = {"grant": f"another-{number}"}
        await r.a.log.record(
            Event(EventKind.GRANT_REVOKED, "system", study=sharing.study, detail=dict(detail))
        )
    async with r.a.node.database.write() as tx:
        await r.a.node.records.mark(tx, sharing.grant.id, "active")

    with pytest.raises(Denied):
        await released(r, signed(r, body))


async def test_lease_request_without_objects_is_refused(r: Region) -> None:
    """A request names what it wants the keys of."""
    body = await body_of(r, await r.share())

    with pytest.raises(Invalid):
        LeaseRequest.from_json({**body.to_json(), "objects": []})
