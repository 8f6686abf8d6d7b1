"""A hub and two hospitals as real processes: founding, joining, the dashboard, suspension; and who may see what."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from consent.vocabulary import EventKind
from node.ports import free_ports
from ops.demo.person import Person, Refused
from ops.demo.processes import Site, start, stop, tune
from ops.demo.processes import accord as accord_process
from ops.foundation import opened
from tests.support.browser import chromium, needs_chromium
from tests.support.cli import Said, accord
from tests.support.custodies import hurry
from tests.support.dicom import study

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow, pytest.mark.journey]

PASSWORD = "a long enough passphrase"
WAIT_SECONDS = 40.0
PLANTED = ("Ouyang", "欧阳", "PID-778899", "zz.doctor", "Zzdoctor Geheim")
"""Patients and people of the hospitals, who must be nowhere at the hub."""


@dataclass
class Delta:
    """The region: the hub, two members, and the operator signed in."""

    hub: Site
    a: Site
    b: Site
    operator: Person
    authority: str
    place: Path
    joined: dict[str, Any]
    """What `accord join` said of B, which was running."""

    async def until(self, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The hub's view as soon as `holds` is true of it."""
        async with asyncio.timeout(WAIT_SECONDS):
            while not holds(view := await self.operator.get("/api/v1/hub")):
                await asyncio.sleep(0.2)
        return dict(view)


def member(view: dict[str, Any], name: str) -> dict[str, Any]:
    return next((one for one in view["members"] if one["id"] == name), {})


async def said(*words: object) -> Said:
    """A command in this process; it makes an event loop of its own."""
    return await asyncio.to_thread(accord, *words)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def delta(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Delta]:
    place = tmp_path_factory.mktemp("delta")
    ports = free_ports(6)
    hub = Site("hub", "Regional hub", place / "hub", {"http": ports[0], "peer": ports[1]})
    a = Site("a-general", "A General", place / "a", {"http": ports[2], "peer": ports[3]})
    b = Site("b-central", "B Central", place / "b", {"http": ports[4], "peer": ports[5]})
    made = await accord_process(
        "hub", "init", hub.folder, "--region", "delta",
        "--http-port", ports[0], "--peer-port", ports[1],
    )  # fmt: skip
    hurry(hub.folder)
    for site in (a, b):
        await _hospital(site)
    await _images(a, place)
    async with opened(hub.folder) as base:
        await base.registry.set_password(made["login"], PASSWORD)
        authority = base.identity.authority_pem
    await start(hub, "hub", "serve")
    try:
        file = place / "a.accord"
        await accord_process("hub", "invite", hub.folder, "--out", file, "--note", a.name)
        assert (await accord_process("join", a.folder, file))["listed"]
        assert (await said("hub", "invite", hub.folder, "--out", place / "b.accord")).code == 0
        await asyncio.gather(start(a, "serve"), start(b, "serve"))
        joined = await accord_process("join", b.folder, place / "b.accord")
        async with Person(hub.portal, authority, made["login"], PASSWORD) as operator:
            yield Delta(hub, a, b, operator, authority, place, joined)
    finally:
        await asyncio.gather(*(stop(site, kill=True) for site in (hub, a, b)))


async def _hospital(site: Site) -> None:
    ports = ("--http-port", site.ports["http"], "--dicom-port", 0, "--peer-port", site.ports["peer"])
    assert (await said("init", site.folder, "--name", site.name, "--ae-title", "AET", *ports)).code == 0
    hurry(site.folder)
    tune(
        site, intervals__roster_seconds=0.5, intervals__checkpoint_seconds=0.5, intervals__report_seconds=0.5
    )


async def _images(site: Site, place: Path) -> None:
    files = place / "files"
    files.mkdir()
    for number, instance in enumerate(study(patient_name="Ouyang^Xiadan=欧阳^夏丹", patient_id="PID-778899")):
        (files / f"{number}.dcm").write_bytes(instance.file())
    assert (await said("import", site.folder, files)).code == 0
    line = ("--name", "zz.doctor", "--role", "clinician", "--full-name", "Zzdoctor Geheim")
    assert (await said("user", "add", site.folder, *line)).code == 0


@pytest.mark.requirement("E1")
async def test_a_running_node_knows_its_region_when_join_ends(delta: Delta) -> None:
    """The command waits until the process that serves shows the roster; a node that is not served is told so."""
    assert delta.joined == {"listed": True, "region": "delta", "seen": True}


