"""The exchange for people: JSON under /api/v1, the portal's pages, and what this floor adds to the portal.

Handlers read, call one service and answer; every rule is in the services. Format: docs/formats/http-api.md; the
statements behind it: docs/formats/peer-protocol.md.
"""

from __future__ import annotations

from datetime import timedelta

from aiohttp import web

from consent.errors import Invalid
from consent.signed import Json
from consent.vocabulary import Purpose, Right
from federation import pages
from federation.asking import AskedRequest
from federation.fields import RECORD_ID, PeerFields
from federation.holdings import HeldStudy
from federation.incoming import IncomingRequest
from federation.keys import ASKING, FETCHING, GRANTS, HOLDINGS, INCOMING, MEMBERS, WITNESSING
from federation.notices import GrantState
from federation.pages import BOXES, NAV
from federation.protocol import MAX_HOURS, MAX_PERSON, MAX_REASON, Particulars
from node.web.kit import address_of, current_person, read_json, respond

__all__ = ["BOXES", "NAV", "ROUTES"]

MIN_REASON = 3


async def ask(request: web.Request) -> web.Response:
    """POST /api/v1/requests: {home, study_instance_uid | accession_number + patient_id, reason, …} → 201."""
    who = current_person(request)
    read = PeerFields(await read_json(request), "request")
    asked = await request.app[ASKING].ask(
        who,
        home=read.text("home", limit=32),
        particulars=particulars_of(read, who.name),
        purpose=read.choice("purpose", Purpose) if read.has("purpose") else Purpose.TREATMENT,
        rights=read.choices("rights", Right) if read.has("rights") else frozenset({Right.VIEW}),
        hours=read.integer("hours", low=1, high=MAX_HOURS) if read.has("hours") else 24,
        address=address_of(request),
    )
    return respond(asked_json(asked), status=201)


async def asked(request: web.Request) -> web.Response:
    """GET /api/v1/requests: what I have asked other hospitals for."""
    found = await request.app[ASKING].asked(current_person(request))
    return respond([asked_json(one) for one in found])


async def incoming(request: web.Request) -> web.Response:
    """GET /api/v1/incoming: what other hospitals ask of my patients."""
    found = await request.app[INCOMING].incoming(current_person(request))
    return respond([incoming_json(one) for one in found])


async def grant(request: web.Request) -> web.Response:
    """POST /api/v1/incoming/{id}/grant: {rights?, hours | seconds?} → 201 with the grant's id and end."""
    read = PeerFields(await read_json(request), "grant")
    issued = await request.app[GRANTS].issue(
        current_person(request),
        record_id(request),
        rights=read.choices("rights", Right) if read.has("rights") else None,
        lasts=_lasts(read),
        address=address_of(request),
    )
    return respond(
        {
            "grant": issued.id,
            "digest": issued.digest,
            "holder": issued.body.recipient,
            "person": issued.body.person,
            "rights": sorted(issued.body.rights),
            "expires": issued.expires.isoformat() if issued.expires else None,
        },
        status=201,
    )


async def decline(request: web.Request) -> web.Response:
    """POST /api/v1/incoming/{id}/decline: {reason}."""
    reason = PeerFields(await read_json(request), "refusal").text("reason", limit=MAX_REASON)
    await request.app[INCOMING].decline(
        current_person(request), record_id(request), reason, address_of(request)
    )
    return respond({})


async def grants(request: web.Request) -> web.Response:
    """GET /api/v1/grants: what I may take back, and what ended lately.

    While a living grant is not delivered, `words` is why its holder refused it, or empty when it is away.
    """
    found = await request.app[GRANTS].issued(current_person(request))
    return respond(
        [
            {
                "grant": one.id,
                "study": one.study,
                "patient": one.patient,
                "holder": one.holder,
                "person": one.person,
                "purpose": str(one.purpose),
                "rights": sorted(one.rights),
                "issued": one.issued.isoformat(),
                "ends": one.ends.isoformat(),
                "state": str(one.state),
                "alive": one.state is GrantState.ALIVE,
                "delivered": one.delivered,
                "words": one.words,
            }
            for one in found
        ]
    )


async def revoke(request: web.Request) -> web.Response:
    """POST /api/v1/grants/{id}/revoke: {reason}."""
    reason = PeerFields(await read_json(request), "revocation").text("reason", limit=MAX_REASON)
    await request.app[GRANTS].revoke(
        current_person(request), record_id(request), reason, address=address_of(request)
    )
    return respond({})


