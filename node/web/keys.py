"""Typed keys by which handlers find the node's services on the application: `request.app[GATEWAY]`.

Holds names only. `ops.compose` fills them; a floor above keeps its own keys in its own api module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from node.access.care import Care
    from node.access.registry import Registry
    from node.access.resets import Resets
    from node.access.sessions import Sessions
    from node.approvals import Approvals
    from node.audit.log import Log
    from node.clock import Clock
    from node.config import Settings
    from node.consents import Consents
    from node.database import Database
    from node.dicom.watch import DeviceWatch
    from node.gateway import Gateway
    from node.grade_locks import GradeLocks
    from node.identity import Identity
    from node.imaging.rendering import Renderer
    from node.index import Index, Pseudonyms
    from node.ingest import Ingest
    from node.policies import Policies
    from node.records import Records
    from node.regrading import Regrading
    from node.replication import Replication
    from node.rotation import Rotation
    from node.scrubbing import Scrubbing
    from node.vault.keys import KeyRing
    from node.web.metrics import HttpMetrics
    from node.web.openings import Openings

REPLICATION: web.AppKey[Replication] = web.AppKey("replication")
SCRUBBING: web.AppKey[Scrubbing] = web.AppKey("scrubbing")
GATEWAY: web.AppKey[Gateway] = web.AppKey("gateway")
RENDERER: web.AppKey[Renderer] = web.AppKey("renderer")
INGEST: web.AppKey[Ingest] = web.AppKey("ingest")
INDEX: web.AppKey[Index] = web.AppKey("index")
PSEUDONYMS: web.AppKey[Pseudonyms] = web.AppKey("pseudonyms")
LOG: web.AppKey[Log] = web.AppKey("log")
RESETS: web.AppKey[Resets] = web.AppKey("resets")
REGISTRY: web.AppKey[Registry] = web.AppKey("registry")
SESSIONS: web.AppKey[Sessions] = web.AppKey("sessions")
CARE: web.AppKey[Care] = web.AppKey("care")
CONSENTS: web.AppKey[Consents] = web.AppKey("consents")
RECORDS: web.AppKey[Records] = web.AppKey("records")
APPROVALS: web.AppKey[Approvals] = web.AppKey("approvals")
POLICIES: web.AppKey[Policies] = web.AppKey("policies")
CLOCK: web.AppKey[Clock] = web.AppKey("clock")
IDENTITY: web.AppKey[Identity] = web.AppKey("identity")
SETTINGS: web.AppKey[Settings] = web.AppKey("settings")
DATABASE: web.AppKey[Database] = web.AppKey("database")
MEMBERS: web.AppKey[Callable[[], Mapping[str, str]]] = web.AppKey("members")
"""The other hospitals of the region, name by node id; absent at a node that has not joined one."""
METRICS: web.AppKey[HttpMetrics] = web.AppKey("metrics")
DEVICE_WATCH: web.AppKey[DeviceWatch] = web.AppKey("device-watch")
KEYS: web.AppKey[KeyRing] = web.AppKey("keys")
KEY_DUTY: web.AppKey[Callable[[], None]] = web.AppKey("key-duty")
"""Lets the duty of the keys run soon, in the background."""
REGRADING: web.AppKey[Regrading] = web.AppKey("regrading")
ROTATION: web.AppKey[Rotation] = web.AppKey("rotation")
GRADE_LOCKS: web.AppKey[GradeLocks] = web.AppKey("grade-locks")
OPENINGS: web.AppKey[Openings] = web.AppKey("openings")
