"""The hub's peer door for training: plans offered, decisions taken, Flower's own calls passed on.

The member was identified by the peer listener; a decision counts only when that member signed it.
"""

from __future__ import annotations

from aiohttp import web

from consent.errors import Invalid
from federation.doorway import peer_of
from federation.keys import MEMBERS
from learning.door import DOOR_ROUTES
from learning.hublink import DECISIONS_PATH, MAX_PLANS, PLANS_PATH
from learning.keys import PLANBOOK, RUNS
from node.web.kit import address_of, read_json, respond


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


HUB_PEER_ROUTES: list[web.RouteDef] = [
    web.get(PLANS_PATH, offers),
    web.post(DECISIONS_PATH, decided),
    *DOOR_ROUTES,
]
