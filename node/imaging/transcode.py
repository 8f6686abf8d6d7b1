"""From any transfer syntax that can be decoded to an uncompressed or a lossless one. Runs in a rendering worker only.

For peers that do not take an image as it is stored (PS3.4 §B.4.1, PS3.5 §8.2, PS3.18 §8.7.3): every picture element keeps its
value, and the SOP Instance UID stays. Codecs come from pydicom's plug-ins and from `packing`; which syntaxes there are says
`syntaxes`. What would grow past a bound is refused before it is decoded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import numpy as np
from pydicom import dcmread
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.pixels.utils import get_expected_length
from pydicom.uid import UID

from consent.errors import Invalid

from .elements import encoding_of
from .packing import PACKED_HERE, pack
from .part10 import part10_head
from .syntaxes import EXPLICIT_LITTLE_ENDIAN, PACKED, TARGETS, reachable

MAX_DECODED_BYTES = 1024 * 1024 * 1024
_WORD_BYTES = {"OW": 2, "OF": 4, "OL": 4, "OD": 8, "OV": 8}


def transcode(data: bytes, transfer_syntax: str, target: str) -> bytes:
    """The data set (no file meta) in `target`, one of `syntaxes.TARGETS`. Raises Invalid when it cannot be brought into it."""
    _require_target(transfer_syntax, target)
    with _decoding():
        dataset = dcmread(BytesIO(part10_head("1.2.3", "1.2.3", transfer_syntax) + data))
        _convert(dataset, transfer_syntax, target)
        return _written(dataset, target)


def transcode_frame(head: bytes, stored: bytes, transfer_syntax: str, target: str) -> bytes:
    """One frame in `target`, from its stored bytes and the data set before the pixels. Raises Invalid."""
    _require_target(transfer_syntax, target)
    with _decoding():
        whole = BytesIO(part10_head("1.2.3", "1.2.3", transfer_syntax) + head)
        dataset = dcmread(whole, stop_before_pixels=True)
        dataset.NumberOfFrames = 1
        encapsulated = encoding_of(transfer_syntax).encapsulated
        dataset.PixelData = encapsulate([stored]) if encapsulated else stored + b"\0" * (len(stored) % 2)
        dataset["PixelData"].VR = "OB" if encapsulated or (dataset.get("BitsAllocated") or 8) <= 8 else "OW"
        dataset["PixelData"].is_undefined_length = encapsulated
        _convert(dataset, transfer_syntax, target)
        if UID(target).is_encapsulated:
            return bytes(next(generate_frames(dataset.PixelData, number_of_frames=1)))
        return bytes(dataset.PixelData)[: get_expected_length(dataset)]


def _convert(dataset: Dataset, transfer_syntax: str, target: str) -> None:
    """Bring the pixels of a data set that was read in `transfer_syntax` into `target`, in place."""
    encoding = encoding_of(transfer_syntax)
    _require_room(dataset)
    if encoding.encapsulated and "PixelData" in dataset:
        dataset.decompress(generate_instance_uid=False)
    elif encoding.form.order == ">":
        dataset.walk(_swap_words)
    if target in PACKED:
        if "PixelData" not in dataset:
            raise Invalid("This object has no pixels to compress.", code="no-pixels")
        dataset.file_meta.TransferSyntaxUID = UID(EXPLICIT_LITTLE_ENDIAN)
        if target in PACKED_HERE:
            pack(dataset, target)
        else:
            dataset.compress(UID(target), generate_instance_uid=False)


def _require_target(transfer_syntax: str, target: str) -> None:
    if target not in TARGETS or not reachable(transfer_syntax, target):
        raise Invalid(
            "This image cannot be brought into that transfer syntax here without loss.",
            mend="Ask for uncompressed little endian, or for the transfer syntax in which it is stored.",
            code="transfer-syntax",
        )


@contextmanager
def _decoding() -> Iterator[None]:
    try:
        yield
    except Invalid:
        raise
    except Exception as error:  # codecs raise whatever they like on hostile input
        raise Invalid(
            f"This image cannot be decoded ({type(error).__name__}).",
            mend="Retrieve it in the transfer syntax in which it is stored.",
            code="undecodable",
        ) from error


def _require_room(dataset: Dataset) -> None:
    size = 1
    for keyword in ("Rows", "Columns", "SamplesPerPixel", "NumberOfFrames"):
        size *= max(1, int(dataset.get(keyword) or 1))
    if size * max(8, int(dataset.get("BitsAllocated") or 8)) // 8 > MAX_DECODED_BYTES:
        raise Invalid(
            f"Decoded, this image is larger than {MAX_DECODED_BYTES >> 20} MiB.",
            mend="Retrieve it in the transfer syntax in which it is stored.",
            code="too-large",
        )


def _swap_words(_: Dataset, element: DataElement) -> None:
    """Turn the bytes of words around: pydicom hands them on as they lie."""
    size = _WORD_BYTES.get(element.VR)
    if size is not None and isinstance(element.value, bytes) and len(element.value) % size == 0:
        element.value = np.frombuffer(element.value, f">u{size}").astype(f"<u{size}").tobytes()


def _written(dataset: Dataset, target: str) -> bytes:
    out: Any = DicomBytesIO()
    out.is_little_endian, out.is_implicit_VR = True, UID(target).is_implicit_VR
    write_dataset(out, dataset)
    return bytes(out.getvalue())
