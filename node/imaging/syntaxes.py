"""Which transfer syntax an image can be brought into from which, without losing anything (PS3.5 Annex A, §10).

Tables alone; the work is `transcode`'s. What is stored lossy stays as it is or is unpacked: compressing once more, or
lossily, would make another image, with a SOP Instance UID of its own.
"""

from __future__ import annotations

IMPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2"
EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
EXPLICIT_BIG_ENDIAN = "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
RLE = "1.2.840.10008.1.2.5"
JPEG_LOSSLESS = "1.2.840.10008.1.2.4.70"
"""Process 14, selection value 1: the one that every viewer reads."""
JPEG_LS = "1.2.840.10008.1.2.4.80"
JPEG_2000 = "1.2.840.10008.1.2.4.90"
HTJ2K = "1.2.840.10008.1.2.4.201"

UNPACKED = (EXPLICIT_LITTLE_ENDIAN, IMPLICIT_LITTLE_ENDIAN)
PACKED = (RLE, JPEG_LS, JPEG_2000, JPEG_LOSSLESS, HTJ2K)
"""Lossless compressions that are made here."""
TARGETS = (*UNPACKED, *PACKED)
LOSSY = frozenset(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 81, 91, 93, 203))
"""Syntaxes whose images were compressed lossily, or may have been."""
DECODED = frozenset(
    (
        *(IMPLICIT_LITTLE_ENDIAN, EXPLICIT_LITTLE_ENDIAN, EXPLICIT_BIG_ENDIAN, DEFLATED, RLE),
        *(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70, 80, 81, 90, 91, 201, 202, 203)),
    )
)
"""Syntaxes that are read."""


def reachable(stored: str, target: str) -> bool:
    """Whether an image in `stored` can be handed over in `target`, changed in nothing but its writing."""
    if stored == target:
        return True
    if target in UNPACKED:
        return stored in DECODED
    return target in PACKED and stored in DECODED and stored not in LOSSY
