"""Findings and devices for people and programs: pages, JSON, streams, numbers, and who may see them."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from prometheus_client import CollectorRegistry, generate_latest

from consent.vocabulary import EventKind, Outcome, Role
from node.audit.event import Event
from node.web import keys
from ops import oversight
from ops.findings import Findings
from ops.sightings import Overseer
from tests.support.dicom import study
from tests.support.door import Door, dicom_door
from tests.support.node import NodeFixture, small_node
from tests.support.portal import Site, portal

pytestmark = [pytest.mark.timeout(60), pytest.mark.requirement("C1", "F6")]
PAGE = {"Accept": "text/html"}
CHINESE = PAGE | {"Accept-Language": "zh-CN"}


@dataclass
class House:
    """A node with a watched DICOM door and a portal that shows findings."""

    node: NodeFixture
    door: Door
    site: Site
    findings: Findings
    overseer: Overseer

    async def settle(self) -> None:
        """What the timed duties do."""
        await self.door.watch.look()
        await self.overseer.follow()


@pytest_asyncio.fixture
async def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    monkeypatch.setattr(oversight, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr("node.web.api.devices.LOOK_SECONDS", 0.05)
    monkeypatch.setattr("node.web.portal.devices.LOOK_SECONDS", 0.05)
    async with small_node(tmp_path) as node, dicom_door(node) as door:
        findings = Findings(node.database, node.log, node.clock)
        services: dict[Any, Any] = {oversight.FINDINGS: findings, keys.DEVICE_WATCH: door.watch}
        async with portal(node, routes=oversight.ROUTES, services=services, boxes=oversight.BOXES) as site:
            await site.person("it", Role.ADMINISTRATOR)
            await site.person("sec", Role.SECURITY_OFFICER)
            await site.person("li", Role.CLINICIAN)
            await node.registry.add_device("CT1", "127.0.0.1", plain_reason="A scanner without TLS")
            overseer = Overseer(node.database, node.log, node.registry, findings)
            yield House(node, door, site, findings, overseer)


async def page(client: aiohttp.ClientSession, path: str, status: int = 200) -> str:
    async with client.get(path) as answer:
        assert answer.status == status, (path, answer.status, (await answer.text())[:400])
        return " ".join(re.sub(r"<[^>]+>", " ", await answer.text()).split())


async def post(client: aiohttp.ClientSession, path: str, status: int, **body: Any) -> Any:
    async with client.post(path, json=body) as answer:
        assert answer.status == status, (path, answer.status, await answer.text())
        return await answer.json()


async def get(client: aiohttp.ClientSession, path: str, status: int = 200) -> Any:
    async with client.get(path) as answer:
        assert answer.status == status, (path, answer.status, await answer.text())
        return await answer.json()


async def next_event(stream: aiohttp.ClientResponse) -> tuple[str, Any]:
    """The next event of a stream: its name and data."""
    name = "message"
    async with asyncio.timeout(10):
        async for raw in stream.content:
            line = raw.decode().rstrip("\n")
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                return name, json.loads(line.removeprefix("data: "))
    raise AssertionError("the stream ended")


async def test_the_devices_page_shows_what_each_does_and_keeps_current(house: House) -> None:
    """Never seen; then connected with its images; each change comes by the stream, without a reload of the page."""
    async with house.site.client("it", **PAGE) as client:
        assert "CT1 Never seen" in await page(client, "/devices")
        async with client.get("/devices/events") as stream:
            assert await next_event(stream) == (
                "values",
                {"instances": "0", "seen CT1": "–", "instances CT1": "0", "bytes CT1": "0 B"},
            )
            association = await house.door.call("CT1")
            assert await next_event(stream) == ("refresh", {})
            await house.door.store(association, study(slices=2))
            await house.settle()
            name, changed = await next_event(stream)
            assert (name, changed["instances CT1"], changed["instances"]) == ("values", "2", "2")
        shown = await page(client, "/devices")
        assert "CT1 Connected" in shown and "2 " in shown
        assert "Open associations" in await page(client, "/devices/CT1")
    async with house.site.client("it", **CHINESE) as client:
        assert "CT1 已连接" in await page(client, "/devices")


async def test_a_refused_device_says_why_and_what_to_do_in_both_languages(house: House) -> None:
    """On its page, in the list, among the findings and on the start page."""
    await house.door.refused("CT1", address="127.0.0.9")
    await house.settle()
    english, chinese = "CT1 is registered at 127.0.0.1.", "CT1 登记的地址是 127.0.0.1。"
    for headers, words in ((PAGE, english), (CHINESE, chinese)):
        async with house.site.client("it", **headers) as client:
            for path in ("/devices", "/devices/CT1", "/findings", "/"):
                assert words in await page(client, path), path
    async with house.site.client("it") as client:
        [found] = await get(client, "/api/v1/findings")
        device = await get(client, "/api/v1/devices/CT1")

    assert found["faults"][0]["words"].endswith(english) and found["faults"][0]["mend"]
    assert device["latest_refusal"]["faults"][0] == {
        name: found["faults"][0][name] for name in ("words", "mend")
    }
    assert (device["troubled"], device["refusals_today"]) == (True, 1)


async def test_states_change_by_page_and_by_json_and_end_what_is_open(house: House) -> None:
    """Before the answer comes the association is gone; what the state does not allow is refused in words."""
    association = await house.door.call("CT1")
    async with house.site.client("it") as client:
        changed = await post(client, "/api/v1/devices/CT1/state", 200, state="maintenance", reason="new tube")
        assert (changed["state"], changed["state_reason"], changed["associated"]) == (
            "maintenance",
            "new tube",
            0,
        )
        assert changed["may_become"] == ["active", "retired"]
        assert await house.door.store(association, study(slices=1)) == [-1]
        problem = await post(client, "/api/v1/devices/CT1/state", 409, state="maintenance")
        assert problem["detail"] == "The device is in this state already."
        await post(client, "/api/v1/devices/CT1/state", 400, state="broken")
        await post(client, "/api/v1/devices/CT9/state", 404, state="active")
    async with house.site.client("it", **PAGE) as client:
        async with client.post("/devices/CT1", data={"state": "retired", "reason": "sold"}) as answer:
            assert answer.status == 200 and "Retired" in await answer.text()
        async with client.post("/devices/CT1", data={"state": "active"}) as answer:
            assert answer.status == 409 and "does not come back" in await answer.text()


async def test_devices_are_registered_renewed_and_moved_by_people_and_programs(house: House) -> None:
    """The key of an issued certificate is shown once; bad input is refused in words and changes nothing."""
    node = house.node

    def fresh() -> str:
        return node.identity.issue_device_certificate("MR1", node.clock.now()).certificate.decode()

    async with house.site.client("it") as client:
        made = await post(
            client, "/api/v1/devices", 201, ae_title="MR1", address="10.1.2.3", certificate=fresh()
        )
        assert made["services"] == ["commit", "store"] and made["certificate_ends"]
        await post(client, "/api/v1/devices", 400, ae_title="MR2", address="nowhere", plain_reason="too old")
        await post(client, "/api/v1/devices", 400, ae_title="MR2", address="10.1.2.4", services="store")
        renewed = await post(
            client, "/api/v1/devices/MR1/certificate", 200, certificate=fresh(), overlap_days=3
        )
        assert renewed["former_fingerprint"] == made["fingerprint"] and renewed["former_until"]
        await post(client, "/api/v1/devices/MR1/certificate", 400, certificate=fresh(), overlap_days=400)
        await post(client, "/api/v1/devices/MR1/certificate", 400, certificate=fresh(), overlap_days="soon")
    async with house.site.client("it", **PAGE) as client:
        form = {"channel": "issue", "overlap_days": "14"}
        async with client.post("/devices/MR1/certificate", data=form) as answer:
            assert "BEGIN PRIVATE KEY" in await answer.text()
        shown = await page(client, "/devices/MR1")
        assert "BEGIN PRIVATE KEY" not in shown and "Both certificates are let in until" in shown
        async with client.post("/devices/MR1/overlap") as answer:
            assert "Both certificates" not in await answer.text()
        async with client.post("/devices/MR1/address", data={"address": "10.9.9.9"}) as answer:
            assert "10.9.9.9" in await answer.text()
        async with client.post("/devices/MR1/address", data={"address": "there"}) as answer:
            assert answer.status == 400 and "not a network address" in await answer.text()
        await page(client, "/devices/NONE", 404)


async def test_a_finding_is_answered_in_words_by_page_and_by_json(house: House) -> None:
    """Acknowledged by IT, resolved by the officer; each shown with name and words, the log entry for the officer."""
    await house.door.refused("CT1", address="127.0.0.9")
    await house.settle()
    [finding] = await house.findings.listed()
    where = f"/findings/{finding.id}"
    async with house.site.client("it", **PAGE) as client:
        async with client.post(where, data={"do": "acknowledge", "words": " "}) as answer:
            assert answer.status == 400 and "Say in words" in await answer.text()
        async with client.post(where, data={"do": "acknowledge", "words": "Asking radiology"}) as answer:
            text = await answer.text()
            assert answer.status == 200 and "Acknowledged by it" in text and "Asking radiology" in text
            assert f"/log/{finding.entry}" not in text
        async with client.post(where, data={"do": "forget", "words": "whatever"}) as answer:
            assert answer.status == 400
    async with house.site.client("sec") as client:
        resolved = await post(client, f"/api/v1{where}/resolve", 200, words="It was a test")
        assert resolved["resolved"]["by"] == "person:sec@a-general" and resolved["state"] == "resolved"
        assert (await post(client, f"/api/v1{where}/resolve", 409, words="again"))["detail"]
        await post(client, f"/api/v1/findings/{'0' * 16}/resolve", 404, words="what")
        await get(client, "/api/v1/findings/..%2F", 400)
        assert await get(client, "/api/v1/findings") == []
        assert (
            len(await get(client, "/api/v1/findings?state=resolved&severity=warning&kind=device-refused"))
            == 1
        )
        await get(client, "/api/v1/findings?state=unheard-of", 400)
    async with house.site.client("sec", **PAGE) as client:
        assert "Resolved by sec" in await page(client, where)
        async with client.get(where) as answer:
            assert f"/log/{finding.entry}" in await answer.text()


async def test_streams_tell_programs_and_pages_of_a_new_finding(house: House) -> None:
    """The numbers for programs, a word to look again for pages."""
    async with house.site.client("sec") as client:
        async with (
            client.get("/api/v1/findings/events") as numbers,
            client.get("/findings/events") as looks,
        ):
            assert (await next_event(numbers))[1]["living"]["warning"] == {}
            await asyncio.sleep(0.15)
            await house.door.refused("CT1", address="127.0.0.9")
            await house.settle()
            assert (await next_event(numbers))[1]["living"]["warning"] == {"open": 1}
            assert await next_event(looks) == ("refresh", {})
        async with house.site.client("it") as other, other.get("/api/v1/devices/events") as devices:
            name, value = await next_event(devices)
            assert name == "devices" and value["devices"][0]["ae_title"] == "CT1"


async def test_pages_say_so_when_there_is_nothing(house: House) -> None:
    """Empty is a state of its own, in words."""
    async with house.site.client("sec", **PAGE) as client:
        assert "Nothing needs you" in await page(client, "/findings")
        assert "No finding is in this state." in await page(client, "/findings?state=resolved")
        assert "Nothing. No device was refused" in await page(client, "/")


@pytest.mark.parametrize(
    "path", ["/findings", "/api/v1/findings", "/findings/events", "/devices", "/api/v1/devices"]
)
async def test_a_clinician_sees_none_of_it_and_the_attempt_is_on_record(house: House, path: str) -> None:
    """Findings and devices are IT's and the officer's."""
    async with house.site.client("li") as client, client.get(path) as answer:
        assert answer.status == 403

    [refused] = await house.node.events(EventKind.ACCESS_REFUSED)
    assert refused.event.actor == "person:li@a-general"


async def test_the_officer_sees_findings_and_not_the_registry_of_devices(house: House) -> None:
    """Running the node and watching over it are different people's work."""
    async with house.site.client("sec") as client:
        await get(client, "/api/v1/findings")
        await get(client, "/api/v1/devices", 403)
        await post(client, "/api/v1/devices/CT1/state", 403, state="retired")


async def test_numbers_for_prometheus_are_by_severity_and_state(house: House) -> None:
    """All of them, zero too, and nothing that names a device."""
    await house.node.log.record(
        Event(EventKind.WITNESS_ALARMED, "system", Outcome.FAILED, reason="cut back", detail={"origin": "x"})
    )
    await house.settle()
    registry = CollectorRegistry()
    oversight.FindingMetrics(registry).show(await house.findings.counts())
    text = generate_latest(registry).decode()

    assert 'accord_findings{severity="incident",state="open"} 1.0' in text
    assert 'accord_findings{severity="warning",state="acknowledged"} 0.0' in text
