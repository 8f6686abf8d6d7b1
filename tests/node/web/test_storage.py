"""Storage on the portal and in the API: hospital IT sees every copy, others do not, and a check can be asked for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from consent.vocabulary import Role
from node.replication import StorageMetrics
from node.web import keys
from tests.support.node import NodeFixture, small_node
from tests.support.portal import Site, portal


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with small_node(tmp_path, roots=3) as node, portal(node) as made:
        await made.person("it", Role.ADMINISTRATOR)
        await made.person("li", Role.CLINICIAN)
        yield made


def lose(node: NodeFixture, number: int) -> None:
    assert node.replicas is not None
    path = node.replicas.quorum.slots[number - 1].path
    path.rename(path.with_suffix(".out"))
    node.replicas.watch()


@pytest.mark.requirement("V2")
async def test_api_tells_of_every_root_and_takes_a_wish_for_a_check(site: Site) -> None:
    """State by root, whether images are taken in, the scrub; a wish is kept for the duty."""
    async with site.client("it") as client:
        answer = await (await client.get("/api/v1/storage")).json()
        assert [root["state"] for root in answer["roots"]] == ["in-sync"] * 3
        assert (answer["writing"], answer["quorum"], answer["scrub"]["running"]) == (True, 2, False)
        await asyncio.to_thread(lose, site.node, 2)
        answer = await (await client.get("/api/v1/storage")).json()
        assert (answer["in_sync"], answer["roots"][1]["state"]) == (2, "away")
        response = await client.post("/api/v1/storage/scrub", json={"deep": True})
        assert response.status == 202
        assert (await site.app[keys.SCRUBBING].progress()).asked == "deep"


@pytest.mark.requirement("V2")
async def test_page_says_what_is_missing_and_what_to_do(site: Site) -> None:
    """All well; one copy missing; none taken in: each in words."""
    async with site.client("it") as client:
        assert "3 of 3" in await (await client.get("/storage")).text()
        await asyncio.to_thread(lose, site.node, 3)
        page = await (await client.get("/storage")).text()
        assert "A copy is missing" in page and "The folder is not there." in page
        await asyncio.to_thread(lose, site.node, 1)
        assert "No images can be taken in" in await (await client.get("/storage")).text()
        page = await (await client.get("/storage", headers={"Accept-Language": "zh-CN"})).text()
        assert "3 个存储根中只有 1 个可用；需要 2 个。" in page and "文件夹不存在。" in page
        assert "内置密钥库" in await (await client.get("/keys", headers={"Accept-Language": "zh-CN"})).text()
        assert (await client.post("/storage/scrub", data={"deep": ""}, allow_redirects=False)).status == 303


async def test_clinicians_do_not_see_the_disks(site: Site) -> None:
    """Neither page nor API."""
    async with site.client("li") as client:
        for path in ("/storage", "/api/v1/storage"):
            assert (await client.get(path)).status == 403


def test_metrics_name_roots_by_number_and_never_a_path(tmp_path: Path) -> None:
    """One gauge a state, free room, and whether images are taken in."""

    async def run() -> str:
        async with small_node(tmp_path, roots=3) as node, portal(node) as site:
            await asyncio.to_thread(lose, node, 2)
            registry = CollectorRegistry()
            registry.register(StorageMetrics(site.app[keys.REPLICATION]))
            await site.app[keys.REPLICATION].watch()
            return generate_latest(registry).decode()

    text = asyncio.run(run())
    assert 'accord_storage_root{root="2",state="away"} 1.0' in text
    assert 'accord_storage_root{root="1",state="in-sync"} 1.0' in text
    assert "accord_storage_writing 1.0" in text
    assert str(tmp_path) not in text
