"""Every page for everybody: rendered in both languages, without inline code, with links that lead somewhere."""

from __future__ import annotations

import asyncio
import re
from html.parser import HTMLParser
from typing import Any

import aiohttp
import pytest
from markupsafe import escape

from consent.emergency import EmergencyClaim
from consent.vocabulary import EventKind
from node import emergencies
from tests.node.web.conftest import OTHER_PATIENT_ID, Hospital
from tests.support.children import IMAGING_WORKER, children
from tests.support.node import PASSWORD

PAGE = {"Accept": "text/html"}
EVERYBODY = ("li", "wu", "chief", "it", "sec", "res")
MAX_PAGES = 60


class Reader(HTMLParser):
    """Collects what a page refers to and what the content policy would block."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.faults: list[str] = []
        self.labels: set[str] = set()
        self.fields: list[str] = []
        self.ids: list[str] = []
        self._inline = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if "style" in values or any(name.startswith("on") for name in values):
            self.faults.append(f"inline code on <{tag}>")
        self._inline = tag == "style" or (
            tag == "script" and "src" not in values and values.get("type") != "application/json"
        )
        for name in ("href", "src"):
            target = values.get(name) or ""
            if target.startswith(("http:", "https:", "//", "data:", "javascript:")):
                self.faults.append(f"foreign {name} {target}")
            elif target.startswith("/"):
                self.links.append(target)
        if tag == "label" and values.get("for"):
            self.labels.add(values["for"] or "")
        if tag in ("input", "select", "textarea") and values.get("type") not in (
            "hidden",
            "checkbox",
            "radio",
        ):
            self.fields += [] if values.get("aria-label") else [values.get("id") or "?"]
        if values.get("id"):
            self.ids.append(values["id"] or "")
        if tag == "img" and "alt" not in values:
            self.faults.append("picture without alt")

    def handle_data(self, data: str) -> None:
        if self._inline and data.strip():
            self.faults.append("inline block")
        self._inline = False


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    return reader


async def fetch(client: aiohttp.ClientSession, path: str, status: int = 200) -> str:
    async with client.get(path, allow_redirects=False) as answer:
        text = await answer.text()
        assert answer.status == status, (path, answer.status, text[-2000:])
        return text


async def send(client: aiohttp.ClientSession, path: str, status: int = 303, **form: Any) -> tuple[str, str]:
    async with client.post(path, data=form, allow_redirects=False) as answer:
        text = await answer.text()
        assert answer.status == status, (path, answer.status, re.findall(r"<h1>.*?</h1>|error.*", text)[:5])
        return answer.headers.get("Location", ""), text


@pytest.mark.requirement("F6")
@pytest.mark.parametrize("language", ["en", "zh-CN"])
async def test_every_link_of_every_role_leads_to_a_sound_page(hospital: Hospital, language: str) -> None:
    """From the start page on; no inline code, no foreign address, every field has a label, ids occur once."""
    for login in EVERYBODY:
        async with hospital.site.client(login, **PAGE, **{"Accept-Language": language}) as client:
            seen: set[str] = set()
            todo = ["/", "/account"]
            while todo and len(seen) < MAX_PAGES:
                path = todo.pop().partition("#")[0]
                if path in seen or "/proof" in path or path.startswith("/log/"):
                    continue
                seen.add(path)
                page = await fetch(client, path)
                if path.startswith("/static/"):
                    continue
                reader = read(page)
                assert f'<html lang="{language}">' in page
                assert reader.faults == [], path
                assert not re.search(r"&amp;(#\d+|lt|gt|quot|amp);", page), (path, "escaped twice")
                assert len(reader.ids) == len(set(reader.ids)), path
                unlabelled = set(reader.fields) - reader.labels
                assert unlabelled <= {"preset"}, (path, unlabelled)  # its label stands around it
                todo += reader.links
            assert len(seen) > 4, (login, seen)


@pytest.mark.requirement("U1", "U3")
async def test_refused_study_page_gives_reason_and_the_door_for_emergencies(hospital: Hospital) -> None:
    """A clinician is shown the way; IT is not offered one."""
    async with hospital.site.client("wu", **PAGE) as client:
        page = await fetch(client, f"/studies/{hospital.study}", 403)
        assert "You have no treatment relationship with this patient." in page
        assert f"/emergency/{hospital.study}" in page
        page = await fetch(client, f"/viewer/{hospital.study}", 403)
        assert "Zhang" not in page
    async with hospital.site.client("it", **PAGE) as client:
        page = await fetch(client, f"/studies/{hospital.study}", 403)
        assert "IT staff open no images." in page and "/emergency/" not in page
        await fetch(client, f"/emergency/{hospital.study}", 403)


@pytest.mark.requirement("U3")
async def test_emergency_is_declared_viewed_and_reviewed_by_somebody_else(hospital: Hospital) -> None:
    """The reason opens the viewer; the officer judges; nobody judges twice or their own."""
    async with hospital.site.client("wu", **PAGE) as client:
        await send(client, f"/emergency/{hospital.study}", 400, reason=" ")
        viewer, _page = await send(client, f"/emergency/{hospital.study}", reason="Unconscious")
        page = await fetch(client, viewer)
        assert "Access until" in page
        back = re.search(r'href="(/studies/[^"]+)"', page)
        assert back is not None
        assert "Emergency access" in await fetch(client, back[1].replace("&amp;", "&"))
    (entry,) = await hospital.node.events(EventKind.EMERGENCY_OPENED)
    path = f"/emergencies/{entry.index}"
    async with hospital.site.client("chief", **PAGE) as client:
        assert "Unconscious" in await fetch(client, "/emergencies")
        await send(client, path, 400, verdict="maybe", words="x")
        await send(client, path, 400, verdict="justified", words="")
        await send(client, "/emergencies/0", 404, verdict="justified", words="x")
        await send(client, path, verdict="justified", words="Patient was in shock.")
        await send(client, path, 409, verdict="justified", words="Again.")
        assert "Patient was in shock." in await fetch(client, "/emergencies")
    (review,) = await hospital.node.events(EventKind.EMERGENCY_REVIEWED)
    assert review.event.detail["opening"] == entry.event.detail["opening"]


async def test_own_emergency_is_reviewed_by_somebody_else(hospital: Hospital) -> None:
    """A chief physician who broke the glass waits for another's word."""
    async with hospital.site.client("chief", **PAGE) as client:
        await send(client, f"/emergency/{hospital.study}", reason="Unconscious")
        (entry,) = await hospital.node.events(EventKind.EMERGENCY_OPENED)
        await send(client, f"/emergencies/{entry.index}", 403, verdict="justified", words="Mine.")
    (refused,) = await hospital.node.events(EventKind.ACCESS_REFUSED)
    assert refused.event.reason == "Nobody reviews their own emergency access."
    assert refused.event.detail["action"] == "emergency:review"


