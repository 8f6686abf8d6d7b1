"""The JSON API against a real node: find, open, look, refuse, relate, consent, and read the log."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import aiohttp
import pytest
from PIL import Image

from consent.vocabulary import EventKind, Outcome
from node.audit.evidence import verify_proof_file
from node.web.inputs import MAX_WHOLE
from tests.node.web.conftest import OTHER_PATIENT_ID, PATIENT_ID, Hospital
from tests.support.node import PASSWORD


async def get(client: aiohttp.ClientSession, path: str, status: int = 200, **query: str) -> Any:
    async with client.get(path, params=query) as answer:
        assert answer.status == status, await answer.text()
        return await answer.json(content_type=None)


async def post(client: aiohttp.ClientSession, path: str, data: Any, status: int = 201) -> Any:
    async with client.post(path, json=data) as answer:
        assert answer.status == status, await answer.text()
        return await answer.json(content_type=None) if answer.status != 204 else None


async def test_session_by_json(hospital: Hospital) -> None:
    """Sign in, see who, sign out; the CSRF token comes with it."""
    async with hospital.site.stranger() as client:
        made = await post(client, "/api/v1/session", {"login": "li", "password": PASSWORD}, 200)
        assert made["person"] == {
            "login": "li",
            "role": "clinician",
            "name": "Li Wei",
            "node": "a-general",
            "department": "Radiology",
        }
        # The jar of a test does not send a __Host- cookie to an address without a name; send it by hand.
        assert made["csrf"] and not made["must_change_password"]
        refused = await post(client, "/api/v1/session", {"login": "li", "password": "no"}, 401)
        assert refused["detail"] == "The login or the password is wrong."
        bad = await post(client, "/api/v1/session", {"login": 3}, 400)
        assert "login" in bad["detail"]


@pytest.mark.requirement("U1", "V4")
async def test_search_finds_only_the_patients_in_ones_care(hospital: Hospital) -> None:
    """Exact, wildcard, Chinese; a stranger finds nothing; a chief finds both; IT is refused."""
    async with hospital.site.client("li") as client:
        assert [one["study"] for one in await get(client, "/api/v1/studies")] == [hospital.study]
        for name in ("Zhang^San", "zhang*", "张*"):
            (found,) = await get(client, "/api/v1/studies", PatientName=name)
            assert found["patient_id"] == PATIENT_ID and found["patient"] == hospital.patient
            assert (found["modalities"], found["series"], found["instances"]) == (["CT"], 2, 6)
        assert await get(client, "/api/v1/studies", AccessionNumber="B-7") == []
        wrong = await get(client, "/api/v1/studies", 400, StudyDate="yesterday")
        assert "StudyDate" in wrong["detail"] and "yesterday" not in str(wrong)
    async with hospital.site.client("wu") as client:
        assert await get(client, "/api/v1/studies") == []
    async with hospital.site.client("chief") as client:
        assert len(await get(client, "/api/v1/studies")) == 2
    async with hospital.site.client("it") as client:
        refused = await get(client, "/api/v1/studies", 403)
        assert refused["reasons"]


@pytest.mark.requirement("U1", "U5", "V4")
async def test_opening_and_looking_is_on_record_and_marked(hospital: Hospital) -> None:
    """The opening lists the series; a frame is a picture; the log knew before the picture came."""
    async with hospital.site.client("li") as client:
        opening = await post(client, "/api/v1/openings", {"study": hospital.study, "purpose": "TREAT"})
        assert [len(one["instances"]) for one in opening["series"]] == [3, 3]
        assert {"kind": "Watermark"} in opening["obligations"]
        sop = opening["series"][0]["instances"][0]["uid"]
        frame = f"/api/v1/openings/{opening['opening']}/frames/{sop}/1"
        for form in ("webp", "jpeg", "png"):
            async with client.get(frame, params={"format": form, "size": "256"}) as answer:
                picture = Image.open(BytesIO(await answer.read()))
                assert (
                    answer.content_type == f"image/{form}" and answer.headers["Cache-Control"] == "no-store"
                )
                assert picture.format is not None and picture.format.lower() == form
        for bad in (
            {"wc": "40"},
            {"wc": "nan", "ww": "1"},
            {"wc": "1", "ww": "0"},
            {"format": "gif"},
            {"size": "9"},
        ):
            await get(client, frame, 400, **bad)
        await get(client, frame.replace("/1", "/99").replace("v99", "v1"), 404)
        assert (await get(client, f"/api/v1/openings/{opening['opening']}"))["study"] == hospital.study
    async with hospital.site.client("chief") as client:
        await get(client, f"/api/v1/openings/{opening['opening']}", 404)
    (entry,) = await hospital.node.events(EventKind.STUDY_OPENED)
    assert entry.event.actor == "person:li@a-general" and entry.event.study == hospital.study


@pytest.mark.requirement("F6")
async def test_refusals_bring_their_values_into_the_persons_language(hospital: Hospital) -> None:
    """A key's name, a bound, and the number of a frame: in Chinese for a Chinese browser, with the values."""
    async with hospital.site.client("li", **{"Accept-Language": "zh-CN,zh;q=0.9"}) as client:
        wrong = await get(client, "/api/v1/studies", 400, StudyDate="yesterday")
        assert wrong["detail"] == "StudyDate 的写法为 YYYYMMDD、YYYYMMDD-、-YYYYMMDD 或 YYYYMMDD-YYYYMMDD。"
        wrong = await get(client, "/api/v1/studies", 400, limit="many")
        assert (wrong["detail"], wrong["mend"]) == (
            "limit 不是从 0 开始的整数。",
            f"请填写 0 到 {MAX_WHOLE}。",
        )
        opening = await post(client, "/api/v1/openings", {"study": hospital.study, "purpose": "TREAT"})
        sop = opening["series"][0]["instances"][0]["uid"]
        lost = await get(client, f"/api/v1/openings/{opening['opening']}/frames/{sop}/99", 404)
        assert lost["detail"] == "没有第 99 帧；该影像共有 1 帧。"
    async with hospital.site.client("li", **{"Accept-Language": "en"}) as client:
        lost = await get(client, f"/api/v1/openings/{opening['opening']}/frames/{sop}/99", 404)
        assert lost["detail"] == "There is no frame 99; the instance has 1."


