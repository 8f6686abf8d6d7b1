"""The presentation pipeline, step by step: what the standard says a display shows, and what no display can show."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.data import get_palette_files
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from consent.errors import Invalid
from node.imaging.colour import draw_colour
from node.imaging.decode import StoredFrame, decode_frame
from node.imaging.grayscale import modality_of, presets_of, stored_values
from node.imaging.overlays import planes_of
from node.imaging.presentation import present
from node.imaging.window import Window
from tests.support.dicom import BIG_ENDIAN, EXPLICIT, IMPLICIT, Instance
from tests.support.images import groups, image, overlay, palette, segmented_palette, table_item

pytestmark = pytest.mark.requirement("F5")
RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)


def stored(one: Instance, frame: int = 1) -> StoredFrame:
    return decode_frame(one.data, one.transfer_syntax_uid, frame)


def drawn(one: Instance, frame: int = 1, **choice: Any) -> np.ndarray:
    return present(stored(one, frame), **choice)


def by_the_book(value: float, window: Window) -> float:
    """The pseudo-code of PS3.3 C.11.2.1.2 for an output from 0 to 255."""
    c, w = window.centre, window.width
    if window.function == "SIGMOID":
        return 255 / (1 + math.exp(min(700, -4 * (value - c) / w)))
    if window.function == "LINEAR_EXACT":
        if value <= c - w / 2:
            return 0
        return 255 if value > c + w / 2 else ((value - c) / w + 0.5) * 255
    if value <= c - 0.5 - (w - 1) / 2:
        return 0
    if value > c - 0.5 + (w - 1) / 2:
        return 255
    return ((value - (c - 0.5)) / (w - 1) + 0.5) * 255


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("centre", "width"), [(2048, 4096), (40.5, 401), (1000, 1), (0, 2), (-100, 300.25)])
def test_windows_follow_the_standard(function: str, centre: float, width: float) -> None:
    """Every value becomes what the standard's own text computes, rounded."""
    window = Window(centre, width, function)
    picture = drawn(image(RAMP), window=window)
    expected = np.array([by_the_book(value, window) for value in range(4096)]).reshape(64, 64)

    assert np.abs(picture - expected).max() <= 0.5 + 1e-9


def test_rescale_comes_before_the_window_and_polarity_last() -> None:
    """The window is in modality units; MONOCHROME1 turns round what it gives."""
    cells = np.array([[24, 1064, 3000]], np.uint16)
    rescaled = {"RescaleSlope": "1", "RescaleIntercept": "-1024", "WindowCenter": "40", "WindowWidth": "400"}

    assert drawn(image(cells, **rescaled)).tolist() == [[0, 128, 255]]
    inverse = image(cells, PhotometricInterpretation="MONOCHROME1", **rescaled)
    assert drawn(inverse).tolist() == [[255, 127, 0]]
    same_said_twice = image(
        cells, PhotometricInterpretation="MONOCHROME1", PresentationLUTShape="INVERSE", **rescaled
    )
    assert drawn(same_said_twice).tolist() == [[255, 127, 0]]


def test_a_voi_lut_goes_before_windows_and_a_person_chooses() -> None:
    """Presets count VOI LUTs first, then windows; each is drawn by number or name."""
    steep = table_item(0, np.linspace(0, 65535, 100).astype(int), LUTExplanation="STEEP")
    one = image(
        RAMP, VOILUTSequence=Sequence([steep]), WindowCenter=["2048", "50"], WindowWidth=["4096", "100"]
    )
    first = stored(one)

    assert [preset.explanation for preset in presets_of(first.header, 1, first.layout)] == ["STEEP", "", ""]
    assert drawn(one)[1, 40] == 255
    assert (drawn(one, preset=2) == drawn(one, window=Window(2048, 4096))).all()
    assert (drawn(one, preset="STEEP") == drawn(one)).all()
    with pytest.raises(Invalid, match="no such window"):
        drawn(one, preset=4)


