"""The learning doors for people: pages and JSON, at the hub and at a hospital, through the real frame."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

import learning.schema  # noqa: F401  (its tables are made with the node's)
from consent.signed import read
from consent.vocabulary import Role
from learning.api import HUB_ROUTES, NODE_ROUTES
from learning.intake import TEMPLATE
from learning.keys import PLANBOOK, RUNS, SITE
from learning.models import ModelVersion
from learning.pages import ENDING_WORDS, REFUSAL_WORDS
from learning.plans import Refusal, Verdict
from learning.wording import Ending
from tests.learning.hubs import HubFixture, learning_hub
from tests.learning.region import digits_plan
from tests.learning.test_site import SiteFixture, at  # noqa: F401  (a fixture)
from tests.support.node import NodeFixture, small_node
from tests.support.portal import Site, portal

HTML = {"Accept": "text/html"}
SENT = {
    name: value
    for name, value in digits_plan().to_json().items()
    if name not in ("app", "privacy", "researcher")
}


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[NodeFixture]:
    async with small_node(tmp_path) as built:
        yield built


@asynccontextmanager
async def hub_portal(node: NodeFixture) -> AsyncIterator[tuple[HubFixture, Site]]:
    async with (
        learning_hub(node) as hub,
        portal(node, routes=HUB_ROUTES, services={RUNS: hub.runs, PLANBOOK: hub.book}) as site,
    ):
        await site.person("tan", Role.RESEARCHER, name="Dr Tan")
        await site.person("operator", Role.HUB_OPERATOR)
        await site.person("li", Role.CLINICIAN)
        yield hub, site


@pytest.mark.requirement("R1", "R2")
async def test_a_researcher_proposes_launches_follows_and_gets_the_model(node: NodeFixture) -> None:
    """The whole way by JSON: plan, refusal to launch too early, run, table, curve, plot, signed record, npz."""
    async with hub_portal(node) as (hub, site), site.client("tan") as tan:
        answer = await tan.post("/api/v1/plans", json=SENT)
        assert answer.status == 201
        digest = (await answer.json())["digest"]
        early = await tan.post("/api/v1/runs", json={"plan": digest})
        assert (early.status, "0 of the 2" in (await early.json())["detail"]) == (409, True)

        plan = await hub.book.plan(digest)
        for name in ("a", "b"):
            await hub.decide(plan, name, Verdict.APPROVE)
        listed = await (await tan.get("/api/v1/plans")).json()
        assert {one["verdict"] for one in listed["plans"][0]["decisions"].values()} == {"approve"}

        run_id = await hub.whole_run(plan)
        shown = await (await tan.get(f"/api/v1/runs/{run_id}")).json()
        assert (shown["state"], shown["rounds_done"]) == ("finished", 2)
        assert shown["refusals"] == {"c": "This site has not approved the plan."}
        assert shown["alone"] == {"a": 0.5, "b": 0.6}
        assert [point[0] for point in shown["curve"]] == [0, 1, 2]
        events = await (await tan.get(f"/api/v1/runs/{run_id}/events")).text()
        assert "event: ended" in events

        plot = await tan.get(f"/api/v1/runs/{run_id}/plot.svg")
        assert plot.content_type == "image/svg+xml"
        assert "unsafe-inline" in plot.headers["Content-Security-Policy"]
        assert "script" not in plot.headers["Content-Security-Policy"]

        model = await (await tan.get(f"/api/v1/models/{shown['model']}")).json()
        keys = (node.identity.signing.public_key(),)
        assert read(model["record"], ModelVersion, keys_of=lambda _: keys).body.run == run_id
        content = await (await tan.get(f"/api/v1/models/{shown['model']}/parameters")).read()
        with np.load(BytesIO(content), allow_pickle=False) as arrays:
            assert len(arrays.files) == 8


@pytest.mark.requirement("U1")
@pytest.mark.parametrize("path", ["plans", "runs", "runs/x", "models", "models/x", "models/x/parameters"])
async def test_others_see_nothing_of_research(node: NodeFixture, path: str) -> None:
    """A clinician's role does not include it; the hub's operator follows but does not download."""
    async with hub_portal(node) as (_, site):
        async with site.client("li") as li:
            assert (await li.get(f"/api/v1/{path}")).status == 403
        async with site.client("operator") as operator:
            expected = {"runs/x": 404, "models/x": 404, "models/x/parameters": 403}.get(path, 200)
            assert (await operator.get(f"/api/v1/{path}")).status == expected


@pytest.mark.parametrize(
    "change", [{"title": ""}, {"schedule": {}}, {"labels": None}, {"model": {"network": "x"}}]
)
async def test_a_bad_plan_is_answered_with_what_is_wrong(
    node: NodeFixture, change: dict[str, object]
) -> None:
    """400 with the field named, and no plan."""
    async with hub_portal(node) as (hub, site), site.client("tan") as tan:
        answer = await tan.post("/api/v1/plans", json=SENT | change)
        assert answer.status == 400
        assert (
            next(iter(change)) in (await answer.json())["detail"]
            or "network" in (await answer.json())["detail"]
        )
        assert await hub.book.plans() == ()


@pytest.mark.requirement("F6", "R1")
@pytest.mark.parametrize("language", ["en", "zh-CN"])
async def test_the_hubs_pages_are_there_in_both_languages(node: NodeFixture, language: str) -> None:
    """Empty, composed, proposed, running, finished, model: each page is rendered."""
    headers = HTML | {"Accept-Language": language}
    async with hub_portal(node) as (hub, site), site.client("tan", **headers) as tan:
        assert (await tan.get("/training")).status == 200
        assert (await tan.get("/training/plans/new")).status == 200
        answer = await tan.post("/training/plans/new", data=TEMPLATE, allow_redirects=False)
        assert answer.status == 303
        (plan,) = await hub.book.plans()
        assert (await tan.get(answer.headers["Location"])).status == 200
        refused = await tan.post("/training/runs", data={"plan": plan.digest}, allow_redirects=False)
        assert refused.status == 409
        for name in ("a", "b"):
            await hub.decide(plan, name, Verdict.APPROVE)
        run_id = await hub.whole_run(plan)
        run = await hub.runs.run_of(run_id)
        for path in ("/training", f"/training/runs/{run_id}", f"/training/models/{run.model}"):
            page = await tan.get(path)
            assert page.status == 200, await page.text()
            assert "Dr Tan" in await page.text()


async def test_a_bad_form_comes_back_with_what_was_typed(node: NodeFixture) -> None:
    """Nothing typed is lost, the fault is named, and no plan is made."""
    async with hub_portal(node) as (hub, site), site.client("tan", **HTML) as tan:
        given = TEMPLATE | {"rounds": "many", "title": "Typed with care"}
        answer = await tan.post("/training/plans/new", data=given, allow_redirects=False)
        page = await answer.text()
        assert answer.status == 400
        assert "Typed with care" in page
        assert await hub.book.plans() == ()


@pytest.mark.requirement("R2", "F6")
async def test_a_security_officer_reads_and_decides_and_others_cannot(at: SiteFixture) -> None:  # noqa: F811
    """The plan waits, shows what leaves the site, is approved by the officer; hospital IT may only look."""
    services = {PLANBOOK: at.site.book, SITE: at.site}
    async with portal(at.node, routes=NODE_ROUTES, services=services) as site:
        await site.person("wu", Role.SECURITY_OFFICER)
        await site.person("it", Role.ADMINISTRATOR)
        await site.person("li", Role.CLINICIAN)
        plan = at.offer()
        await at.site.sync()
        async with site.client("li", **HTML) as li:
            assert (await li.get("/training")).status == 403
        async with site.client("it", **HTML) as it:
            assert (await it.get(f"/training/plans/{plan.digest}")).status == 200
            denied = await it.post(
                f"/training/plans/{plan.digest}", data={"verdict": "approve"}, allow_redirects=False
            )
            assert denied.status == 403
        assert await at.site.book.decisions(plan.digest) == {}
        async with site.client("wu", **HTML) as wu:
            assert plan.digest[:16] in await (await wu.get("/training")).text()
            page = await (await wu.get(f"/training/plans/{plan.digest}")).text()
            assert "Without differential privacy" in page
            answer = await wu.post(
                f"/training/plans/{plan.digest}",
                data={"verdict": "approve", "reason": "board 7"},
                allow_redirects=False,
            )
            assert answer.status == 303
            assert (await wu.get("/training")).status == 200
        assert set(await at.site.book.approvals(plan.digest)) == {at.node.node_id}
        async with site.client("wu") as wu:
            shown = await (await wu.get("/api/v1/plans")).json()
            assert shown["plans"][0]["decisions"][at.node.node_id]["reason"] == "board 7"
            refused = await wu.post(f"/api/v1/plans/{plan.digest}/refuse", json={"reason": "changed"})
            assert refused.status == 201
            latest = (await at.site.book.decisions(plan.digest))[at.node.node_id].body
            assert (latest.verdict, latest.reason, latest.sequence) == (Verdict.REFUSE, "changed", 2)
            for path, body, status in (
                (f"/api/v1/plans/{'0' * 64}/approve", {}, 404),
                (f"/api/v1/plans/{plan.digest}/approve", {"max_rounds": 0}, 400),
                (f"/api/v1/plans/{plan.digest}/approve", {"reason": "x" * 501}, 400),
            ):
                assert (await wu.post(path, json=body)).status == status
        assert await at.site.book.approvals(plan.digest) == {}


def test_every_refusal_and_ending_can_be_translated() -> None:
    """The fixed words are marked, word for word."""
    assert set(REFUSAL_WORDS) == {words.value for words in Refusal}
    assert set(ENDING_WORDS) == {words.value for words in Ending}
