"""The same picture as an independent renderer makes: DCMTK's dcmj2pnm and dcml2pnm, within one grey level.

Over pydicom's own test files and over images built for each row of the table. Where the two differ by more, or DCMTK
cannot decode, the reason stands beside the name; what DCMTK lacks is held against pydicom's decoders.
"""

from __future__ import annotations

import io
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from node.imaging.decode import StoredFrame, decode_frame
from node.imaging.grayscale import modality_of, stored_values
from node.imaging.layout import GRAYSCALE
from node.imaging.part10 import read_part10
from node.imaging.presentation import present
from node.imaging.window import Window
from tests.support.dicom import BIG_ENDIAN, IMPLICIT, Instance
from tests.support.images import image, overlay, palette, table_item

pytestmark = [
    pytest.mark.requirement("F5"),
    pytest.mark.skipif(
        not (shutil.which("dcmj2pnm") and shutil.which("dcml2pnm")), reason="DCMTK is not installed"
    ),
]

FILES = [
    "CT_small.dcm",
    "ExplVR_BigEnd.dcm",
    "JPEG-lossy.dcm",
    "JPEGLSNearLossless_08.dcm",
    "JPEGLSNearLossless_16.dcm",
    "JPGExtended.dcm",
    "MR_small.dcm",
    "MR_small_RLE.dcm",
    "MR_small_bigendian.dcm",
    "MR_small_expb.dcm",
    "MR_small_implicit.dcm",
    "MR_small_jpeg_ls_lossless.dcm",
    "MR_small_padded.dcm",
    "SC_jpeg_no_color_transform.dcm",
    "SC_jpeg_no_color_transform_2.dcm",
    "SC_rgb_dcmtk_+eb+cr.dcm",
    "SC_rgb_dcmtk_+eb+cy+n1.dcm",
    "SC_rgb_dcmtk_+eb+cy+n2.dcm",
    "SC_rgb_dcmtk_+eb+cy+np.dcm",
    "SC_rgb_dcmtk_+eb+cy+s2.dcm",
    "SC_rgb_dcmtk_+eb+cy+s4.dcm",
    "SC_rgb_jls_lossy_line.dcm",
    "SC_rgb_jls_lossy_sample.dcm",
    "SC_rgb_jpeg_app14_dcmd.dcm",
    "SC_rgb_jpeg_dcmd.dcm",
    "SC_rgb_jpeg_dcmtk.dcm",
    "SC_rgb_jpeg_gdcm.dcm",
    "SC_rgb_jpeg_lossy_gdcm.dcm",
    "SC_rgb_rle.dcm",
    "SC_rgb_rle_16bit.dcm",
    "SC_rgb_rle_16bit_2frame.dcm",
    "SC_rgb_rle_2frame.dcm",
    "SC_rgb_rle_32bit.dcm",
    "SC_rgb_rle_32bit_2frame.dcm",
    "SC_rgb_small_odd.dcm",
    "SC_rgb_small_odd_big_endian.dcm",
    "SC_rgb_small_odd_jpeg.dcm",
    "badVR.dcm",
    "examples_overlay.dcm",
    "examples_palette.dcm",
    "examples_rgb_color.dcm",
    "examples_ybr_color.dcm",
    "image_dfl.dcm",
    "liver_1frame.dcm",
    "liver_expb_1frame.dcm",
    "rtdose_1frame.dcm",
    "rtdose_rle_1frame.dcm",
]
PYDICOM_ONLY = {
    "693_J2KI.dcm": "DCMTK has no JPEG 2000",
    "GDCMJ2K_TextGBR.dcm": "DCMTK has no JPEG 2000",
    "J2K_pixelrep_mismatch.dcm": "DCMTK has no JPEG 2000",
    "JPEG2000.dcm": "DCMTK has no JPEG 2000",
    "MR_small_jp2klossless.dcm": "DCMTK has no JPEG 2000",
    "SC_rgb_gdcm_KY.dcm": "DCMTK has no JPEG 2000",
    "examples_jpeg2k.dcm": "DCMTK has no JPEG 2000",
    "rtdose_expb_1frame.dcm": "DCMTK swaps OW in words of 16 bits also where a pixel has 32",
}
SLACK = {
    "YBR_FULL": 2,  # DCMTK adds two chrominances that were each cut to whole numbers: up to 1.9 levels off
    "YBR_FULL_422": 2,
    "YBR_PARTIAL_422": 2,
}

RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)
SIGNED = (RAMP.astype(np.int32) - 2048).astype(np.int16)
EIGHT = np.arange(256, dtype=np.uint8).reshape(16, 16)
COLOURS = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)
TWELVE: dict[str, Any] = {"BitsStored": 12, "HighBit": 11}
PLANE = np.zeros((10, 12), bool)
PLANE[2:5, 3:9] = True
WIDE = Window(1000, 700)
BY_HAND = ("+Ww", "1000", "700")


