"""DICOMweb over a real socket: with dicomweb-client, with plain requests, and with hostile ones."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import pydicom
import pytest
from PIL import Image

from consent.vocabulary import EventKind, Role
from node.dicom.gate import Memory
from tests.support.dicom import Instance, ct_slice, pydicom_samples, study, uid
from tests.support.web_door import Door, chief, multipart, off_loop, open_door, parts_of

V = TypeVar("V")
STUDY, SERIES, SOP = uid("study-1"), uid("study-1", 1), uid("study-1", 1, 1)
INSTANCE_PATH = f"/studies/{STUDY}/series/{SERIES}/instances/{SOP}"


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    async with open_door(tmp_path) as door:
        yield door


@pytest.mark.requirement("F5")
async def test_an_independent_client_stores_finds_and_retrieves(door: Door) -> None:
    """dicomweb-client: STOW of real studies, QIDO, metadata, WADO of every instance, bit for bit."""
    client = await door.client(await chief(door))
    samples = {one.sop_instance_uid: one for one in pydicom_samples()}
    answer = await off_loop(lambda: client.store_instances([one.dataset() for one in samples.values()]))
    assert len(answer.ReferencedSOPSequence) == len(samples)
    assert "FailedSOPSequence" not in answer

    studies = await off_loop(lambda: client.search_for_studies(search_filters={"PatientName": "doe*"}))
    assert studies
    total = 0
    for found in await off_loop(client.search_for_studies):
        name = found["0020000D"]["Value"][0]
        series = await off_loop(lambda name=name: client.search_for_series(name))
        assert len(series) == found["00201206"]["Value"][0]
        metadata = await off_loop(lambda name=name: client.retrieve_study_metadata(name))
        data_sets = await off_loop(lambda name=name: client.retrieve_study(name))
        assert len(metadata) == len(data_sets) == found["00201208"]["Value"][0]
        for one in data_sets:
            original = samples[str(one.SOPInstanceUID)].dataset()
            assert one.PatientID == original.PatientID
            assert getattr(one, "PixelData", b"") == getattr(original, "PixelData", b"")
        total += len(data_sets)
    assert total == len(samples)


@pytest.mark.requirement("F5")
async def test_frames_and_pictures_reach_an_independent_client(door: Door) -> None:
    """dicomweb-client: single frames as stored, rendered pictures, one instance."""
    await door.node.store(*study(slices=2))
    client = await door.client(await chief(door))
    (frame,) = await off_loop(lambda: client.retrieve_instance_frames(STUDY, SERIES, SOP, [1]))
    picture = await off_loop(
        lambda: client.retrieve_instance_rendered(STUDY, SERIES, SOP, media_types=("image/png",))
    )
    whole = await off_loop(lambda: client.retrieve_instance(STUDY, SERIES, SOP))

    assert frame == ct_slice().dataset().PixelData == whole.PixelData
    assert Image.open(io.BytesIO(picture)).format == "PNG"


@pytest.mark.requirement("U1", "F5")
async def test_each_person_finds_and_gets_what_the_rules_allow(door: Door) -> None:
    """A treating clinician gets the study; a stranger finds nothing and is refused with the reason, as a problem."""
    (receipt, *_) = await door.node.store(*study(slices=2))
    treating = await door.node.person(treats=[await door.node.index.patient_of(receipt.study)])
    stranger = await door.node.person()

    assert len(json.loads((await door.get(treating, "/studies"))[2])) == 1
    assert (await door.get(treating, f"/studies/{STUDY}"))[0] == 200
    assert json.loads((await door.get(stranger, "/studies"))[2]) == []
    for path in (f"/studies/{STUDY}", f"/studies/{STUDY}/metadata", f"{INSTANCE_PATH}/rendered"):
        status, headers, body = await door.get(stranger, path)
        assert (status, headers["Content-Type"].split(";")[0]) == (403, "application/problem+json")
        assert json.loads(body)["reasons"]
    assert len(await door.node.events(EventKind.ACCESS_REFUSED)) == 3


@pytest.mark.requirement("U7")
async def test_without_a_token_nobody_comes_in(door: Door) -> None:
    """401 as a problem, for reading and for storing."""
    for request in (door.http.get(f"{door.url}/studies"), door.http.post(f"{door.url}/studies", data=b"x")):
        async with request as answer:
            assert answer.status in (401, 403)
            assert answer.content_type == "application/problem+json"


@pytest.mark.requirement("F5")
async def test_a_study_is_one_multipart_of_known_length(door: Door) -> None:
    """Every part is a DICOM file with the bytes that were sent; the length was announced."""
    instances = study(series=2, slices=2)
    await door.node.store(*instances)
    status, headers, body = await door.get(await chief(door), f"/studies/{STUDY}")
    files = parts_of(headers["Content-Type"], body)

    assert status == 200
    assert int(headers["Content-Length"]) == len(body)
    assert sorted(files) == sorted(one.file() for one in instances)
    assert all(pydicom.dcmread(BytesIO(file)).PatientID == "P-0001" for file in files)


ACCEPTED = [
    (f"{INSTANCE_PATH}", "application/dicom", 200, "application/dicom"),
    (f"{INSTANCE_PATH}", "application/dicom; transfer-syntax=*", 200, "application/dicom"),
    (f"{INSTANCE_PATH}", "*/*", 200, "multipart/related"),
    (f"/studies/{STUDY}", "application/dicom", 406, "application/problem+json"),
    (f"/studies/{STUDY}", "text/html", 406, "application/problem+json"),
    (
        f"/studies/{STUDY}",
        'multipart/related; type="application/dicom"; transfer-syntax=1.2.840.10008.1.2.4.50',
        406,
        "application/problem+json",
    ),
    (f"{INSTANCE_PATH}/frames/1", "application/octet-stream", 200, "application/octet-stream"),
    (
        f"{INSTANCE_PATH}/frames/1",
        "multipart/related; type=application/octet-stream; transfer-syntax=*",
        200,
        "multipart/related",
    ),
    (f"{INSTANCE_PATH}/bulkdata/7FE00010", "*/*", 200, "multipart/related"),
    (f"{INSTANCE_PATH}/bulkdata/00091001", "*/*", 404, "application/problem+json"),
    (f"{INSTANCE_PATH}/rendered", "image/jpeg", 200, "image/jpeg"),
    (f"{INSTANCE_PATH}/rendered?window=40,80&viewport=64,64", "image/webp", 200, "image/webp"),
    (f"{INSTANCE_PATH}/frames/1/rendered", "image/png", 200, "image/png"),
    (f"{INSTANCE_PATH}/rendered", "video/mp4", 406, "application/problem+json"),
    (f"/studies/{STUDY}/thumbnail", "*/*", 200, "image/jpeg"),
    (f"{INSTANCE_PATH}/metadata", "application/dicom+json", 200, "application/dicom+json"),
    (f"/studies/{STUDY}/metadata", "application/dicom+xml", 406, "application/problem+json"),
    ("/studies", "application/json", 200, "application/json"),
    (f"{INSTANCE_PATH}/frames/2", "*/*", 404, "application/problem+json"),
    (f"{INSTANCE_PATH}/frames/0", "*/*", 400, "application/problem+json"),
    (f"{INSTANCE_PATH}/frames/1,,2", "*/*", 400, "application/problem+json"),
    (f"{INSTANCE_PATH}/rendered?window=wide", "*/*", 400, "application/problem+json"),
    (f"{INSTANCE_PATH}/rendered?viewport=9,99999999", "*/*", 400, "application/problem+json"),
    (f"{INSTANCE_PATH}/rendered?viewport=9,{'9' * 5000}", "*/*", 400, "application/problem+json"),
    ("/studies/1.2.3.4", "*/*", 404, "application/problem+json"),
    (f"/studies/{STUDY}/series/1.2.3.4", "*/*", 404, "application/problem+json"),
    ("/studies/..%2F..%2Fetc", "*/*", 404, "application/problem+json"),
    ("/studies?StudyDate=yesterday", "*/*", 400, "application/problem+json"),
    ("/studies?limit=many", "*/*", 400, "application/problem+json"),
]


@pytest.mark.requirement("F5", "F4")
async def test_every_form_is_negotiated_or_refused_in_words(door: Door) -> None:
    """The table of paths, Accept headers, statuses and content types."""
    await door.node.store(*study(slices=1))
    who = await chief(door)
    for path, accept, status, kind in ACCEPTED:
        answer = await door.get(who, path, accept)
        assert (answer[0], answer[1]["Content-Type"].split(";")[0]) == (status, kind), (
            path,
            accept,
            answer[2],
        )


@pytest.mark.requirement("F5")
async def test_answers_of_a_search_say_where_to_retrieve(door: Door) -> None:
    """RetrieveURL works; unknown keys and truncated pages are announced by Warning headers."""
    await door.node.store(*study(series=2, slices=1), *study(name="study-2", slices=1))
    who = await chief(door)
    status, headers, body = await door.get(
        who, "/studies?00100020=P-0001&EthnicGroup=x&limit=1&includefield=all&fuzzymatching=true"
    )
    (answer,) = json.loads(body)
    warnings = headers["Warning"]
    path = answer["00081190"]["Value"][0].removeprefix(door.url)
    instances = json.loads((await door.get(who, f"{path}/instances"))[2])

    assert status == 200
    assert "EthnicGroup" in warnings
    assert (await door.get(who, path))[0] == 200
    assert len(instances) == answer["00201208"]["Value"][0]
    url = instances[0]["00081190"]["Value"][0].removeprefix(door.url)
    assert (await door.get(who, url, "application/dicom"))[0] == 200


async def test_bulk_data_addresses_of_metadata_work(door: Door) -> None:
    """The BulkDataURI of Pixel Data gives the pixels."""
    await door.node.store(ct_slice())
    who = await chief(door)
    (one,) = json.loads((await door.get(who, f"/studies/{STUDY}/metadata"))[2])
    uri = one["7FE00010"]["BulkDataURI"]
    _, _, body = await door.get(who, uri.removeprefix(door.url), "application/octet-stream")

    assert uri.startswith(door.url)
    assert body == ct_slice().dataset().PixelData


@pytest.mark.requirement("C3")
async def test_a_flipped_byte_is_never_sent(door: Door) -> None:
    """The first instance broken: a problem. A later one: the answer is cut and cannot be taken for whole."""
    receipts = await door.node.store(*study(slices=9))
    who = await chief(door)
    path = next((door.node.path / "studies").rglob("*.pack"))
    row = await door.node.index.instance(receipts[8].study, receipts[8].instance)
    content = bytearray(path.read_bytes())
    content[row.data_set.end - 1] ^= 1
    path.write_bytes(content)
    with pytest.raises((aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError)):
        await door.get(who, f"/studies/{STUDY}")
    broken = f"/studies/{STUDY}/series/{SERIES}/instances/{uid('study-1', 1, 9)}"
    status, headers, _ = await door.get(who, broken)

    assert (status, headers["Content-Type"].split(";")[0]) == (500, "application/problem+json")
    assert (await door.get(who, INSTANCE_PATH))[0] == 200
    assert len(await door.node.events(EventKind.INTEGRITY_FAILED)) == 2


@pytest.mark.requirement("F5")
async def test_each_instance_stored_succeeds_or_fails_for_itself(door: Door) -> None:
    """200 when all are stored, 202 when some are, 409 when none is, with the reason of each."""
    who = await chief(door)
    good, other = ct_slice(), ct_slice(SliceThickness="9")
    second = ct_slice(number=2)
    status, answer = await door.post(who, *multipart(good.file()))
    assert status == 200
    assert answer["00081190"]["Value"][0].endswith(STUDY)

    status, answer = await door.post(who, *multipart(second.file(), other.file(), b"not dicom", b""))
    assert status == 202
    (stored,) = answer["00081199"]["Value"]
    assert stored["00081155"]["Value"] == [second.sop_instance_uid]
    reasons = sorted(item["00081197"]["Value"][0] for item in answer["00081198"]["Value"])
    assert reasons == [0x0111]
    # What cannot be read has no name: PS3.18 §10.5.3.2 lists it apart.
    assert [item["00081197"]["Value"] for item in answer["0008119A"]["Value"]] == [[0xC000], [0xC000]]

    status, answer = await door.post(who, *multipart(other.file()))
    assert (status, answer["00081198"]["Value"][0]["00081197"]["Value"]) == (409, [0x0111])
    status, answer = await door.post(who, *multipart(ct_slice(number=3).file()), path="/studies/1.2.3")
    assert (status, answer["00081198"]["Value"][0]["00081197"]["Value"]) == (409, [0xA901])
    status, _ = await door.post(who, ct_slice(number=4).file(), "application/dicom")
    assert status == 200


@pytest.mark.requirement("U1")
async def test_who_may_not_bring_images_is_told_so(door: Door) -> None:
    """A researcher is refused, on record, before a byte of the body is read: the body never ends here."""
    who = await door.node.person(Role.RESEARCHER)
    done = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield multipart(ct_slice().file())[0][:99]
        await done.wait()

    headers = {
        "Authorization": f"Bearer {await door.token(who)}",
        "Content-Type": multipart(b"")[1],
    }
    async with asyncio.timeout(20):
        async with door.http.post(f"{door.url}/studies", data=endless(), headers=headers) as answer:
            assert answer.status == 403
            assert json.loads(await answer.read())["reasons"]
        done.set()

    (entry,) = await door.node.events(EventKind.ACCESS_REFUSED)
    assert entry.event.actor == who.actor and entry.event.detail["action"] == "study:ingest"
    assert await door.node.vault.studies() == []


async def test_parallel_requests_share_one_bound_of_memory(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one request holds the memory, another waits and is told to come again; afterwards nothing is held."""
    from node.dicom import stow_room

    memory = Memory(60_000)
    monkeypatch.setattr(stow_room, "MEMORY", memory)
    monkeypatch.setattr(stow_room, "ROOM_SECONDS", 0.2)
    who = await chief(door)
    token = {"Authorization": f"Bearer {await door.token(who)}"}
    body, kind = multipart(*(one.file() for one in study(slices=3)), b"\0" * 40_000)
    go_on = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield body[:-100]
        await go_on.wait()
        yield body[-100:]

    async def store(data: Any) -> int:
        async with door.http.post(
            f"{door.url}/studies", data=data, headers={**token, "Content-Type": kind}
        ) as answer:
            return answer.status

    first = asyncio.create_task(store(slow()))
    async with asyncio.timeout(20):
        while memory.held < 40_000:
            await asyncio.sleep(0.01)
        assert await store(body) == 503
        assert memory.held <= memory.limit
        go_on.set()
        assert await first == 202  # three images, and a part that is none
    assert memory.held == 0


