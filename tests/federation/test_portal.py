"""The exchange as people meet it: the JSON API and the portal's pages, at both hospitals, through their own doors."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from consent.vocabulary import Purpose, Right, Role
from federation import api, keys
from node.consents import Terms
from tests.support.dicom import study, uid
from tests.support.portal import Site, portal
from tests.support.region import Hospital, Region, region


@dataclass
class Doors:
    """A region, the portals of A and B, and a stored study of `li`'s patient at A."""

    r: Region
    a: Site
    b: Site
    study: str
    patient: str


async def served(stack: AsyncExitStack, hospital: Hospital) -> Site:
    services: dict[Any, Any] = {
        keys.MEMBERS: hospital.members,
        keys.ASKING: hospital.asking,
        keys.INCOMING: hospital.incoming,
        keys.GRANTS: hospital.grants,
        keys.HOLDINGS: hospital.holdings,
        keys.FETCHING: hospital.fetching,
        keys.WITNESSING: hospital.witnessing,
    }
    return await stack.enter_async_context(
        portal(hospital.node, routes=api.ROUTES, services=services, boxes=api.BOXES)
    )


@pytest.fixture
async def doors(tmp_path: Path) -> AsyncIterator[Doors]:
    async with AsyncExitStack() as stack:
        r = await stack.enter_async_context(region(tmp_path, nodes=("a-general", "b-central")))
        a, b = await served(stack, r.a), await served(stack, r.b)
        receipts = await r.a.node.store(*study(name="demo", patient_id="P-0001", accession_number="A-1"))
        patient = r.a.node.index.pseudonyms.patient("P-0001")
        await a.person("li", treats=[patient], name="Li Wei")
        await a.person("wu", name="Wu Min")
        await a.person("sec", Role.SECURITY_OFFICER)
        await b.person("zhao", name="Zhao Yun")
        await b.person("it", Role.ADMINISTRATOR)
        yield Doors(r, a, b, receipts[0].study, patient)


async def consent(doors: Doors) -> None:
    person = await doors.r.a.node.registry.principal("li")
    terms = Terms(
        frozenset({Purpose.TREATMENT}), frozenset(Right), doors.r.clock.now() + timedelta(days=30), "form 17"
    )
    await doors.r.a.consents.record(person, doors.patient, terms)


async def json_of(answer: aiohttp.ClientResponse, status: int = 200) -> Any:
    assert answer.status == status, await answer.text()
    return await answer.json(content_type=None)


@pytest.mark.requirement("E3", "U2")
async def test_exchange_by_json(doors: Doors) -> None:
    """Ask, see it arrive, grant, fetch, see it held, take it back: each over the API of the hospital concerned."""
    await consent(doors)
    asking = {"home": "a-general", "study_instance_uid": uid("demo"), "reason": "second opinion"}
    async with doors.a.client("li") as li, doors.b.client("zhao") as zhao:
        async with zhao.post("/api/v1/requests", json=asking) as answer:
            request = (await json_of(answer, 201))["id"]
        async with li.get("/api/v1/incoming") as answer:
            (incoming,) = await json_of(answer)
        assert (incoming["id"], incoming["person_name"], incoming["reason"]) == (
            request,
            "Zhao Yun",
            "second opinion",
        )
        async with li.post(f"/api/v1/incoming/{request}/grant", json={"seconds": 3600}) as answer:
            grant = (await json_of(answer, 201))["grant"]
        async with zhao.post(f"/api/v1/held/{grant}/fetch", json={}) as answer:
            assert (await json_of(answer))["state"] == "held"
        async with zhao.post(
            "/api/v1/openings", json={"study": doors.study, "home": "a-general", "purpose": "TREAT"}
        ) as answer:
            opening = await json_of(answer, answer.status)
            assert opening["series"], opening
        async with li.get("/api/v1/grants") as answer:
            (given,) = await json_of(answer)
        assert given["alive"] and given["holder"] == "b-central"
        async with li.post(f"/api/v1/grants/{grant}/revoke", json={"reason": "done"}) as answer:
            await json_of(answer)
        async with zhao.get("/api/v1/held") as answer:
            (held,) = await json_of(answer)
        assert held["state"] == "shredded"
        async with zhao.get("/api/v1/members") as answer:
            members = await json_of(answer)
        assert [member["id"] for member in members["members"]] == ["hub", "a-general", "b-central"]


@pytest.mark.requirement("E3", "U1", "F6")
async def test_api_refuses_with_words(doors: Doors) -> None:
    """Missing reason, unnamed study, foreign request ids, other people's grants: problem documents that say what to do."""
    await consent(doors)
    named = {"home": "a-general", "study_instance_uid": uid("demo")}
    async with doors.a.client("wu") as wu, doors.b.client("zhao") as zhao, doors.b.client("it") as it:
        bad: list[tuple[aiohttp.ClientSession, str, Any, int]] = [
            (zhao, "/api/v1/requests", named, 400),
            (zhao, "/api/v1/requests", {"home": "a-general", "reason": "why it is"}, 400),
            (zhao, "/api/v1/requests", {**named, "home": "nowhere", "reason": "why it is"}, 403),
            (zhao, "/api/v1/requests", {**named, "reason": "why it is", "rights": ["own"]}, 400),
            (it, "/api/v1/requests", {**named, "reason": "why it is"}, 403),
            (wu, f"/api/v1/incoming/{'0' * 32}/grant", {}, 404),
            (wu, "/api/v1/incoming/x/grant", {}, 400),
            (wu, f"/api/v1/grants/{'0' * 32}/revoke", {"reason": "x"}, 404),
            (zhao, f"/api/v1/held/{'0' * 32}/fetch", {}, 404),
        ]
        for client, path, body, status in bad:
            async with client.post(path, json=body) as answer:
                problem = await json_of(answer, status)
            assert problem["detail"], path


