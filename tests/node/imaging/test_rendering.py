"""Rendering: what a viewer sees is right, marked, bounded, and done where a bad image can do no harm."""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.data import get_testdata_file

from consent.errors import Invalid, Unavailable
from node.imaging.decode import StoredFrame, read_dataset
from node.imaging.deidentified import Refusal
from node.imaging.deidentify import Deidentifier
from node.imaging.part10 import read_part10
from node.imaging.presentation import present
from node.imaging.rendering import Renderer
from node.imaging.watermark import burn
from node.imaging.watermark_text import WatermarkText

MARK = WatermarkText(("ID 4711", "dr.li@a-general", "2026-11-22 09:00 UTC"), 1)


def sample(name: str) -> tuple[bytes, str]:
    raw = Path(str(get_testdata_file(name, download=False))).read_bytes()
    head = read_part10(raw)
    return raw[head.dataset_offset :], head.transfer_syntax_uid


def stored(values: list[list[int]], **attributes: object) -> StoredFrame:
    dataset = read_dataset(*sample("CT_small.dcm"))
    for keyword in ("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth"):
        if keyword in dataset:
            del dataset[keyword]
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return StoredFrame(np.array(values), dataset, 1)


@pytest.mark.requirement("U5")
async def test_every_rendered_frame_bears_the_mark_and_the_stored_pixels_do_not() -> None:
    """The marked picture differs all over the image and has a footer; without a mark it is the plain picture."""
    data, syntax = sample("CT_small.dcm")
    async with Renderer(1) as renderer:
        plain = await renderer.render(data, syntax, media_type="image/png", size=128)
        marked = await renderer.render(data, syntax, media_type="image/png", watermark=MARK)
    before = np.asarray(Image.open(io.BytesIO(plain)).resize((384, 384), Image.Resampling.BICUBIC)).astype(
        int
    )
    after = np.asarray(Image.open(io.BytesIO(marked))).astype(int)
    changed = np.abs(after[:384] - before) > 20
    quarters = [changed[y : y + 192, x : x + 192].mean() for y in (0, 192) for x in (0, 192)]

    assert after.shape[0] > 384
    assert min(quarters) > 0.005


def test_the_mark_moves_with_the_seed() -> None:
    """Two openings do not share a layer that could be averaged away."""
    flat = np.full((256, 512), 90, np.uint8)
    first, second = burn(flat, WatermarkText(("A",), 1)), burn(flat, WatermarkText(("A",), 2))

    assert (first != second).any()


def test_window_maps_centre_to_middle_grey() -> None:
    """PS3.3 C.11.2: below the window is black, above white, the centre in the middle."""
    picture = present(stored([[-1000, 40, 2000]]), window=(40, 400))

    assert picture.tolist() == [[0, 128, 255]]


def test_monochrome1_is_inverted() -> None:
    """In MONOCHROME1 the lowest value is white."""
    picture = present(stored([[0, 100]], PhotometricInterpretation="MONOCHROME1"), window=(50, 100))

    assert picture[0, 0] == 255


def test_rescale_comes_before_the_window() -> None:
    """The window is in modality units."""
    picture = present(stored([[1064]], RescaleSlope=1, RescaleIntercept=-1024), window=(40, 400))

    assert picture[0, 0] == 128


@pytest.mark.parametrize(
    "name",
    [
        "CT_small.dcm",
        "MR_small.dcm",
        "examples_palette.dcm",
        "examples_ybr_color.dcm",
        "MR_small_RLE.dcm",
        "JPEG2000-embedded-sequence-delimiter.dcm",
        "SC_rgb_jpeg_dcmtk.dcm",
        "rtdose_1frame.dcm",
        "MR_small_bigendian.dcm",
    ],
)
async def test_common_kinds_of_pixels_are_drawn(name: str) -> None:
    """Palette, YBR, compressed, big endian and 32-bit frames become a picture, or a refusal that says why."""
    data, syntax = sample(name)
    async with Renderer(1) as renderer:
        try:
            picture = await renderer.render(data, syntax)
        except Invalid as refused:
            assert refused.code == "undecodable"
            return

    assert Image.open(io.BytesIO(picture)).size[0] > 8


@pytest.mark.requirement("F4")
async def test_a_bad_image_is_refused_and_the_next_one_is_drawn() -> None:
    """Garbage, a missing frame and an absurd size are refused in words; the pool goes on."""
    data, syntax = sample("CT_small.dcm")
    async with Renderer(1) as renderer:
        with pytest.raises(Invalid, match="no frame 7"):
            await renderer.render(data, syntax, 7)
        with pytest.raises(Invalid):
            await renderer.render(b"\x08\x00\x05\x00CS\xff\xff", syntax)
        with pytest.raises(Invalid):
            await renderer.render(
                data.replace(b"\x28\x00\x10\x00US\x02\x00\x80\x00", b"\x28\x00\x10\x00US\x02\x00\xff\xff"),
                syntax,
            )

        assert await renderer.render(data, syntax)


@pytest.mark.requirement("F4")
async def test_a_picture_that_takes_too_long_is_stopped() -> None:
    """Past the deadline the worker is replaced and the caller told."""
    data, syntax = sample("CT_small.dcm")
    async with Renderer(1, deadline_seconds=0.001) as renderer:
        with pytest.raises(Unavailable):
            await renderer.render(data, syntax)


async def test_many_callers_share_few_workers() -> None:
    """Forty requests at once all get their picture from two workers."""
    data, syntax = sample("CT_small.dcm")
    async with Renderer(2) as renderer:
        pictures = await asyncio.gather(*(renderer.render(data, syntax, window=(n, 400)) for n in range(40)))

    assert len(set(pictures)) > 30


@pytest.mark.requirement("U6")
async def test_deidentification_in_a_worker_equals_the_engine() -> None:
    """The confined path gives exactly what the engine gives, refusals included."""
    data, syntax = sample("CT_small.dcm")
    async with Renderer(1) as renderer:
        confined = await renderer.deidentify(data, syntax, project_key=b"k" * 32)
        refused = await renderer.deidentify(data, syntax, project_key=b"k" * 32, options=frozenset())
        report = await renderer.deidentify(b"\x08\x00\x05\x00CS\xff\xff", syntax, project_key=b"k" * 32)

    assert confined == Deidentifier(b"k" * 32).apply(data, syntax) == refused
    assert isinstance(report, Refusal)


def test_what_a_decoder_prints_is_not_taken_for_an_answer() -> None:
    """In a worker, standard output leads nowhere; only its own answers reach the node."""
    program = (
        "import os; from node.imaging.worker import _answers; sink = _answers(); "
        "os.write(1, b'noise'); print('noise'); sink.write(b'answer'); sink.flush()"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, timeout=60)

    assert done.stdout == b"answer"
