"""The gateway: nothing leaves without a decision, a record and a proof."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import update

from consent.emergency import EmergencyClaim
from consent.errors import Corrupt, Denied, NotFound
from consent.obligations import ExpireAt
from consent.principals import Principal
from consent.verdict import Permit
from consent.vocabulary import Action, EventKind, Grade, Outcome, Purpose, ResourceKind, Role
from node.clearance import Clearance
from node.gateway import data_sets
from node.gateway.held import Held
from node.index import Level, Query
from node.index.tables import STUDIES
from node.ingest import Receipt
from tests.support.clearance import cleared
from tests.support.dicom import ct_slice, pydicom_samples, study, uid
from tests.support.node import NodeFixture, small_node

SOP = uid("study-1", 1, 1)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[NodeFixture]:
    async with small_node(tmp_path) as node:
        yield node


async def treated(node: NodeFixture, *more: object, **options: object) -> tuple[Principal, Receipt]:
    """A clinician who treats the patient of a freshly stored study of three slices."""
    receipts = await node.store(*study(slices=3, **options))
    patient = await node.index.patient_of(receipts[0].study)
    return await node.person(treats=[patient]), receipts[0]


def flip(node: NodeFixture, receipt: Receipt, offset: int) -> None:
    """Change one byte of the study's pack on the disk."""
    path = next((node.path / "studies").rglob(f"{receipt.study}.pack"))
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 0x40]))


@pytest.mark.requirement("U1", "V4")
async def test_a_treating_clinician_finds_opens_and_sees(node: NodeFixture) -> None:
    """Search, open, scroll: each on record before it is shown, the pictures counted at the end."""
    who, receipt = await treated(node)
    query = Query.of(Level.STUDY, {"PatientName": "zhang*"})
    page = await node.gateway.search(who, Level.STUDY, query, Purpose.TREATMENT, "10.1.1.1")
    opening = await node.gateway.open(who, page.matches[0].study, address="10.1.1.1")
    (series,) = await node.gateway.series(opening)
    for instance in series.instances:
        picture = await node.gateway.frame(opening, instance.uid)
        assert picture.media_type == "image/webp"
        assert Image.open(io.BytesIO(picture.content)).size[0] >= 32
    await node.gateway.frame(opening, SOP, window=(40, 80))
    await node.gateway.close_opening(opening)

    kinds = [entry.event.kind for entry in await node.events()]
    assert kinds[-3:] == [EventKind.STUDIES_SEARCHED, EventKind.STUDY_OPENED, EventKind.STUDY_VIEWED]
    searched, opened, viewed = (entry.event for entry in (await node.events())[-3:])
    assert (searched.detail["answers"], searched.detail["keys"]) == (1, ["PatientName"])
    assert (opened.actor, opened.study, opened.address) == (who.actor, receipt.study, "10.1.1.1")
    assert (viewed.detail["pictures"], viewed.detail["frames"]) == (4, 3)


@pytest.mark.requirement("U1", "V4")
async def test_without_a_treatment_relationship_a_clinician_is_refused_with_the_reason(
    node: NodeFixture,
) -> None:
    """Refused, told why, on record; the search does not even show the study."""
    _, receipt = await treated(node)
    stranger = await node.person()
    with pytest.raises(Denied) as refused:
        await node.gateway.open(stranger, receipt.study, address="10.1.1.2")
    page = await node.gateway.search(stranger, Level.STUDY, Query.of(Level.STUDY), Purpose.TREATMENT, None)

    assert refused.value.reasons
    assert page.matches == ()
    (entry,) = await node.events(EventKind.ACCESS_REFUSED)
    assert (entry.event.actor, entry.event.study, entry.event.outcome) == (
        stranger.actor,
        receipt.study,
        Outcome.REFUSED,
    )
    assert entry.event.reason == " ".join(refused.value.reasons)