@pytest.mark.requirement("E3", "E2", "F6")
async def test_exchange_by_pages(doors: Doors) -> None:
    """The same story through forms: what is missing is said, what was typed stays, and states are shown."""
    form = {"home": "a-general", "purpose": "TREAT", "rights": "view", "hours": "24"}
    async with doors.a.client("li") as li, doors.b.client("zhao") as zhao:
        empty = {
            "/shared": "Nothing is shared with you now",
            "/requests": "No requests yet",
            "/incoming": "No request waits for you",
            "/grants": "No access is given",
        }
        for path, words in empty.items():
            async with li.get(path) as answer:
                assert words in await answer.text(), path
        async with zhao.get("/requests/new") as answer:
            assert "General Hospital" in await answer.text()
        async with zhao.post("/requests", data={**form, "accession_number": "A-1"}) as answer:
            text = await answer.text()
            assert answer.status == 400 and "A-1" in text and "why you need" in text
        filled = {**form, "accession_number": "A-1", "patient_id": "P-0001", "reason": "second opinion"}
        async with zhao.post("/requests", data=filled, allow_redirects=False) as answer:
            assert answer.status == 303
        async with zhao.get("/requests") as answer:
            assert "Waiting for an answer" in await answer.text()

        (asked,) = await doors.r.a.incoming.incoming(await doors.r.a.node.registry.principal("li"))
        async with li.get(f"/incoming/{asked.id}") as answer:
            assert "does not cover this request" in await answer.text()
        async with li.post(f"/incoming/{asked.id}/grant", data={"hours": "24", "rights": "view"}) as answer:
            assert answer.status == 403 and "consent" in await answer.text()
        await consent(doors)
        async with li.get(f"/incoming/{asked.id}") as answer:
            assert "consent covers this request" in await answer.text()
        async with li.get(f"/studies/{doors.study}") as answer:
            assert "asks for this study" in await answer.text()
        async with li.get("/") as answer:
            assert "Requests that wait for your answer" in await answer.text()
        async with li.post(
            f"/incoming/{asked.id}/grant", data={"hours": "4", "rights": "view"}, allow_redirects=False
        ) as answer:
            assert answer.status == 303
        async with li.get("/grants") as answer:
            assert "In force" in await answer.text()

        (held,) = await doors.r.b.holdings.held(await doors.r.b.node.registry.principal("zhao"))
        async with zhao.get("/shared") as answer:
            text = await answer.text()
            assert "On its way" in text and "second opinion" in text
        async with zhao.post(f"/shared/{held.grant}/fetch", allow_redirects=False) as answer:
            assert answer.status == 303
        async with zhao.get("/shared") as answer:
            assert f"/viewer/{doors.study}?home=a-general" in await answer.text()
        async with zhao.get(f"/viewer/{doors.study}?home=a-general") as answer:
            assert answer.status == 200
        async with li.post(
            f"/grants/{held.grant}/revoke", data={"reason": "enough"}, allow_redirects=False
        ) as answer:
            assert answer.status == 303
        async with zhao.get("/shared") as answer:
            assert "Ended, copy destroyed" in await answer.text()
        async with zhao.get(f"/viewer/{doors.study}?home=a-general") as answer:
            assert answer.status in (403, 404)


@pytest.mark.requirement("E3", "F6")
async def test_request_is_declined_by_page_and_in_chinese(doors: Doors) -> None:
    """A decline needs words; the pages answer in the browser's language without failing."""
    form = {"home": "a-general", "purpose": "TREAT", "study_instance_uid": uid("demo"), "reason": "复查"}
    async with (
        doors.a.client("li", **{"Accept-Language": "zh-CN"}) as li,
        doors.b.client("zhao", **{"Accept-Language": "zh-CN"}) as zhao,
    ):
        async with zhao.post("/requests", data=form, allow_redirects=False) as answer:
            assert answer.status == 303
        (asked,) = await doors.r.a.incoming.incoming(await doors.r.a.node.registry.principal("li"))
        async with li.get(f"/incoming/{asked.id}") as answer:
            assert 'lang="zh-CN"' in await answer.text()
        async with li.post(f"/incoming/{asked.id}/decline", data={"reason": ""}) as answer:
            assert answer.status == 400
        async with li.post(
            f"/incoming/{asked.id}/decline", data={"reason": "请先补充转诊单"}, allow_redirects=False
        ) as answer:
            assert answer.status == 303
        await doors.r.b.asking.deliver()
        async with zhao.get("/requests") as answer:
            assert "请先补充转诊单" in await answer.text()


@pytest.mark.requirement("E1", "F6", "U1")
async def test_region_page_is_for_those_who_oversee(doors: Doors) -> None:
    """IT and the security officer see members and witnesses; a clinician is refused; requests are not theirs."""
    await doors.r.a.witnessing.submit()
    async with doors.a.client("sec") as sec, doors.a.client("li") as li, doors.b.client("it") as it:
        async with sec.get("/region") as answer:
            text = await answer.text()
        assert "b-central" in text and "Roster version" in text
        async with li.get("/region") as answer:
            assert answer.status == 403
        async with it.get("/incoming") as answer:
            assert answer.status == 403
        doors.r.clock.tick(days=20)
        await doors.a.person("sec2", Role.SECURITY_OFFICER)
    async with doors.a.client("sec2") as sec2, sec2.get("/region") as answer:
        assert "has expired" in await answer.text()
