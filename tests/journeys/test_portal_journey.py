"""What people do in the portal, played by a real Chromium against a running region: hub and three hospitals.

A clinician at A finds a study that came from a scanner, looks at it and records the patient's consent; a colleague at
B asks for it, is granted it for a day and looks at the sealed copy; A's security officer sees the opening at B.
Pages are found as a person finds them, by their roles and labels. The pictures lie in `test-output/` afterwards;
`make images` puts the viewer's into the README.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Locator, Page, expect

from node.dicom.sender import Peer, send_files
from node.tls import KeyPair, dicom_client_context
from ops.demo.processes import accord
from ops.demo.region import Region, founded
from ops.demo.studies import ZHANG, write_ct
from tests.support.browser import Chromium, chromium, needs_chromium

SLICES = 24
MIDDLE = SLICES // 2
PICTURES = Path(__file__).parents[2] / "test-output"
NAMES = {"dr.li": "Li Wei", "dr.chen": "Chen Yu", "dr.wang": "Wang Fang", "officer.wu": "Wu Jing"}
LUNG, SOFT_TISSUE = "-600,1500", "40,400"
pytestmark = [
    needs_chromium,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.journey,
    pytest.mark.slow,
    pytest.mark.timeout(400),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def region(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Region]:
    """The running region; a registered scanner has sent one study to A, whose patient dr.li treats."""
    PICTURES.mkdir(exist_ok=True)
    async with founded(tmp_path_factory.mktemp("region")) as region:
        await _scan(region)
        await accord("care", "add", region.hospitals[0].folder, "--user", "dr.li", "--patient", ZHANG.id)
        yield region
        for site in region.sites:
            assert "Traceback" not in site.output.read_text("utf-8"), site.name


async def _scan(region: Region) -> None:
    a, keys = region.hospitals[0], region.folder / "ct1"
    await accord("device", "issue-certificate", a.folder, "--ae-title", "CT1", "--out", keys)
    await accord(
        "device", "add", a.folder, "--ae-title", "CT1", "--address", "127.0.0.1",
        "--certificate", keys / "CT1.crt", "--department", "Radiology",
    )  # fmt: skip
    files = await asyncio.to_thread(write_ct, region.folder / "study", slices=SLICES)
    await asyncio.sleep(2.5)  # the node looks for newly registered certificates every two seconds
    pair = KeyPair((keys / "CT1.crt").read_bytes(), (keys / "CT1.key").read_bytes())
    context = dicom_client_context(pair, [region.authorities[a.id]])
    peer = Peer("127.0.0.1", a.ports["dicom"], a.ae_title, "CT1", context, name=a.id)
    answers = [answer async for answer in send_files(peer, files)]
    assert len(answers) == SLICES and all(answer.ok for answer in answers)


@asynccontextmanager
async def signed_in(browser: Chromium, region: Region, site: str, login: str) -> AsyncIterator[Page]:
    """A person at the start page."""
    async with browser.page(region.site(site).portal) as page:
        await page.goto("/")
        await page.get_by_label("Login").fill(login)
        await page.get_by_label("Password").fill(region.passwords[site, login])
        await page.get_by_role("button", name="Sign in").click()
        await expect(page.get_by_role("heading", name=f"Good day, {NAMES[login]}")).to_be_visible()
        yield page


async def menu(page: Page, name: str) -> None:
    """Go where the main menu's entry leads."""
    await page.get_by_role("navigation", name="Main").get_by_role("link", name=name, exact=True).first.click()
    await expect(page.get_by_role("heading", level=1, name=name)).to_be_visible()


async def search(page: Page, label: str, value: str) -> Locator:
    """Search the studies by one field; return the rows that were found."""
    await menu(page, "Studies")
    await page.get_by_label(label).fill(value)
    await page.get_by_role("button", name="Search").click()
    return page.get_by_role("region", name="Studies").locator("tbody").get_by_role("row")


async def open_study(page: Page) -> None:
    """Find the study by its patient's ID and open its page."""
    rows = await search(page, "Patient ID", ZHANG.id)
    await rows.get_by_role("link").click()
    await expect(page.get_by_role("heading", level=1)).to_contain_text("Zhang, Weiming")


async def shown(page: Page, number: int, window: str = "") -> None:
    """Wait until the viewer has drawn this image, counted from 1."""
    await page.wait_for_selector(f"body[data-shown='0|{number - 1}|{window}']")
    await expect(page.locator("#position")).to_have_text(f"{number} / {SLICES}")


