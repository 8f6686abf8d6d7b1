"""Keys by API and by page: counts and dates for hospital IT, unlocking by their holders, a study's grade by the officer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from consent.vocabulary import EventKind, Grade, Role
from node.grade_locks import GradeLocks
from node.vault.custody.two_person import TwoPersonKeystore
from node.web import keys
from tests.support.custodies import QUICK
from tests.support.dicom import ct_slice
from tests.support.node import NodeFixture, small_node
from tests.support.portal import Site, portal

PEOPLE = {"li": b"passphrase of li", "wang": b"passphrase of wang"}


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[NodeFixture]:
    TwoPersonKeystore.create(tmp_path / "restricted.json", Grade.RESTRICTED, PEOPLE, effort=QUICK)
    keystore = TwoPersonKeystore.open(tmp_path / "restricted.json")
    async with small_node(tmp_path, guarded={Grade.RESTRICTED: keystore}) as running:
        running.guarded = keystore  # type: ignore[attr-defined]
        yield running


@pytest.fixture
async def site(node: NodeFixture) -> AsyncIterator[Site]:
    locks = GradeLocks({Grade.RESTRICTED: node.guarded}, node.keys, node.log, node.clock)  # type: ignore[attr-defined]
    async with portal(node, services={keys.GRADE_LOCKS: locks}) as running:
        await running.person("it", Role.ADMINISTRATOR)
        await running.person("officer", Role.SECURITY_OFFICER)
        await running.person("li", Role.CHIEF_PHYSICIAN)
        await running.person("wang")
        await running.person("zhao")
        yield running


@pytest.mark.requirement("V1", "F6")
async def test_hospital_it_sees_versions_and_rotates(site: Site) -> None:
    """Version, age, due date and counts of every grade; rotating makes the next version; nothing of it is a key."""
    node = site.node
    await node.store(ct_slice(), ct_slice(study="b"), ct_slice(study="m", modality="MG"))
    node.clock.tick(days=3)
    async with site.client("it") as client:
        async with client.get("/api/v1/keys") as answer:
            before = await answer.json()
        async with client.post("/api/v1/keys/rotate", json={"grade": "ordinary"}) as answer:
            assert (answer.status, await answer.json()) == (201, {"grade": "ordinary", "version": 2})
        async with client.get("/api/v1/keys") as answer:
            after = await answer.json()
        async with client.post("/api/v1/keys/rewrap", json={}) as answer:
            assert answer.status == 202
        async with client.post("/api/v1/keys/rotate", json={"grade": "secret"}) as answer:
            assert answer.status == 400 and "restricted" in (await answer.json())["mend"]
    assert "keystore" in before["custody"]
    ordinary, sensitive = before["grades"]
    assert (ordinary["version"], ordinary["study_keys"], ordinary["behind"]) == (1, 2, 0)
    assert (sensitive["grade"], sensitive["study_keys"], sensitive["age_days"]) == ("sensitive", 1, 3.0)
    assert (after["grades"][0]["version"], after["grades"][0]["behind"]) == (2, 2)
    assert [one["state"] for one in after["grades"][0]["versions"]] == ["decrypt-only", "active"]
    assert before["guarded"] == [
        {"grade": "restricted", "locked": True, "holders": ["li", "wang"], "waiting": ""}
    ]
    assert (await node.events(EventKind.KEY_ROTATED))[0].event.actor == f"person:it@{node.node_id}"


@pytest.mark.requirement("V1", "U1")
async def test_only_hospital_it_and_holders_come_near_the_keys(site: Site) -> None:
    """Others are refused by the rules, on record; a holder may see the lock and nothing else."""
    async with site.client("zhao") as client:
        for path in ("/api/v1/keys", "/keys", "/keys/events", "/api/v1/keys/events"):
            async with client.get(path) as answer:
                assert answer.status == 403
        for path in ("rotate", "rewrap", "lock"):
            async with client.post(f"/api/v1/keys/{path}", json={"grade": "restricted"}) as answer:
                assert answer.status == 403
        body = {"passphrase": "passphrase of li"}
        async with client.post("/api/v1/keys/unlock", json=body) as answer:
            assert answer.status == 403
    async with site.client("wang") as client:
        async with client.get("/keys") as answer:
            page = await answer.text()
        assert 'name="passphrase"' in page and "keystore" not in page
        async with client.get("/api/v1/keys") as answer:
            assert answer.status == 403
    assert len(await site.node.events(EventKind.ACCESS_REFUSED)) >= 8


@pytest.mark.requirement("V1", "V4")
async def test_two_holders_unlock_and_one_locks(site: Site) -> None:
    """Each with their own session and passphrase; one person with both passphrases cannot stand for two."""
    async with site.client("li") as li, site.client("wang") as wang:
        async with li.post("/api/v1/keys/unlock", json={"passphrase": "passphrase of wang"}) as answer:
            assert answer.status == 403
        async with li.post("/api/v1/keys/unlock", json={"passphrase": ""}) as answer:
            assert answer.status == 400
        async with li.post("/api/v1/keys/unlock", json={"passphrase": "passphrase of li"}) as answer:
            assert await answer.json() == {
                "grade": "restricted", "locked": True, "holders": ["li", "wang"], "waiting": "li",
            }  # fmt: skip
        async with wang.get("/keys") as answer:
            assert "li has given a passphrase" in await answer.text()
        form = {"do": "unlock", "grade": "restricted", "passphrase": "passphrase of wang"}
        async with wang.post("/keys", data=form, allow_redirects=False) as answer:
            assert answer.status == 303
        assert not site.node.keys.locked(Grade.RESTRICTED)
        async with wang.post("/api/v1/keys/lock", json={}) as answer:
            assert (await answer.json())["locked"] is True
    assert len(await site.node.events(EventKind.GRADE_LOCKED)) == 1


@pytest.mark.requirement("V1", "U1", "V4")
async def test_the_officer_sets_a_grade_and_what_was_open_is_closed(site: Site) -> None:
    """By the security officer or a chief physician; hospital IT and clinicians may not; the reason is on record."""
    node = site.node
    receipt = (await node.store(ct_slice()))[0]
    patient = await node.index.patient_of(receipt.study)
    who = await node.person(treats=[patient])
    opening = await node.gateway.open(who, receipt.study)
    path = f"/api/v1/studies/{receipt.study}/grade"
    for login in ("it", "zhao"):
        async with site.client(login) as client, client.post(path, json={"grade": "sensitive"}) as answer:
            assert answer.status == 403
    async with site.client("officer") as client:
        body = {"grade": "sensitive", "reason": "A member of staff."}
        async with client.post(path, json=body) as answer:
            assert await answer.json() == {
                "study": receipt.study, "before": "ordinary", "grade": "sensitive", "objects": 2,
            }  # fmt: skip
        async with client.post(path, json=body) as answer:
            assert answer.status == 409
        async with client.post(path, json={"grade": "restricted"}) as answer:
            assert answer.status == 503 and "two people" in (await answer.json())["detail"]
        async with client.post("/api/v1/studies/st_none0/grade", json=body) as answer:
            assert answer.status == 404
    with pytest.raises(Exception, match="not open"):
        await node.gateway.series(opening)
    (event,) = await node.events(EventKind.STUDY_REGRADED)
    assert event.event.reason == "A member of staff."


@pytest.mark.requirement("V1", "U1", "F6")
async def test_the_grade_of_a_study_is_changed_on_its_page(site: Site) -> None:
    """Reached from the log; with a reason, which is on record; a refusal keeps what was typed; nobody else sees the page."""
    node = site.node
    study = (await node.store(ct_slice()))[0].study
    path = f"/studies/{study}/grade"
    for login in ("it", "zhao"):
        async with site.client(login) as client:
            async with client.get(path) as answer:
                assert answer.status == 403
            async with client.post(path, data={"grade": "sensitive", "reason": "Mine."}) as answer:
                assert answer.status == 403
    async with site.client("officer") as client:
        async with client.get("/log", params={"study": study}) as answer:
            assert f'href="{path}"' in await answer.text()
        async with client.get(path) as answer:
            page = await answer.text()
        assert "Ordinary" in page and 'value="sensitive" checked' in page and 'value="ordinary"' not in page
        for reason, status in (("", 400), ("r" * 501, 400)):
            async with client.post(path, data={"grade": "sensitive", "reason": reason}) as answer:
                assert answer.status == status
        form = {"grade": "restricted", "reason": "A <b>member</b> of staff."}
        async with client.post(path, data=form) as answer:
            page = await answer.text()
            assert answer.status == 503 and "two people" in page
            assert "A &lt;b&gt;member&lt;/b&gt; of staff." in page
        form["grade"] = "sensitive"
        async with client.post(path, data=form, allow_redirects=False) as answer:
            assert (answer.status, answer.headers["Location"]) == (303, path)
    assert (await node.index.study(study)).grade is Grade.SENSITIVE
    (event,) = await node.events(EventKind.STUDY_REGRADED)
    assert event.event.reason == "A <b>member</b> of staff."


@pytest.mark.requirement("V1", "F6")
async def test_the_page_follows_a_rewrapping(site: Site) -> None:
    """Numbers come as they change, and the page is fetched anew when it begins and when it ends."""
    node = site.node
    for number in range(60):
        await node.keys.study_key(None, f"st_study{number:04}", Grade.ORDINARY, create=True)
    rotation = site.app[keys.ROTATION]
    await rotation.rotate(Grade.ORDINARY, "system")
    async with site.client("it") as client:
        async with client.get("/keys") as answer:
            page = await answer.text()
        assert "keystore" in page and ">60<" in page.replace("\n", "").replace(" ", "")
        async with client.get("/keys/events") as stream, client.get("/api/v1/keys/events") as raw:
            assert stream.status == raw.status == 200
            rewrapping = asyncio.create_task(rotation.rewrap(batch=5))
            seen = b""
            async with asyncio.timeout(10):
                while seen.count(b"event: refresh") < 2:
                    seen += await stream.content.readany()
            assert b"event: values" in seen and b'"moved words"' in seen
            seen = b""
            async with asyncio.timeout(10):
                while b'"running": false, "moved": 60, "total": 60' not in seen:
                    seen += await raw.content.readany()
            await rewrapping
        async with client.post("/keys", data={"do": "rotate", "grade": "nothing"}) as answer:
            assert answer.status == 400 and "not a grade" in await answer.text()
