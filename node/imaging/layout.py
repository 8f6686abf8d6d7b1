"""How the pixels of an image lie in memory and what they are, checked before a byte of them is read.

Holds `PixelLayout`, the Image Pixel module (PS3.3 C.7.6.3) of one data set with every number held against a named
bound. Leaves decoding to `decode`, meaning to `grayscale` and `colour`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from consent.errors import Invalid, Sentence
from node.imaging.header import Header

MAX_SIDE = 65_535
MAX_PIXELS = 256 * 1024 * 1024
MAX_FRAME_BYTES = 1024 * 1024 * 1024
MAX_FRAMES = 2**31 - 1

GRAYSCALE = ("MONOCHROME2", "MONOCHROME1")
PALETTE = "PALETTE COLOR"
COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_422", "YBR_ICT", "YBR_RCT")
SUBSAMPLED = ("YBR_FULL_422", "YBR_PARTIAL_422")
"""Two bytes a pixel when not compressed: two pixels share their chrominance (PS3.3 C.7.6.3.1.2)."""
FLOAT, DOUBLE = 0x7FE00008, 0x7FE00009
_BITS_ALLOCATED = (1, 8, 16, 32, 64)


@dataclass(frozen=True)
class PixelLayout:
    """One image's Rows, Columns and so on. `floating` cells are IEEE numbers of `bits_allocated` bits.

    `words` says that cells of 8 bits or 1 were sent as 16-bit words with the highest byte first, and lie swapped.
    """

    rows: int
    columns: int
    frames: int
    samples: int
    photometric: str
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    planar: bool
    floating: bool
    big_endian: bool = False
    words: bool = False

    @classmethod
    def of(cls, header: Header) -> Self:
        """Read and check the module. Raises Invalid, with the number that cannot be."""
        rows, columns = header.integer(0x00280010, "US"), header.integer(0x00280011, "US")
        if not 0 < rows <= MAX_SIDE or not 0 < columns <= MAX_SIDE or rows * columns > MAX_PIXELS:
            raise Invalid(
                Sentence(
                    "This object has no picture to show (%(rows)s × %(columns)s).", rows=rows, columns=columns
                ),
                code="no-pixels",
            )
        samples = header.integer(0x00280002, "US", 1)
        photometric = _photometric(header, samples)
        tag = header.pixels.tag if header.pixels is not None else 0
        floating = tag in (FLOAT, DOUBLE)
        allocated, stored, high = _bits(header, tag)
        found = cls(
            rows=rows,
            columns=columns,
            frames=min(max(1, header.integer(0x00280008, "IS", 1)), MAX_FRAMES),
            samples=samples,
            photometric=photometric,
            bits_allocated=allocated,
            bits_stored=stored,
            high_bit=high,
            signed=header.integer(0x00280103, "US") == 1 and not floating and allocated > 1,
            planar=samples > 1 and header.integer(0x00280006, "US") == 1,
            floating=floating,
            big_endian=header.big_endian,
            words=header.big_endian and allocated <= 8 and _vr_of_pixels(header) == "OW",
        )
        if rows * columns * samples * allocated > MAX_FRAME_BYTES * 8:
            raise Invalid("One frame of this image is too large to be drawn here.", code="too-large")
        return found

    @property
    def frame_bits(self) -> int:
        """Size of one frame that is not compressed, in bits."""
        if self.photometric in SUBSAMPLED:
            return self.rows * (self.columns + self.columns % 2) * 2 * self.bits_allocated
        return self.rows * self.columns * self.samples * self.bits_allocated

    def native_place(self, frame: int) -> tuple[int, int, int]:
        """Where frame `frame` (from 1) of uncompressed pixels lies: first byte, bytes, and bits before it in those.

        Frames of 1 bit a pixel follow each other without padding (PS3.5 §8.1.1), so a frame may begin inside a byte;
        swapped words are never cut in two.
        """
        first = (frame - 1) * self.frame_bits
        unit = 16 if self.words else 8
        start, stop = first // unit * unit, -(-(first + self.frame_bits) // unit) * unit
        return start // 8, (stop - start) // 8, first - start


def _photometric(header: Header, samples: int) -> str:
    said = header.text(0x00280004).upper()
    found = said or {1: "MONOCHROME2", 3: "RGB"}.get(samples, "")
    wanted = 1 if found in GRAYSCALE or found == PALETTE else 3 if found in COLOURS else 0
    if samples != wanted:
        raise Invalid(
            "The colours of this image are of a kind that is not drawn here.",
            mend="Download the instance.",
            code="photometric",
        )
    return found


def _bits(header: Header, tag: int) -> tuple[int, int, int]:
    """Bits Allocated, Bits Stored and High Bit."""
    if tag in (FLOAT, DOUBLE):
        width = 32 if tag == FLOAT else 64
        return width, width, width - 1
    allocated = header.integer(0x00280100, "US")
    stored = header.integer(0x00280101, "US") or allocated
    high = header.integer(0x00280102, "US", stored - 1)
    if allocated not in _BITS_ALLOCATED or not 0 < stored <= allocated or not stored - 1 <= high < allocated:
        raise Invalid(
            Sentence(
                "The pixels of this image cannot be told apart (%(allocated)s bits, %(stored)s stored, "
                "highest %(high)s).",
                allocated=allocated,
                stored=stored,
                high=high,
            ),
            code="bits",
        )
    return allocated, stored, high


def _vr_of_pixels(header: Header) -> str:
    return header.pixels.vr if header.pixels is not None else ""
