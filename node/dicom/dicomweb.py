"""DICOMweb below /dicom-web: ROUTES is the table of contents. QIDO-RS is `qido`, WADO-RS `wado` and `renderings`, STOW-RS `stow`.

Every answer goes through the gateway, every instance through ingest; who asks is established by the web kit. Errors
become problem+json there. What it offers: docs/formats/dicomweb.md.
"""

from __future__ import annotations

from aiohttp import web

from node.dicom import accept, qido, renderings, stow, wado
from node.dicom.wado import accept_of
from node.web.kit import streaming
from node.web.openapi import described, serving

UID = r"{%s:[0-9.]{1,64}}"


@described(
    answers={200: (accept.JSON,), 202: (accept.JSON,), 409: (accept.JSON,)},
    body=(
        f'multipart/related; type="{accept.DICOM}"',
        f'multipart/related; type="{accept.JSON}"',
        accept.DICOM,
    ),
)
@streaming
async def store(request: web.Request) -> web.Response:
    """Store instances, of one study when the address names it."""
    kind = accept.metadata(accept_of(request))
    status, answer = await stow.store(request, request.match_info.get("study", ""))
    return web.Response(status=status, body=answer, content_type=kind)


STUDIES = "/dicom-web/studies"
STUDY = f"{STUDIES}/{UID % 'study'}"
SERIES = f"{STUDY}/series/{UID % 'series'}"
INSTANCE = f"{SERIES}/instances/{UID % 'instance'}"
FRAMES = INSTANCE + r"/frames/{frames:[0-9,]{1,8000}}"
BULK_DATA = INSTANCE + r"/bulkdata/{path:[0-9A-F]{8}(?:/[0-9]{1,6}/[0-9A-F]{8}){0,32}}"
LEVELS = (STUDY, SERIES, INSTANCE)

ROUTES: list[web.RouteDef] = [
    web.get(STUDIES, qido.studies),
    web.get("/dicom-web/series", qido.series),
    web.get("/dicom-web/instances", qido.instances),
    web.get(f"{STUDY}/series", qido.series),
    web.get(f"{STUDY}/instances", qido.instances),
    web.get(f"{SERIES}/instances", qido.instances),
    *(web.get(level, wado.retrieve) for level in LEVELS),
    *(web.get(f"{level}/metadata", wado.metadata) for level in LEVELS),
    web.get(FRAMES, wado.frames),
    *(web.get(f"{level}/rendered", renderings.rendered) for level in (*LEVELS, FRAMES)),
    *(web.get(f"{level}/thumbnail", renderings.thumbnail) for level in (*LEVELS, FRAMES)),
    web.get(BULK_DATA, wado.bulk_data),
    *(web.get(f"{level}/bulkdata", wado.every_bulk_data) for level in LEVELS),
    *(web.get(f"{level}/pixeldata", wado.every_bulk_data) for level in LEVELS),
    web.post(STUDIES, store),
    web.post(STUDY, store),
    web.get("/dicom-web/openapi.json", serving("/dicom-web/", "Accord DICOMweb")),
]
