"""STOW-RS of DICOM JSON with bulk data apart, and the reasons that it gives."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from itertools import count
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from pydicom.uid import JPEGLSLossless, RLELossless

from consent.errors import AccordError, Conflict, Corrupt, Denied, Invalid, Unavailable
from consent.vocabulary import EventKind
from node.dicom import stow, stow_json
from node.dicom.stow_answer import Outcome, failure_reason
from tests.support.dicom import ct_slice, uid
from tests.support.web_door import Door, chief, open_door

pytestmark = pytest.mark.asyncio(loop_scope="module")
JSON = "application/dicom+json"
PIXELS = "the-pixels"
numbers = count()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def door(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Door]:
    async with open_door(tmp_path_factory.mktemp("node")) as door:
        yield door


@pytest.fixture
def name() -> str:
    return f"json-{next(numbers)}"


def model(name: str, number: int = 1, uri: str = PIXELS) -> dict[str, Any]:
    """The DICOM JSON of a slice whose pixels are elsewhere."""
    ds = ct_slice(study=name, number=number).dataset()
    del ds.PixelData
    return {**ds.to_json_dict(), "7FE00010": {"vr": "OW", "BulkDataURI": uri}}


def request(models: object, values: Mapping[str, tuple[str, bytes]]) -> tuple[bytes, str]:
    """A multipart body and its content type."""
    parts = [(JSON, "", json.dumps(models).encode())]
    parts += [(kind, f"Content-Location: {uri}\r\n", body) for uri, (kind, body) in values.items()]
    pieces = [f"--b\r\nContent-Type: {kind}\r\n{more}\r\n".encode() + body for kind, more, body in parts]
    return b"\r\n".join([*pieces, b"--b--\r\n"]), f'multipart/related; type="{JSON}"; boundary=b'


async def back(door: Door, name: str, number: int = 1) -> dict[str, Any]:
    """The metadata of what was stored."""
    path = f"/studies/{uid(name)}/series/{uid(name, 1)}/instances/{uid(name, 1, number)}/metadata"
    found: dict[str, Any] = json.loads((await door.get(await chief(door), path))[2])[0]
    return found


async def pixels(door: Door, name: str, number: int = 1) -> bytes:
    path = f"/studies/{uid(name)}/series/{uid(name, 1)}/instances/{uid(name, 1, number)}/frames/1"
    return (await door.get(await chief(door), path, "application/octet-stream"))[2]


@pytest.mark.requirement("F5")
async def test_instances_come_as_json_with_their_pixels_apart(door: Door, name: str) -> None:
    """Several instances in one array; names in any script and pixels are those that were sent."""
    sent = {
        f"{PIXELS}-{n}": ("application/octet-stream", ct_slice(study=name, number=n).dataset().PixelData)
        for n in (1, 2)
    }
    models = [model(name, number, f"{PIXELS}-{number}") for number in (1, 2)]
    status, answer = await door.post(await chief(door), *request(models, sent))

    assert status == 200
    assert [item["00081155"]["Value"] for item in answer["00081199"]["Value"]] == [
        [uid(name, 1, n)] for n in (1, 2)
    ]
    assert (await back(door, name, 2))["00100010"] == models[1]["00100010"]
    assert await pixels(door, name, 2) == sent[f"{PIXELS}-2"][1]


@pytest.mark.requirement("F5")
@pytest.mark.parametrize("syntax", [JPEGLSLossless, RLELossless])
async def test_compressed_pixels_come_as_a_bare_stream(door: Door, name: str, syntax: str) -> None:
    """PS3.18 §8.7.3.3.2: without fragments; they are put back in, and the transfer syntax is that of the part."""
    ds = ct_slice(study=name).dataset()
    before = ds.PixelData
    ds.compress(syntax, generate_instance_uid=False)
    from pydicom.encaps import generate_frames

    stream = next(generate_frames(ds.PixelData, number_of_frames=1))
    kind = f"image/x; transfer-syntax={syntax}"
    status, _ = await door.post(await chief(door), *request([model(name)], {PIXELS: (kind, stream)}))

    assert status == 200
    row = (await door.node.index.instances(door.node.index.pseudonyms.study(uid(name))))[0]
    assert row.transfer_syntax_uid == syntax
    assert np.array_equal(np.frombuffer(await pixels(door, name), "<i2"), np.frombuffer(before, "<i2"))


@pytest.mark.requirement("F4", "F5")
async def test_each_model_succeeds_or_fails_for_itself(door: Door, name: str) -> None:
    """A missing value and a model that is no data set are named by a reason; the good one is stored; all is on record."""
    value = ("application/octet-stream", ct_slice(study=name).dataset().PixelData)
    refused = len(await door.node.events(EventKind.INSTANCE_REFUSED))
    bad = [model(name, 2, "nowhere"), {"00080018": {"vr": "XX", "Value": [{}]}}, {"00100010": {"vr": "PN"}}]
    status, answer = await door.post(await chief(door), *request([model(name), *bad], {PIXELS: value}))

    assert status == 202
    assert len(answer["00081199"]["Value"]) == 1
    assert [item["00081197"]["Value"] for item in answer["0008119A"]["Value"]] == [[0xC000]] * 3
    assert len(await door.node.events(EventKind.INSTANCE_REFUSED)) == refused + 3


@pytest.mark.requirement("F4")
async def test_json_is_bounded_as_a_whole(door: Door, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What must be in memory together has a bound; past it, 413 with the way out."""
    monkeypatch.setattr(stow, "MAX_JSON_REQUEST_BYTES", 3000)
    value = ("application/octet-stream", bytes(4000))
    status, answer = await door.post(await chief(door), *request([model(name)], {PIXELS: value}))

    assert status == 413
    assert "DICOM files" in answer["mend"]