@pytest.mark.requirement("U1", "U3")
async def test_refusal_gives_the_reasons_and_an_emergency_gets_in(hospital: Hospital) -> None:
    """Without a relationship: refused, in words, on record. With a reason: in, marked, ending."""
    async with hospital.site.client("wu") as client:
        refused = await post(client, "/api/v1/openings", {"study": hospital.study}, 403)
        assert refused["reasons"] == ["You have no treatment relationship with this patient."]
        claim = {"study": hospital.study, "emergency": {"reason": "Unconscious, head injury"}}
        opening = await post(client, "/api/v1/openings", claim)
        assert opening["expires"] and {one["kind"] for one in opening["obligations"]} >= {
            "Watermark",
            "Notify",
            "ReviewWithin",
        }
        await post(client, "/api/v1/openings", {"study": hospital.study, "emergency": {"reason": ""}}, 400)
    (entry,) = await hospital.node.events(EventKind.ACCESS_REFUSED)
    assert entry.event.outcome is Outcome.REFUSED
    assert len(await hospital.node.events(EventKind.EMERGENCY_OPENED)) == 1


@pytest.mark.requirement("U1")
async def test_ended_relationship_ends_the_next_picture(hospital: Hospital) -> None:
    """Each frame is decided anew."""
    async with hospital.site.client("li") as client:
        opening = await post(client, "/api/v1/openings", {"study": hospital.study})
        sop = opening["series"][0]["instances"][0]["uid"]
        frame = f"/api/v1/openings/{opening['opening']}/frames/{sop}/1"
        async with client.get(frame) as answer:
            assert answer.status == 200
        await hospital.node.care.end("li", hospital.patient)
        problem = await get(client, frame, 403)
        assert problem["reasons"] == ["You have no treatment relationship with this patient."]


