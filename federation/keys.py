"""Typed keys by which handlers find the federation's services on an application: `request.app[GRANTS]`.

Holds names only; `ops.compose` fills them. A service that a node does not have (the authority, except at the hub)
is simply not on its applications.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from federation.asking import Asking
    from federation.authority import Authority
    from federation.doorway import Doorway
    from federation.fetching import Fetching
    from federation.grants import Grants
    from federation.holdings import Holdings
    from federation.incoming import Incoming
    from federation.leases import Leases
    from federation.members import Members
    from federation.notices import Notices
    from federation.releases import Releases
    from federation.reporting import Reports
    from federation.witnessing import Witnessing

MEMBERS: web.AppKey[Members] = web.AppKey("members")
AUTHORITY: web.AppKey[Authority] = web.AppKey("authority")
DOORWAY: web.AppKey[Doorway] = web.AppKey("doorway")
ASKING: web.AppKey[Asking] = web.AppKey("asking")
INCOMING: web.AppKey[Incoming] = web.AppKey("incoming")
GRANTS: web.AppKey[Grants] = web.AppKey("grants")
NOTICES: web.AppKey[Notices] = web.AppKey("notices")
RELEASES: web.AppKey[Releases] = web.AppKey("releases")
LEASES: web.AppKey[Leases] = web.AppKey("leases")
HOLDINGS: web.AppKey[Holdings] = web.AppKey("holdings")
FETCHING: web.AppKey[Fetching] = web.AppKey("fetching")
WITNESSING: web.AppKey[Witnessing] = web.AppKey("witnessing")
REPORTS: web.AppKey[Reports] = web.AppKey("reports")
