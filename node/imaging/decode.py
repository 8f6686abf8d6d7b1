"""From data set bytes to the stored pixels of one frame. Runs in a rendering worker only.

Native decoders meet hostile bytes here, so nothing in this module is called in the node's own process:
`node.imaging.worker` sets memory and file limits first. Decoders come from pydicom's plug-ins
(gdcm, pylibjpeg, pyjpegls, pillow).
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_file_meta_info
from pydicom.pixels import pixel_array
from pydicom.uid import UID

from consent.errors import Invalid

MAX_PIXELS = 256 * 1024 * 1024
MAX_SIDE = 65_535


@dataclass(frozen=True)
class StoredFrame:
    """One frame as stored: `pixels` is (rows, columns) or (rows, columns, 3); `dataset` says what it means."""

    pixels: NDArray[Any]
    dataset: Dataset
    frame: int


def decode_frame(data: bytes, transfer_syntax: str, frame: int) -> StoredFrame:
    """Decode frame number `frame` (from 1). Raises Invalid when there is no such frame or no decoder."""
    dataset = read_dataset(data, transfer_syntax)
    rows, columns = _count(dataset, "Rows"), _count(dataset, "Columns")
    frames = max(1, _count(dataset, "NumberOfFrames", 1))
    if not 0 < rows <= MAX_SIDE or not 0 < columns <= MAX_SIDE or rows * columns > MAX_PIXELS:
        raise Invalid(f"This object has no picture to show ({rows} × {columns}).", code="no-pixels")
    if not 1 <= frame <= frames:
        raise Invalid(f"There is no frame {frame}; the instance has {frames}.", code="no-frame")
    try:
        pixels = pixel_array(dataset, index=frame - 1)
    except Exception as error:  # decoders raise whatever they like on hostile input
        raise Invalid(
            f"The pixels of this instance cannot be decoded ({type(error).__name__}).",
            mend="Ask the device's maker for a standard transfer syntax, or download the instance.",
            code="undecodable",
        ) from error
    return StoredFrame(np.asarray(pixels), dataset, frame)


def read_dataset(data: bytes, transfer_syntax: str) -> Dataset:
    """Parse data set bytes (no file meta) with the given transfer syntax; raises Invalid."""
    try:
        return dcmread(BytesIO(_file_meta(transfer_syntax) + data))
    except Exception as error:
        raise Invalid(f"The data set cannot be read ({type(error).__name__}).", code="unreadable") from error


def _file_meta(transfer_syntax: str) -> bytes:
    meta = Dataset()
    meta.TransferSyntaxUID = UID(transfer_syntax)
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    write_file_meta_info(buffer, meta, enforce_standard=False)
    return bytes(128) + b"DICM" + bytes(buffer.getvalue())


def _count(dataset: Dataset, keyword: str, default: int = 0) -> int:
    try:
        return int(dataset.get(keyword) or default)
    except (TypeError, ValueError):
        return default