def test_a_modality_lut_maps_stored_values() -> None:
    """PS3.3 C.11.1: values before the first entry and behind the last become that entry."""
    one = image(
        np.array([[0, 10, 11, 12, 500]], np.uint16),
        ModalityLUTSequence=Sequence([table_item(10, np.array([7, 100, 200]), ModalityLUTType="US")]),
    )
    frame = stored(one)

    modality = modality_of(frame.header, 1, frame.layout)
    assert modality.outputs(frame.cells).tolist() == [[7, 7, 100, 200, 200]]


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG_ENDIAN])
def test_stored_values_are_what_was_stored(syntax: str) -> None:
    """Sign, unused bits, position of the high bit and byte order do not change a value."""
    values = np.array([[-2048, -1], [0, 2047]])
    twelve = (values & 0xFFF).astype(np.uint16)
    for cells, more in (
        (twelve, {"BitsStored": 12, "HighBit": 11, "PixelRepresentation": 1}),
        (twelve | 0xF000, {"BitsStored": 12, "HighBit": 11, "PixelRepresentation": 1}),
        (twelve << 4, {"BitsStored": 12, "HighBit": 15, "PixelRepresentation": 1}),
        (values.astype(np.int16), {}),
        (values.astype(np.int32), {}),
        (values.astype(np.int64), {}),
    ):
        frame = stored(image(cells, syntax=syntax, **more))
        assert stored_values(frame.cells, frame.layout).tolist() == values.tolist()


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_floating_pixels_are_drawn_and_what_is_no_number_is_black(kind: type) -> None:
    """Float and Double Float Pixel Data (PS3.3 C.7.6.24, C.7.6.25)."""
    one = image(np.array([[-1.5, 0.0, 1.5, np.nan, np.inf]], kind))

    assert drawn(one, window=Window(0, 2, "LINEAR_EXACT")).tolist() == [[0, 128, 255, 0, 255]]
    assert drawn(one)[0, [0, 2]].tolist() == [0, 255]


def test_frames_of_enhanced_images_have_their_own_meaning() -> None:
    """Pixel Value Transformation and Frame VOI LUT are read per frame, else from what is shared."""

    def group(slope: str, centre: str | None) -> Dataset:
        ds, change = Dataset(), Dataset()
        change.RescaleSlope, change.RescaleIntercept = slope, "0"
        ds.PixelValueTransformationSequence = Sequence([change])
        if centre is not None:
            window = Dataset()
            window.WindowCenter, window.WindowWidth = centre, "100"
            ds.FrameVOILUTSequence = Sequence([window])
        return ds

    shared = group("1", "1000")
    del shared.PixelValueTransformationSequence
    cells = np.full((3, 2, 2), 100, np.uint16)
    one = image(cells, extra=groups(shared, [group("1", "100"), group("2", "100"), group("10", None)]))

    assert [int(drawn(one, number)[0, 0]) for number in (1, 2, 3)] == [129, 255, 129]


def test_without_a_window_the_image_itself_says_what_to_show() -> None:
    """8 bits are shown as they are; deeper images by their values, padding left out."""
    eight = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert (drawn(image(eight)) == eight).all()

    deep = np.repeat(np.linspace(1000, 1999, 1000).astype(np.int16), 4).reshape(40, 100)
    deep[:10] = -2000
    padded = image(deep, PixelPaddingValue=-2000)
    assert drawn(padded)[10:, 50].std() > 50
    wide = drawn(image(deep.astype(np.int32)))
    assert (drawn(image(deep)) == wide).mean() > 0.99
    flat = drawn(image(np.full((4, 4), 7, np.uint16)))
    assert flat.min() == flat.max()


def test_x_ray_angiography_is_shown_without_its_modality_transformation() -> None:
    """For XA and XRF it leads back to the detector, for measuring (PS3.3 C.8.7.1.1.2)."""
    more = {"RescaleSlope": "4", "WindowCenter": "128", "WindowWidth": "256"}
    cells = np.array([[64]], np.uint8)
    plain = drawn(image(cells, **more))
    x_ray = image(cells, SOPClassUID="1.2.840.10008.5.1.4.1.1.12.1", PixelIntensityRelationship="LOG", **more)

    assert (plain[0, 0], drawn(x_ray)[0, 0]) == (255, 64)


@pytest.mark.parametrize("name", ["spring", "summer", "fall", "winter"])
def test_segmented_palettes_of_the_standard_expand(name: str) -> None:
    """The well-known palettes of PS3.6 Annex B, 8-bit segments, as an independent reader expands them."""
    ds = pydicom.dcmread(get_palette_files(f"{name}.dcm")[0])
    extra = Dataset()
    for tag in (*range(0x00281101, 0x00281104), *range(0x00281221, 0x00281224)):
        extra.add(ds[tag])
    cells = np.arange(256, dtype=np.uint8).reshape(16, 16)
    one = image(cells, PhotometricInterpretation="PALETTE COLOR", extra=extra)

    assert (drawn(one) == pydicom.pixels.apply_color_lut(cells, ds)).all()


