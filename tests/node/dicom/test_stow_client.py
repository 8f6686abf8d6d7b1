"""Our STOW-RS client against a whole node, and against services that answer oddly, or not, or are another's."""

from __future__ import annotations

import asyncio
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import load_pem_x509_certificate

from consent.errors import AccordError, Denied, Invalid, NotFound, Unavailable
from consent.vocabulary import Role
from node.dicom import sender, stow_client
from node.dicom.multipart import MultipartParser, parameters
from node.dicom.sender import Sent
from node.dicom.stow_client import Service, pinned, service, store_files, trusting
from node.identity import Identity
from node.tls import server_context
from tests.support.dicom import Instance, ct_slice, from_file, pydicom_sample_paths, study, uid
from tests.support.web_door import Door, chief, open_door

pytestmark = [pytest.mark.requirement("F5"), pytest.mark.timeout(60)]
beside_the_node = pytest.mark.asyncio(loop_scope="module")
Answer = Callable[[web.Request], Awaitable[web.Response]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def door(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Door]:
    async with open_door(tmp_path_factory.mktemp("node")) as door:
        yield door


async def at(door: Door, who: Any = None) -> Service:
    """The node, with a token of somebody who may store."""
    token = await door.token(who or await chief(door))
    return service(door.url, None, authorization=f"Bearer {token}")


async def sent_to(to: Service, *paths: Path) -> list[Sent]:
    return [one async for one in store_files(to, paths)]


def written(folder: Path, *instances: Instance) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number:03d}.dcm" for number in range(len(instances))]
    for path, one in zip(paths, instances, strict=True):
        path.write_bytes(one.file())
    return paths