@pytest.mark.requirement("U1")
async def test_relationships_are_entered_by_others_and_by_the_hospitals_own_patient_id(
    hospital: Hospital,
) -> None:
    """IT and chiefs enter them; nobody their own; the Patient ID is in no log entry."""
    data = {"login": "wu", "patient_id": OTHER_PATIENT_ID}
    async with hospital.site.client("wu") as client:
        await post(client, "/api/v1/care", data, 403)
    async with hospital.site.client("chief") as client:
        own = await post(client, "/api/v1/care", {**data, "login": "chief"}, 403)
        assert own["reasons"] == ["Nobody records their own treatment relationship."]
        await post(client, "/api/v1/care", {**data, "login": " Chief"}, 403)
        made = await post(client, "/api/v1/care", {**data, "until": "2027-01-31"})
        assert made["patient"].startswith("pt_") and made["ends"].startswith("202")
        await post(client, "/api/v1/care", {"login": "wu"}, 400)
        await post(client, "/api/v1/care", {"login": "nobody", "patient_id": "1"}, 404)
        await post(client, "/api/v1/care", {**data, "until": "2001-01-01"}, 400)
    async with hospital.site.client("wu") as client:
        assert [one["study"] for one in await get(client, "/api/v1/studies")] == [hospital.stranger_study]
    async with hospital.site.client("it") as client:
        await post(client, "/api/v1/care/end", data, 204)
        await post(client, "/api/v1/care/end", data, 404)
    refused = [entry.event for entry in await hospital.node.events(EventKind.ACCESS_REFUSED)]
    assert [event.actor for event in refused] == ["person:wu@a-general", *2 * ["person:chief@a-general"]]
    assert {event.detail["action"] for event in refused} == {"care:record"}
    told = str([entry.event for entry in await hospital.node.events()])
    assert OTHER_PATIENT_ID not in told


@pytest.mark.requirement("E2")
async def test_consent_is_signed_shown_as_fhir_and_withdrawn(hospital: Hospital) -> None:
    """Version 1, then the withdrawal as version 2; both on record; only those who treat the patient."""
    terms = {
        "study": hospital.study,
        "scope": [hospital.study],
        "recipients": ["b-central"],
        "purposes": ["TREAT"],
        "rights": ["view", "print"],
        "until": "2027-06-30",
        "basis": "Form 17, witnessed by nurse Zhao",
    }
    async with hospital.site.client("wu") as client:
        refused = await post(client, "/api/v1/consents", terms, 403)
        assert refused["reasons"]
        await post(client, "/api/v1/consents/search", {"patient_id": PATIENT_ID}, 403)
    async with hospital.site.client("li") as client:
        made = await post(client, "/api/v1/consents", terms)
        assert (made["version"], made["recipients"], sorted(made["rights"])) == (
            1,
            ["b-central"],
            ["print", "view"],
        )
        listed = await get(client, "/api/v1/consents", study=hospital.study)
        assert [one["id"] for one in listed] == [made["id"]]
        refused = await get(client, "/api/v1/consents", 400, patient_id=PATIENT_ID)
        assert "does not belong in an address" in refused["detail"]
        for named in ({"patient_id": PATIENT_ID}, {"patient": hospital.patient}, {"study": hospital.study}):
            assert await post(client, "/api/v1/consents/search", named, 200) == listed
        await post(client, "/api/v1/consents/search", {}, 400)
        async with client.get(
            f"/api/v1/consents/{made['id']}", headers={"Accept": "application/fhir+json"}
        ) as answer:
            fhir = await answer.json(content_type="application/fhir+json")
            assert (fhir["resourceType"], fhir["status"]) == ("Consent", "active")
        await post(client, f"/api/v1/consents/{made['id']}/withdraw", {"basis": ""}, 400)
        gone = await post(client, f"/api/v1/consents/{made['id']}/withdraw", {"basis": "by letter"}, 200)
        assert (gone["version"], gone["withdrawn"], gone["previous"]) == (2, True, made["digest"])
        await post(client, f"/api/v1/consents/{made['id']}/withdraw", {"basis": "again"}, 409)
        for wrong in (
            {"basis": ""},
            {"purposes": [], "rights": []},
            {"until": "2001-01-01"},
            {"until": "2099-01-01"},
            {"purposes": ["FUN"]},
            {"recipients": 3},
        ):
            await post(client, "/api/v1/consents", {**terms, **wrong}, 400)
    kinds = [entry.event.kind for entry in await hospital.node.events()]
    assert kinds.count(EventKind.CONSENT_RECORDED) == kinds.count(EventKind.CONSENT_WITHDRAWN) == 1


