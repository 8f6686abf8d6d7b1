"""The walk of a study from A to B and its end, over real sockets and mutual TLS."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio

from consent.directives import Directive
from consent.errors import Conflict, Corrupt, Denied, Invalid, NotFound, Unavailable
from consent.principals import Principal
from consent.vocabulary import Action, EventKind, Outcome, Right, Role
from federation.holdings import HeldState
from federation.notices import GrantState
from federation.protocol import Particulars, RequestState
from node.openings import Opening
from node.vault.vault import INSTANCE
from tests.support.clearance import cleared
from tests.support.dicom import study
from tests.support.region import Region, Sharing, region

PAIR = ("a-general", "b-central")


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Region]:
    async with region(tmp_path_factory.mktemp("region"), nodes=PAIR) as built:
        yield built


@pytest_asyncio.fixture(loop_scope="module")
async def r(shared: Region) -> AsyncIterator[Region]:
    """One region serves the whole module; what a test broke is mended after it."""
    yield shared
    await shared.restore()


async def opened(r: Region, sharing: Sharing) -> tuple[Opening, str]:
    """B's clinician opens the shared study; returns the opening and an instance to look at."""
    gateway = r.b.node.gateway
    opening = await gateway.open(sharing.asker, sharing.study, home="a-general")
    series = await gateway.series(opening)
    return opening, series[0].instances[0].uid


async def held_state(r: Region, sharing: Sharing) -> HeldState:
    return (await r.b.holdings.one(sharing.grant.id)).state


def patient_words(sharing: Sharing) -> list[bytes]:
    ds = sharing.instances[0].dataset()
    return [str(ds.PatientID).encode(), str(ds.AccessionNumber).encode(), str(ds.StudyInstanceUID).encode()]


@pytest.mark.requirement("E3", "T2", "U5")
async def test_study_is_asked_for_granted_fetched_and_viewed(r: Region) -> None:
    """B sees A's study under a lease, and A's log shows who opened it there, each opening apart."""
    sharing = await r.share()

    for _ in range(2):
        opening, uid = await opened(r, sharing)
        frame = await r.b.node.gateway.frame(opening, uid)
        assert frame.content

    released = await r.a.log.search(kind=EventKind.LEASE_RELEASED, study=sharing.study)
    assert {entry.event.actor for entry in released} == {f"person:{sharing.asker.id}@b-central"}
    assert len({entry.event.detail["opening"] for entry in released}) == 2
    (held,) = await r.b.holdings.held(sharing.asker)
    assert held.state is HeldState.HELD
    (asked,) = await r.b.asking.asked(sharing.asker)
    assert asked.state is RequestState.GRANTED


@pytest.mark.requirement("E3")
async def test_no_patient_identifier_of_a_request_lies_in_either_database(r: Region) -> None:
    """What names the patient in a request travels and lies in envelopes only."""
    instances = study(name="named", patient_id="PID-7788-XYZ", accession_number="ACC-5566-QRS")
    await r.a.node.store(*instances)
    asker = await r.b.node.person(Role.CLINICIAN)
    particulars = Particulars(
        "Dr Wang", "reason-with-a-name", accession_number="ACC-5566-QRS", patient_id="PID-7788-XYZ"
    )
    await r.b.asking.ask(asker, home="a-general", particulars=particulars)

    planted = [b"PID-7788-XYZ", b"ACC-5566-QRS", b"reason-with-a-name"]
    for path in r.a.node.path.parent.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not [word for word in planted if word in content], path.name


@pytest.mark.requirement("E3")
async def test_study_is_found_by_accession_number_and_patient(r: Region) -> None:
    """Both must fit; the patient ID alone, or another accession number, finds nothing."""
    study_id, _patient, owner, _ = await r.store("by-accession", patient_id="P-77", accession_number="A-77")
    asker = await r.b.node.person(Role.CLINICIAN)
    for accession in ("A-77", "A-78"):
        particulars = Particulars("Dr Wang", "why", accession_number=accession, patient_id="P-77")
        asked = await r.b.asking.ask(asker, home="a-general", particulars=particulars)
        assert asked.state is RequestState.WAITING

    assert [one.study for one in await r.a.incoming.incoming(owner)] == [study_id]