@pytest.mark.requirement("U1")
@pytest.mark.parametrize("role", [Role.ADMINISTRATOR, Role.SECURITY_OFFICER, Role.RESEARCHER])
async def test_who_sees_no_images_finds_none(node: NodeFixture, role: Role) -> None:
    """IT staff, security officers and researchers can neither search nor open."""
    _, receipt = await treated(node)
    who = await node.person(role)
    with pytest.raises(Denied):
        await node.gateway.search(who, Level.STUDY, Query.of(Level.STUDY), Purpose.TREATMENT, None)
    with pytest.raises(Denied):
        await node.gateway.open(who, receipt.study)


@pytest.mark.requirement("U1")
@pytest.mark.parametrize("action", sorted(set(Action) - {Action.VIEW, Action.DOWNLOAD, Action.PRINT}))
async def test_permission_for_something_else_opens_no_study(node: NodeFixture, action: Action) -> None:
    """Whoever may bring studies in, search, grant or launch training sees no picture by it, and it is on record."""
    _, receipt = await treated(node)
    claim = EmergencyClaim("Unconscious after a fall.", node.clock.now())
    for role in (Role.ADMINISTRATOR, Role.RESEARCHER, Role.CLINICIAN, Role.CHIEF_PHYSICIAN):
        who = await node.person(role)
        with pytest.raises(Denied):
            await node.gateway.open(who, receipt.study, action=action)
        with pytest.raises(Denied):
            await node.gateway.open(who, receipt.study, action=action, emergency=claim)

    assert len(await node.events(EventKind.ACCESS_REFUSED)) == 8
    assert await node.events(EventKind.STUDY_OPENED) == await node.events(EventKind.EMERGENCY_OPENED) == []


@pytest.mark.requirement("U1")
@pytest.mark.parametrize("column", ["patient", "grade"])
async def test_a_study_given_to_another_patient_in_the_database_opens_for_nobody(
    node: NodeFixture, column: str
) -> None:
    """Whoever can write to the database can neither move a study to a patient in their care nor lower its grade."""
    treating, mine = await treated(node)
    (other,) = await node.store(
        ct_slice(study="x", patient_id="P-2", InstitutionalDepartmentName="PSYCHIATRY")
    )
    await node.care.record(treating.id, await node.index.patient_of(other.study))
    who, study = (treating, other.study) if column == "grade" else (await node.person(), mine.study)
    if column == "patient":
        await node.care.record(who.id, await node.index.patient_of(other.study))
    forged = {"patient": await node.index.patient_of(other.study), "grade": int(Grade.ORDINARY)}
    async with node.database.write() as tx:
        change = update(STUDIES).where(STUDIES.c.study == study)
        await tx.execute(change.values({column: forged[column]}))

    with pytest.raises(Corrupt):
        opening = await node.gateway.open(who, study)
        await node.gateway.series(opening)
    if column == "patient":
        with pytest.raises(Corrupt):
            await node.gateway.search(who, Level.STUDY, Query.of(Level.STUDY), Purpose.TREATMENT, None)


@pytest.mark.requirement("U1")
async def test_a_chief_physician_crosses_relationships_on_record(node: NodeFixture) -> None:
    """Found and opened without a relationship, and the log says so."""
    _, receipt = await treated(node)
    chief = await node.person(Role.CHIEF_PHYSICIAN)
    page = await node.gateway.search(chief, Level.STUDY, Query.of(Level.STUDY), Purpose.TREATMENT, None)
    await node.gateway.open(chief, page.matches[0].study)

    opened = (await node.events(EventKind.STUDY_OPENED))[-1].event
    assert (opened.actor, opened.study) == (chief.actor, receipt.study)


@pytest.mark.requirement("U1", "V1")
async def test_a_restricted_study_asks_for_a_second_factor(node: NodeFixture) -> None:
    """The grade that ingest gave is what the rules see at opening."""
    who, receipt = await treated(node, InstitutionalDepartmentName="PSYCHIATRY")
    assert (await node.index.study(receipt.study)).grade is Grade.RESTRICTED
    with pytest.raises(Denied, match="second factor"):
        await node.gateway.open(who, receipt.study)
    strong = Principal(who.id, who.role, who.name, who.node, second_factor=True)

    assert await node.gateway.open(strong, receipt.study)