async def held(request: web.Request) -> web.Response:
    """GET /api/v1/held: what is shared with me."""
    found = await request.app[HOLDINGS].held(current_person(request))
    return respond([held_json(one) for one in found])


async def fetch(request: web.Request) -> web.Response:
    """POST /api/v1/held/{id}/fetch: bring the sealed copy now; answers when it is verified and held."""
    grant_id = record_id(request)
    holdings = request.app[HOLDINGS]
    (await holdings.one(grant_id)).require(current_person(request))
    await request.app[FETCHING].fetch(grant_id)
    return respond(held_json(await holdings.one(grant_id)))


async def members(request: web.Request) -> web.Response:
    """GET /api/v1/members: the roster in force, as this node sees it.

    `cosigned_size` is up to which size this node has vouched for the member's log.
    """
    current_person(request)
    known, witnessing = request.app[MEMBERS], request.app[WITNESSING]
    roster = known.current()
    return respond(
        {
            "region": roster.anchor.region,
            "version": roster.version,
            "expires": known.expires.isoformat() if known.expires else None,
            "members": [
                {
                    "id": member.id,
                    "name": member.name,
                    "roles": list(member.roles),
                    "status": str(member.status),
                    "fingerprint": member.fingerprint,
                    "cosigned_size": await witnessing.cosigned_size(member),
                }
                for member in roster.members
            ],
        }
    )


def particulars_of(read: PeerFields, person_name: str) -> Particulars:
    """Which study, who asks and why, as a clinician typed it."""
    reason = read.text("reason", limit=MAX_REASON).strip()
    if len(reason) < MIN_REASON:
        raise Invalid("Give the reason in words: the other hospital's clinician decides by it.")
    return Particulars(
        person_name=person_name[:MAX_PERSON],
        reason=reason,
        study_instance_uid=(read.optional_text("study_instance_uid", limit=64) or "").strip(),
        accession_number=(read.optional_text("accession_number", limit=64) or "").strip(),
        patient_id=(read.optional_text("patient_id", limit=128) or "").strip(),
    )


def record_id(request: web.Request) -> str:
    """The id in the path. Raises Invalid."""
    value = request.match_info["id"]
    if not RECORD_ID.fullmatch(value):
        raise Invalid("This is not the id of a record.")
    return value


def asked_json(one: AskedRequest) -> Json:
    """A request of ours, for JSON."""
    return {
        "id": one.id,
        "home": one.home,
        "state": str(one.state),
        "asked": one.asked.isoformat(),
        "expires": one.expires.isoformat(),
        "purpose": str(one.purpose),
        "rights": sorted(one.rights),
        "hours": one.hours,
        "reason": one.particulars.reason,
        "grant": one.grant,
        "words": one.words,
    }


def incoming_json(one: IncomingRequest) -> Json:
    """Another hospital's request, for JSON."""
    return {
        "id": one.id,
        "asker": one.asker,
        "person": one.person,
        "person_name": one.particulars.person_name,
        "state": str(one.state),
        "received": one.received.isoformat(),
        "expires": one.expires.isoformat(),
        "purpose": str(one.purpose),
        "rights": sorted(one.rights),
        "hours": one.hours,
        "reason": one.particulars.reason,
        "study": one.study,
        "patient": one.patient,
    }


def held_json(one: HeldStudy) -> Json:
    """A held study, for JSON."""
    return {
        "grant": one.grant,
        "home": one.home,
        "study": one.study,
        "request": one.request,
        "state": str(one.state),
        "purpose": str(one.purpose),
        "rights": list(one.rights),
        "expires": one.expires.isoformat(),
        "size_bytes": one.size_bytes,
        "words": one.words,
    }


def _lasts(read: PeerFields) -> timedelta | None:
    if read.has("seconds"):
        return timedelta(seconds=read.integer("seconds", low=1, high=MAX_HOURS * 3600))
    return timedelta(hours=read.number("hours", low=0.01, high=MAX_HOURS)) if read.has("hours") else None


ROUTES: list[web.RouteDef] = [
    web.post("/api/v1/requests", ask),
    web.get("/api/v1/requests", asked),
    web.get("/api/v1/incoming", incoming),
    web.post("/api/v1/incoming/{id}/grant", grant),
    web.post("/api/v1/incoming/{id}/decline", decline),
    web.get("/api/v1/grants", grants),
    web.post("/api/v1/grants/{id}/revoke", revoke),
    web.get("/api/v1/held", held),
    web.post("/api/v1/held/{id}/fetch", fetch),
    web.get("/api/v1/members", members),
    *pages.ROUTES,
]