@pytest.mark.requirement("V4", "A1")
async def test_log_is_searched_by_the_security_officer_alone_and_the_reading_is_on_record(
    hospital: Hospital,
) -> None:
    """Search by patient, person and study; a proof file that verifies without the node."""
    async with hospital.site.client("li") as client:
        await post(client, "/api/v1/openings", {"study": hospital.study})
        await get(client, "/api/v1/log", 403)
        await get(client, "/api/v1/log/0", 403)
        await get(client, "/api/v1/log/0/proof", 403)
        await get(client, "/api/v1/log/checkpoint", 403)
    async with hospital.site.client("sec") as client:
        by_study = await get(client, "/api/v1/log", study=hospital.study, kind="StudyOpened")
        assert [one["actor"] for one in by_study] == ["person:li@a-general"]
        by_person = await get(client, "/api/v1/log", actor="person:li@a-general", limit="1")
        assert len(by_person) == 1
        assert await get(client, "/api/v1/log", since="2027-01-01") == []
        newest = (await get(client, "/api/v1/log"))[0]
        assert newest["kind"] == "LogRead" and newest["actor"] == "person:sec@a-general"
        await get(client, "/api/v1/log", 400, kind="Nonsense")
        await get(client, "/api/v1/log", 400, since="soon")
        await get(client, "/api/v1/log/99999999", 404)
        index = by_study[0]["index"]
        async with client.get(f"/api/v1/log/{index}/proof") as answer:
            proof = await answer.text()
            assert f"entry-{index}.tlog-proof" in answer.headers["Content-Disposition"]
        async with client.get("/api/v1/log/checkpoint") as answer:
            assert (await answer.text()).startswith(hospital.node.identity.origin)
    evidence = verify_proof_file(proof, [hospital.node.identity.log_signer.verifier.vkey])
    assert evidence.event.kind is EventKind.STUDY_OPENED and evidence.event.study == hospital.study


@pytest.mark.requirement("V4", "A1")
async def test_reading_single_entries_proofs_and_checkpoints_is_on_record(hospital: Hospital) -> None:
    """Who walks the log entry by entry leaves as many traces, each with the patient it was about."""
    async with hospital.site.client("li") as client:
        await post(client, "/api/v1/openings", {"study": hospital.study})
    (opened,) = await hospital.node.events(EventKind.STUDY_OPENED)
    async with hospital.site.client("sec") as client:
        await get(client, f"/api/v1/log/{opened.index}")
        async with client.get(f"/api/v1/log/{opened.index}/proof") as answer:
            assert answer.status == 200
        async with client.get("/api/v1/log/checkpoint") as answer:
            assert answer.status == 200
        async with client.get(f"/log/{opened.index}", headers={"Accept": "text/html"}) as answer:
            assert answer.status == 200
    read = [entry.event for entry in await hospital.node.events(EventKind.LOG_READ)]
    entry = {"entry": opened.index}
    assert [dict(event.detail) for event in read] == [
        {"asked": entry, "proof": False},
        {"asked": entry, "proof": True},
        {"checkpoint": True},
        {"asked": entry, "proof": False},
    ]
    assert {event.actor for event in read} == {"person:sec@a-general"}
    assert [event.patient for event in read] == [hospital.patient, hospital.patient, None, hospital.patient]


async def test_session_falls_asleep(hospital: Hospital) -> None:
    """After the idle time the cookie opens nothing."""
    async with hospital.site.client("li") as client:
        await get(client, "/api/v1/session")
        hospital.node.clock.tick(minutes=16)
        await get(client, "/api/v1/session", 401)


async def test_body_that_is_not_json_is_named(hospital: Hospital) -> None:
    """415 for another type, 400 for broken JSON."""
    async with hospital.site.client("li") as client:
        async with client.post(
            "/api/v1/openings", data=b"x", headers={"Content-Type": "text/plain"}
        ) as answer:
            assert answer.status == 415
        async with client.post(
            "/api/v1/openings", data=b'{"study": 1, "study": 2}', headers={"Content-Type": "application/json"}
        ) as answer:
            assert answer.status == 400
