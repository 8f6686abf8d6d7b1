"""From data set bytes to the stored pixels of one frame. Runs in a rendering worker only.

Native decoders meet hostile bytes here, so nothing in this module is called in the node's own process:
`node.imaging.worker` sets memory and file limits first. Leaves code streams to `codecs`, meaning to `presentation`.
A frame may come cut out of its data set (`frames`), so that a long instance is not read whole for each of its frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from consent.errors import Invalid, Sentence
from node.imaging.codecs import Decoded, decode_stream
from node.imaging.elements import UNDEFINED, Buffer, encoding_of, inflate
from node.imaging.frames import encapsulated_frame, extended_table
from node.imaging.header import Header
from node.imaging.layout import SUBSAMPLED, PixelLayout
from node.imaging.part10 import part10_head

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

MAX_INFLATED_BYTES = 512 * 1024 * 1024
_ENCAPSULATED_NATIVE = "1.2.840.10008.1.2.1.98"


@dataclass(frozen=True)
class StoredFrame:
    """One frame as stored: `header` says what it means, `layout` how `cells` are.

    `cells` is (rows, columns) or (rows, columns, 3), unsigned or floating: of an integer, bits outside Bits Stored
    are still there (old overlays lie in them) and a sign is not yet one. `rgb` when YBR was undone by the decoder.
    """

    cells: NDArray[Any]
    layout: PixelLayout
    header: Header
    frame: int
    rgb: bool = False


def decode_frame(data: Buffer, transfer_syntax: str, frame: int, pixels: Buffer | None = None) -> StoredFrame:
    """Decode frame number `frame` (from 1). Raises Invalid when there is no such frame or no decoder.

    With `pixels`, those are the stored bytes of this frame alone and `data` ends where the pixel value begins.
    """
    encoding = encoding_of(transfer_syntax)
    if encoding.deflated:
        data = _inflated(data)
    # Frames of one instance come with the same head again and again, and a long head takes long to read.
    header = Header.of(data, transfer_syntax) if pixels is None else _read_again(bytes(data), transfer_syntax)
    if header.pixels is None:
        raise Invalid("This object has no picture to show.", code="no-pixels")
    layout = PixelLayout.of(header)
    if not 1 <= frame <= layout.frames:
        raise Invalid(
            Sentence(
                "There is no frame %(frame)s; the instance has %(frames)s.", frame=frame, frames=layout.frames
            ),
            code="no-frame",
        )
    encapsulated = header.pixels.length == UNDEFINED
    if encapsulated != encoding.encapsulated:
        raise Invalid("The pixels are not encoded as the transfer syntax says.", code="undecodable")
    if not encapsulated:
        decoded = _native(_native_bytes(data, header, layout, frame, pixels), layout, frame)
        return StoredFrame(decoded.cells, layout, header, frame)
    if pixels is None:
        start = header.pixels.start
        pixels = encapsulated_frame(data, start, layout.frames, frame, extended_table(header))
    if transfer_syntax == _ENCAPSULATED_NATIVE:
        decoded = _native(pixels, layout, 1)
    else:
        decoded = decode_stream(bytes(pixels), layout, transfer_syntax)
    return StoredFrame(_unsigned(decoded.cells, layout), layout, header, frame, decoded.rgb)


def read_dataset(data: bytes, transfer_syntax: str) -> Dataset:
    """Parse data set bytes (no file meta) with the given transfer syntax, as pydicom does; raises Invalid."""
    from pydicom import dcmread

    try:
        return dcmread(BytesIO(part10_head("1.2.3", "1.2.3", transfer_syntax) + data))
    except Exception as error:
        raise Invalid(
            Sentence("The data set cannot be read (%(fault)s).", fault=type(error).__name__),
            code="unreadable",
        ) from error


@lru_cache(maxsize=1)
def _read_again(head: bytes, transfer_syntax: str) -> Header:
    return Header.of(head, transfer_syntax)


def _inflated(data: Buffer) -> bytes:
    found, whole = inflate(data, MAX_INFLATED_BYTES)
    if not whole:
        raise Invalid("This deflated instance is too large to be drawn.", code="inflates-too-far")
    return found


def _native_bytes(
    data: Buffer, header: Header, layout: PixelLayout, frame: int, pixels: Buffer | None
) -> Buffer:
    first, length, _ = layout.native_place(frame)
    if pixels is None:
        assert header.pixels is not None
        start = header.pixels.start + first
        last = min(start + length, header.pixels.start + header.pixels.length)
        pixels = memoryview(data)[start:last]
    if len(pixels) < length:
        raise Invalid(
            "The instance has fewer pixels than it says.", mend="Download the instance.", code="short-pixels"
        )
    return memoryview(pixels)[:length]


def _native(stored: Buffer, layout: PixelLayout, frame: int) -> Decoded:
    """Uncompressed pixels (PS3.5 §8.1, §8.2): cells by byte order, planes and shared chrominance put in place."""
    rows, columns, samples = layout.rows, layout.columns, layout.samples
    _, length, skip = layout.native_place(frame)
    if len(stored) < length:
        raise Invalid("The instance has fewer pixels than it says.", code="short-pixels")
    stored = memoryview(stored)[:length]
    if layout.words:
        swapped = np.frombuffer(stored, "<u2").byteswap()
        stored = memoryview(swapped.tobytes())
    if layout.bits_allocated == 1:
        count = rows * columns
        bits = np.unpackbits(np.frombuffer(stored, np.uint8), count=skip + count, bitorder="little")
        return Decoded(bits[skip:].reshape(rows, columns))
    if skip:
        stored = stored[skip // 8 :]
    kind = f"{'f' if layout.floating else 'u'}{layout.bits_allocated // 8}"
    order = ">" if layout.big_endian else "<"
    count = layout.frame_bits // layout.bits_allocated
    cells = np.frombuffer(stored, order + kind, count).astype("=" + kind, copy=False)
    if layout.photometric in SUBSAMPLED:
        return Decoded(_upsampled(cells, layout))
    if samples == 1:
        return Decoded(cells.reshape(rows, columns))
    if layout.planar:
        return Decoded(np.moveaxis(cells.reshape(samples, rows, columns), 0, 2))
    return Decoded(cells.reshape(rows, columns, samples))


def _upsampled(cells: NDArray[Any], layout: PixelLayout) -> NDArray[Any]:
    """Y1 Y2 Cb Cr for each two pixels of a row (PS3.3 C.7.6.3.1.2)."""
    pairs = cells.reshape(layout.rows, -1, 4)
    whole = np.empty((layout.rows, pairs.shape[1], 2, 3), cells.dtype)
    whole[..., 0] = pairs[..., :2]
    whole[..., 1:] = pairs[:, :, None, 2:]
    return whole.reshape(layout.rows, -1, 3)[:, : layout.columns]


def _unsigned(cells: NDArray[Any], layout: PixelLayout) -> NDArray[Any]:
    """The same bits as unsigned cells; a decoder that gives signed ones of fewer bits must not lose their sign."""
    if cells.dtype.kind != "i":
        return cells
    size = max(layout.bits_allocated // 8, cells.dtype.itemsize)
    return np.ascontiguousarray(cells.astype(f"i{size}", copy=False)).view(f"u{size}")