def _embedded() -> Dataset:
    ds = Dataset()
    for number, vr, value in (
        (0x10, "US", 64), (0x11, "US", 64), (0x40, "CS", "G"), (0x50, "SS", [1, 1]), (0x100, "US", 16), (0x102, "US", 15),
    ):  # fmt: skip
        ds.add_new(0x60000000 | number, vr, value)
    return ds


def _grey(cells: np.ndarray = RAMP, **more: Any) -> Instance:
    return image(cells, **{**TWELVE, **more})


def _colour(photometric: str, cells: np.ndarray = COLOURS, **more: Any) -> Instance:
    return image(cells, samples=3, PhotometricInterpretation=photometric, **more)


def _palette(cells: np.ndarray, extra: Dataset) -> Instance:
    return image(cells, PhotometricInterpretation="PALETTE COLOR", extra=extra)


_RANDOM = np.random.default_rng(2).integers(0, 65536, (200, 3))
_MODALITY = Sequence([table_item(0, 4095 - np.arange(4096), ModalityLUTType="US")])
_VOI = Sequence([table_item(-100, np.arange(300) ** 2 % 65536, LUTExplanation="STEEP")])
_TWO = {"WindowCenter": ["100", "2000"], "WindowWidth": ["50", "3000"]}
_MARKED = RAMP.copy()
_MARKED[10:20, 5:25] |= 0x8000
_STACK = np.stack([RAMP, RAMP[::-1], RAMP.T])
BUILT: dict[str, tuple[Instance, tuple[str, ...], dict[str, Any]]] = {
    "linear": (_grey(), BY_HAND, {"window": WIDE}),
    "linear, width 1": (_grey(), ("+Ww", "1000", "1"), {"window": Window(1000, 1)}),
    "linear, width 2": (_grey(), ("+Ww", "1000", "2"), {"window": Window(1000, 2)}),
    "sigmoid": (_grey(), (*BY_HAND, "+Wfs"), {"window": Window(1000, 700, "SIGMOID")}),
    "implicit": (_grey(syntax=IMPLICIT), BY_HAND, {"window": WIDE}),
    "big endian": (_grey(syntax=BIG_ENDIAN), BY_HAND, {"window": WIDE}),
    "MONOCHROME1": (_grey(PhotometricInterpretation="MONOCHROME1"), BY_HAND, {"window": WIDE}),
    "MONOCHROME1, INVERSE": (
        _grey(PhotometricInterpretation="MONOCHROME1", PresentationLUTShape="INVERSE"), BY_HAND, {"window": WIDE}
    ),
    "MONOCHROME2, INVERSE": (_grey(PresentationLUTShape="INVERSE"), BY_HAND, {"window": WIDE}),
    "signed, rescaled": (
        image(SIGNED, RescaleSlope="2.5", RescaleIntercept="-1000"), ("+Ww", "40", "4000"), {"window": Window(40, 4000)}
    ),
    "signed, 12 bits": (
        _grey(SIGNED.view(np.uint16) & 0xFFF, PixelRepresentation=1), ("+Ww", "40", "2000"), {"window": Window(40, 2000)}
    ),
    "high bit 15": (_grey((RAMP << 4).astype(np.uint16), HighBit=15), BY_HAND, {"window": WIDE}),
    "second window": (_grey(**_TWO), ("+Wi", "2"), {"preset": 2}),
    "VOI LUT": (
        _grey(RescaleIntercept="-1000", RescaleSlope="1", VOILUTSequence=_VOI), ("+Wl", "1"), {"preset": "STEEP"}
    ),
    "modality LUT": (_grey(ModalityLUTSequence=_MODALITY), BY_HAND, {"window": WIDE}),
    "8 bits": (image(EIGHT), (), {}),
    "32 bits": (
        image(RAMP.astype(np.uint32) * 1_000_003), ("+Ww", "2000000000", "3000000000"), {"window": Window(2e9, 3e9)}
    ),
    "32 bits, signed": (
        image((RAMP.astype(np.int64) * 1_000_003 - 2**31).astype(np.int32)),
        ("+Ww", "0", "3000000000"),
        {"window": Window(0, 3e9)},
    ),
    "frame 2": (_grey(_STACK), BY_HAND, {"window": WIDE, "frame": 2}),
    "1 bit, frame 2": (
        image(_STACK[:, :7, :9] & 1, BitsAllocated=1, BitsStored=1, HighBit=0),
        ("+Ww", "0.5", "1"),
        {"window": Window(0.5, 1), "frame": 2},
    ),
    "planar": (_colour("RGB", PlanarConfiguration=1), (), {}),
    "16-bit colour": (_colour("RGB", COLOURS.astype(np.uint16) * 257), (), {}),
    "YBR_FULL": (_colour("YBR_FULL"), (), {}),
    "YBR_FULL, planar": (_colour("YBR_FULL", PlanarConfiguration=1), (), {}),
    "YBR_FULL_422": (_colour("YBR_FULL_422", COLOURS[:, :20], Columns=30), (), {}),
    "YBR_PARTIAL_422": (_colour("YBR_PARTIAL_422", COLOURS[:, :20], Columns=30), (), {}),
    "palette, 16 bits": (_palette(EIGHT, palette(_RANDOM, first=20)), (), {}),
    "palette, 8 bits": (_palette(EIGHT, palette(_RANDOM >> 8, first=20, bits=8)), (), {}),
    "palette, 4096 colours": (_palette(RAMP, palette(np.tile(_RANDOM, (21, 1))[:4096])), (), {}),
    "overlay": (_grey(extra=overlay(PLANE, origin=(5, 7))), BY_HAND, {"window": WIDE, "overlays": True}),
    "overlay, half outside": (
        _grey(extra=overlay(PLANE, origin=(-3, 60))), BY_HAND, {"window": WIDE, "overlays": True}
    ),
    "overlay of frame 3": (
        _grey(_STACK, extra=overlay(np.stack([PLANE, ~PLANE]), frame_origin=2)),
        BY_HAND,
        {"window": WIDE, "overlays": True, "frame": 3},
    ),
    "overlay in pixels": (_grey(_MARKED, extra=_embedded()), BY_HAND, {"window": WIDE, "overlays": True}),
}  # fmt: skip


