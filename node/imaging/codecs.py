"""Code streams of single frames to pixel cells, one function a family of transfer syntaxes (PS3.5 §8.2, Annex A.4).

Holds `decode_stream`. A stream states its own size: it is held against the image's before a decoder sees it, since a
decoder makes room for what the stream says. Native decoders meet hostile bytes here, so this runs in a rendering worker
only. What is a film and not a picture, and what no decoder here reads, is refused in words.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from struct import unpack_from
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from consent.errors import AccordError, Invalid, Sentence
from node.imaging.layout import PixelLayout

MAX_SEGMENTS = 10_000
_VIDEO = "1.2.840.10008.1.2.4.10"
_SOF_MARKERS = frozenset({*range(0xC0, 0xD0), 0xF7}) - {0xC4, 0xC8, 0xCC}
_HIERARCHICAL = frozenset({0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF})
_LOSSLESS = 0xC3
_BARE = (0x01, *range(0xD0, 0xD9))
_SOS, _APP0, _APP14, _SIZ = 0xDA, 0xE0, 0xEE, 0xFF51


@dataclass(frozen=True)
class Decoded:
    """`cells` is (rows, columns) or (rows, columns, samples); `rgb` when a decoder has undone YBR already."""

    cells: NDArray[Any]
    rgb: bool = False


class _Frame(NamedTuple):
    """What a JPEG or JPEG-LS stream says of itself. `ycc` is None when it does not say how its colours are coded."""

    process: int
    precision: int
    rows: int
    columns: int
    components: int
    ycc: bool | None


def decode_stream(stream: bytes, layout: PixelLayout, transfer_syntax: str) -> Decoded:
    """Decode one frame. Raises Invalid: no decoder, a stream that is not what the image says, or a broken one."""
    decoder = _DECODERS.get(transfer_syntax)
    if decoder is None:
        if transfer_syntax.startswith(_VIDEO):
            raise Invalid(
                "This instance is a film; films are not drawn frame by frame here.",
                mend="Download the instance and play it.",
                code="video",
            )
        raise Invalid(
            "The pixels of this instance are compressed in a way that is not drawn here.",
            mend="Ask the device's maker for a common transfer syntax, or download the instance.",
            code="no-decoder",
        )
    try:
        decoded = decoder(stream, layout)
    except (AccordError, MemoryError):
        raise
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # decoders raise whatever they like on hostile input; one in Rust panics
        raise Invalid(
            Sentence(
                "The pixels of this instance cannot be decoded (%(fault)s).", fault=type(error).__name__
            ),
            mend="Ask the device's maker for a standard transfer syntax, or download the instance.",
            code="undecodable",
        ) from error
    wanted = (layout.rows, layout.columns) + ((layout.samples,) if layout.samples > 1 else ())
    if decoded.cells.shape != wanted:
        raise _differs()
    return decoded


def _jpeg(stream: bytes, layout: PixelLayout) -> Decoded:
    frame = _require_size(_jpeg_frame(stream), layout)
    if frame.components != 3:
        return Decoded(imagecodecs.jpeg8_decode(stream))
    if frame.process == _LOSSLESS:
        return Decoded(imagecodecs.jpeg8_decode(stream, colorspace="RGB", outcolorspace="RGB"))
    ycc = layout.photometric != "RGB" if frame.ycc is None else frame.ycc
    space = "YCBCR" if ycc else "RGB"
    return Decoded(imagecodecs.jpeg8_decode(stream, colorspace=space, outcolorspace="RGB"), rgb=True)


def _jpeg_ls(stream: bytes, layout: PixelLayout) -> Decoded:
    _require_size(_jpeg_frame(stream), layout)
    return Decoded(imagecodecs.jpegls_decode(stream))


def _jpeg_2000(stream: bytes, layout: PixelLayout) -> Decoded:
    # OpenJPEG for the high-throughput kind too: OpenJPH is quicker, but some damaged streams keep it for ever.
    _require_jpeg_2000_size(stream, layout)
    cells = imagecodecs.jpeg2k_decode(stream, planar=False, numthreads=1)
    return Decoded(cells, rgb=layout.photometric in ("YBR_ICT", "YBR_RCT"))


def _rle(stream: bytes, layout: PixelLayout) -> Decoded:
    """PS3.5 Annex G: one segment for each byte of each sample; they come back plane by plane."""
    import rle  # looks for its own version: a tenth of a worker's start

    size = layout.bits_allocated // 8
    segments = unpack_from("<I", stream)[0]
    if layout.bits_allocated < 8 or segments != size * layout.samples:
        raise _differs()
    flat = rle.rle.decode_frame(stream, layout.rows * layout.columns, layout.bits_allocated, "<")
    planes = np.frombuffer(flat, f"<u{size}").reshape(layout.samples, layout.rows, layout.columns)
    return Decoded(np.moveaxis(planes, 0, 2) if layout.samples > 1 else planes[0])


def _jpeg_frame(stream: bytes) -> _Frame:
    """The frame header of a JPEG or JPEG-LS stream, and what its application segments say of colour."""
    position, says = 2, None
    if stream[:2] != b"\xff\xd8":
        raise _differs()
    try:
        for _ in range(MAX_SEGMENTS):
            while stream[position : position + 2] == b"\xff\xff":
                position += 1
            marker = stream[position + 1]
            if marker in _BARE:
                position += 2
                continue
            (length,) = unpack_from(">H", stream, position + 2)
            body = position + 4
            if marker in _SOF_MARKERS:
                precision, rows, columns, components = unpack_from(">BHHB", stream, body)
                names = stream[body + 6 : body + 6 + components * 3 : 3]
                says = False if names.upper() == b"RGB" else says
                return _Frame(marker, precision, rows, columns, components, says)
            if marker == _APP14 and stream[body : body + 5] == b"Adobe" and length >= 14:
                says = stream[body + 11] == 1
            elif marker == _APP0 and stream[body : body + 4] == b"JFIF" and says is None:
                says = True
            if stream[position] != 0xFF or marker == _SOS or length < 2:
                break
            position = body - 2 + length
    except (struct.error, IndexError):
        pass
    raise _differs()


def _require_size(frame: _Frame, layout: PixelLayout) -> _Frame:
    if (frame.rows, frame.columns, frame.components) != (layout.rows, layout.columns, layout.samples):
        raise _differs()
    if frame.precision > layout.bits_allocated or frame.process in _HIERARCHICAL:
        raise _differs()
    return frame


def _require_jpeg_2000_size(stream: bytes, layout: PixelLayout) -> None:
    """The SIZ segment (T.800 A.5.1); a JP2 file around the code stream, which DICOM forbids, is looked through."""
    start = 0 if stream[:2] == b"\xff\x4f" else stream.find(b"\xff\x4f\xff\x51", 0, 4096)
    if start < 0 or len(stream) < start + 44 or unpack_from(">H", stream, start + 2)[0] != _SIZ:
        raise _differs()
    width, height, left, top = unpack_from(">4I", stream, start + 8)
    (components,) = unpack_from(">H", stream, start + 40)
    if (height - top, width - left, components) != (layout.rows, layout.columns, layout.samples):
        raise _differs()
    if (stream[start + 42] & 0x7F) + 1 > layout.bits_allocated:
        raise _differs()


def _differs() -> Invalid:
    return Invalid(
        "The compressed pixels are not those that the instance says it has.",
        mend="Download the instance; the device's maker can say why they differ.",
        code="codestream",
    )


_DECODERS: dict[str, Callable[[bytes, PixelLayout], Decoded]] = {
    **{f"1.2.840.10008.1.2.4.{number}": _jpeg for number in (50, 51, 53, 55, 57, 70)},
    **{f"1.2.840.10008.1.2.4.{number}": _jpeg_ls for number in (80, 81)},
    **{f"1.2.840.10008.1.2.4.{number}": _jpeg_2000 for number in (90, 91, 92, 93, 201, 202, 203)},
    "1.2.840.10008.1.2.5": _rle,
}
DRAWN_SYNTAXES = frozenset(_DECODERS)
"""Compressed transfer syntaxes whose pixels are drawn."""
