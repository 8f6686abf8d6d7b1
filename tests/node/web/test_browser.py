"""A clinician at work in a real Chromium: find, look, be refused, break the glass, and lose access while looking."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from playwright.async_api import Page, expect

from consent.vocabulary import EventKind
from node.access.devices import DeviceState
from tests.node.web.conftest import Hospital
from tests.support.browser import Chromium, chromium, needs_chromium
from tests.support.node import PASSWORD

pytestmark = [needs_chromium, pytest.mark.slow]
SHOWN = "body[data-shown]"


@asynccontextmanager
async def signed_in(
    browser: Chromium, hospital: Hospital, login: str, locale: str = "en-GB"
) -> AsyncIterator[Page]:
    async with browser.page(hospital.site.url, locale=locale) as page:
        await page.goto("/sign-in")
        await page.fill("#login", login)
        await page.fill("#password", PASSWORD)
        await page.keyboard.press("Enter")
        await expect(page.locator("main h1")).to_contain_text("Li Wei" if login == "li" else "Wu Min")
        yield page


async def darkness(page: Page) -> float:
    """The share of the canvas that is plain black."""
    return await page.evaluate(
        """() => { const c = document.getElementById("canvas");
        const d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
        let black = 0; for (let i = 0; i < d.length; i += 4) black += d[i] + d[i + 1] + d[i + 2] === 0;
        return black / (d.length / 4); }"""
    )


@pytest.mark.requirement("F6", "U1", "U5")
async def test_clinician_finds_a_study_and_scrolls_it(hospital: Hospital, tmp_path: Path) -> None:
    """Exact and wildcard search, the viewer by wheel, keys, drag and presets, in Chinese as well."""
    async with chromium() as browser, signed_in(browser, hospital, "li", "zh-CN") as page:
        await expect(page.locator("html")).to_have_attribute("lang", "zh-CN")
        await page.fill("#quick", "张*")
        await page.keyboard.press("Enter")
        await expect(page.locator("tbody tr")).to_have_count(1)
        await page.goto("/studies")
        await page.fill("#PatientID", "P-0001")
        await page.keyboard.press("Enter")
        await page.click("tbody tr a.main-link")
        await expect(page.locator("h1")).to_contain_text("张三")
        await page.click(".page-header .button.primary")
        await page.wait_for_selector("body[data-shown='0|0|']")
        assert await darkness(page) < 0.99
        await page.mouse.move(700, 400)
        await page.mouse.wheel(0, 100)
        await page.wait_for_selector("body[data-shown='0|1|']")
        await page.keyboard.press("End")
        await page.wait_for_selector("body[data-shown='0|2|']")
        await expect(page.locator("#position")).to_have_text("3 / 3")
        await page.mouse.down()
        await page.mouse.move(760, 430, steps=4)
        await page.mouse.up()
        await page.wait_for_selector("body[data-shown='0|2|80,480']")
        await page.select_option("#preset", "-600,1500")
        await page.wait_for_selector("body[data-shown='0|2|-600,1500']")
        await page.keyboard.press("Tab")
        await page.locator("#canvas").press("]")
        await page.wait_for_selector("body[data-shown='1|0|']")
        await page.screenshot(path=tmp_path / "viewer.png")
    opened = await hospital.node.events(EventKind.STUDY_OPENED)
    assert [entry.event.actor for entry in opened] == ["person:li@a-general"]


@pytest.mark.requirement("U1", "U3")
async def test_refused_clinician_sees_why_and_breaks_the_glass(hospital: Hospital) -> None:
    """The page names the reason; the emergency opens the viewer with its end in sight."""
    async with chromium() as browser, signed_in(browser, hospital, "wu") as page:
        await page.goto(f"/studies/{hospital.study}")
        await expect(page.locator("h1")).to_have_text("Access refused")
        await expect(page.locator("main")).to_contain_text(
            "You have no treatment relationship with this patient."
        )
        await page.get_by_text("Declare an emergency").click()
        await page.fill("#reason", "Unconscious, head injury")
        await page.get_by_role("button", name="Open now").click()
        await page.wait_for_selector(SHOWN)
        await expect(page.locator(".viewer-until")).to_contain_text("Access until")
    assert len(await hospital.node.events(EventKind.EMERGENCY_OPENED)) == 1


@pytest.mark.requirement("U1", "U2")
async def test_picture_leaves_the_screen_when_access_ends(hospital: Hospital) -> None:
    """At the next picture the viewer says so and nothing of the patient stays on the canvas."""
    async with chromium() as browser, signed_in(browser, hospital, "li") as page:
        await page.goto(f"/viewer/{hospital.study}")
        await page.wait_for_selector(SHOWN)
        await page.wait_for_load_state("networkidle")
        await hospital.node.care.end("li", hospital.patient)
        await page.select_option("#preset", "40,400")
        await page.wait_for_selector("body[data-ended='403']")
        await expect(page.locator("#message-title")).to_have_text("Access has ended")
        await expect(page.locator("#message-reasons")).to_contain_text("no treatment relationship")
        assert await darkness(page) == 1.0


async def test_form_is_sent_once_and_says_that_it_works(hospital: Hospital) -> None:
    """A second click does nothing; the consent is recorded once."""
    async with chromium() as browser, signed_in(browser, hospital, "li") as page:
        await page.goto(f"/consents/new?study={hospital.study}")
        await page.fill("#basis", "Form 17, witnessed by nurse Zhao")
        button = page.get_by_role("button", name="Record and sign")
        await button.dblclick()
        await page.wait_for_url("**/consents/*?study=*")
        await asyncio.sleep(0.2)
    assert len(await hospital.node.events(EventKind.CONSENT_RECORDED)) == 1


@pytest.mark.requirement("C1", "F6")
async def test_a_live_page_is_current_after_its_stream_was_away(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What changes between two streams is told by neither: the page is fetched anew when the second one opens."""
    monkeypatch.setattr("node.web.portal.devices.LOOKS_PER_STREAM", 1)
    monkeypatch.setattr("node.web.portal.devices.LOOK_SECONDS", 0.01)
    await hospital.node.registry.add_device("CT1", "10.1.2.3", plain_reason="too old for TLS")
    async with chromium() as browser, browser.page(hospital.site.url, locale="en-GB") as page:
        await page.goto("/sign-in")
        await page.fill("#login", "it")
        await page.fill("#password", PASSWORD)
        await page.keyboard.press("Enter")
        await page.wait_for_selector("main h1")
        async with page.expect_response("**/devices/events"):
            await page.goto("/devices")
        await expect(page.locator("#devices tbody")).to_contain_text("Never seen")
        await hospital.node.registry.set_device_state("CT1", DeviceState.MAINTENANCE)
        await expect(page.locator("#devices tbody")).to_contain_text("In maintenance", timeout=15_000)
