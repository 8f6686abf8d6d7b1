"""/api/v1/care: who treats whom. Entered by hospital IT or a chief physician, by the hospital's own Patient ID.

A clinician cannot give themselves a relationship. The Patient ID is turned into the pseudonym at once and
neither stored nor logged.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from aiohttp import web

from consent.errors import Invalid
from consent.principals import Principal
from consent.signed import Json
from consent.vocabulary import Action
from node.access.care import Relationship
from node.web.decisions import permitted
from node.web.inputs import moment_of
from node.web.keys import CARE, INDEX
from node.web.kit import current_person, read_json, respond
from node.web.text import N_


async def record(request: web.Request) -> web.Response:
    """POST {login, patient | patient_id | study, until?} → the relationship."""
    data = await read_json(request)
    relationship = await record_care(request, data)
    return respond(relationship_json(relationship), status=201)


async def end(request: web.Request) -> web.Response:
    """POST /end {login, patient | patient_id | study, reason?}"""
    data = await read_json(request)
    person = await may_enter(request, str(data.get("login", "")))
    patient = await patient_of(request, data)
    reason = str(data.get("reason", ""))[:500]
    await request.app[CARE].end(str(data.get("login", "")), patient, person.actor, reason=reason)
    return web.Response(status=204)


async def record_care(request: web.Request, data: Mapping[str, Any]) -> Relationship:
    """Record a relationship from JSON or a form."""
    login = str(data.get("login", "")).strip()
    person = await may_enter(request, login)
    until: datetime | None = moment_of(data.get("until"), "until", end_of_day=True)
    return await request.app[CARE].record(login, await patient_of(request, data), until, person.actor)


async def may_enter(request: web.Request, login: str) -> Principal:
    """The person, when the rules let them enter relationships of `login`. Raises Denied, on record."""
    another = current_person(request).id != login.strip().casefold()
    return await permitted(
        request, Action.RECORD_CARE, another=another, words=N_("You may not enter this relationship.")
    )


async def patient_of(request: web.Request, data: Mapping[str, Any]) -> str:
    """The pseudonym that `patient`, `patient_id` or `study` names. Raises Invalid or NotFound."""
    patient, patient_id, study = (
        str(data.get(name) or "").strip() for name in ("patient", "patient_id", "study")
    )
    if patient:
        if not patient.startswith("pt_") or len(patient) > 64 or not patient.isascii():
            raise Invalid(N_("This is not a patient pseudonym."), mend=N_("Give the Patient ID instead."))
        return patient
    if patient_id and len(patient_id) <= 64:
        return request.app[INDEX].pseudonyms.patient(patient_id)
    if study:
        return (await request.app[INDEX].study(study)).patient
    raise Invalid(
        N_("It does not say which patient."), mend=N_("Give the Patient ID or a study."), code="missing"
    )


def relationship_json(relationship: Relationship) -> Json:
    """A relationship as the API gives it."""
    return {
        "id": relationship.id,
        "login": relationship.login,
        "patient": relationship.patient,
        "source": relationship.source.value,
        "recorded_by": relationship.recorded_by,
        "begins": relationship.begins.isoformat(),
        "ends": relationship.ends.isoformat() if relationship.ends else None,
    }


ROUTES = [web.post("/api/v1/care", record), web.post("/api/v1/care/end", end)]