@pytest.mark.requirement("E3")
async def test_asking_for_an_unknown_study_tells_nothing(r: Region) -> None:
    """An unknown study and an undecided request look the same to the asker; only A's log knows better."""
    asker = await r.b.node.person(Role.CLINICIAN)
    particulars = Particulars("Dr Wang", "why", study_instance_uid="1.2.3.4.5")
    asked = await r.b.asking.ask(asker, home="a-general", particulars=particulars)
    await r.b.asking.deliver()

    assert (await r.b.asking.asked(asker))[0].state is RequestState.WAITING
    (entry,) = await r.a.log.search(kind=EventKind.STUDY_REQUESTED, limit=1)
    assert entry.event.outcome is Outcome.REFUSED
    with pytest.raises(NotFound):
        await r.a.incoming.one(asked.id)


@pytest.mark.requirement("E3", "U1")
async def test_only_who_treats_the_patient_sees_and_grants_the_request(r: Region) -> None:
    """Another clinician of A neither sees the request nor may grant it; the attempt is on record."""
    _, patient, owner, instances = await r.store()
    await r.consent(owner, patient)
    request, _ = await r.ask(instances)
    stranger = await r.a.node.person(Role.CLINICIAN)

    assert await r.a.incoming.incoming(stranger) == ()
    assert [one.id for one in await r.a.incoming.incoming(owner)] == [request]
    with pytest.raises(Denied):
        await r.a.grants.issue(stranger, request)
    assert await r.a.log.search(kind=EventKind.ACCESS_REFUSED, patient=patient)


@pytest.mark.requirement("E2", "E3")
async def test_without_consent_nothing_is_granted(r: Region) -> None:
    """The request is answered with the reason that consent is missing; once recorded, the grant is possible."""
    _, patient, owner, instances = await r.store()
    request, _ = await r.ask(instances)
    (asked,) = await r.a.incoming.incoming(owner)

    assert not (await r.a.grants.coverage(asked)).permitted
    with pytest.raises(Denied, match="consent"):
        await r.a.grants.issue(owner, request)
    await r.consent(owner, patient)
    assert (await r.a.grants.coverage(asked)).permitted
    assert (await r.a.grants.issue(owner, request)).body.person


@pytest.mark.requirement("U2")
async def test_grant_only_narrows_the_request(r: Region) -> None:
    """The granter can give fewer rights and less time than asked, never more."""
    _, patient, owner, instances = await r.store()
    await r.consent(owner, patient)
    request, _ = await r.ask(instances, rights=frozenset({Right.VIEW, Right.DOWNLOAD}), hours=2)

    grant = await r.a.grants.issue(owner, request, rights=frozenset(Right), lasts=timedelta(days=30))

    assert grant.body.rights == {Right.VIEW, Right.DOWNLOAD}
    assert grant.expires == r.clock.now() + timedelta(hours=2)
    with pytest.raises(Conflict):
        await r.a.grants.issue(owner, request)


@pytest.mark.requirement("E3")
async def test_declined_request_reaches_the_asker_with_the_words(r: Region) -> None:
    """A refusal is final, and B's clinician reads why."""
    _, _patient, owner, instances = await r.store()
    request, asker = await r.ask(instances)

    await r.a.incoming.decline(owner, request, "please send the referral first", None)
    await r.b.asking.deliver()

    (asked,) = await r.b.asking.asked(asker)
    assert (asked.state, asked.words) == (RequestState.DECLINED, "please send the referral first")
    with pytest.raises(Conflict):
        await r.a.grants.issue(owner, request)


