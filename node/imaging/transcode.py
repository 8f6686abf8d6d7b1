"""From any transfer syntax that can be decoded to Explicit or Implicit VR Little Endian. Runs in a rendering worker only.

For peers that take an image uncompressed alone (PS3.4 §B.4.1, PS3.5 §8.2): every picture element keeps its value, and the
SOP Instance UID stays. Decoders come from pydicom's plug-ins. What would grow past a bound is refused before it is decoded.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
from pydicom import dcmread
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import UID

from consent.errors import Invalid

from .elements import encoding_of
from .part10 import part10_head

EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
IMPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2"
TARGETS = (EXPLICIT_LITTLE_ENDIAN, IMPLICIT_LITTLE_ENDIAN)
MAX_DECODED_BYTES = 1024 * 1024 * 1024
_WORD_BYTES = {"OW": 2, "OF": 4, "OL": 4, "OD": 8, "OV": 8}


def transcode(data: bytes, transfer_syntax: str, target: str) -> bytes:
    """The data set (no file meta) in `target`, one of TARGETS. Raises Invalid when it cannot be brought into it."""
    if target not in TARGETS:
        raise Invalid("Images are brought into uncompressed little endian only.", code="transfer-syntax")
    encoding = encoding_of(transfer_syntax)
    try:
        dataset = dcmread(BytesIO(part10_head("1.2.3", "1.2.3", transfer_syntax) + data))
        if encoding.encapsulated:
            _require_room(dataset)
            if "PixelData" in dataset:
                dataset.decompress(generate_instance_uid=False)
        elif encoding.form.order == ">":
            dataset.walk(_swap_words)
        return _written(dataset, target)
    except Invalid:
        raise
    except Exception as error:  # decoders raise whatever they like on hostile input
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