@pytest.mark.requirement("E7")
async def test_the_operator_sees_every_member_with_versions_log_and_witnesses(delta: Delta) -> None:
    """Up, software and roster version, log size, how far the hub has vouched for it; totals and no fault."""
    view = await delta.until(
        lambda view: all(
            member(view, name).get("standing") == "up"
            and member(view, name)["roster_current"]
            and member(view, name)["log_size"] >= member(view, name)["cosigned_size"] > 0
            for name in ("a-general", "b-central")
        )
    )
    assert view["region"] == "delta" and view["fault"] is None
    assert view["roster"]["version"] == 3
    a = member(view, "a-general")
    assert a["software"] and a["log_sound"]
    assert set(view["totals"]) >= {"grants_issued", "packs_released", "copies_held"}


@pytest.mark.requirement("E7")
async def test_changes_are_pushed(delta: Delta) -> None:
    """The stream begins with what the JSON says and goes on when something changes."""
    stream = delta.operator.events("/api/v1/hub/events")
    async with asyncio.timeout(WAIT_SECONDS):
        first = json.loads(await anext(stream))
        assert {one["id"] for one in first["members"]} == {"a-general", "b-central"}
        later = json.loads(await anext(stream))
    assert later != first
    await stream.aclose()  # type: ignore[attr-defined]


@pytest.mark.requirement("E7")
async def test_no_patient_and_no_person_of_a_hospital_is_at_the_hub(delta: Delta) -> None:
    """Not on the page, not in the JSON, not in any file of the hub, not in what it printed."""
    page = await delta.operator.page("/")
    assert "A General" in page
    shown = page + json.dumps(await delta.operator.get("/api/v1/hub"), ensure_ascii=False)
    assert not any(prefix in shown for prefix in ("pt_", "st_"))
    files = [path for path in delta.hub.folder.rglob("*") if path.is_file()] + [delta.hub.output]
    kept = b"".join(path.read_bytes() for path in files)
    for words in PLANTED:
        assert words not in shown
        assert words.encode() not in kept


@pytest.mark.requirement("E7", "U1")
async def test_only_the_operator_sees_the_region(delta: Delta) -> None:
    """A researcher at the hub gets a page without it and is refused on record; a stranger is sent to sign in."""
    file = delta.place / "password"
    file.write_text(PASSWORD, "utf-8")
    line = ("--name", "res", "--role", "researcher", "--password-file", file)
    assert (await said("user", "add", delta.hub.folder, *line)).code == 0
    async with Person(delta.hub.portal, delta.authority, "res", PASSWORD) as researcher:
        assert "A General" not in await researcher.page("/")
        for path in ("/api/v1/hub", "/api/v1/hub/events"):
            with pytest.raises(Refused) as refused:
                await researcher.get(path)
            assert refused.value.status == 403
        for path in ("members/a-general/suspend", "invitations"):
            with pytest.raises(Refused) as refused:
                await researcher.post(f"/api/v1/hub/{path}", {"reason": "x"})
            assert refused.value.status == 403
    stranger = Person(delta.hub.portal, delta.authority, "nobody", "nothing at all here")
    try:
        with pytest.raises(Refused) as refused:
            await stranger.get("/api/v1/hub")
        assert refused.value.status == 401
    finally:
        await stranger.close()
    async with opened(delta.hub.folder) as base:
        refusals = await base.log.search(kind=EventKind.ACCESS_REFUSED)
        assert len([entry for entry in refusals if entry.event.actor == "person:res@hub"]) >= 4


async def test_the_hub_has_no_door_to_images(delta: Delta) -> None:
    """No studies, no DICOMweb, no viewer: the routes are not there."""
    for path in ("/api/v1/studies", "/dicom-web/studies", "/viewer/st_x", "/studies"):
        with pytest.raises(Refused) as missing:
            await delta.operator.get(path)
        assert missing.value.status == 404, path


@pytest.mark.requirement("E1", "E7")
async def test_a_suspended_member_is_cut_off_everywhere_and_comes_back(delta: Delta) -> None:
    """The hub takes nothing from it, the other hospital's roster says so; after reinstating all is as before."""
    for bad in ({}, {"reason": ""}, {"reason": "x" * 501}):
        with pytest.raises(Refused) as refused:
            await delta.operator.post("/api/v1/hub/members/b-central/suspend", bad)
        assert refused.value.status in (400, 422)
    with pytest.raises(Refused) as refused:
        await delta.operator.post("/api/v1/hub/members/nobody-here/suspend", {"reason": "drill"})
    assert refused.value.status == 404
    with pytest.raises(Refused) as refused:
        await delta.operator.post("/api/v1/hub/members/hub/suspend", {"reason": "drill"})
    assert refused.value.status == 403
    await delta.operator.post("/api/v1/hub/members/b-central/suspend", {"reason": "lost credential"})
    view = await delta.until(
        lambda view: bool(view["alarms"]) and member(view, "a-general")["roster_current"]
    )
    assert member(view, "b-central")["standing"] == "suspended"
    assert view["alarms"][0]["kind"] == EventKind.PEER_REFUSED
    await _until_at(delta.a, lambda base: base.members.is_suspended("b-central"))
    await delta.operator.post("/api/v1/hub/members/b-central/reinstate", {"reason": "new credential"})
    await _until_at(delta.a, lambda base: base.members.is_active("b-central"))
    await delta.until(lambda view: member(view, "b-central")["standing"] == "up")
    async with opened(delta.hub.folder) as base:
        [suspended] = await base.log.search(kind=EventKind.MEMBER_SUSPENDED)
        assert suspended.event.reason == "lost credential"
        assert suspended.event.actor == "person:operator@hub"
        assert len(await base.log.search(kind=EventKind.MEMBER_REINSTATED)) == 1


