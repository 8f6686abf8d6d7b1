"""OHIF, the viewer that hospitals put before a DICOMweb server, opens a study of a node in a real browser.

It is not part of the project and never committed. To run this test: `npm pack @ohif/app`, unpack it anywhere, and name its
`package/dist` in OHIF_DIST.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path
from typing import Final

import aiohttp
import numpy as np
import pytest
from aiohttp import web
from PIL import Image
from playwright.async_api import Page, async_playwright

from consent.vocabulary import EventKind
from node.web.listener import serve
from tests.bench.workload import ct_study
from tests.support.browser import EXECUTABLE, FLAGS, LOOPBACK, needs_chromium
from tests.support.dicom import uid
from tests.support.web_door import Door, chief, open_door

DIST: Final = Path(os.environ.get("OHIF_DIST", "node_modules/@ohif/app/dist"))
SLICES: Final = 5
PATIENCE_MS: Final = 90_000
CONFIGURATION: Final = """window.config = {
  name: 'node', routerBasename: '/', extensions: [], modes: [], customizationService: {}, showStudyList: true,
  maxNumberOfWebWorkers: 1, showCPUFallbackMessage: false, showWarningMessageForCrossOrigin: false,
  investigationalUseDialog: { option: 'never' }, defaultDataSourceName: 'node',
  dataSources: [{ namespace: '@ohif/extension-default.dataSourcesModule.dicomweb', sourceName: 'node', configuration: {
    friendlyName: 'node', name: 'node', qidoRoot: '/dicom-web', wadoRoot: '/dicom-web', wadoUriRoot: '/dicom-web',
    qidoSupportsIncludeField: true, supportsFuzzyMatching: true, supportsWildcard: true, enableStudyLazyLoad: true,
    imageRendering: 'wadors', thumbnailRendering: 'wadors', omitQuotationForMultipartRequest: true,
    bulkDataURI: { enabled: true, relativeResolution: 'studies' } } }] };"""

pytestmark = [
    pytest.mark.journey,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    needs_chromium,
    pytest.mark.skipif(
        not (DIST / "index.html").is_file(), reason="OHIF is not installed here (see OHIF_DIST)"
    ),
]


@asynccontextmanager
async def viewer(door: Door, token: str, asked: list[tuple[str, int]]) -> AsyncIterator[str]:
    """OHIF's files and the node's DICOMweb under one origin, as a hospital's reverse proxy puts them; `asked` fills."""
    node = door.url.removesuffix("/dicom-web")
    dist = DIST.resolve()

    async def dicomweb(request: web.Request) -> web.Response:
        headers = {
            "Accept": request.headers.get("Accept", "*/*"),
            "Host": request.host,
            "Authorization": f"Bearer {token}",
        }
        async with door.http.get(node + request.path_qs, headers=headers) as answer:
            asked.append((request.path, answer.status))
            body = await answer.read()
            kind = {"Content-Type": answer.headers.get("Content-Type", "")}
            return web.Response(status=answer.status, body=body, headers=kind)

    async def file(request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        if name == "app-config.js":
            return web.Response(text=CONFIGURATION, content_type="text/javascript")
        found = (dist / name).resolve()
        whole = found if name and found.is_relative_to(dist) and found.is_file() else dist / "index.html"
        return web.FileResponse(whole)

    async def isolate(_: web.Request, response: web.StreamResponse) -> None:
        response.headers["Cross-Origin-Opener-Policy"] = "same-origin"
        response.headers["Cross-Origin-Embedder-Policy"] = "require-corp"

    app = web.Application()
    app.on_response_prepare.append(isolate)
    app.add_routes([web.get("/dicom-web/{rest:.*}", dicomweb), web.get("/{name:.*}", file)])
    listener = await serve(app, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{listener.port}"
    finally:
        await listener.stop()


@asynccontextmanager
async def browser(origin: str, strayed: list[str]) -> AsyncIterator[Page]:
    """A page that can draw in three dimensions without a graphics card, and speaks to loopback only."""
    flags = [flag for flag in FLAGS if flag != "--disable-gpu"]
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(
            executable_path=EXECUTABLE,
            args=[*flags, "--use-angle=swiftshader", "--enable-unsafe-swiftshader"],
        )
        try:
            page = await chromium.new_page(base_url=origin, viewport={"width": 1100, "height": 750})
            page.set_default_timeout(PATIENCE_MS)
            page.on(
                "request",
                lambda request: (
                    strayed.append(request.url)
                    if request.url.startswith("http") and aiohttp.client.URL(request.url).host not in LOOPBACK
                    else None
                ),
            )
            yield page
        finally:
            await chromium.close()


@pytest.mark.requirement("F5")
async def test_ohif_lists_a_study_and_shows_it(tmp_path: Path) -> None:
    """The study list names the patient; the viewer draws a slice from frames that the node handed over, on record."""
    asked: list[tuple[str, int]] = []
    strayed: list[str] = []
    async with open_door(tmp_path) as door:
        await door.node.store(*ct_study(1, slices=SLICES, size=256))
        await door.node.ingest.descriptions.settled()
        await door.node.ingest.flushed()
        token = await door.token(await chief(door))
        async with viewer(door, token, asked) as origin, browser(origin, strayed) as page:
            await page.goto("/")
            await page.get_by_text("Bench").first.wait_for()
            await page.goto(f"/viewer?StudyInstanceUIDs={uid('bench/1')}")
            canvas = page.locator("canvas.cornerstone-canvas").first
            await canvas.wait_for()
            picture = await drawn(page)
            await page.screenshot(path=tmp_path / "ohif.png")
        seen = {entry.event.kind for entry in await door.node.events()}

    assert picture.std() > 10, "the viewport stayed empty"
    assert not strayed
    frames = [status for path, status in asked if "/frames/" in path]
    assert frames and set(frames) == {200}
    assert all(status == 200 for _, status in asked), asked
    assert {EventKind.STUDIES_SEARCHED, EventKind.STUDY_OPENED} <= seen


async def drawn(page: Page) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """The middle of the viewport once something is in it, or after the page's patience what is there."""
    for _ in range(PATIENCE_MS // 1000):
        await page.wait_for_timeout(1000)
        shot = await page.locator("canvas.cornerstone-canvas").first.screenshot()
        middle = np.asarray(Image.open(BytesIO(shot)).convert("L"), np.float64)
        middle = middle[
            middle.shape[0] // 4 : -middle.shape[0] // 4, middle.shape[1] // 4 : -middle.shape[1] // 4
        ]
        if middle.std() > 10:
            break
    return middle