def test_indirect_segments_repeat_earlier_ones() -> None:
    """Discrete, linear and indirect segments of 16 bits (PS3.3 C.7.9.2); the offset counts bytes."""
    words = [0, 2, 0, 25600, 1, 4, 51200, 2, 2, 0, 0]
    one = image(
        np.arange(12, dtype=np.uint8).reshape(3, 4),
        PhotometricInterpretation="PALETTE COLOR",
        extra=segmented_palette(words, 12),
    )

    assert drawn(one)[..., 0].ravel().tolist() == [0, 100, 125, 150, 175, 200] * 2


@pytest.mark.parametrize(
    "words",
    [
        [1, 10, 500],
        [0, 10, 5],
        [0, 1, 5, 2, 1, 6, 0],
        [0, 1, 5, 2, 9, 4000, 9],
        [7, 1, 5],
        [0, 0, 0, 0, 0, 0],
        [0, 1, 5, 2],
        [0, 1, 5],
    ],
    ids=["linear first", "cut", "indirect to itself", "outside", "unknown", "empty", "half", "too few"],
)
@pytest.mark.parametrize("bits", [8, 16])
def test_broken_segments_are_refused(words: list[int], bits: int) -> None:
    """A palette that cannot be expanded has no colours; nothing loops or recurses."""
    narrow = [word % 256 for word in words]
    one = image(
        np.zeros((2, 2), np.uint8),
        PhotometricInterpretation="PALETTE COLOR",
        extra=segmented_palette(words if bits > 8 else narrow, 256, bits=bits),
    )
    with pytest.raises(Invalid) as caught:
        drawn(one)
    assert caught.value.code == "lut"


def test_a_supplemental_palette_colours_what_it_covers() -> None:
    """PS3.3 C.7.6.19: values in the palette are coloured, the others stay grey."""
    one = image(
        np.array([[10, 200, 201]], np.uint8),
        PixelPresentation="MIXED",
        extra=palette(np.array([[255, 0, 0], [0, 255, 0]]), first=200, bits=8),
    )

    assert drawn(one).tolist() == [[[10, 10, 10], [255, 0, 0], [0, 255, 0]]]


@pytest.mark.parametrize(
    "extra",
    [
        palette(np.zeros((4, 3), int), bits=0),
        Dataset(),
        {"words": 5000},
    ],
    ids=["no bits", "no palette", "longer than it is"],
)
def test_broken_palettes_and_tables_are_refused(extra: Any) -> None:
    """What maps values to colours or units must be whole; a broken VOI LUT alone is passed over."""
    if isinstance(extra, dict):
        short = Sequence([table_item(0, np.arange(10), **extra)])
        assert drawn(image(RAMP, VOILUTSequence=short)).any()
        one = image(RAMP, ModalityLUTSequence=short)
    else:
        one = image(RAMP, PhotometricInterpretation="PALETTE COLOR", extra=extra)
    with pytest.raises(Invalid) as caught:
        drawn(one)
    assert caught.value.code == "lut"


def test_windows_that_make_no_sense_are_passed_over() -> None:
    """No width, no number, or half of one: the image's values say what to show."""
    plain = drawn(image(RAMP))
    for centre, width in (("40", "0"), ("40", "-1"), ("x", "400"), ("1e400", "1"), ("40", None)):
        extra = Dataset()
        extra.add_new(0x00281050, "LO", centre)
        if width is not None:
            extra.add_new(0x00281051, "LO", width)
        assert (drawn(image(RAMP, extra=extra)) == plain).all(), (centre, width)


def test_overlays_are_drawn_where_they_lie_and_cut_where_they_end() -> None:
    """Origin from 1; a plane half outside is cut, one wholly outside or broken hides nothing."""
    bits = np.ones((4, 4), bool)
    black = np.zeros((8, 8), np.uint8)

    inside = drawn(image(black, extra=overlay(bits, origin=(3, 2))))
    assert np.argwhere(inside).min(0).tolist() == [2, 1] and int((inside == 255).sum()) == 16
    corner = drawn(image(black, extra=overlay(bits, origin=(-1, 7))))
    assert np.argwhere(corner).tolist() == [[0, 6], [0, 7], [1, 6], [1, 7]]
    for origin in ((20, 1), (-30000, 30000)):
        assert not drawn(image(black, extra=overlay(bits, origin=origin))).any()
    broken = overlay(bits)
    broken[0x60000010].value = 60000
    assert not drawn(image(black, extra=broken)).any()