@pytest.mark.requirement("E3")
async def test_request_waits_while_the_other_hospital_is_away(r: Region) -> None:
    """What cannot be sent is kept and sent when the hospital answers again."""
    _, _patient, owner, instances = await r.store()
    r.a.wire.cut()
    _request, asker = await r.ask(instances)
    assert (await r.b.asking.asked(asker))[0].state is RequestState.UNSENT

    r.a.wire.mend()
    await r.b.asking.deliver()

    assert (await r.b.asking.asked(asker))[0].state is RequestState.WAITING
    assert len(await r.a.incoming.incoming(owner)) == 1


@pytest.mark.requirement("E3")
async def test_grant_waits_while_the_holder_is_away(r: Region) -> None:
    """A grant that could not be handed over is handed over by the next sweep."""
    _, patient, owner, instances = await r.store()
    await r.consent(owner, patient)
    request, asker = await r.ask(instances)
    r.b.wire.cut()
    await r.a.grants.issue(owner, request)
    assert await r.b.holdings.held(asker) == ()

    r.b.wire.mend()
    await r.a.notices.sweep()
    await r.b.sweep()

    assert [one.state for one in await r.b.holdings.held(asker)] == [HeldState.HELD]


@pytest.mark.requirement("T2")
async def test_transfer_resumes_after_a_cut(r: Region) -> None:
    """A transfer that is cut keeps what came, counts for nothing, and goes on from there."""
    sharing = await r.share(slices=12, size=128, fetch=False)
    before = r.a.wire.passed
    r.a.wire.cut_after(150_000)
    with pytest.raises(Unavailable):
        await r.b.fetching.fetch(sharing.grant.id)
    first = r.a.wire.passed - before
    assert await held_state(r, sharing) is HeldState.GRANTED
    with pytest.raises(NotFound):
        await r.b.node.gateway.open(sharing.asker, sharing.study, home="a-general")

    r.a.wire.mend()
    manifest = await r.b.fetching.fetch(sharing.grant.id)

    assert await held_state(r, sharing) is HeldState.HELD
    assert manifest.size > 300_000
    assert r.a.wire.passed - before < manifest.size + first, "the second try began from nothing"
    opening, uid = await opened(r, sharing)
    assert (await r.b.node.gateway.frame(opening, uid)).content


@pytest.mark.requirement("T2", "C3")
async def test_byte_flipped_on_the_wire_is_noticed_and_the_transfer_goes_on(r: Region) -> None:
    """TLS drops the connection; what came before is kept, and the copy that results is whole."""
    sharing = await r.share(slices=12, size=128, fetch=False)
    before = r.a.wire.passed
    r.a.wire.flip_after(100_000)
    # A connection that was kept and breaks before the answer's head has been read is tried again by aiohttp itself.
    with contextlib.suppress(Unavailable):
        await r.b.fetching.fetch(sharing.grant.id)
    assert r.a.wire.flipped

    manifest = await r.b.fetching.fetch(sharing.grant.id)

    assert await held_state(r, sharing) is HeldState.HELD
    assert r.a.wire.passed - before > manifest.size
    opening, uid = await opened(r, sharing)
    assert (await r.b.node.gateway.frame(opening, uid)).content


@pytest.mark.requirement("T2")
async def test_pack_written_anew_at_home_is_started_over(r: Region) -> None:
    """B holds half of a pack that A writes anew: it is told so, throws that half away, and gets the new one on asking again."""
    sharing = await r.share(slices=12, size=128, fetch=False)
    r.a.wire.cut_after(150_000)
    with pytest.raises(Unavailable):
        await r.b.fetching.fetch(sharing.grant.id)
    r.a.wire.mend()
    assert list(r.b.holdings.incoming("a-general").names())

    await r.a.node.compaction.compact(sharing.study, "system")
    with pytest.raises(Conflict, match="written anew"):
        await r.b.fetching.fetch(sharing.grant.id)

    assert not list(r.b.holdings.incoming("a-general").names())
    assert not await r.b.log.search(kind=EventKind.INTEGRITY_FAILED)


