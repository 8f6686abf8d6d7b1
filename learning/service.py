"""The hub's peer door for training: plans offered, decisions taken, Flower's own calls passed on.

The member was identified by the peer listener; a decision counts only when that member signed it.
Format: docs/formats/peer-protocol.md, "Training".
"""

from __future__ import annotations

import base64
import binascii

from aiohttp import web

from consent.errors import Denied, Invalid
from federation.doorway import peer_of
from federation.keys import MEMBERS
from learning.door import FLEET_DOOR, MAX_MESSAGE_BYTES
from learning.hublink import DECISIONS_PATH, MAX_PLANS, PLANS_PATH
from learning.keys import PLANBOOK, RUNS
from learning.superlink import public_pem
from node.web.kit import address_of, body_limit, read_json, respond

KEY_HEADER = "flwr-public-key"
"""Where a supernode says which key signs its calls: base64 of its PEM."""


async def offers(request: web.Request) -> web.Response:
    """GET: the open plans as signed, and whether this member's supernode would be let in."""
    plans = (await request.app[PLANBOOK].plans())[:MAX_PLANS]
    registered = request.app[RUNS].superlink.registered(peer_of(request).id)
    return respond({"plans": [plan.token for plan in plans], "registered": registered})


async def decided(request: web.Request) -> web.Response:
    """POST {decision}: a site's signed decision on a plan."""
    token = (await read_json(request)).get("decision")
    if not isinstance(token, str):
        raise Invalid("The body holds no decision.")
    decision = await request.app[PLANBOOK].receive_decision(
        token,
        peer_of(request).id,
        keys_of=request.app[MEMBERS].keys_of,
        address=address_of(request),
    )
    return respond({"decision": decision.digest})


@body_limit(MAX_MESSAGE_BYTES)
async def fleet(request: web.Request) -> web.Response:
    """POST /v1/…: Flower's calls. Only under the learning key that the roster pins for this very member."""
    if not same_key(request.headers.get(KEY_HEADER, ""), peer_of(request).learning_key):
        raise Denied("These calls are not signed with this member's learning key.", code="fleet-key")
    return await request.app[FLEET_DOOR].pass_on(request)


def same_key(claimed: str, pinned: str) -> bool:
    """Whether the header names the pinned key (an OpenSSH line)."""
    try:
        return base64.b64decode(claimed, validate=True).decode("ascii") == public_pem(pinned)
    except (binascii.Error, ValueError):
        return False


HUB_PEER_ROUTES: list[web.RouteDef] = [
    web.get(PLANS_PATH, offers),
    web.post(DECISIONS_PATH, decided),
    web.route("*", "/v1/{call:.*}", fleet),
]
