"""/api/v1/consents: record what a patient agreed to, see it, withdraw it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final

from aiohttp import web

from consent.directives import ALL, Directive, to_fhir
from consent.errors import Invalid, Sentence
from consent.signed import Json, Signed
from consent.vocabulary import Purpose, Right
from node.consents import Terms
from node.web.api.care import patient_of
from node.web.inputs import choices_of, moment_of
from node.web.keys import CLOCK, CONSENTS
from node.web.kit import address_of, current_person, read_json, respond
from node.web.text import N_

DEFAULT_DAYS: Final = 365
MAX_DAYS: Final = 366 * 20
MAX_NAMED: Final = 1000


async def record(request: web.Request) -> web.Response:
    """POST {patient | patient_id | study, scope?, purposes?, recipients?, rights?, until?, research?, basis}."""
    data = await read_json(request)
    patient = await patient_of(request, data)
    terms = terms_of(request, data)
    signed = await request.app[CONSENTS].record(
        current_person(request), patient, terms, address=address_of(request)
    )
    return respond(consent_json(signed), status=201)


async def withdraw(request: web.Request) -> web.Response:
    """POST /{consent}/withdraw {basis} → the withdrawn version."""
    data = await read_json(request)
    signed = await request.app[CONSENTS].withdraw(
        current_person(request),
        request.match_info["consent"],
        str(data.get("basis", "")),
        address=address_of(request),
    )
    return respond(consent_json(signed))


async def show(request: web.Request) -> web.Response:
    """GET /{consent} → one version; with Accept: application/fhir+json as an R4 Consent."""
    signed = await request.app[CONSENTS].get(
        current_person(request), request.match_info["consent"], address=address_of(request)
    )
    if "application/fhir+json" in request.headers.get("Accept", ""):
        response = respond(to_fhir(signed))
        response.content_type = "application/fhir+json"
        return response
    return respond(consent_json(signed))


async def of_patient(request: web.Request) -> web.Response:
    """GET ?patient= | study= → the version that counts of each consent; pseudonyms only."""
    if "patient_id" in request.query:
        raise Invalid(
            N_("A Patient ID does not belong in an address, which others keep on record."),
            mend=N_("Send it in the body: POST /api/v1/consents/search."),
            code="patient-id-in-address",
        )
    return await _of_patient(request, request.query)


async def search(request: web.Request) -> web.Response:
    """POST /search {patient | patient_id | study} → the version that counts of each consent."""
    return await _of_patient(request, await read_json(request))


async def _of_patient(request: web.Request, named: Mapping[str, Any]) -> web.Response:
    patient = await patient_of(request, named)
    consents = request.app[CONSENTS]
    await consents.check(current_person(request), patient, address=address_of(request))
    return respond([consent_json(signed) for signed in await consents.of_patient(patient)])


def terms_of(request: web.Request, data: Mapping[str, Any]) -> Terms:
    """The terms that JSON names; what is left out is the usual: everything, treatment, view, a year."""
    now = request.app[CLOCK].now()
    until = moment_of(data.get("until"), "until", end_of_day=True) or now + timedelta(days=DEFAULT_DAYS)
    if until > now + timedelta(days=MAX_DAYS):
        raise Invalid(N_("A consent lasts at most 20 years."), mend=N_("Give an earlier end."))
    return Terms(
        purposes=choices_of(Purpose, _words(data, "purposes", ("TREAT", "ETREAT")), "purposes"),
        rights=choices_of(Right, _words(data, "rights", ("view",)), "rights"),
        end=until,
        basis=str(data.get("basis", "")),
        recipients=_named(data, "recipients"),
        studies=_named(data, "scope"),
        research=data.get("research") is True,
    )


def consent_json(signed: Signed[Directive]) -> Json:
    """A consent as the API gives it: its body, and the record around it."""
    return {
        "id": signed.id,
        "digest": signed.digest,
        "issuer": signed.issuer,
        "issued": signed.issued.isoformat(),
        "token": signed.token,
        **signed.body.to_json(),
    }


def _words(data: Mapping[str, Any], name: str, default: tuple[str, ...]) -> list[str]:
    value = data.get(name)
    if value is None:
        return list(default)
    if not isinstance(value, list) or len(value) > MAX_NAMED or not all(isinstance(v, str) for v in value):
        raise Invalid(Sentence("%(name)s is not a list of words.", name=name))
    return value


def _named(data: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = data.get(name, "*")
    if value in ("*", ["*"], None):
        return ALL
    return tuple(word[:64] for word in _words(data, name, ()))


ROUTES = [
    web.get("/api/v1/consents", of_patient),
    web.post("/api/v1/consents", record),
    web.post("/api/v1/consents/search", search),
    web.get("/api/v1/consents/{consent}", show),
    web.post("/api/v1/consents/{consent}/withdraw", withdraw),
]