@pytest.mark.requirement("U3")
async def test_an_old_emergency_that_escalates_can_still_be_reviewed(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Page and escalation look back equally far, over every entry; after the review nothing escalates."""
    monkeypatch.setattr(emergencies, "PAGE_ENTRIES", 2)

    async def told() -> list[str]:
        hospital.node.clock.tick(seconds=1)
        async with hospital.site.client("wu", **PAGE) as client:
            await send(client, f"/emergency/{hospital.study}", reason="Unconscious")
        entry = (await hospital.node.events(EventKind.EMERGENCY_OPENED))[-1]
        return list(entry.event.detail["notify"])  # type: ignore[arg-type]

    assert await told() == ["security-officer"]
    hospital.node.clock.tick(days=200)
    for _ in range(3):
        assert "chief-physician" in await told()
    async with hospital.site.client("sec", **PAGE) as client:
        waiting = await hospital.node.events(EventKind.EMERGENCY_OPENED)
        page = await fetch(client, "/emergencies")
        assert all(f'action="/emergencies/{entry.index}"' in page for entry in waiting)
        await send(client, f"/emergencies/{waiting[0].index}", verdict="justified", words="In shock.")
    assert "chief-physician" not in await told()


@pytest.mark.requirement("U3")
async def test_the_pictures_of_an_emergency_do_not_search_the_log_each(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether an earlier review is overdue is asked once for an opening."""
    asked: list[EventKind | None] = []
    search = hospital.node.log.search

    async def counted(**terms: Any) -> Any:
        asked.append(terms.get("kind"))
        return await search(**terms)

    monkeypatch.setattr(hospital.node.log, "search", counted)
    who = await hospital.node.registry.principal("wu")
    claim = EmergencyClaim("Unconscious", hospital.node.clock.now())
    opening = await hospital.node.gateway.open(who, hospital.study, emergency=claim)
    series = await hospital.node.gateway.series(opening)
    for instance in series[0].instances:
        await hospital.node.gateway.frame(opening, instance.uid, size=64)
    assert asked.count(EventKind.EMERGENCY_OPENED) == 1


@pytest.mark.requirement("E2")
async def test_consent_form_keeps_what_was_typed_and_the_page_prints_and_withdraws(
    hospital: Hospital,
) -> None:
    """A missing basis is named; then recorded, shown, withdrawn."""
    form = {
        "study": hospital.study,
        "scope": "study",
        "recipients": "*",
        "purposes": "TREAT",
        "rights": "view",
        "until": "2027-06-30",
        "basis": "",
    }
    async with hospital.site.client("li", **PAGE) as client:
        assert "Record and sign" in await fetch(client, f"/consents/new?study={hospital.study}")
        _where, page = await send(client, "/consents", 400, **form)
        assert "how the patient gave or withdrew it" in page and 'value="2027-06-30"' in page
        await send(client, "/consents", 400, **{**form, "until": "2001-01-01", "basis": "by letter"})
        where, _page = await send(client, "/consents", **{**form, "basis": "Form 17"})
        page = await fetch(client, where)
        assert "Form 17" in page and "2027-06-30" in page and "Signature of the patient" in page
        assert "In force" in await fetch(client, f"/studies/{hospital.study}")
        path = where.partition("?")[0] + "/withdraw"
        await send(client, path, 400, study=hospital.study, basis="")
        where, _page = await send(client, path, study=hospital.study, basis="By letter of today")
        assert "This consent was withdrawn" in await fetch(client, where)
    async with hospital.site.client("wu", **PAGE) as client:
        await fetch(client, where, 403)
        await fetch(client, f"/consents/new?study={hospital.study}", 403)
        await fetch(client, "/consents/new?study=st_nothing", 404)


@pytest.mark.requirement("V4")
async def test_who_saw_what_is_for_those_who_treat_the_patient(hospital: Hospital) -> None:
    """Openings and refusals with person and time; the looking is on record too."""
    async with hospital.site.client("wu", **PAGE) as client:
        await fetch(client, f"/studies/{hospital.study}", 403)
        await fetch(client, f"/studies/{hospital.study}/access", 403)
    async with hospital.site.client("li", **PAGE) as client:
        await fetch(client, f"/studies/{hospital.study}")
        page = await fetch(client, f"/studies/{hospital.study}/access")
    assert "person:wu@a-general" in page and "person:li@a-general" in page and "Access refused" in page
    assert len(await hospital.node.events(EventKind.LOG_READ)) == 1


async def test_pages_of_one_visit_share_one_opening(hospital: Hospital) -> None:
    """The log tells visits and not clicks."""
    async with hospital.site.client("li", **PAGE) as client:
        for path in (f"/studies/{hospital.study}", f"/viewer/{hospital.study}", f"/studies/{hospital.study}"):
            await fetch(client, path)
    assert len(await hospital.node.events(EventKind.STUDY_OPENED)) == 1


@pytest.mark.requirement("F1")
async def test_whoever_opens_a_study_finds_the_imaging_workers_started(hospital: Hospital) -> None:
    """No page of pictures waits for a process to start; a search and a refusal start none."""
    async with hospital.site.client("wu", **PAGE) as wu, hospital.site.client("li", **PAGE) as li:
        await fetch(li, "/studies")
        await fetch(wu, f"/studies/{hospital.study}", status=403)
        await asyncio.sleep(0.1)
        assert children(IMAGING_WORKER) == 0

        await fetch(li, f"/studies/{hospital.study}")
        async with asyncio.timeout(10):
            while not children(IMAGING_WORKER):
                await asyncio.sleep(0.01)


async def test_people_are_added_closed_and_opened_again(hospital: Hospital) -> None:
    """The one-time sign-in is shown once and works once; a closed account is out at once."""
    async with hospital.site.client("it", **PAGE) as client:
        form = {"login": "Dr.New", "name": "New One", "role": "clinician", "department": ""}
        _where, page = await send(client, "/people", 200, **form)
        secret = re.search(r'id="secret">([^<]+)<', page)
        assert secret is not None and secret[1] not in await fetch(client, "/people")
        assert (await hospital.site.sessions.sign_in("dr.new", secret[1], "x")).must_change_password
        _where, page = await send(client, "/people", 409, **form)
        assert "is taken" in page and "data-open" in page
        await send(client, "/people", 400, **{**form, "role": "god"})
        await send(client, "/people/li", do="disable")
        async with hospital.site.stranger(**PAGE) as other:
            await send(other, "/sign-in", 401, login="li", password=PASSWORD)
        await send(client, "/people/li", do="enable")
        await hospital.site.sessions.sign_in("li", PASSWORD, "x")
        await send(client, "/people/it", 403, do="disable")
        await send(client, "/people/li", 400, do="promote")
    async with hospital.site.client("li", **PAGE) as client:
        await send(client, "/people", 403, **form)


@pytest.mark.requirement("C1")
async def test_devices_get_a_certificate_bring_their_own_or_give_a_reason(hospital: Hospital) -> None:
    """Three ways in words; without certificate and reason, no."""
    async with hospital.site.client("it", **PAGE) as client:
        form = {"ae_title": "MR1", "address": "10.1.2.3", "department": "Radiology"}
        _where, page = await send(client, "/devices", 200, **form, channel="issue")
        pem = re.search(r'id="pem"[^>]*>([^<]+)<', page)
        assert pem is not None and "BEGIN PRIVATE KEY" in pem[1] and pem[1].count("BEGIN CERTIFICATE") >= 1
        assert "BEGIN PRIVATE KEY" not in await fetch(client, "/devices")
        [issued] = await hospital.node.events(EventKind.DEVICE_CERTIFICATE_ISSUED)
        assert (issued.event.actor, issued.event.detail["ae_title"]) == ("person:it@a-general", "MR1")
        certificate = pem[1][: pem[1].index("-----BEGIN PRIVATE")]
        await send(
            client, "/devices", **{**form, "ae_title": "MR2"}, channel="certificate", certificate=certificate
        )
        await send(
            client, "/devices", **{**form, "ae_title": "CR1"}, channel="plain", reason="Too old for TLS"
        )
        _where, page = await send(client, "/devices", 400, **form, channel="plain", reason="")
        assert "Plain DICOM needs a reason in words." in page and 'value="10.1.2.3"' in page
        await send(client, "/devices", 400, **{**form, "address": "here"}, channel="issue")
        page = await fetch(client, "/devices/MR1")
        ids = re.findall(r' id="([^"]+)"', page)
        assert len(ids) == len(set(ids)) and set(re.findall(r' for="([^"]+)"', page)) <= set(ids)
        await send(client, "/devices/MR1", state="maintenance")
        assert "In maintenance" in await fetch(client, "/devices")
        await send(client, "/devices/MR1", 400, state="broken")


async def test_care_page_records_by_patient_id_and_ends(hospital: Hospital) -> None:
    """The list shows pseudonyms; a wrong end date keeps the form."""
    async with hospital.site.client("chief", **PAGE) as client:
        await send(client, "/care", login="wu", patient_id=OTHER_PATIENT_ID)
        page = await fetch(client, "/care")
        assert OTHER_PATIENT_ID not in page and "pt_" in page
        _where, page = await send(client, "/care", 400, login="wu", patient_id="7", until="2001-01-01")
        assert 'value="2001-01-01"' in page
        patient = hospital.node.index.pseudonyms.patient(OTHER_PATIENT_ID)
        await send(client, "/care/end", login="wu", patient=patient)
        assert patient not in await fetch(client, "/care")


@pytest.mark.requirement("A1", "V4")
async def test_log_pages_search_show_and_verify(hospital: Hospital) -> None:
    """And say so in red when an entry was altered in the database."""
    async with hospital.site.client("sec", **PAGE) as client:
        page = await fetch(client, "/log?kind=InstancesStored")
        assert "Images stored" in page
        assert "Download the proof" in await fetch(client, "/log/0")
        assert "The log is whole" in (await send(client, "/log/verify", 200))[1]
        assert "Nothing found" in await fetch(client, "/log?since=2030-01-01")
        await fetch(client, "/log?kind=Nonsense", 400)
        async with hospital.node.database.write() as tx:
            await tx.exec_driver_sql("UPDATE log_entry SET leaf = zeroblob(32) WHERE position = 2")
        assert "The log was altered" in (await send(client, "/log/verify", 200))[1]


async def test_account_page_makes_and_revokes_tokens_and_changes_the_password(hospital: Hospital) -> None:
    """The token is shown once; only one's own can be revoked; the present password is asked."""
    async with hospital.site.client("li", **PAGE) as client:
        _where, page = await send(client, "/account/tokens", 200, scope="dicomweb", days="7")
        token = re.search(r'id="secret">(acc_[^<]+)<', page)
        assert token is not None
        assert await hospital.node.registry.principal_of_token(token[1])
        await send(client, "/account/tokens", 400, scope="everything", days="7")
        await send(client, "/account/tokens", 400, scope="api", days="9999999")
        (made,) = await hospital.node.registry.tokens_of("li")
        async with hospital.site.client("wu", **PAGE) as other:
            await send(other, f"/account/tokens/{made.id}/revoke", 404)
        await send(client, f"/account/tokens/{made.id}/revoke")
        assert await hospital.node.registry.principal_of_token(token[1]) is None
        fresh = {"password": PASSWORD + " new", "again": PASSWORD + " new"}
        _where, page = await send(client, "/account/password", 403, old="wrong", **fresh)
        assert "The present password is wrong." in page
        await send(client, "/account/password", 400, old=PASSWORD, password="x", again="y")
        where, _page = await send(client, "/account/password", old=PASSWORD, **fresh)
        assert where == "/account?changed=1"
    await hospital.site.sessions.sign_in("li", PASSWORD + " new", "x")


@pytest.mark.requirement("U1")
async def test_a_password_is_changed_only_with_the_present_one(hospital: Hospital) -> None:
    """The page for the first password is closed to a session that has chosen: a walk-up takes no account."""
    async with hospital.site.client("li", **PAGE) as client:
        async with client.get("/first-password", allow_redirects=False) as answer:
            assert (answer.status, answer.headers["Location"]) == (303, "/account")
        fresh = {"password": PASSWORD + " stolen", "again": PASSWORD + " stolen"}
        where, _page = await send(client, "/first-password", **fresh)
        assert where == "/account"
        await send(client, "/account/password", 403, **fresh)
    await hospital.site.sessions.sign_in("li", PASSWORD, "x")


@pytest.mark.requirement("V4", "A1")
async def test_alarms_on_the_start_page_are_a_reading_of_the_log(hospital: Hospital) -> None:
    """Shown to whom the policy lets read the log, and on record like a search."""
    async with hospital.site.client("wu", **PAGE) as client:
        await send(client, f"/emergency/{hospital.study}", reason="Unconscious")
        await fetch(client, "/")
    assert await hospital.node.events(EventKind.LOG_READ) == []
    (alarm,) = await hospital.node.events(EventKind.EMERGENCY_OPENED)
    async with hospital.site.client("sec", **PAGE) as client:
        assert f"/log/{alarm.index}" in await fetch(client, "/")
    (read,) = await hospital.node.events(EventKind.LOG_READ)
    assert read.event.actor == "person:sec@a-general" and read.event.detail["alarms"] == [alarm.index]


@pytest.mark.requirement("F6")
async def test_static_files_are_kept_by_digest_and_nothing_else_is_served(hospital: Hospital) -> None:
    """Immutable under their digest, revalidated without it; no path leads out."""
    async with hospital.site.stranger() as client:
        page = await fetch(client, "/sign-in")
        sheet = next(link for link in read(page).links if link.startswith("/static/portal.css?v="))
        async with client.get(sheet) as answer:
            assert "immutable" in answer.headers["Cache-Control"] and answer.content_type == "text/css"
            tag = answer.headers["ETag"]
        async with client.get("/static/portal.css", headers={"If-None-Match": tag}) as answer:
            assert answer.status == 304
        for path in ("/static/../templates/base.html", "/static/%2e%2e/kit.py", "/static/portal/routes.py"):
            async with client.get(path) as answer:
                assert answer.status == 404


@pytest.mark.requirement("F6")
@pytest.mark.parametrize(
    "words", ["<b id=planted>in bold</b>", "90% sure", "It is 50% done.", "%(name)s and %s"]
)
async def test_what_a_person_wrote_is_text_on_every_page_that_shows_it(
    hospital: Hospital, words: str
) -> None:
    """A reason is neither markup nor a format, although pages look every reason up in the catalogues."""
    who = await hospital.node.registry.principal("wu")
    claim = EmergencyClaim(words, hospital.node.clock.now())
    await hospital.node.gateway.open(who, hospital.study, emergency=claim)
    (opened,) = await hospital.node.events(EventKind.EMERGENCY_OPENED)
    async with hospital.site.client("sec") as client:
        for path in ("/log", f"/log/{opened.index}"):
            page = await fetch(client, path)
            assert "planted" not in read(page).ids
            assert escape(words) in page