@pytest.mark.requirement("U5")
async def test_the_watermark_is_burned_in_and_traces_to_the_opening(node: NodeFixture) -> None:
    """Pixels differ from the bare picture, a footer is added, and two people get two pictures."""
    who, receipt = await treated(node)
    other = await node.person(treats=[await node.index.patient_of(receipt.study)])
    pictures = []
    for person in (who, other):
        opening = await node.gateway.open(person, receipt.study)
        shown = await node.gateway.frame(opening, SOP, size=512, fmt="png")
        pictures.append(np.asarray(Image.open(io.BytesIO(shown.content)).convert("L")))
    one = ct_slice()
    bare = await node.renderer.render(one.data, one.transfer_syntax_uid, 1, size=512, media_type="image/png")
    plain = np.asarray(Image.open(io.BytesIO(bare)).convert("L"))

    assert pictures[0].shape[0] > plain.shape[0]
    assert (pictures[0][: plain.shape[0], : plain.shape[1]] != plain).any()
    assert pictures[0].shape != pictures[1].shape or (pictures[0] != pictures[1]).any()


@pytest.mark.requirement("U1")
async def test_an_ended_relationship_ends_the_view_at_the_next_frame(node: NodeFixture) -> None:
    """Facts are asked anew for every frame; the refusal and what had been seen are on record."""
    who, receipt = await treated(node)
    opening = await node.gateway.open(who, receipt.study)
    await node.gateway.frame(opening, SOP)
    await node.care.end(who.id, await node.index.patient_of(receipt.study))
    with pytest.raises(Denied):
        await node.gateway.frame(opening, SOP)

    assert len(await node.events(EventKind.ACCESS_REFUSED)) == 1
    assert (await node.events(EventKind.STUDY_VIEWED))[0].event.detail["frames"] == 1
    with pytest.raises(Denied, match="no treatment relationship"):
        await node.gateway.frame(opening, SOP)
    assert len(await node.events(EventKind.ACCESS_REFUSED)) == 1


@pytest.mark.requirement("U3")
async def test_an_emergency_opens_at_once_is_marked_and_ends(node: NodeFixture) -> None:
    """The reason is in the log with whom to tell and until when to review; after an hour it is over."""
    _, receipt = await treated(node)
    stranger = await node.person()
    claim = EmergencyClaim("Unconscious patient, trauma room 2", node.clock.now())
    opening = await node.gateway.open(stranger, receipt.study, emergency=claim)
    await node.gateway.frame(opening, SOP)

    (entry,) = await node.events(EventKind.EMERGENCY_OPENED)
    assert entry.event.reason == claim.reason
    assert entry.event.detail["notify"] == ["security-officer"]
    assert entry.event.detail["review_within_hours"] == 72
    node.clock.tick(minutes=61)
    with pytest.raises(Denied, match="has run out"):
        await node.gateway.frame(opening, SOP)


@pytest.mark.requirement("U3")
async def test_an_overdue_review_escalates_the_next_emergency(node: NodeFixture) -> None:
    """After 72 hours without a review the chief physician is told too."""
    _, receipt = await treated(node)
    stranger = await node.person()
    for _ in range(2):
        claim = EmergencyClaim("Trauma", node.clock.now())
        await node.gateway.open(stranger, receipt.study, emergency=claim)
        node.clock.tick(hours=73)

    first, second = await node.events(EventKind.EMERGENCY_OPENED)
    assert first.event.detail["notify"] == ["security-officer"]
    assert set(second.event.detail["notify"]) == {"security-officer", "chief-physician"}  # type: ignore[arg-type]


@pytest.mark.requirement("C3")
@pytest.mark.parametrize("place", ["first chunk", "middle", "last byte"])
async def test_a_flipped_byte_is_never_shown(node: NodeFixture, place: str) -> None:
    """Wherever it lies in the sealed instance: Corrupt, nothing shown or handed over, on record."""
    who, receipt = await treated(node)
    row = await node.index.instance(receipt.study, receipt.instance)
    sealed = row.data_set
    flip(
        node,
        receipt,
        {"first chunk": sealed.offset, "middle": sealed.offset + 700}.get(place, sealed.end - 1),
    )
    opening = await node.gateway.open(who, receipt.study)
    taking = await node.gateway.open(who, receipt.study, action=Action.DOWNLOAD)
    with pytest.raises(Corrupt):
        await node.gateway.frame(opening, SOP)
    with pytest.raises(Corrupt):
        await node.gateway.instance(taking, SOP)
    with pytest.raises(Corrupt):
        await node.gateway.stored_frames(taking, SOP, [1])
    await node.gateway.frame(opening, uid("study-1", 1, 2))  # its neighbour is untouched

    failed = await node.events(EventKind.INTEGRITY_FAILED)
    assert len(failed) == 3
    assert all(entry.event.study == receipt.study for entry in failed)