@pytest.mark.requirement("T2", "C3")
async def test_byte_flipped_at_the_sender_is_found_before_the_copy_counts(r: Region) -> None:
    """A pack that is not what A's manifest says is thrown away, on record, and nothing of it can be opened."""
    sharing = await r.share(fetch=False)
    flip(r.a.node.path / "studies" / sharing.study[-2:] / f"{sharing.study}.pack", 3000)

    with pytest.raises(Corrupt):
        await r.b.fetching.fetch(sharing.grant.id)

    (entry,) = await r.b.log.search(kind=EventKind.INTEGRITY_FAILED, study=sharing.study)
    assert entry.event.detail["where"] == "transfer"
    assert not r.b.pack("a-general", sharing.study).exists()
    with pytest.raises(NotFound):
        await r.b.node.gateway.open(sharing.asker, sharing.study, home="a-general")
    await r.b.fetching.fetch_waiting()
    await r.b.fetching.fetch_waiting()
    assert sharing.grant.id not in await r.b.holdings.waiting(3)


@pytest.mark.requirement("C3", "E4")
async def test_byte_flipped_on_the_holders_disk_is_never_shown(r: Region) -> None:
    """Any changed byte of a held copy is found when it is read, refused, and on record."""
    sharing = await r.share(slices=1)
    opening, uid = await opened(r, sharing)
    assert (await r.b.node.gateway.frame(opening, uid)).content
    objects = (await r.a.node.vault.objects(sharing.study)).objects
    last = next(stored for stored in reversed(objects) if stored.kind == INSTANCE)
    flip(r.b.pack("a-general", sharing.study), last.offset + last.length - 100)

    with pytest.raises(Corrupt):
        await r.b.node.gateway.frame(opening, uid)
    assert await r.b.log.search(kind=EventKind.INTEGRITY_FAILED, study=sharing.study)


@pytest.mark.requirement("V1", "T2")
async def test_held_copy_without_its_home_is_only_ciphertext(r: Region) -> None:
    """B's disk holds no key and no plaintext of A's study, also while it is open."""
    sharing = await r.share()
    opening, uid = await opened(r, sharing)
    await r.b.node.gateway.frame(opening, uid)
    objects = (await r.a.node.vault.objects(sharing.study)).objects
    keys = await r.a.node.gateway.object_keys(
        sharing.study,
        [stored.object_id for stored in objects],
        cleared(r.a.node, sharing.study, Action.VIEW),
    )

    for path in r.b.node.path.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not [key for key in keys.values() if key in content], path.name
            assert not [word for word in patient_words(sharing) if word in content], path.name


@pytest.mark.requirement("U2", "E4")
async def test_expired_grant_ends_at_the_next_frame_and_the_copy_is_shredded(r: Region) -> None:
    """After its end nothing more is shown, the copy is gone, and B's signed receipt is in A's log."""
    sharing = await r.share(lasts=timedelta(minutes=5))
    opening, uid = await opened(r, sharing)
    assert (await r.b.node.gateway.frame(opening, uid)).content

    r.clock.tick(minutes=5)
    with pytest.raises(Denied):
        await r.b.node.gateway.frame(opening, uid)
    await r.b.sweep()

    assert await held_state(r, sharing) is HeldState.SHREDDED
    assert not r.b.pack("a-general", sharing.study).exists()
    (entry,) = await r.a.log.search(kind=EventKind.SHRED_RECEIPT_RECEIVED, study=sharing.study)
    assert entry.event.detail["grant"] == sharing.grant.id
    assert entry.event.detail["method"] == "overwritten and removed"
    (issued,) = await r.a.grants.issued(sharing.owner)
    assert issued.state is GrantState.SHREDDED