def test_overlays_of_several_frames_and_in_unused_bits() -> None:
    """Image Frame Origin says over which frame a plane lies; old planes lie in bits that no value uses."""
    planes = np.zeros((2, 3, 3), bool)
    planes[0, 0, 0] = planes[1, 2, 2] = True
    one = image(np.zeros((4, 3, 3), np.uint8), extra=overlay(planes, frame_origin=2))
    found = [np.argwhere(drawn(one, number)).tolist() for number in (1, 2, 3, 4)]
    assert found == [[], [[0, 0]], [[2, 2]], []]

    cells = np.zeros((3, 3), np.uint16)
    cells[1, 1] = 0x8000
    old = Dataset()
    for number, value in ((0x10, 3), (0x11, 3), (0x100, 16), (0x102, 15)):
        old.add_new(0x60000000 | number, "US", value)
    embedded = image(cells, BitsStored=12, HighBit=11, extra=old, WindowCenter="100", WindowWidth="200")
    assert np.argwhere(drawn(embedded)).tolist() == [[1, 1]]
    used = image(cells, extra=old, WindowCenter="100", WindowWidth="200")
    assert not list(planes_of(stored(used)))


def test_ybr_and_planes_become_rgb() -> None:
    """PS3.3 C.7.6.3.1.2, within half a level of its equations."""
    rng = np.random.default_rng(7)
    ybr = rng.integers(0, 256, (9, 10, 3), dtype=np.uint8)
    equations = np.array([[1, 0, 1.402], [1, -0.344136, -0.714136], [1, 1.772, 0]])
    expected = np.clip((ybr.astype(float) - [0, 128, 128]) @ equations.T, 0, 255)
    for planar in (0, 1):
        one = image(ybr, samples=3, PhotometricInterpretation="YBR_FULL", PlanarConfiguration=planar)
        assert np.abs(draw_colour(stored(one)) - expected).max() <= 1.0
    shared = image(ybr[:, :8], samples=3, PhotometricInterpretation="YBR_FULL_422", Columns=12)
    assert drawn(shared).shape == (9, 12, 3)
    flat = image(np.full((2, 2, 3), (16, 128, 128), np.uint8)[:, :, :], samples=3)
    assert drawn(flat).tolist() == [[[16, 128, 128]] * 2] * 2


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"Rows": 0}, "no-pixels"),
        ({"Rows": 65535, "Columns": 65535}, "no-pixels"),
        ({"Rows": 4000}, "short-pixels"),
        ({"NumberOfFrames": 2}, "short-pixels"),
        ({"BitsAllocated": 12}, "bits"),
        ({"BitsStored": 17}, "bits"),
        ({"HighBit": 16}, "bits"),
        ({"HighBit": 3}, "bits"),
        ({"PhotometricInterpretation": "HSV"}, "photometric"),
        ({"PhotometricInterpretation": "RGB"}, "photometric"),
        ({"SamplesPerPixel": 4}, "photometric"),
    ],
    ids=str,
)
def test_images_that_lie_about_their_pixels_are_refused(more: dict[str, Any], code: str) -> None:
    """Every number is held against its bound and against the bytes that are there."""
    with pytest.raises(Invalid) as caught:
        stored(image(RAMP, **more), 2 if "NumberOfFrames" in more else 1)
    assert caught.value.code == code


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=40), st.floats(0, 1), st.sampled_from([EXPLICIT, IMPLICIT]))
def test_noise_in_an_image_never_does_more_than_be_refused(noise: bytes, part: float, syntax: str) -> None:
    """Any bytes anywhere: a picture of some shape, or Invalid."""
    one = image(
        RAMP[:4],
        syntax=syntax,
        VOILUTSequence=Sequence([table_item(0, np.arange(20))]),
        extra=overlay(np.ones((4, 4), bool)),
    )
    at = int(part * len(one.data))
    data = one.data[:at] + noise + one.data[at + len(noise) :]
    try:
        picture = present(decode_frame(data, syntax, 1))
    except Invalid:
        return
    assert picture.dtype == np.uint8