@pytest.mark.requirement("F4")
async def test_json_asks_for_no_more_than_it_brings(
    door: Door, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One value makes one instance, not as many as name it; and many tiny objects are not unfolded in memory."""
    value = {PIXELS: ("application/octet-stream", ct_slice(study=name).dataset().PixelData)}
    models = [model(name, 1), model(name, 2)]
    status, answer = await door.post(await chief(door), *request(models, value))
    assert (status, len(answer["00081199"]["Value"]), len(answer["0008119A"]["Value"])) == (202, 1, 1)

    monkeypatch.setattr(stow_json, "MAX_OBJECTS", 100)
    status, answer = await door.post(await chief(door), *request([{}] * 200, {}))
    assert (status, answer["type"]) == (413, "urn:accord:problem:too-large")


@pytest.mark.requirement("F4")
@pytest.mark.parametrize(
    ("models", "status", "problem"),
    [
        ([], 400, "bad-json"),
        ([3], 400, "bad-json"),
        ([{}] * 4, 413, "too-large"),
        ([{"00420011": {"vr": "OB", "BulkDataURI": f"uri-{n}"}} for n in range(3)], 413, "too-large"),
    ],
    ids=["no-model", "no-object", "too-many-models", "too-many-values"],
)
async def test_json_that_is_no_models_is_refused_whole(
    door: Door, monkeypatch: pytest.MonkeyPatch, models: object, status: int, problem: str
) -> None:
    """Somebody else's JSON is parsed in a worker, within bounds of its own; the words of a refusal come from there."""
    monkeypatch.setattr(stow_json, "MAX_MODELS", 3)
    monkeypatch.setattr(stow_json, "MAX_PARTS", 2)
    answered, answer = await door.post(await chief(door), *request(models, {}))
    assert (answered, answer["type"]) == (status, f"urn:accord:problem:{problem}")


@pytest.mark.requirement("F4")
async def test_json_without_end_is_refused(door: Door) -> None:
    """Text that is cut short and text nested too deep to be read are not JSON, and the worker answers the next one."""
    for text in (b'[{"00080018":', b"[" * 200_000):
        answered, answer = await door.post(await chief(door), text, JSON)
        assert (answered, answer["type"]) == (400, "urn:accord:problem:bad-json")


@pytest.mark.requirement("F5")
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Denied("x"), 0x0124), (Conflict("x"), 0x0111), (Unavailable("x"), 0xA700), (Invalid("x"), 0xC000),
        (Corrupt("x"), 0x0110), (Invalid("x", code="uid-mismatch"), 0xA900), (Invalid("x", code="study-mismatch"), 0xA901),
        (Invalid("x", code="transfer-syntax"), 0xC122), (AccordError("x"), 0x0110),
    ],
)  # fmt: skip
async def test_every_failure_has_its_reason(error: AccordError, reason: int) -> None:
    """PS3.18 Table I.2-2; and the status says whether all, some or none were stored."""
    assert failure_reason(error) == reason
    assert Outcome(failed=[(None, error)]).status == 409