@pytest.mark.requirement("U2", "E4")
async def test_revoked_grant_ends_at_once_also_at_the_holder(r: Region) -> None:
    """A's clinician takes the grant back: B's open viewer shows no next frame, and the copy goes without waiting."""
    sharing = await r.share()
    opening, uid = await opened(r, sharing)
    await r.b.node.gateway.frame(opening, uid)

    await r.a.grants.revoke(sharing.owner, sharing.grant.id, "no longer needed")

    with pytest.raises((Denied, NotFound)):
        await r.b.node.gateway.frame(opening, uid)
    assert not r.b.pack("a-general", sharing.study).exists()
    assert await r.a.log.search(kind=EventKind.SHRED_RECEIPT_RECEIVED, study=sharing.study)
    with pytest.raises(Conflict):
        await r.a.grants.revoke(sharing.owner, sharing.grant.id, "again")


@pytest.mark.requirement("E2", "E4")
async def test_withdrawn_consent_ends_every_grant_within_a_sweep(r: Region) -> None:
    """From the moment of withdrawal no lease is released; the next sweep ends the copies at the holder."""
    sharing = await r.share()
    other = await r.share()
    await r.a.consents.withdraw(sharing.owner, sharing.consent, "patient called")

    with pytest.raises(Denied, match="withdrew"):
        await opened(r, sharing)
    await r.a.notices.sweep()

    assert await held_state(r, sharing) is HeldState.SHREDDED
    assert await held_state(r, other) is HeldState.HELD
    (revoked,) = await r.a.log.search(kind=EventKind.GRANT_REVOKED, study=sharing.study)
    assert "withdrew" in revoked.event.reason
    assert not r.b.pack("a-general", sharing.study).exists()


@pytest.mark.requirement("E2", "E4")
async def test_withdrawal_is_learned_by_asking_too(r: Region) -> None:
    """When A's notice cannot reach B, B's own sweep learns it from A."""
    sharing = await r.share()
    r.b.wire.cut()
    await r.a.consents.withdraw(sharing.owner, sharing.consent, "patient called")
    await r.a.notices.sweep()
    assert await held_state(r, sharing) is HeldState.HELD

    await r.b.holdings.sweep()

    assert await held_state(r, sharing) is HeldState.SHREDDED


@pytest.mark.requirement("E4")
async def test_with_the_home_away_access_ends_with_the_lease(tmp_path: Path) -> None:
    """A is off the network: what is leased shows on for the lease's time, then nothing does, by itself."""
    async with region(tmp_path, nodes=PAIR, lease_seconds=60) as r:
        sharing = await r.share()
        opening, uid = await opened(r, sharing)
        assert (await r.b.node.gateway.frame(opening, uid)).content
        r.a.wire.cut()

        r.clock.tick(seconds=59)
        assert (await r.b.node.gateway.frame(opening, uid)).content
        r.clock.tick(seconds=1)
        with pytest.raises(Unavailable) as caught:
            await r.b.node.gateway.frame(opening, uid)
        assert caught.value.code == "lease-unavailable"

        r.a.wire.mend()
        assert (await r.b.node.gateway.frame(opening, uid)).content


@pytest.mark.requirement("E4")
async def test_copy_is_shredded_at_its_end_though_the_home_is_away(r: Region) -> None:
    """Expiry needs nobody: B shreds by itself, and the receipt goes out when A is back."""
    sharing = await r.share(lasts=timedelta(minutes=5))
    r.a.wire.cut()
    r.clock.tick(minutes=6)
    await r.b.sweep()
    assert await held_state(r, sharing) is HeldState.SHREDDED
    assert not r.b.pack("a-general", sharing.study).exists()

    r.a.wire.mend()
    await r.b.sweep()
    assert await r.a.log.search(kind=EventKind.SHRED_RECEIPT_RECEIVED, study=sharing.study)