@asynccontextmanager
async def answering(answer: Answer, tls: Any = None) -> AsyncIterator[str]:
    """A service on a free port that says to every POST what `answer` says; yields its base address."""
    app = web.Application(client_max_size=1 << 30)
    app.router.add_post("/dicom-web/studies", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    port = runner.addresses[0][1]
    if tls is not None:
        await web.TCPSite(runner, "127.0.0.2", port, ssl_context=tls).start()
    try:
        yield f"http{'s' if tls else ''}://127.0.0.1:{port}/dicom-web"
    finally:
        await runner.cleanup()


async def uids_in(request: web.Request) -> list[str]:
    """The instances of a request, by an independent reading of its parts."""
    parser = MultipartParser(parameters(request.headers["Content-Type"])[1]["boundary"])
    return [from_file(bytes(part.body)).sop_instance_uid for part in parser.feed(await request.read())]


def module(stored: list[str], failed: dict[str, int] | None = None) -> web.Response:
    """A Store Instances Response as another server writes it."""
    body: dict[str, Any] = {
        "00081199": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": [one]}} for one in stored]},
        "00081198": {
            "vr": "SQ",
            "Value": [
                {"00081155": {"vr": "UI", "Value": [one]}, "00081197": {"vr": "US", "Value": [reason]}}
                for one, reason in (failed or {}).items()
            ],
        },
    }
    return web.json_response(body, status=202 if failed else 200)


async def all_stored(request: web.Request) -> web.Response:
    return module(await uids_in(request))


# A whole node


@beside_the_node
@pytest.mark.requirement("C3")
async def test_files_arrive_as_they_are(door: Door, tmp_path: Path) -> None:
    """Generated slices and real patients: every data set comes back by WADO-RS with the digest of what was sent."""
    made = study(name="stow-client", slices=3, series=2)
    paths = [*written(tmp_path, *made), *pydicom_sample_paths()]
    sent = await sent_to(await at(door), *paths)
    assert [one.reason for one in sent if not one.ok] == [] and len(sent) == len(paths)
    for path, one in zip(paths, sent, strict=True):
        assert (one.label, one.bytes) == (str(path), path.stat().st_size)
    who = await chief(door)
    kind = 'multipart/related; type="application/dicom"; transfer-syntax=*'
    status, headers, body = await door.get(who, f"/studies/{uid('stow-client')}", kind)
    assert status == 200
    parser = MultipartParser(parameters(headers["Content-Type"])[1]["boundary"])
    back = [from_file(bytes(part.body)) for part in parser.feed(body)]
    assert {one.sop_instance_uid: one.sha256 for one in back} == {
        one.sop_instance_uid: one.sha256 for one in made
    }


@beside_the_node
async def test_one_that_is_refused_does_not_stop_the_others(door: Door, tmp_path: Path) -> None:
    """Other bytes under a UID that is there: its reason in words; what is no DICOM is not sent; the rest is stored."""
    first, second, third = study(name="stow-some", slices=3)
    other = ct_slice(study="stow-some", number=1, study_description="CT HEAD")
    assert other.sop_instance_uid == first.sop_instance_uid
    to = await at(door)
    assert all(one.ok for one in await sent_to(to, *written(tmp_path / "a", first)))
    paths = written(tmp_path / "b", second, other, third)
    (tmp_path / "b" / "notes.txt").write_text("hello")
    by_name = {Path(one.label).name: one for one in await sent_to(to, tmp_path / "b")}
    assert len(paths) == 3 and [by_name[f"00{n}.dcm"].ok for n in range(3)] == [True, False, True]
    assert by_name["001.dcm"].status == 0x0111
    assert "0111, another instance with this UID is there already" in by_name["001.dcm"].reason
    assert "Not a DICOM file" in by_name["notes.txt"].reason


@beside_the_node
@pytest.mark.requirement("T1", "U7")
@pytest.mark.parametrize("credential", ["", "Bearer acc_wrong", "Basic YTpi"])
async def test_who_is_not_let_in_is_told_so(door: Door, credential: str, tmp_path: Path) -> None:
    """Also with far more to send than the service reads before it answers."""
    slices = study(name="stow-stranger", slices=12, size=512)
    paths = written(tmp_path, *slices)
    with pytest.raises(Denied, match="401"):
        await sent_to(service(door.url, None, authorization=credential), *paths)


@beside_the_node
@pytest.mark.requirement("U1")
async def test_whom_the_rules_do_not_let_store_is_told_so(door: Door, tmp_path: Path) -> None:
    """A researcher's token opens the door and brings nothing in."""
    researcher = await door.node.person(Role.RESEARCHER)
    with pytest.raises(Denied, match="403"):
        await sent_to(await at(door, researcher), *written(tmp_path, ct_slice(study="stow-research")))


# Requests


async def test_requests_are_bounded_and_name_no_instance_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By number, by size, and by what the answer could not tell apart."""
    monkeypatch.setattr(stow_client, "REQUEST_INSTANCES", 3)
    seen: list[list[str]] = []

    async def answer(request: web.Request) -> web.Response:
        assert int(request.headers["Content-Length"]) == len(await request.read())
        seen.append(await uids_in(request))
        return module(seen[-1])

    made = study(slices=5)
    paths = written(tmp_path, *made, made[4])
    async with answering(answer) as url:
        assert all(one.ok for one in await sent_to(service(url, None), *paths))
        assert [len(group) for group in seen] == [3, 2, 1]
        seen.clear()
        monkeypatch.setattr(stow_client, "REQUEST_BYTES", paths[0].stat().st_size)
        assert all(one.ok for one in await sent_to(service(url, None), *paths[:3]))
        assert [len(group) for group in seen] == [1, 1, 1]


@pytest.mark.requirement("F1")
async def test_a_large_file_is_never_whole_in_memory(tmp_path: Path) -> None:
    """96 MiB go out with a few MiB held, and arrive with their digest."""
    one = ct_slice()
    path = tmp_path / "large.dcm"
    block = bytes(range(256)) * 4096
    with path.open("wb") as file:
        file.write(one.file())
        for _ in range(96):
            file.write(block)
    got = sha256()
    size = 0

    async def answer(request: web.Request) -> web.Response:
        nonlocal size
        async for piece in request.content.iter_any():
            got.update(piece)
            size += len(piece)
        return module([one.sop_instance_uid])

    async with answering(answer) as url:
        tracemalloc.start()
        try:
            (sent,) = await sent_to(service(url, None), path)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert sent.ok and size > 96 << 20
    assert peak < 16 << 20


async def test_a_file_that_shrinks_is_left_out_and_the_rest_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request that it broke is sent again without it."""
    made = study(slices=3)
    paths = written(tmp_path, *made)
    measured = sender.readable

    async def shrinking(given: Any) -> AsyncIterator[Any]:
        async for one in measured(given):
            yield one
        paths[1].write_bytes(paths[1].read_bytes()[:-100])

    monkeypatch.setattr(stow_client, "readable", shrinking)
    async with answering(all_stored) as url:
        sent = {Path(one.label).name: one for one in await sent_to(service(url, None), *paths)}
    assert [sent[f"00{n}.dcm"].ok for n in range(3)] == [True, False, True]
    assert "shorter" in sent["001.dcm"].reason


# Answers


def text(status: int, body: str, **headers: str) -> Answer:
    async def answer(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(status=status, text=body, headers=headers)

    return answer


ODD = {
    "says nothing": (text(200, ""), "did not say what became of it"),
    "xml": (text(200, "<NativeDicomModel/>"), "did not say what became of it"),
    "another's instance": (text(200, '{"00081199": {"Value": [{"00081155": {"Value": ["1.2"]}}]}}'), "did not say"),
    "broken module": (text(200, '{"00081199": {"Value": [7, {"00081155": 3}]}}'), "did not say"),
    "nested too deep": (text(200, "[" * 100_000), "did not say what became of it"),
    "no name": (text(409, '{"0008119A": {"Value": [{"00081197": {"Value": [49152]}}]}}'), "C000, it could not"),
    "busy": (text(503, '{"detail": "The disk is full."}'), "503: The disk is full."),
    "its own words": (text(400, '{"Message": "Bad\\nfile format"}'), "400: Bad file format."),
    "a page": (text(500, "<html>secret</html>"), "The service answered 500."),
}  # fmt: skip


@pytest.mark.requirement("F4")
@pytest.mark.parametrize("case", ODD)
async def test_nothing_is_accepted_that_was_not_named(case: str, tmp_path: Path) -> None:
    """Whatever the status, an instance that the answer does not name as stored has failed, with the words there are."""
    answer, words = ODD[case]
    async with answering(answer) as url:
        (sent,) = await sent_to(service(url, None), *written(tmp_path, ct_slice()))
    assert not sent.ok and words in sent.reason and "secret" not in sent.reason


@pytest.mark.requirement("F4")
async def test_who_names_an_instance_as_stored_and_as_failed_has_not_promised_it(tmp_path: Path) -> None:
    """A service that contradicts itself is believed in what it did not do."""

    async def answer(request: web.Request) -> web.Response:
        (uid,) = await uids_in(request)
        return module([uid], {uid: 0x0110})

    async with answering(answer) as url:
        (sent,) = await sent_to(service(url, None), *written(tmp_path, ct_slice()))
    assert not sent.ok and sent.status == 0x0110


@pytest.mark.requirement("F4")
async def test_a_compressed_answer_cannot_grow_in_memory(tmp_path: Path) -> None:
    """Compression is not asked for; what comes so all the same is bounded as it came, and says nothing."""
    bomb = zlib.compress(bytes(64 << 20))

    async def answer(request: web.Request) -> web.Response:
        assert request.headers["Accept-Encoding"] == "identity"
        await request.read()
        return web.Response(body=bomb, headers={"Content-Encoding": "deflate"})

    async with answering(answer) as url:
        tracemalloc.start()
        (sent,) = await sent_to(service(url, None), *written(tmp_path, ct_slice()))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert not sent.ok and most < 16 << 20


WHOLE: dict[str, tuple[Answer, type[AccordError], str]] = {
    "moved": (text(307, "", Location="http://127.0.0.1:1/studies"), NotFound, "leads elsewhere"),
    "not DICOMweb": (text(404, ""), NotFound, "no STOW-RS"),
    "forbidden": (text(403, ""), Denied, "403"),
    "endless": (text(200, "x" * (5 << 20)), Unavailable, "larger than any"),
}


@pytest.mark.requirement("F4")
@pytest.mark.parametrize("case", WHOLE)
async def test_what_concerns_every_request_ends_the_sending(case: str, tmp_path: Path) -> None:
    """One clear error instead of the same for each file; a redirect is never followed."""
    answer, family, words = WHOLE[case]
    async with answering(answer) as url:
        with pytest.raises(family, match=words):
            await sent_to(service(url, None), *written(tmp_path, ct_slice()))


async def test_what_was_stored_before_it_broke_off_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service ends after the first request: that is reported as stored, the rest as not, and nobody waits for each."""
    monkeypatch.setattr(stow_client, "REQUEST_INSTANCES", 1)
    asked = 0

    async def answer(request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        found = await uids_in(request)
        if asked > 1:
            assert request.transport is not None
            request.transport.abort()
        return module(found)

    async with answering(answer) as url:
        sent = await sent_to(service(url, None), *written(tmp_path, *study(slices=4)))
    assert [one.ok for one in sent] == [True, False, False, False]
    assert (
        "broke off" in sent[1].reason and asked <= 3
    )  # an aborted request may be tried once more by the client


async def test_a_silent_service_runs_into_the_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for ever."""
    monkeypatch.setattr(stow_client, "ANSWER_SECONDS", 0.2)

    async def answer(request: web.Request) -> web.Response:
        await asyncio.sleep(0.5)
        return web.Response()

    async with answering(answer) as url:
        with pytest.raises(Unavailable, match="in time"):
            await sent_to(service(url, None), *written(tmp_path, ct_slice()))


# Whom to trust


@pytest.mark.requirement("T1")
async def test_https_trusts_the_named_authority_or_certificate_alone(tmp_path: Path) -> None:
    """Right authority, right pin; a stranger's authority, another pin, and another name get nothing."""
    now = datetime.now(UTC)

    async def seed(name: str, size: int = 32) -> bytes:
        return name.encode().ljust(size, b".")[:size]

    async def other(name: str, size: int = 32) -> bytes:
        return name.encode().rjust(size, b".")[:size]

    identity = await Identity.load_or_create(seed, "x-archive", "Archive")
    stranger = await Identity.load_or_create(other, "x-stranger", "Stranger")
    leaf = identity.leaf(["127.0.0.1"], now)
    der = load_pem_x509_certificate(leaf.certificate).public_bytes(Encoding.DER)
    own = identity.issue_device_certificate("CT1", now)
    paths = written(tmp_path, ct_slice())
    async with answering(all_stored, server_context(leaf)) as url:
        for trust in (trusting(identity.authority_pem), pinned(sha256(der).hexdigest().upper())):
            assert [one.ok for one in await sent_to(service(url, trust), *paths)] == [True]
        with pytest.raises(Unavailable, match="certificate is not trusted"):
            await sent_to(service(url, trusting(stranger.authority_pem)), *paths)
        with pytest.raises(Denied, match="another certificate"):
            await sent_to(service(url, pinned("00" * 32)), *paths)
        with pytest.raises(Unavailable, match="certificate is not trusted"):
            elsewhere = url.replace("127.0.0.1", "127.0.0.2")
            await sent_to(service(elsewhere, trusting(identity.authority_pem)), *paths)
    mutual = server_context(leaf, [identity.authority_pem])
    async with answering(all_stored, mutual) as url:
        assert (await sent_to(service(url, trusting(identity.authority_pem, own)), *paths))[0].ok
        with pytest.raises(Unavailable):
            await sent_to(service(url, trusting(identity.authority_pem)), *paths)


@pytest.mark.requirement("T1")
@pytest.mark.parametrize(
    ("address", "code"),
    [
        ("ftp://here/dicom-web", "bad-address"),
        ("pacs.example", "bad-address"),
        ("http://[::1", "bad-address"),
        ("https://li:secret@pacs.example/", "bad-address"),
        ("https://pacs.example/?token=1", "bad-address"),
        ("https://pacs.example/dicom-web", "no-authority"),
        ("http://pacs.example/dicom-web", "plain-http"),
        ("http://127.0.0.1.pacs.example/", "plain-http"),
    ],
)
def test_addresses_that_are_not_taken(address: str, code: str) -> None:
    """Before anything is sent, and without the password that stood in one."""
    with pytest.raises(Invalid) as refused:
        service(address, None)
    assert refused.value.code == code and "secret" not in str(refused.value)


@pytest.mark.requirement("T1")
def test_plain_http_stays_on_this_machine_unless_it_is_asked_for() -> None:
    """Loopback by name and number; another machine only when somebody said so."""
    for address in ("http://localhost:80/", "http://127.0.0.9/x", "http://[::1]:8042/dicom-web"):
        assert service(address, None).trust is None
    assert str(service("http://pacs.example/dicom-web/", None, plain=True).studies).endswith("/studies")
    with pytest.raises(Invalid, match="plain HTTP looks at none"):
        service("http://localhost:80/", pinned("ab" * 32))
    with pytest.raises(Invalid, match="64 hex digits"):
        pinned("abc")