@pytest.mark.requirement("C3")
async def test_a_record_swapped_with_its_neighbour_is_never_shown(node: NodeFixture) -> None:
    """Two sealed instances of the same size in each other's place: both are refused."""
    who, receipt = await treated(node)
    rows = (await node.index.instances(receipt.study))[:2]
    path = next((node.path / "studies").rglob(f"{receipt.study}.pack"))
    content = bytearray(path.read_bytes())
    first, second = ((row.data_set.offset, row.data_set.end) for row in rows)
    content[slice(*first)], content[slice(*second)] = content[slice(*second)], content[slice(*first)]
    path.write_bytes(content)
    opening = await node.gateway.open(who, receipt.study)
    for row in rows:
        with pytest.raises(Corrupt):
            await node.gateway.frame(opening, row.sop_instance_uid)


@pytest.mark.requirement("C3")
async def test_a_pack_that_was_taken_away_is_an_integrity_failure(node: NodeFixture) -> None:
    """What the index knows and the archive lacks is on record as such."""
    who, receipt = await treated(node)
    next((node.path / "studies").rglob(f"{receipt.study}.pack")).unlink()
    opening = await node.gateway.open(who, receipt.study)
    with pytest.raises(Corrupt):
        await node.gateway.frame(opening, SOP)

    assert len(await node.events(EventKind.INTEGRITY_FAILED)) == 1


async def test_what_was_stored_comes_back_bit_for_bit(node: NodeFixture) -> None:
    """Every real sample is handed over exactly as it arrived."""
    samples = {one.sop_instance_uid: one for one in pydicom_samples()}
    receipts = await node.store(*samples.values())
    chief = await node.person(Role.CHIEF_PHYSICIAN)
    back = {}
    for name in dict.fromkeys(receipt.study for receipt in receipts):
        opening = await node.gateway.open(chief, name, action=Action.DOWNLOAD)
        async for row, pieces in node.gateway.stream(opening, await node.gateway.rows(opening)):
            back[row.sop_instance_uid] = b"".join([piece async for piece in pieces])
        await node.gateway.close_opening(opening)

    assert back == {name: one.data for name, one in samples.items()}
    taken = [entry.event.detail for entry in await node.events(EventKind.STUDY_DOWNLOADED)]
    assert sum(int(str(detail["instances"])) for detail in taken) == len(samples)