@pytest.mark.requirement("E1", "E4")
async def test_suspended_holder_is_cut_off_and_its_copies_end(r: Region) -> None:
    """After the next refresh A refuses every call of B, and B, seeing its own suspension, shreds."""
    sharing = await r.share()
    opening, uid = await opened(r, sharing)
    await r.hub.authority.suspend("b-central", by="person:op@hub", reason="incident")
    await r.a.following.refresh()
    r.clock.tick(minutes=20)
    with pytest.raises((Denied, Unavailable)):
        await r.b.node.gateway.frame(opening, uid)
    assert await r.a.log.search(kind=EventKind.PEER_REFUSED)

    await r.b.following.refresh()
    await r.b.sweep()

    assert await held_state(r, sharing) is HeldState.SHREDDED
    assert not r.b.pack("a-general", sharing.study).exists()


@pytest.mark.requirement("E4")
async def test_copy_stays_while_another_grant_needs_it(r: Region) -> None:
    """Two people hold grants of one study: the first end does not take the second's copy."""
    first = await r.share(lasts=timedelta(minutes=5))
    request, second = await r.ask(first.instances)
    grant = await r.a.grants.issue(first.owner, request)
    await r.b.fetching.fetch(grant.id)

    r.clock.tick(minutes=6)
    await r.b.sweep()

    assert await held_state(r, first) is HeldState.SHREDDED
    opening = await r.b.node.gateway.open(second, first.study, home="a-general")
    assert await r.b.node.gateway.series(opening)
    with pytest.raises(Denied):
        await r.b.node.gateway.open(first.asker, first.study, home="a-general")


@pytest.mark.requirement("U2")
async def test_another_person_of_the_holder_is_refused(r: Region) -> None:
    """The grant is for the one who asked; a colleague at B is refused with the reason."""
    sharing = await r.share()
    colleague = await r.b.node.person(Role.CLINICIAN)

    with pytest.raises(Denied, match="another person"):
        await r.b.node.gateway.open(colleague, sharing.study, home="a-general")


@pytest.mark.requirement("E3")
async def test_who_does_not_treat_patients_may_not_ask(r: Region) -> None:
    """Asking other hospitals for images is for clinicians; each attempt is on record."""
    for role in (Role.ADMINISTRATOR, Role.RESEARCHER, Role.SECURITY_OFFICER):
        person = Principal(f"a-{role}", role, "Someone", "b-central")
        particulars = Particulars("x", "why", study_instance_uid="1.2.3")
        with pytest.raises(Denied):
            await r.b.asking.ask(person, home="a-general", particulars=particulars)
        assert await r.b.log.search(kind=EventKind.ACCESS_REFUSED, actor=person.actor)


async def test_request_must_name_a_study_and_a_member(r: Region) -> None:
    """A request without a study, to oneself, or to somebody unlisted is refused with words."""
    asker = await r.b.node.person(Role.CLINICIAN)
    with pytest.raises(Invalid, match="StudyInstanceUID"):
        Particulars("x", "why", patient_id="P-1")
    good = Particulars("x", "why", study_instance_uid="1.2.3")
    for home, error in (("b-central", Invalid), ("nowhere", Denied)):
        with pytest.raises(error):
            await r.b.asking.ask(asker, home=home, particulars=good)


@pytest.mark.requirement("E3")
async def test_holder_takes_only_grants_that_somebody_asked_for(r: Region) -> None:
    """A grant for another person, another hospital or nobody's request is not kept."""
    sharing = await r.share(fetch=False)
    consent = await r.a.node.records.by_digest(sharing.grant.body.consent, Directive)
    body = {"grant": sharing.grant.token, "consent": consent.token, "request": "0" * 32}
    home = r.b.members.member("a-general")

    with pytest.raises(NotFound):
        await r.b.holdings.receive(home, body, None)
    with pytest.raises(Denied):
        await r.b.holdings.receive(replace(home, id="hub"), body, None)


def flip(path: Path, offset: int) -> None:
    """Change one bit of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