@pytest.mark.requirement("E1")
async def test_an_invitation_admits_one_node_once(delta: Delta) -> None:
    """Made on the page's API; the second node that shows it is refused, and so is a changed file."""
    made = await delta.operator.post("/api/v1/hub/invitations", {"note": "C Clinic", "hours": 1})
    token = made["invitation"]
    file, changed = delta.place / "c.accord", delta.place / "changed.accord"
    file.write_text(token + "\n", "ascii")
    middle = len(token) // 2
    changed.write_text(token[:middle] + ("A" if token[middle] != "A" else "B") + token[middle + 1 :], "ascii")
    for name in ("c", "d"):
        line = ("--http-port", 0, "--dicom-port", 0, "--peer-port", free_ports(1)[0])
        await said("init", delta.place / name, "--name", f"{name} clinic", "--ae-title", "X", *line)
    refused = await said("join", delta.place / "c", changed)
    assert refused.code in (6, 7) and "The invitation cannot be used" in refused.err
    first = await said("join", delta.place / "c", file)
    assert first.code == 0 and "No node answers here now" in first.words
    again = await said("join", delta.place / "c", file)
    assert again.code == 0, "an answer may have been lost, so the same node may repeat"
    second = await said("join", delta.place / "d", file)
    assert second.code == 3 and "has been used" in second.err
    view = await delta.operator.get("/api/v1/hub")
    assert member(view, "c-clinic")["standing"] == "new"
    assert member(view, "d-clinic") == {}


@pytest.mark.parametrize("body", [{"hours": 0}, {"hours": 337}, {"hours": "3"}, {"note": "x" * 121}], ids=str)
async def test_an_invitation_out_of_bounds_is_refused(delta: Delta, body: dict[str, Any]) -> None:
    """One hour to two weeks, a short note."""
    with pytest.raises(Refused) as refused:
        await delta.operator.post("/api/v1/hub/invitations", body)
    assert refused.value.status in (400, 422)


@needs_chromium
@pytest.mark.requirement("F6", "E7")
async def test_the_page_works_in_a_browser_in_both_languages(delta: Delta) -> None:
    """Sign in, read the table, download an invitation, suspend with a reason and reinstate; then in Chinese."""
    async with chromium() as running, running.page(delta.hub.portal) as page:
        await page.goto("/")
        await page.fill("#login", "operator")
        await page.fill("#password", PASSWORD)
        await page.click("form[action='/sign-in'] button")
        await page.wait_for_selector("text=Region delta")
        await page.click("[data-dialog='invite']")
        await page.fill("#note", "E Clinic")
        async with page.expect_download() as coming:
            await page.click("form[action='/invitations'] button:has-text('Download')")
        download = await coming.value
        assert download.suggested_filename == "e-clinic.accord"
        await page.click("dialog[open] [data-dialog-close] >> nth=0")
        await page.click("[data-dialog='suspend-a-general']")
        await page.fill("#reason-a-general", "drill of the region")
        await page.click("dialog[open] button.danger")
        await page.wait_for_selector("[data-dialog='reinstate-a-general']")
        await page.click("[data-dialog='reinstate-a-general']")
        await page.fill("#reason-a-general", "drill is over")
        await page.click("dialog[open] button.primary")
        await page.wait_for_selector("[data-dialog='suspend-a-general']")
        await page.click("button[name=language]")
        await page.wait_for_selector("html[lang='zh-CN']")
        text = await page.inner_text("main")
        assert "Members up" not in text and "A General" in text
        assert any("\u4e00" <= letter <= "\u9fff" for letter in text)


async def _until_at(site: Site, holds: Callable[[Any], bool]) -> None:
    """Wait until what a site's database says of the roster satisfies `holds`."""
    async with opened(site.folder) as base, asyncio.timeout(WAIT_SECONDS):
        while not holds(base):
            await asyncio.sleep(0.2)
            await base.members.load()
