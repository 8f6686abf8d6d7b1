"""Instances that come as DICOM JSON with bulk data in parts of their own (PS3.18 §8.6.1.3.2, §10.5.1), made into files.

The first part, or several, hold arrays of DICOM JSON models; each other part is the value that a BulkDataURI names, by its
Content-Location. Models are parsed and data sets put together in a confined worker: not here, where one JSON text of 64 MiB
would hold everybody up for a second.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence

from consent.errors import Invalid
from node.dicom.accept import JSON
from node.dicom.multipart import MAX_PARTS, Part, parameters
from node.imaging.rendering import JsonModel, Renderer
from node.imaging.syntaxes import EXPLICIT_LITTLE_ENDIAN

MAX_MODELS = 10_000
MAX_OBJECTS = 1_000_000
"""JSON objects in one request: one of three bytes takes a hundred in memory."""


async def files_of(parts: Sequence[Part], renderer: Renderer) -> AsyncGenerator[bytes | Invalid, None]:
    """The DICOM file of every model, or why there is none. Raises Invalid when a part is not JSON."""
    texts: list[bytes | bytearray] = []
    values: dict[str, Part] = {}
    objects = 0
    for part in parts:
        if parameters(part.headers.get("content-type", ""))[0] == JSON:
            objects += part.body.count(b"{") + part.body.count(b"[")
            if objects > MAX_OBJECTS:
                raise Invalid(
                    f"A request has at most {MAX_OBJECTS} elements in DICOM JSON.",
                    mend="Send fewer instances at once, or DICOM files.",
                    code="too-large",
                )
            texts.append(part.body)
        else:
            values[part.headers.get("content-location", "")] = part
    models = await renderer.models(texts, most_models=MAX_MODELS, most_uris=MAX_PARTS)
    used: set[str] = set()
    for model in models:
        try:
            yield await _file(model, values, used, renderer)
        except Invalid as error:
            yield error


async def _file(model: JsonModel, values: Mapping[str, Part], used: set[str], renderer: Renderer) -> bytes:
    """One file. `used` are the values that others have taken: else a few bytes could ask for any number of large files."""
    uris = list(dict.fromkeys(model.uris))
    if len(uris) != len(model.uris) or not used.isdisjoint(uris):
        raise Invalid(
            "A BulkDataURI is named twice; each value is for one element.",
            mend="Send it once for each element.",
            code="bulk-data-twice",
        )
    used.update(uris)
    if any(uri not in values for uri in uris):
        raise Invalid(
            "A BulkDataURI names a value that is not in this request.",
            mend="Send each as a part with that Content-Location.",
            code="no-bulk-data",
        )
    given = {
        parameters(values[uri].headers.get("content-type", "a/b"))[1].get("transfer-syntax") for uri in uris
    }
    syntaxes = given - {None}
    if len(syntaxes) > 1:
        raise Invalid("The values of an instance have different transfer syntaxes.", code="transfer-syntax")
    return await renderer.assemble(
        model.text,
        {uri: values[uri].body for uri in uris},
        next(iter(syntaxes), None) or EXPLICIT_LITTLE_ENDIAN,
    )
