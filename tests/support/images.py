"""Builders of images with chosen pixels and attributes, for what is drawn and what is refused.

`image(cells, …)` takes an array of stored values: (rows, columns), (frames, rows, columns), and with three samples one
axis more. Further keywords set elements by name; an element of value None is left out.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from hashlib import sha256

import numpy as np
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import SecondaryCaptureImageStorage

from tests.support.dicom import BIG_ENDIAN, EXPLICIT, Instance, instance, uid


def image(
    cells: np.ndarray,
    *,
    samples: int = 1,
    frames: int | None = None,
    syntax: str = EXPLICIT,
    stream: Items[bytes] | None = None,
    table: bool = True,
    extra: Dataset | None = None,
    **attributes: object,
) -> Instance:
    """An image of these stored values. `stream` replaces them by one code stream a frame; `extra` adds elements."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = (
        SecondaryCaptureImageStorage,
        uid("image", cells.shape, sha256(cells.tobytes()).hexdigest()),
    )
    ds.StudyInstanceUID, ds.SeriesInstanceUID = uid("image"), uid("image", 1)
    ds.PatientID, ds.Modality = "P-0002", "OT"
    shape = cells.shape[:-1] if samples == 3 else cells.shape
    ds.SamplesPerPixel = samples
    ds.PhotometricInterpretation = "RGB" if samples == 3 else "MONOCHROME2"
    if samples == 3:
        ds.PlanarConfiguration = 0
    if len(shape) == 3 or frames is not None:
        ds.NumberOfFrames = frames or shape[0]
    ds.Rows, ds.Columns = shape[-2:]
    ds.BitsAllocated = ds.BitsStored = cells.itemsize * 8
    ds.HighBit, ds.PixelRepresentation = cells.itemsize * 8 - 1, int(cells.dtype.kind == "i")
    for keyword, value in attributes.items():
        if value is None:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    if extra is not None:
        ds.update(extra)
    _set_pixels(ds, cells, syntax, stream, table)
    return instance(ds, syntax)


def table_item(first: int, values: np.ndarray, *, bits: int = 16, words: int = 0, **more: object) -> Dataset:
    """An item of a Modality or VOI LUT Sequence. `words` lies about how many entries there are."""
    item = Dataset()
    item.LUTDescriptor = [words or len(values) % 65536, first & 0xFFFF, bits]
    item.add(DataElement(0x00283006, "OW", values.astype("<u2").tobytes()))
    for keyword, value in more.items():
        setattr(item, keyword, value)
    return item


def palette(entries: np.ndarray, *, first: int = 0, bits: int = 16) -> Dataset:
    """The three tables of a palette; `entries` is (n, 3) words."""
    ds = Dataset()
    for colour in range(3):
        ds.add(DataElement(0x00281101 + colour, "US", [entries.shape[0] % 65536, first, bits]))
        ds.add(DataElement(0x00281201 + colour, "OW", entries[:, colour].astype("<u2").tobytes()))
    return ds


def segmented_palette(words: Items[int], entries: int, *, bits: int = 16) -> Dataset:
    """Three equal segmented tables (PS3.3 C.7.9.2)."""
    ds = Dataset()
    kind = "<u2" if bits > 8 else "u1"
    for colour in range(3):
        ds.add(DataElement(0x00281101 + colour, "US", [entries % 65536, 0, bits]))
        ds.add(DataElement(0x00281221 + colour, "OW", np.array(words, kind).tobytes()))
    return ds


def overlay(
    bits: np.ndarray, *, group: int = 0x6000, origin: tuple[int, int] = (1, 1), **more: int
) -> Dataset:
    """An overlay plane, or with a third axis one for each of several frames; `more` by the element's number."""
    ds = Dataset()
    base = group << 16
    flat = np.packbits(bits.reshape(-1).astype(np.uint8), bitorder="little").tobytes()
    ds.add(DataElement(base | 0x0010, "US", bits.shape[-2]))
    ds.add(DataElement(base | 0x0011, "US", bits.shape[-1]))
    if bits.ndim == 3:
        ds.add(DataElement(base | 0x0015, "IS", bits.shape[0]))
        ds.add(DataElement(base | 0x0051, "US", more.get("frame_origin", 1)))
    ds.add(DataElement(base | 0x0040, "CS", "G"))
    ds.add(DataElement(base | 0x0050, "SS", list(origin)))
    ds.add(DataElement(base | 0x0100, "US", 1))
    ds.add(DataElement(base | 0x0102, "US", 0))
    ds.add(DataElement(base | 0x3000, "OW", flat + b"\0" * (len(flat) % 2)))
    return ds


def groups(shared: Dataset | None, frames: Items[Dataset]) -> Dataset:
    """Functional groups: what all frames share, and what each has for itself."""
    ds = Dataset()
    if shared is not None:
        ds.SharedFunctionalGroupsSequence = Sequence([shared])
    ds.PerFrameFunctionalGroupsSequence = Sequence(list(frames))
    return ds


def _set_pixels(
    ds: Dataset, cells: np.ndarray, syntax: str, stream: Items[bytes] | None, table: bool
) -> None:
    if stream is not None:
        ds.PixelData = encapsulate(list(stream), has_bot=table)
        ds["PixelData"].VR = "OB"
        ds["PixelData"].is_undefined_length = True
        return
    if cells.dtype.kind == "f":
        tag, vr = (0x7FE00008, "OF") if cells.itemsize == 4 else (0x7FE00009, "OD")
        for keyword in ("BitsStored", "HighBit", "PixelRepresentation"):
            delattr(ds, keyword)
        ds.add(DataElement(tag, vr, cells.tobytes()))
        return
    if ds.BitsAllocated == 1:
        data = np.packbits(cells.reshape(-1).astype(np.uint8), bitorder="little").tobytes()
    else:
        if syntax == BIG_ENDIAN:
            cells = cells.astype(cells.dtype.newbyteorder(">"))
        if samples_apart(ds):
            cells = np.moveaxis(cells, -1, -3)
        data = cells.tobytes()
    ds.PixelData = data + b"\0" * (len(data) % 2)
    ds["PixelData"].VR = "OW" if ds.BitsAllocated > 8 else "OB"


def samples_apart(ds: Dataset) -> bool:
    """Whether the colours lie plane by plane."""
    return ds.SamplesPerPixel == 3 and ds.get("PlanarConfiguration") == 1
