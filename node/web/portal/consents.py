"""Recording a patient's consent, its printable form, and taking it back."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

from aiohttp import web

from consent.directives import ALL
from consent.errors import AccordError, Invalid
from consent.vocabulary import Purpose, Right
from node.consents import Terms
from node.web.inputs import choices_of, moment_of, text_of
from node.web.keys import CLOCK, CONSENTS, INDEX, MEMBERS
from node.web.kit import address_of, current_person, render
from node.web.problems import problem_of
from node.web.text import N_

DEFAULT_DAYS: Final = 365
OFFERED_PURPOSES: Final = (Purpose.TREATMENT, Purpose.EMERGENCY, Purpose.QUALITY)


async def form_page(request: web.Request) -> web.Response:
    """GET /consents/new?study="""
    return await _form(request, request.query.get("study", ""), {}, None)


async def record(request: web.Request) -> web.StreamResponse:
    """POST /consents: what is missing is said beside the form, and what was typed stays."""
    form = await request.post()
    study = text_of(form, "study", limit=64, needed=N_("It does not say which study's patient."))
    row = await request.app[INDEX].study(study)
    try:
        signed = await request.app[CONSENTS].record(
            current_person(request), row.patient, _terms(request, form, study), address=address_of(request)
        )
    except Invalid as error:
        return await _form(request, study, form, error)
    raise web.HTTPSeeOther(f"/consents/{signed.id}?study={study}")


async def consent_page(request: web.Request) -> web.Response:
    """GET /consents/{consent}?study=: what was agreed, printable for signature."""
    signed = await request.app[CONSENTS].get(
        current_person(request), request.match_info["consent"], address=address_of(request)
    )
    study = request.query.get("study", "")
    row = await request.app[INDEX].study(study) if study else None
    if row is not None and row.patient != signed.body.patient:
        row = None
    latest = next(
        one
        for one in await request.app[CONSENTS].of_patient(signed.body.patient)
        if one.body.chain == signed.body.chain
    )
    context = {
        "signed": signed,
        "consent": signed.body,
        "latest": latest,
        "row": row,
        "now": request.app[CLOCK].now(),
        "members": _members(request),
    }
    return render(request, "consent.html", context)


async def withdraw(request: web.Request) -> web.StreamResponse:
    """POST /consents/{consent}/withdraw {basis}"""
    form = await request.post()
    basis = text_of(form, "basis", limit=2000, needed=N_("Say how the patient took the consent back."))
    signed = await request.app[CONSENTS].withdraw(
        current_person(request), request.match_info["consent"], basis, address=address_of(request)
    )
    study = text_of(form, "study", limit=64)
    raise web.HTTPSeeOther(f"/consents/{signed.id}?study={study}")


async def _form(request: web.Request, study: str, given: Any, error: AccordError | None) -> web.Response:
    row = await request.app[INDEX].study(study)
    await request.app[CONSENTS].check(current_person(request), row.patient, address=address_of(request))
    usual_end = request.app[CLOCK].now() + timedelta(days=DEFAULT_DAYS)
    chosen = {
        "purposes": _all(given, "purposes") if given else ["TREAT", "ETREAT"],
        "rights": _all(given, "rights") if given else ["view"],
        "recipients": _all(given, "recipients") if given else ["*"],
        "scope": str(given.get("scope", "*")),
        "until": str(given.get("until", usual_end.date().isoformat())),
        "research": bool(given.get("research")),
        "basis": str(given.get("basis", "")),
    }
    context = {
        "row": row,
        "chosen": chosen,
        "purposes": OFFERED_PURPOSES,
        "rights": tuple(Right),
        "members": _members(request),
        "error": problem_of(error) if error else None,
    }
    return render(request, "consent_form.html", context, status=400 if error else 200)


def _terms(request: web.Request, form: Any, study: str) -> Terms:
    until = moment_of(text_of(form, "until", limit=40), "until", end_of_day=True)
    if until is None or until <= request.app[CLOCK].now():
        raise Invalid(N_("The consent has no end, or one that is past."), mend=N_("Give a later end."))
    recipients = tuple(_all(form, "recipients"))
    return Terms(
        purposes=choices_of(Purpose, _all(form, "purposes"), "purposes"),
        rights=choices_of(Right, _all(form, "rights"), "rights"),
        end=until,
        basis=text_of(form, "basis", limit=2000),
        recipients=ALL if "*" in recipients else recipients,
        studies=(study,) if form.get("scope") == "study" else ALL,
        research=bool(form.get("research")),
    )


def _all(form: Any, name: str) -> list[str]:
    return [str(value)[:64] for value in form.getall(name, [])][:1000]


def _members(request: web.Request) -> dict[str, str]:
    """The other hospitals of the region by id, where this node is in one."""
    known = request.app.get(MEMBERS)
    return dict(known()) if known is not None else {}


ROUTES = [
    web.get("/consents/new", form_page),
    web.post("/consents", record),
    web.get("/consents/{consent}", consent_page),
    web.post("/consents/{consent}/withdraw", withdraw),
]
