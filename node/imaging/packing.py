"""Lossless compressions that pydicom has no encoder for: JPEG Lossless SV1 and High-Throughput JPEG 2000 (PS3.5 §8.2.1, §8.2.14).

`pack` turns the uncompressed pixels of a data set into code streams, one for each frame, in place. Every bit of the pixel cells
is kept, also those above Bits Stored: a stream's precision is Bits Allocated wherever fewer would lose some. No
colour transformation is made, so that the Photometric Interpretation stays. Runs in a rendering worker only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID

from consent.errors import Invalid

from .syntaxes import HTJ2K, JPEG_LOSSLESS

_SINGLE = frozenset({"MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"})
_TRIPLE = frozenset({"RGB", "YBR_FULL"})
_NARROWEST_WORD = 9
"""Fewest bits that a lossless JPEG stream of 16-bit cells is written with."""

Cells = NDArray[Any]


def pack(dataset: Dataset, target: str) -> None:
    """Compress PixelData, which is in little endian, into `target`. Raises Invalid for pixels that it has no place for."""
    encode = _ENCODERS[target]
    cells = _cells(dataset)
    bits = int(dataset.BitsStored)
    streams = [encode(frame, bits, str(dataset.PhotometricInterpretation)) for frame in cells]
    dataset.PixelData = encapsulate(streams)
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    if int(dataset.SamplesPerPixel) > 1:
        dataset.PlanarConfiguration = 0
    dataset.file_meta.TransferSyntaxUID = UID(target)


def _cells(dataset: Dataset) -> Cells:
    """(frames, rows, columns), or (frames, rows, columns, 3): the cells as they lie, in whole bytes or words."""
    samples, allocated = int(dataset.SamplesPerPixel), int(dataset.BitsAllocated)
    kinds = _SINGLE if samples == 1 else _TRIPLE if samples == 3 else frozenset[str]()
    if allocated not in (8, 16) or dataset.PhotometricInterpretation not in kinds:
        raise _no_place()
    frames, rows, columns = int(dataset.get("NumberOfFrames") or 1), int(dataset.Rows), int(dataset.Columns)
    sign = "i" if dataset.PixelRepresentation else "u"
    count = frames * rows * columns * samples
    flat = np.frombuffer(dataset.PixelData, f"<{sign}{allocated // 8}", count)
    if samples == 1:
        return flat.reshape(frames, rows, columns)
    if dataset.get("PlanarConfiguration"):
        return np.moveaxis(flat.reshape(frames, samples, rows, columns), 1, 3)
    return flat.reshape(frames, rows, columns, samples)


def _jpeg_lossless(frame: Cells, bits_stored: int, photometric: str) -> bytes:
    """ITU-T T.81 process 14, selection value 1. Its samples have no sign: a signed cell goes in as its bits are."""
    width = frame.itemsize * 8
    # A JFIF head would make readers turn YBR round, and GDCM ends itself over bytes with unused bits.
    if photometric == "YBR_FULL" or (width == 8 and bits_stored < width):
        raise _no_place()
    bare = np.ascontiguousarray(frame).view(f"u{frame.itemsize}")
    fits = frame.dtype.kind == "u" and not int(bare.max()) >> bits_stored
    precision = max(bits_stored, _NARROWEST_WORD) if width == 16 and fits else width
    space = None if frame.ndim == 2 else "RGB"
    return bytes(
        imagecodecs.jpeg8_encode(
            bare, lossless=True, predictor=1, bitspersample=precision, colorspace=space, outcolorspace=space
        )
    )


def _htj2k(frame: Cells, bits_stored: int, photometric: str) -> bytes:
    """ITU-T T.814, reversible, with precision and sign of the cells."""
    rgb = None if frame.ndim == 2 else False
    return bytes(imagecodecs.htj2k_encode(np.ascontiguousarray(frame), reversible=True, rgb=rgb))


def _no_place() -> Invalid:
    return Invalid(
        "The pixels of this image do not go into that compression.",
        mend="Ask for uncompressed little endian, or for the transfer syntax in which it is stored.",
        code="not-acceptable",
    )


_ENCODERS: dict[str, Callable[[Cells, int, str], bytes]] = {JPEG_LOSSLESS: _jpeg_lossless, HTJ2K: _htj2k}
PACKED_HERE = frozenset(_ENCODERS)
