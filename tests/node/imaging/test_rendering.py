"""Rendering: what a viewer sees is right, marked, bounded, and done where a bad image can do no harm."""

from __future__ import annotations

import asyncio
import io
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from PIL import Image
from pydicom.data import get_testdata_file

from consent.errors import Invalid, Sentence, Unavailable
from node.imaging import rendering, workers
from node.imaging.attributes import read_attributes
from node.imaging.deidentified import Refusal
from node.imaging.deidentify import Deidentifier
from node.imaging.frames import find_frames
from node.imaging.part10 import read_part10
from node.imaging.passage import Passage
from node.imaging.rendering import Renderer
from node.imaging.viewport import Viewport
from node.imaging.watermark import burn
from node.imaging.watermark_text import WatermarkText
from node.index.index import pixel_place
from tests.support.images import image

pytestmark = pytest.mark.asyncio(loop_scope="module")
MARK = WatermarkText(("ID 4711", "dr.li@a-general", "2026-11-22 09:00 UTC"), 1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def renderer() -> AsyncIterator[Renderer]:
    """One worker for all tests that only draw."""
    async with Renderer(1) as one:
        yield one


def sample(name: str) -> tuple[bytes, str]:
    raw = Path(str(get_testdata_file(name, download=False))).read_bytes()
    head = read_part10(raw)
    return raw[head.dataset_offset :], head.transfer_syntax_uid


@pytest.mark.requirement("U5")
async def test_every_rendered_frame_bears_the_mark_and_the_stored_pixels_do_not(renderer: Renderer) -> None:
    """The marked picture differs all over the image and has a footer; without a mark it is the plain picture."""
    data, syntax = sample("CT_small.dcm")
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


async def test_the_mark_moves_with_the_seed() -> None:
    """Two openings do not share a layer that could be averaged away."""
    flat = np.full((256, 512), 90, np.uint8)
    first, second = burn(flat, WatermarkText(("A",), 1)), burn(flat, WatermarkText(("A",), 2))

    assert (first != second).any()


async def test_common_kinds_of_pixels_are_drawn_as_every_kind_of_file(renderer: Renderer) -> None:
    """Palette, YBR, compressed, big endian and 32-bit frames become JPEG, PNG and WebP of the right size."""
    names = ("examples_palette.dcm", "SC_rgb_jpeg_dcmtk.dcm", "rtdose_1frame.dcm", "JPGExtended.dcm")
    for name, media_type in zip(names, rendering.MEDIA_TYPES * 2, strict=False):
        picture = await renderer.render(*sample(name), media_type=media_type)
        drawn = Image.open(io.BytesIO(picture))
        assert (f"image/{drawn.format}".lower(), min(drawn.size) > 8) == (media_type, True), name


async def test_thumbnails_are_small_and_bear_the_mark_at_their_size(renderer: Renderer) -> None:
    """A thumbnail is a little JPEG; an owed mark is burned in and stands in full below it."""
    data, syntax = sample("examples_palette.dcm")
    plain = await renderer.thumbnail(data, syntax)
    marked = await renderer.thumbnail(data, syntax, watermark=MARK)
    tiny = await renderer.thumbnail(*sample("SC_rgb_small_odd.dcm"), size=64)
    small, with_mark = Image.open(io.BytesIO(plain)), Image.open(io.BytesIO(marked))

    assert (small.format, small.size) == ("JPEG", (160, 70))
    assert (with_mark.size[0], with_mark.size[1] > 90) == (160, True)
    assert len(plain) < 8_000
    assert Image.open(io.BytesIO(tiny)).size == (3, 3)


async def test_a_viewport_shows_a_region_at_its_size(renderer: Renderer) -> None:
    """PS3.18 §8.3.5.1.3: cut, scaled to fit, mirrored by a negative size; outside and without size are refused."""
    one = image(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4)

    async def drawn(viewport: Viewport) -> Image.Image:
        data = await renderer.render(
            one.data, one.transfer_syntax_uid, viewport=viewport, media_type="image/png"
        )
        return Image.open(io.BytesIO(data))

    whole = await drawn(Viewport.of(40, 20))
    corner = await drawn(Viewport.of(4, 4, (4, 4, -4, 4)))
    with pytest.raises(Invalid, match="outside"):
        await drawn(Viewport.of(4, 4, (8, 0, 4, 4)))
    with pytest.raises(Invalid):
        Viewport.of(0, 20)

    assert whole.size == (20, 20)
    assert (corner.getpixel((0, 0)), corner.getpixel((3, 3))) == (39 * 4, 60 * 4)


@pytest.mark.parametrize(
    "window", [(40, 0), (40, -5), (float("nan"), 400), (0, float("inf")), (0, 10, "CUBIC")]
)
async def test_windows_that_are_none_are_refused(renderer: Renderer, window: tuple[float, float]) -> None:
    """No width, no number, or a function that the standard lacks."""
    with pytest.raises(Invalid, match="window"):
        await renderer.render(b"", "1.2.840.10008.1.2", window=window)


async def test_a_frame_cut_out_is_drawn_as_from_the_whole(renderer: Renderer) -> None:
    """Head and frame alone give the picture that the whole data set gives, for native and encapsulated frames."""
    for name in ("examples_ybr_color.dcm", "SC_rgb_rle_16bit_2frame.dcm"):
        data, syntax = sample(name)
        found = read_attributes(data, syntax)
        place = pixel_place(found)
        assert place is not None

        async def read(offset: int, length: int, data: bytes = data) -> bytes:
            return data[offset : offset + length]

        places = await find_frames(read, place, syntax, found.frames, len(data))
        start, length = places.range(2)
        whole = await renderer.render(data, syntax, 2)
        pixels = places.stored(data[start : start + length])
        assert await renderer.render(data[: places.head_size], syntax, 2, pixels=pixels) == whole


@pytest.mark.requirement("F4")
async def test_a_bad_image_is_refused_and_the_next_one_is_drawn(renderer: Renderer) -> None:
    """Garbage, a missing frame and an absurd size are refused in words; the pool goes on."""
    data, syntax = sample("CT_small.dcm")
    with pytest.raises(Invalid, match="no frame 7") as refused:
        await renderer.render(data, syntax, 7)
    assert isinstance(refused.value.message, Sentence)
    assert refused.value.message.values == {"frame": 7, "frames": 1}
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


@pytest.mark.requirement("F4")
@pytest.mark.parametrize(
    ("limit", "greedy"),
    [
        ("CPU_SECONDS=1", "while True: pass"),
        ("MEMORY_BYTES=600*1024**2", "keep=[bytearray(1<<20) for _ in range(4000)]"),
        ("CPU_SECONDS=9", "import os; os.kill(os.getpid(), 9)"),
        ("CPU_SECONDS=9", "open('{written}','w').write('x')"),
    ],
    ids=["cpu", "memory", "killed", "file"],
)
async def test_a_worker_at_its_limit_is_refused_in_words_and_replaced(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, limit: str, greedy: str
) -> None:
    """Past its share of processor, memory or files a worker ends or gives up; the next picture is drawn."""
    written = tmp_path / "written"
    program = (
        f"import node.imaging.worker as worker; worker.{limit}\n"
        f"def greedy(job, data):\n    {greedy.format(written=written)}\n"
        "worker.JOBS['transcode'] = greedy; worker.main()"
    )
    monkeypatch.setattr(workers, "PROGRAM", ("-c", program))
    data, syntax = sample("CT_small.dcm")
    async with Renderer(1, deadline_seconds=10) as renderer:
        with pytest.raises((Invalid, Unavailable), match=r"memory|stopped|cannot be drawn"):
            await renderer.transcode(data, syntax, syntax)
        assert await renderer.render(data, syntax)
    assert not written.exists() or not written.stat().st_size


async def test_without_shared_memory_the_pipe_carries_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that has no anonymous memory draws the same pictures."""
    data, syntax = sample("CT_small.dcm")
    async with Renderer(1) as renderer:
        shared = await renderer.render(data, syntax)
    monkeypatch.setattr(Passage, "opened", lambda: None)
    async with Renderer(1) as renderer:
        assert await renderer.render(data, syntax) == shared


@pytest.mark.requirement("F4")
async def test_a_worker_cannot_write_what_it_was_given() -> None:
    """The worker's end of the passage is for reading; it can neither change nor cut the memory."""
    passage = Passage.opened()
    if passage is None:
        pytest.skip("this system has no anonymous memory")
    passage.put([b"abc", b"def"])

    assert os.pread(passage.reader, 10, 0) == b"abcdef"
    for attempt in (lambda fd: os.pwrite(fd, b"x", 0), lambda fd: os.ftruncate(fd, 0)):
        with pytest.raises(OSError):
            attempt(passage.reader)
    passage.close()
    with pytest.raises(OSError):
        passage.put([b"the number of the closed descriptor may be another file's"])


async def test_many_callers_share_few_workers() -> None:
    """Forty requests at once all get their picture from two workers."""
    data, syntax = sample("CT_small.dcm")
    async with Renderer(2) as renderer:
        pictures = await asyncio.gather(*(renderer.render(data, syntax, window=(n, 400)) for n in range(40)))

    assert len(set(pictures)) > 30


@pytest.mark.requirement("U6")
async def test_deidentification_in_a_worker_equals_the_engine(renderer: Renderer) -> None:
    """The confined path gives exactly what the engine gives, refusals included."""
    data, syntax = sample("CT_small.dcm")
    confined = await renderer.deidentify(data, syntax, project_key=b"k" * 32)
    refused = await renderer.deidentify(data, syntax, project_key=b"k" * 32, options=frozenset())
    report = await renderer.deidentify(b"\x08\x00\x05\x00CS\xff\xff", syntax, project_key=b"k" * 32)

    assert confined == Deidentifier(b"k" * 32).apply(data, syntax) == refused
    assert isinstance(report, Refusal)


async def test_what_a_decoder_prints_is_not_taken_for_an_answer() -> None:
    """In a worker, standard output leads nowhere; only its own answers reach the node."""
    program = (
        "import os; from node.imaging.worker import _answers; sink = _answers(); "
        "os.write(1, b'noise'); print('noise'); sink.write(b'answer'); sink.flush()"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, timeout=60)

    assert done.stdout == b"answer"