async def drawn(page: Page) -> float:
    """The share of the canvas that is not black."""
    return float(await page.evaluate(_LIT, [0.0, 0.0, 1.0, 1.0]))


async def marked(page: Page) -> float:
    """The share that is lit in the air above the patient, which a soft tissue window shows black but for the mark."""
    return float(await page.evaluate(_LIT, [0.36, 0.02, 0.64, 0.14]))


_LIT = """([left, top, right, bottom]) => {
    const c = document.getElementById("canvas"), x = left * c.width, y = top * c.height;
    const d = c.getContext("2d").getImageData(x, y, right * c.width - x, bottom * c.height - y).data;
    let lit = 0;
    for (let i = 0; i < d.length; i += 4) lit += d[i] + d[i + 1] + d[i + 2] > 24;
    return lit / (d.length / 4);
}"""


async def arrives(page: Page, what: Locator, seconds: float = 30) -> None:
    """Reload the page, as somebody who waits does, until it shows `what`."""
    end = asyncio.get_running_loop().time() + seconds
    while not await what.count() and asyncio.get_running_loop().time() < end:
        await asyncio.sleep(0.5)
        await page.reload()
    await expect(what.first).to_be_visible()


async def photograph(page: Page, name: str) -> None:
    """Keep a picture of the page once it stands still."""
    await page.wait_for_load_state("networkidle")
    await page.screenshot(path=PICTURES / f"{name}.png")


@pytest.mark.requirement("U1", "U5", "F6")
async def test_clinician_finds_and_reads_a_study_that_a_stranger_cannot_open(region: Region) -> None:
    """Exact and wildcard search, the viewer by keyboard and wheel, its mark, Chinese, and the refusal with its reason."""
    async with chromium() as browser:
        async with signed_in(browser, region, "a-general", "dr.li") as page:
            await expect(await search(page, "Patient name", "zhang*")).to_have_count(1)
            await expect(await search(page, "Patient name", "张*")).to_have_count(1)
            await expect(await search(page, "Patient name", "Wang*")).to_have_count(0)
            await expect(page.get_by_role("heading", name="Nothing found")).to_be_visible()
            await open_study(page)
            address = page.url
            await photograph(page, "study")
            await page.get_by_role("link", name="Open the images").click()
            await _scroll(page)
            await page.get_by_role("link", name="Back to the study").click()
            await _in_chinese(page)
        async with signed_in(browser, region, "a-general", "dr.chen") as page:
            await expect(await search(page, "Patient ID", ZHANG.id)).to_have_count(0)
            await page.goto(address)
            await expect(page.get_by_role("heading", level=1)).to_have_text("Access refused")
            await expect(
                page.get_by_text("You have no treatment relationship with this patient.")
            ).to_be_visible()
            await expect(page.get_by_text("Ask a chief physician or hospital IT")).to_be_visible()
            assert "Zhang" not in await page.content()
            await photograph(page, "refused")


async def _scroll(page: Page) -> None:
    """From the first image to the middle by keyboard and wheel; the mark is seen where there is nothing else."""
    await shown(page, 1)
    assert await drawn(page) > 0.1
    await page.keyboard.press("ArrowDown")
    await shown(page, 2)
    await page.keyboard.press("PageDown")
    await shown(page, MIDDLE)
    image = page.get_by_role("img", name="Image of the study")
    await image.hover()
    await page.mouse.wheel(0, 100)
    await shown(page, MIDDLE + 1)
    await page.get_by_label("Window presets").select_option("Soft tissue")
    await shown(page, MIDDLE + 1, SOFT_TISSUE)
    assert 0.005 < await marked(page) < 0.5
    await page.get_by_label("Window presets").select_option("Lung")
    await shown(page, MIDDLE + 1, LUNG)
    assert await drawn(page) > 0.1
    await photograph(page, "viewer")


async def _in_chinese(page: Page) -> None:
    """The same study and viewer after the language button."""
    await page.get_by_role("button", name="中文").click()
    await expect(page.locator("html")).to_have_attribute("lang", "zh-CN")
    await expect(page.get_by_role("heading", level=1)).to_contain_text("张伟明")
    await page.get_by_role("link", name="打开影像").click()
    await shown(page, 1)
    await page.keyboard.press("End")
    await shown(page, SLICES)
    for _ in range(SLICES - MIDDLE - 1):
        await page.keyboard.press("ArrowUp")
    await shown(page, MIDDLE + 1)
    await page.get_by_label("窗口预设").select_option("肺窗")
    await shown(page, MIDDLE + 1, LUNG)
    assert await drawn(page) > 0.1
    await photograph(page, "viewer-chinese")