def path_of(name: str) -> Path:
    return Path(str(get_testdata_file(name, download=False)))


def stored(path: Path) -> StoredFrame:
    raw = path.read_bytes()
    head = read_part10(raw)
    return decode_frame(raw[head.dataset_offset :], head.transfer_syntax_uid, 1)


def dcmtk(path: Path, *options: str) -> np.ndarray:
    tool = (
        "dcml2pnm" if "JPEGLS" in path.name or "_jls_" in path.name or "jpeg_ls" in path.name else "dcmj2pnm"
    )
    done = subprocess.run([tool, "+op", *options, str(path)], capture_output=True, check=True, timeout=60)
    return np.asarray(Image.open(io.BytesIO(done.stdout)))


def assert_alike(ours: np.ndarray, theirs: np.ndarray, levels: int = 1) -> None:
    assert ours.shape == theirs.shape
    assert int(np.abs(ours.astype(int) - theirs.astype(int)).max()) <= levels


@pytest.mark.parametrize("name", FILES)
def test_sample_files_look_as_dcmtk_draws_them(name: str) -> None:
    """Decoded, windowed over all their values, without overlays."""
    frame = stored(path_of(name))
    if frame.layout.photometric not in GRAYSCALE:
        assert_alike(present(frame, overlays=False), dcmtk(path_of(name), "-O"))
        return
    values = modality_of(frame.header, 1, frame.layout).outputs(stored_values(frame.cells, frame.layout))
    low, high = float(values.min()), float(values.max())
    window = Window((low + high) / 2, max(high - low, 2.0))
    options = ("-O", "+Ww", str(window.centre), str(window.width))
    assert_alike(present(frame, window, overlays=False), dcmtk(path_of(name), *options))


@pytest.mark.parametrize("name", PYDICOM_ONLY)
def test_what_dcmtk_lacks_decodes_as_pydicom_does(name: str) -> None:
    """JPEG 2000 and other files that DCMTK does not draw, by their stored values."""
    frame = stored(path_of(name))
    theirs = pydicom.pixels.pixel_array(path_of(name), index=0)
    grey = frame.layout.photometric in GRAYSCALE
    ours = stored_values(frame.cells, frame.layout) if grey else present(frame)

    assert (ours == theirs).all()


@pytest.mark.parametrize("name", BUILT)
def test_built_images_look_as_dcmtk_draws_them(name: str, tmp_path: Path) -> None:
    """One image for each row of what is rendered."""
    one, options, choice = BUILT[name]
    frame = choice.get("frame", 1)
    path = tmp_path / "image.dcm"
    path.write_bytes(one.file())
    decoded = decode_frame(one.data, one.transfer_syntax_uid, frame)
    ours = present(decoded, **{key: value for key, value in choice.items() if key != "frame"})

    assert_alike(ours, dcmtk(path, "+F", str(frame), *options), SLACK.get(decoded.layout.photometric, 1))


def test_dcmtk_lets_a_presentation_lut_shape_outweigh_monochrome1(tmp_path: Path) -> None:
    """A known difference: MONOCHROME1 with IDENTITY contradicts itself (PS3.3 C.8.11.3); here MONOCHROME1 holds."""
    one = _grey(PhotometricInterpretation="MONOCHROME1", PresentationLUTShape="IDENTITY")
    path = tmp_path / "image.dcm"
    path.write_bytes(one.file())
    ours = present(decode_frame(one.data, one.transfer_syntax_uid, 1), WIDE)

    assert_alike(255 - ours, dcmtk(path, *BY_HAND))
