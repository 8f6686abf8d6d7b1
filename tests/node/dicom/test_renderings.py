"""Pictures over HTTP of what is not one plain slice: many frames, films, and pixels that cannot be drawn."""

from __future__ import annotations

import io
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.dicom import Instance, uid
from tests.support.images import image
from tests.support.web_door import Door, chief, open_door

pytestmark = pytest.mark.requirement("F5")
PATH = f"/studies/{uid('image')}/series/{uid('image', 1)}/instances/"
FILM, RLE = "1.2.840.10008.1.2.4.102", "1.2.840.10008.1.2.5"
PARTS = 'multipart/related; type="image/jpeg"'
STILL = np.zeros((4, 4), np.uint8)


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    async with open_door(tmp_path) as door:
        yield door


def path_of(one: Instance, frame: int) -> str:
    return f"{PATH}{one.sop_instance_uid}/frames/{frame}/rendered"


async def test_frames_of_an_image_of_many_are_drawn_by_themselves(door: Door) -> None:
    """Each frame is its own picture, also of a bitmap whose frames begin inside bytes."""
    levels = np.array([0, 90, 250], np.uint8)
    grey = image(np.repeat(levels, 400 * 400).reshape(3, 400, 400))
    bitmap = image(
        np.stack([np.zeros((401, 401)), np.ones((401, 401))]).astype(np.uint8),
        BitsAllocated=1, BitsStored=1, HighBit=0,
    )  # fmt: skip
    await door.node.store(grey, bitmap)
    who = await chief(door)
    found = []
    for one, frame in ((grey, 1), (grey, 2), (grey, 3), (bitmap, 1), (bitmap, 2)):
        status, _, body = await door.get(who, path_of(one, frame), accept="image/png")
        assert status == 200
        found.append(int(np.median(np.asarray(Image.open(io.BytesIO(body)))[:380])))

    assert found == [0, 90, 250, 0, 255]


@pytest.mark.parametrize(
    ("one", "status", "code"),
    [
        (image(STILL, syntax=FILM, stream=[b"\0\0\1\xb3" * 50]), 406, "video"),
        (image(STILL, syntax=RLE, stream=[b"\1\0\0\0" + bytes(60) + b"x" * 8]), 400, "undecodable"),
        (image(STILL, PhotometricInterpretation="HSV"), 406, "photometric"),
        (image(STILL, Rows=4000), 400, "short-pixels"),
    ],
    ids=["film", "damaged", "colours of another kind", "too few pixels"],
)
async def test_what_cannot_be_drawn_is_refused_in_words(
    door: Door, one: Instance, status: int, code: str
) -> None:
    """The refusal has a code and says what to do; the node goes on drawing."""
    other = image(np.full((8, 8), 9, np.uint8))
    await door.node.store(one, other)
    who = await chief(door)
    answered, _, body = await door.get(who, path_of(one, 1), accept="image/jpeg")
    problem = json.loads(body)

    assert (answered, problem["type"]) == (status, f"urn:accord:problem:{code}")
    assert "ownload" in problem["mend"] or "maker" in problem["mend"]
    assert (await door.get(who, path_of(other, 1), accept="image/jpeg"))[0] == 200


async def test_claimed_number_of_frames_costs_nothing(door: Door) -> None:
    """An image that says it has ten million frames has them listed by nobody: the node answers at once."""
    await door.node.store(image(np.full((8, 8), 9, np.uint8), frames=10_000_000))
    who = await chief(door)
    study, before = f"/studies/{uid('image')}", time.process_time()
    thumbnail, _, _ = await door.get(who, f"{study}/thumbnail", accept="image/jpeg")
    every, _, body = await door.get(who, f"{study}/rendered", accept=PARTS)

    assert (thumbnail, every, json.loads(body)["type"]) == (400, 413, "urn:accord:problem:too-large")
    assert time.process_time() - before < 1.0