@pytest.mark.requirement("E2", "E3", "F6")
async def test_study_is_asked_for_granted_viewed_elsewhere_and_traced(region: Region) -> None:
    """Consent by form, request and grant by page, the held copy in B's viewer, and B's person in A's log."""
    async with (
        chromium() as browser,
        signed_in(browser, region, "a-general", "dr.li") as li,
        signed_in(browser, region, "b-central", "dr.wang") as wang,
    ):
        await open_study(li)
        await _consent(li)
        await _ask(wang)
        await _grant(li)
        await _view(wang)
        async with signed_in(browser, region, "a-general", "officer.wu") as officer:
            await _trace(officer)


async def _consent(page: Page) -> None:
    await page.get_by_role("link", name="Record a consent").click()
    receivers = page.get_by_role("group", name="Who may receive them")
    await receivers.get_by_label("All hospitals of the region").uncheck()
    await receivers.get_by_label("Central Hospital").check()
    await page.get_by_label("How the patient agreed").fill(
        "Form 17, signed 20 November, witnessed by a nurse"
    )
    await photograph(page, "consent")
    await page.get_by_role("button", name="Record and sign").click()
    await expect(
        page.get_by_role("heading", name="Consent to sharing medical images", exact=True)
    ).to_be_visible()
    await expect(page.get_by_role("main")).to_contain_text("Central Hospital")


async def _ask(page: Page) -> None:
    await menu(page, "Shared with me")
    await page.get_by_role("link", name="Ask for a study").first.click()
    await page.get_by_label("Hospital", exact=True).select_option("General Hospital")
    await page.get_by_label("Accession number").fill(ZHANG.accession)
    await page.get_by_label("Patient ID at that hospital").fill(ZHANG.id)
    await page.get_by_role("radio", name="Treatment", exact=True).check()
    await page.get_by_role("radio", name="24 hours").check()
    await page.get_by_label("Reason").fill("Second opinion on a lung nodule")
    await page.get_by_role("button", name="Ask", exact=True).click()
    await expect(page.get_by_role("heading", level=1, name="My requests")).to_be_visible()
    row = page.get_by_role("row").filter(has_text="Second opinion on a lung nodule")
    await expect(row).to_contain_text("Waiting")


async def _grant(page: Page) -> None:
    await menu(page, "Incoming requests")
    answer = page.get_by_role("row").filter(has_text="Wang Fang").get_by_role("link", name="Answer")
    await arrives(page, answer)
    await answer.click()
    await expect(page.get_by_text("The patient's consent covers this request")).to_be_visible()
    await expect(page.get_by_role("main")).to_contain_text("Second opinion on a lung nodule")
    await page.get_by_role("radio", name="24 hours").check()
    await expect(page.get_by_role("checkbox", name="View")).to_be_checked()
    await photograph(page, "answer")
    await page.get_by_role("button", name="Grant", exact=True).click()
    row = page.get_by_role("region", name="Given access").get_by_role("row").filter(has_text="Zhang")
    await expect(row).to_contain_text("In force")
    await expect(row).to_contain_text("Central Hospital")


async def _view(page: Page) -> None:
    await menu(page, "Shared with me")
    copy = page.get_by_role("row").filter(has_text="Second opinion").filter(has_text="Ready")
    await arrives(page, copy)
    await expect(copy).to_contain_text(re.compile("2[34] h", re.IGNORECASE))
    await photograph(page, "shared-with-me")
    await copy.get_by_role("link", name="Open", exact=True).click()
    await shown(page, 1)
    assert await drawn(page) > 0.1
    await page.keyboard.press("PageDown")
    await shown(page, 11)
    await expect(page.get_by_text("Study from General Hospital")).to_be_visible()
    await expect(page.get_by_text("Access until")).to_be_visible()
    await photograph(page, "viewer-shared")


async def _trace(page: Page) -> None:
    await menu(page, "Log")
    await page.get_by_label("What", exact=True).select_option("Key lease released")
    await page.get_by_role("button", name="Search").click()
    row = page.get_by_role("region", name="Log").get_by_role("row").filter(has_text="Key lease released")
    await expect(row.first).to_contain_text("person:dr.wang@b-central")
    await expect(row.first).to_contain_text("Treatment")
    await photograph(page, "log")