@pytest.mark.requirement("F4")
async def test_a_body_that_trickles_is_cut_off(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though it never pauses for long: what came whole is stored, and the connection is free again."""
    from node.dicom import stow

    monkeypatch.setattr(stow, "STALL_SECONDS", 0.4)
    who = await chief(door)
    token = {"Authorization": f"Bearer {await door.token(who)}"}
    body, kind = multipart(*(one.file() for one in study(slices=2)))
    whole = len(body) * 3 // 4
    ended = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield body[:whole]
        for at in range(whole, len(body) - 8):
            if ended.is_set():
                return
            yield body[at : at + 1]
            await asyncio.sleep(0.1)

    async with asyncio.timeout(10):
        async with door.http.post(
            f"{door.url}/studies", data=slow(), headers={**token, "Content-Type": kind}
        ) as answer:
            ended.set()
            assert answer.status == 503
            assert "too slowly" in (await answer.json())["detail"]
    assert len(json.loads((await door.get(who, "/instances"))[2])) == 1


BAD_BODIES = {
    "no content type": (b"x", "", 415),
    "another type": (b"<a/>", "application/dicom+xml", 415),
    "another inner type": (b"", 'multipart/related; type="application/dicom+xml"; boundary=b', 415),
    "no JSON": (b"[{]", "application/dicom+json", 400),
    "no objects": (b"[1]", "application/dicom+json", 400),
    "no boundary": (b"x", 'multipart/related; type="application/dicom"', 400),
    "empty": (b"", 'multipart/related; type="application/dicom"; boundary=b', 400),
    "no parts": (b"--b--", 'multipart/related; type="application/dicom"; boundary=b', 400),
    "cut short": (multipart(b"x" * 99)[0][:60], multipart(b"")[1].rsplit("=", 1)[0] + "=b", 400),
}


@pytest.mark.requirement("F4")
@pytest.mark.parametrize("name", BAD_BODIES)
async def test_bodies_that_are_not_stow_are_refused(door: Door, name: str) -> None:
    """A clear problem, and the node stays up."""
    body, kind, expected = BAD_BODIES[name]
    who = await chief(door)
    status, answer = await door.post(who, body, kind)

    assert status == expected
    assert answer["detail"]
    assert (await door.get(who, "/studies"))[0] == 200


async def test_a_large_request_is_stored_with_bounded_memory(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than fits into the room for waiting parts comes through all the same."""
    from node.dicom import stow_room

    monkeypatch.setattr(stow_room, "MAX_IN_FLIGHT_BYTES", 20_000)
    monkeypatch.setattr(stow_room, "MAX_IN_FLIGHT", 3)
    who = await chief(door)
    instances = study(slices=30)
    status, answer = await door.post(who, *multipart(*(one.file() for one in instances)))

    assert status == 200
    assert len(answer["00081199"]["Value"]) == 30
    assert len(json.loads((await door.get(who, "/instances"))[2])) == 30


async def test_requests_share_what_waits_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has one part on its way whatever others send, a second one only while there is room; who leaves gives all back."""
    from node.dicom import stow_room

    monkeypatch.setattr(stow_room, "MAX_IN_FLIGHT_BYTES", 100)
    shared, memory = stow_room.InFlight(), Memory(10_000)
    first, second = stow_room.Room(memory, shared), stow_room.Room(memory, shared)
    for room in (first, second):
        await room.read(160)
        await room.take(80)
    third = asyncio.create_task(second.take(80))
    await asyncio.sleep(0)
    assert not third.done()
    first.close()
    await asyncio.sleep(0)
    assert not third.done()  # its own eighty are still on their way
    second.give_back(80)
    async with asyncio.timeout(1):
        await third
    second.close()
    assert memory.held == 0
    async with asyncio.timeout(1):
        last = stow_room.Room(memory, shared)
        for _ in range(2):
            await last.read(50)
            await last.take(50)


@pytest.mark.requirement("V4")
async def test_a_burst_of_requests_is_one_opening_in_the_log(door: Door) -> None:
    """Opening a study is on record once for a person, with what was taken at its end."""
    await door.node.store(*study(slices=3))
    who = await chief(door)
    for number in (1, 2, 3):
        path = f"/studies/{STUDY}/series/{SERIES}/instances/{uid('study-1', 1, number)}"
        assert (await door.get(who, path))[0] == 200
    assert len(await door.node.events(EventKind.STUDY_OPENED)) == 1
    door.node.clock.tick(minutes=31)
    await door.node.gateway.sweep()
    (entry,) = await door.node.events(EventKind.STUDY_DOWNLOADED)

    assert entry.event.detail["instances"] == 3


async def test_compressed_frames_come_as_they_are_stored(door: Door) -> None:
    """Encapsulated frames are handed over fragment by fragment, under their own media type when asked."""
    samples = [one for one in pydicom_encapsulated() if one.dataset().get("NumberOfFrames", 1) == 1]
    await door.node.store(*samples)
    who = await chief(door)
    for one in samples:
        data_set = one.dataset()
        path = (
            f"/studies/{data_set.StudyInstanceUID}/series/{data_set.SeriesInstanceUID}"
            f"/instances/{one.sop_instance_uid}/frames/1"
        )
        status, headers, body = await door.get(
            who, path, "multipart/related; type=application/octet-stream; transfer-syntax=*"
        )
        assert status == 200
        assert parts_of(headers["Content-Type"], body) == [
            next(pydicom.encaps.generate_frames(data_set.PixelData, number_of_frames=1))
        ]


def pydicom_encapsulated() -> list[Instance]:
    from node.imaging.part10 import read_part10
    from tests.support.dicom import pydicom_folder

    found = []
    for name in ("JPEG2000.dcm", "MR_small_RLE.dcm", "SC_rgb_jpeg_dcmtk.dcm"):
        content = (pydicom_folder() / name).read_bytes()
        head = read_part10(content)
        found.append(
            Instance(
                head.sop_class_uid,
                head.sop_instance_uid,
                head.transfer_syntax_uid,
                content[head.dataset_offset :],
            )
        )
    return found