async def test_large_instances_are_streamed_in_verified_pieces(
    node: NodeFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past the whole-read bound an instance comes in pieces, and a wrong digest sends none of them."""
    monkeypatch.setattr(data_sets, "MAX_WHOLE_BYTES", 1000)
    monkeypatch.setattr(data_sets, "UNHELD_BYTES", 700)
    who, receipt = await treated(node)
    opening = await node.gateway.open(who, receipt.study, action=Action.DOWNLOAD)
    rows = await node.gateway.rows(opening, sop_uid=SOP)
    async for _, pieces in node.gateway.stream(opening, rows):
        parts = [piece async for piece in pieces]
    assert len(parts) > 3
    assert b"".join(parts) == ct_slice().data

    row = await node.index.instance(receipt.study, receipt.instance)
    flip(node, receipt, row.data_set.end - 3)
    sent: list[bytes] = []
    with pytest.raises(Corrupt):
        async for _, pieces in node.gateway.stream(opening, rows):
            sent.extend([piece async for piece in pieces])
    assert sent == []


@pytest.mark.requirement("F4")
@pytest.mark.parametrize("room", [1, 30_000, 10**9], ids=["no-room", "room-for-some", "room"])
async def test_readers_that_stop_hold_no_more_together_than_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """However many stop in the middle, what is opened for them is bounded; each gets every byte when it goes on."""
    held = Held(room)
    monkeypatch.setattr(data_sets, "Held", lambda: held)
    monkeypatch.setattr(data_sets, "UNHELD_BYTES", 5000)  # less than an instance: its pieces are seen
    monkeypatch.setattr(data_sets, "BATCH_BYTES", 20_000)
    slices = [
        ct_slice(size=64, StudyInstanceUID="1.2.3", SOPInstanceUID=f"1.2.3.{number}") for number in range(9)
    ]
    async with small_node(tmp_path) as node:
        receipts = await node.store(*slices)
        chief = await node.person(Role.CHIEF_PHYSICIAN)
        opening = await node.gateway.open(chief, receipts[0].study, action=Action.DOWNLOAD)
        rows = await node.gateway.rows(opening)
        streams = [node.gateway.stream(opening, rows) for _ in range(6)]
        first = [await anext(stream) for stream in streams]
        assert held.held_bytes <= room
        assert bool(held.held_bytes) == (room > len(slices[0].data))
        await streams.pop().aclose()
        for (row, pieces), stream in zip(first, streams, strict=False):
            back = {row.sop_instance_uid: b"".join([piece async for piece in pieces])}
            async for other, more in stream:
                back[other.sop_instance_uid] = b"".join([piece async for piece in more])
                assert held.held_bytes <= room
            assert back == {one.sop_instance_uid: one.data for one in slices}
        assert held.held_bytes == 0


async def test_looking_is_not_taking(node: NodeFixture) -> None:
    """An opening to view hands out no bytes."""
    who, receipt = await treated(node)
    opening = await node.gateway.open(who, receipt.study)
    with pytest.raises(Denied, match="not to be taken"):
        await node.gateway.instance(opening, SOP)


async def test_an_idle_opening_is_over(node: NodeFixture) -> None:
    """After half an hour without a picture it is closed and summarised by the sweep."""
    who, receipt = await treated(node)
    await node.gateway.open(who, receipt.study)
    node.clock.tick(minutes=29)
    await node.gateway.sweep()
    assert await node.events(EventKind.STUDY_VIEWED) == []
    node.clock.tick(minutes=2)
    await node.gateway.sweep()

    assert len(await node.events(EventKind.STUDY_VIEWED)) == 1


async def test_somebody_elses_opening_cannot_be_made_up(node: NodeFixture) -> None:
    """An opening that the gateway did not make, or that was edited, is not open."""
    import dataclasses

    who, receipt = await treated(node)
    opening = await node.gateway.open(who, receipt.study)
    for fake in (
        dataclasses.replace(opening, action=Action.DOWNLOAD),
        dataclasses.replace(opening, id="0" * 32),
    ):
        with pytest.raises(NotFound):
            await node.gateway.series(fake)


@pytest.mark.parametrize("made", [True, False], ids=["made at ingest", "made at the first request"])
async def test_metadata_is_whole_and_opens_no_image_twice(node: NodeFixture, made: bool) -> None:
    """The DICOM JSON of a series lists every instance, whether it was made before or now, and is kept."""
    import json

    who, receipt = await treated(node)
    if made:
        await node.ingest.descriptions.settled()
        await node.ingest.flushed()
    opening = await node.gateway.open(who, receipt.study)
    first = json.loads(await node.gateway.metadata(opening))
    await node.ingest.flushed()
    again = json.loads(await node.gateway.metadata(opening, series_uid=uid("study-1", 1)))

    assert first == again
    assert [one["00200013"]["Value"] for one in first] == [[1], [2], [3]]
    assert first[0]["00100020"]["Value"] == ["P-0001"]
    assert first[0]["7FE00010"]["BulkDataURI"].endswith(f"instances/{SOP}/bulkdata/7FE00010")
    assert (await node.index.series(receipt.study))[0].metadata is not None
    assert json.loads(await node.gateway.metadata(opening, sop_uid=SOP)) == first[:1]


async def test_frames_are_cut_as_stored(node: NodeFixture) -> None:
    """Native frames are slices of the pixels; a frame that is not there is NotFound."""
    pixels = np.arange(3 * 8 * 8, dtype="<i2").reshape(3, 8, 8)
    one = ct_slice(pixels=pixels)
    receipts = await node.store(one)
    chief = await node.person(Role.CHIEF_PHYSICIAN)
    opening = await node.gateway.open(chief, receipts[0].study, action=Action.DOWNLOAD)
    for numbers in ([1, 3], [2]):
        frames = await node.gateway.stored_frames(opening, one.sop_instance_uid, numbers)
        assert frames == [pixels[number - 1].tobytes() for number in numbers]
    with pytest.raises(NotFound):
        await node.gateway.stored_frames(opening, one.sop_instance_uid, [4])


async def test_peers_get_sealed_bytes_a_signed_list_and_single_keys(node: NodeFixture) -> None:
    """The manifest lists every object with its digests, and the keys are of objects, not of the study."""
    _, receipt = await treated(node)
    granting = await granting_clearance(node, receipt.study)
    fetching, viewing = (cleared(node, receipt.study, action) for action in (Action.FETCH, Action.VIEW))
    manifest = (await node.gateway.manifest(receipt.study, granting)).body
    keys = await node.gateway.object_keys(receipt.study, [receipt.instance], viewing)
    whole = await node.gateway.pack_bytes(receipt.study, 0, manifest.size, fetching)

    assert len(manifest.objects) == 6
    assert manifest.entry(receipt.instance).sha256 == ct_slice().sha256.hex()  # type: ignore[union-attr]
    assert len(whole) == manifest.size
    assert set(keys) == {receipt.instance}
    assert ct_slice().data[:200] not in whole
    with pytest.raises(NotFound):
        await node.gateway.object_keys(receipt.study, ["in_nothing"], viewing)


async def granting_clearance(node: NodeFixture, study: str) -> Clearance:
    """A permit to grant access to this study's patient."""
    shown = cleared(node, study, Action.GRANT)
    patient = (await node.index.study(study)).patient
    resource = replace(shown.request.resource, kind=ResourceKind.GRANT, id="request", patient=patient)
    return replace(shown, request=replace(shown.request, resource=resource))


@pytest.mark.requirement("U1", "T2")
async def test_peers_get_nothing_without_a_permit_for_this_study(node: NodeFixture) -> None:
    """A permit for another study, use or hospital, or of an hour ago, brings out neither bytes nor keys."""
    _, receipt = await treated(node)
    (other,) = await node.store(ct_slice(study="other", patient_id="P-2"))
    study, gateway = receipt.study, node.gateway
    granting, fetching, viewing = (
        await granting_clearance(node, study),
        cleared(node, study, Action.FETCH),
        cleared(node, study, Action.VIEW),
    )

    def elsewhere(shown: Clearance) -> Clearance:
        resource = replace(shown.request.resource, home="elsewhere")
        return replace(shown, request=replace(shown.request, resource=resource))

    async def refused(code: str, manifest: Clearance, fetch: Clearance, view: Clearance) -> None:
        for handing_out in (
            gateway.manifest(study, manifest),
            gateway.pack_bytes(study, 0, 10, fetch),
            gateway.object_keys(study, [receipt.instance], view),
        ):
            with pytest.raises(Denied) as caught:
                await handing_out
            assert caught.value.code == code

    others = [cleared(node, other.study, action) for action in (Action.FETCH, Action.VIEW)]
    await refused("wrong-permit", await granting_clearance(node, other.study), *others)
    await refused("wrong-permit", fetching, viewing, fetching)
    await refused("wrong-permit", elsewhere(granting), elsewhere(fetching), elsewhere(viewing))
    over = Permit((ExpireAt(node.clock.now()),))
    await refused("stale-permit", *(replace(one, permit=over) for one in (granting, fetching, viewing)))
    node.clock.tick(hours=1)
    await refused("stale-permit", granting, fetching, viewing)


@pytest.mark.requirement("R2", "U1")
async def test_research_gets_nothing_without_consent_or_plan(node: NodeFixture) -> None:
    """No directive, no image; the rules are asked for every study."""
    await treated(node)
    job = Principal("training", Role.JOB, "Training", node.node_id)
    asked: list[str] = []

    async def approved(plan: str) -> bool:
        asked.append(plan)
        return True

    found = [
        made
        async for made in node.gateway.training_instances(
            job, Query.of(Level.STUDY), plan="0" * 64, approved=approved, project_key=bytes(32)
        )
    ]
    assert asked == ["0" * 64]
    assert found == []


async def test_many_frames_at_once_are_all_answered(node: NodeFixture) -> None:
    """A viewer that asks for everything at once gets everything."""
    who, receipt = await treated(node)
    opening = await node.gateway.open(who, receipt.study)
    pictures = await asyncio.gather(
        *(node.gateway.frame(opening, uid("study-1", 1, 1 + number % 3)) for number in range(30))
    )

    assert all(picture.content for picture in pictures)


async def test_the_same_use_shares_one_visit(node: NodeFixture) -> None:
    """A door without a viewer's visit opens once for many requests, and anew after it has ended."""
    who, receipt = await treated(node)
    first = await node.gateway.visit(who, receipt.study, action=Action.VIEW)
    again = await node.gateway.visit(who, receipt.study, action=Action.VIEW)
    other = await node.gateway.visit(who, receipt.study, action=Action.DOWNLOAD)
    node.clock.tick(hours=1)
    later = await node.gateway.visit(who, receipt.study, action=Action.VIEW)

    assert first is again
    assert len({first.id, other.id, later.id}) == 3


@pytest.mark.requirement("U1", "V3")
@pytest.mark.parametrize("grade", [Grade.ORDINARY, Grade.RESTRICTED])
@pytest.mark.parametrize("role", [Role.CLINICIAN, Role.ADMINISTRATOR, Role.SECURITY_OFFICER, Role.RESEARCHER])
async def test_who_may_not_see_a_study_is_not_told_whether_it_is_here(
    node: NodeFixture, role: Role, grade: Grade
) -> None:
    """The same words, on record both times, for a study that is here and one that is not, however sensitive."""
    _, receipt = await treated(node)
    async with node.database.write() as tx:
        await tx.execute(update(STUDIES).values(grade=int(grade)))
    who = await node.person(role)
    said = []
    for asked in (receipt.study, "st_" + 26 * "a"):
        with pytest.raises(Denied) as error:
            await node.gateway.open(who, asked)
        said.append((error.value.message, error.value.reasons, error.value.mend, error.value.code))
    assert said[0] == said[1]
    refusals = [entry.event for entry in await node.events(EventKind.ACCESS_REFUSED)]
    assert [event.study for event in refusals] == [receipt.study, "st_" + 26 * "a"]
    if role is Role.CLINICIAN:
        assert said[0][1] == ("You have no treatment relationship with this patient.",)


@pytest.mark.requirement("U1")
async def test_who_may_see_strangers_is_told_that_a_study_is_not_here(node: NodeFixture) -> None:
    """A chief physician, and a clinician in an emergency; the clinician who treats hears the true reason."""
    chief, li = await node.person(Role.CHIEF_PHYSICIAN), await node.person()
    with pytest.raises(NotFound):
        await node.gateway.open(chief, "st_nothing")
    claim = EmergencyClaim("unconscious, head injury", node.clock.now())
    with pytest.raises(NotFound):
        await node.gateway.open(li, "st_nothing", emergency=claim)
    who, receipt = await treated(node)
    async with node.database.write() as tx:
        await tx.execute(update(STUDIES).values(grade=int(Grade.RESTRICTED)))
    with pytest.raises(Denied, match="second factor"):
        await node.gateway.open(who, receipt.study)


@pytest.mark.requirement("U1", "V3")
async def test_a_device_is_not_told_that_a_restricted_study_is_here(node: NodeFixture) -> None:
    """To a device of no department it is not here, as in its searches; the record has the true reason."""
    _, receipt = await treated(node)
    async with node.database.write() as tx:
        await tx.execute(update(STUDIES).values(grade=int(Grade.RESTRICTED)))
    who = Principal(
        "WORKSTATION", Role.DEVICE, "Workstation", node.node_id, attributes=frozenset({"query", "retrieve"})
    )
    said = []
    for asked in (receipt.study, "st_" + 26 * "a"):
        with pytest.raises(NotFound) as error:
            await node.gateway.open(who, asked, action=Action.DOWNLOAD)
        said.append((error.value.message, error.value.mend, error.value.code))
    assert said[0] == said[1]
    (refusal,) = [entry.event for entry in await node.events(EventKind.ACCESS_REFUSED)]
    assert refusal.study == receipt.study and "opened by a person" in refusal.reason


@pytest.mark.requirement("U1", "V3")
async def test_pages_and_totals_betray_nothing_of_a_department_that_a_hospital_closes(
    node: NodeFixture,
) -> None:
    """A hospital's own rule about a department counts in the search itself: no short page, no gap, no total."""
    rule = (
        '@id("closed") @reason("Psychiatry is closed.") forbid (principal, action == Action::"study:search", resource) '
        'when { resource has department && resource.department == "PSYCHIATRY" };'
    )
    policy = node.policies.policy
    node.policies.replace(replace(policy, cedar=policy.cedar + rule))
    for number in range(6):
        more = {"InstitutionalDepartmentName": "PSYCHIATRY"} if number % 2 else {}
        await node.store(*study(name=f"s{number}", slices=1, patient_id="P", **more))
    chief = await node.person(Role.CHIEF_PHYSICIAN)

    query = Query.of(Level.STUDY, limit=2)
    first = await node.gateway.search(chief, Level.STUDY, query, Purpose.TREATMENT, None)
    rest = await node.gateway.search(chief, Level.STUDY, replace(query, offset=2), Purpose.TREATMENT, None)
    totals = Query.of(Level.PATIENT, totals=True)
    (patient,) = (await node.gateway.search(chief, Level.PATIENT, totals, Purpose.TREATMENT, None)).matches

    assert (len(first.matches), first.more) == (2, True)
    assert (len(rest.matches), rest.more) == (1, False)
    assert patient.values["NumberOfPatientRelatedStudies"] == 3


@pytest.mark.requirement("V1", "U1")
async def test_a_grade_that_rises_ends_an_opening_at_the_next_picture(node: NodeFixture) -> None:
    """What may be seen is decided about the study as it is now, not as it was when it was opened."""
    who, receipt = await treated(node)
    opening = await node.gateway.open(who, receipt.study)
    await node.gateway.frame(opening, SOP)
    async with node.database.write() as tx:
        await tx.execute(update(STUDIES).values(grade=int(Grade.RESTRICTED)))
    with pytest.raises(Denied, match="second factor"):
        await node.gateway.frame(opening, SOP)


@pytest.mark.requirement("U1", "V4")
async def test_pictures_asked_for_together_are_refused_on_record_once(node: NodeFixture) -> None:
    """Each that a viewer asks for at once is refused; the end of the opening is one entry."""
    who, receipt = await treated(node)
    opening = await node.gateway.open(who, receipt.study)
    async with node.database.write() as tx:
        await tx.execute(update(STUDIES).values(grade=int(Grade.RESTRICTED)))
    found = await asyncio.gather(
        *(node.gateway.frame(opening, SOP) for _ in range(8)), return_exceptions=True
    )
    assert all(isinstance(one, Denied) and "second factor" in str(one) for one in found)
    assert len(await node.events(EventKind.ACCESS_REFUSED)) == 1


@pytest.mark.requirement("U3")
async def test_an_emergency_that_is_over_says_so_after_the_sweep_too(node: NodeFixture) -> None:
    """The words are those of the rules, not that some session is unknown."""
    receipts = await node.store(*study(slices=1))
    li = await node.person()
    claim = EmergencyClaim("unconscious, head injury", node.clock.now())
    opening = await node.gateway.open(li, receipts[0].study, emergency=claim)
    assert opening.expires is not None
    node.clock.moment = opening.expires
    await node.gateway.sweep()
    with pytest.raises(Denied, match="emergency access has run out"):
        await node.gateway.frame(opening, SOP)
