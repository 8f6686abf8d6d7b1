"""DICOM files from their DICOM JSON models and the values that these leave out (PS3.18 Annex F).

The reverse of `dicom_json`. Somebody else's JSON is understood here, by pydicom, in a rendering worker and under its limits;
what comes out is checked like any other file when it is taken in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import UID

from consent.errors import Invalid

from .dicom_json import bulk_uris
from .elements import Buffer, encoding_of
from .part10 import part10_head, valid_uid


def models_of(texts: Sequence[Buffer], *, most_models: int, most_uris: int) -> list[tuple[bytes, list[str]]]:
    """The models in several pieces of JSON, each with the BulkDataURIs that it names. Raises Invalid, also past a bound."""
    found: list[tuple[bytes, list[str]]] = []
    named = 0
    for text in texts:
        try:
            document = json.loads(bytes(text))
            models = document if isinstance(document, list) else [document]
            if not models or not all(isinstance(model, dict) for model in models):
                raise Invalid("DICOM JSON is an array of objects, one an instance.", code="bad-json")
            if len(found) + len(models) > most_models:
                raise Invalid(
                    f"A request has at most {most_models} instances in DICOM JSON.", code="too-large"
                )
            for model in models:
                uris = list(bulk_uris(model))
                named += len(uris)
                if named > most_uris:
                    raise Invalid(f"A request names at most {most_uris} values.", code="too-large")
                found.append((json.dumps(model).encode(), uris))
        except (ValueError, RecursionError) as error:
            raise Invalid("A part is not JSON.", code="bad-json") from error
    return found


def assemble(model: Buffer, values: Mapping[str, Buffer], transfer_syntax: str) -> bytes:
    """The file in `transfer_syntax` (or the one that the model names). Raises Invalid, also without SOP UIDs."""
    try:
        document = json.loads(bytes(model))
        named = _first(document, "00020010") or _first(document, "00083002")
        syntax = str(named or transfer_syntax)
        encoding = encoding_of(syntax)
        plain = {tag: element for tag, element in document.items() if not tag.startswith("0002")}
        dataset = Dataset.from_json(plain, bulk_data_uri_handler=lambda tag, vr, uri: bytes(values[uri]))
        if encoding.encapsulated and "PixelData" in dataset:
            _encapsulate(dataset)
        sop_class, sop_instance = (
            valid_uid(str(dataset.get(keyword, "")).encode("ascii", "replace"), keyword)
            for keyword in ("SOPClassUID", "SOPInstanceUID")
        )
        if encoding.deflated or encoding.form.order == ">":
            raise Invalid("Instances in DICOM JSON are written in little endian.", code="transfer-syntax")
        out: Any = DicomBytesIO()
        out.is_little_endian, out.is_implicit_VR = True, UID(syntax).is_implicit_VR
        write_dataset(out, dataset)
        return part10_head(sop_class, sop_instance, syntax) + bytes(out.getvalue())
    except Invalid:
        raise
    except Exception as error:  # whatever it is that somebody else's JSON holds
        raise Invalid(
            f"This DICOM JSON is not a data set ({type(error).__name__}).",
            mend="Send the instance as a DICOM file.",
            code="bad-json",
        ) from error


def _encapsulate(dataset: Dataset) -> None:
    """Compressed pixels come as the bare code stream of the one frame (PS3.18 §8.7.3.3.2)."""
    if int(dataset.get("NumberOfFrames") or 1) != 1:
        raise Invalid(
            "Compressed images of several frames are not taken in DICOM JSON.",
            mend="Send the instance as a DICOM file.",
            code="frames",
        )
    dataset.PixelData = encapsulate([dataset.PixelData])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True


def _first(document: Mapping[str, Any], tag: str) -> Any:
    value = document.get(tag, {}).get("Value")
    return value[0] if value else None
