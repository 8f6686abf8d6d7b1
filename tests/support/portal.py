"""The portal of a small node on a real TLS socket, and clients that have signed in to it.

`async with portal(node) as site:` serves the node's pages and API; `site.client("li")` signs in and returns an HTTP
client whose requests carry the session's cookie and CSRF token.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import aiohttp
from aiohttp import web
from yarl import URL

from consent.vocabulary import Role
from node.access.resets import Resets
from node.access.sessions import Sessions
from node.approvals import Approvals
from node.config import DicomSection, NodeSection, Settings
from node.consents import Consents
from node.dicom.gate import Gate
from node.dicom.services import Services
from node.dicom.watch import DeviceWatch
from node.grade_locks import GradeLocks
from node.rebuilding import Rebuilding
from node.regrading import Regrading
from node.replication import Replication
from node.rotation import Rotation
from node.scrubbing import Scrubbing
from node.tls import client_context, server_context
from node.vault.throttle import Throttle
from node.web import keys
from node.web.api import NAV, ROUTES
from node.web.kit import Box, HttpMetrics, Limits, Listener, make_app
from node.web.people import COOKIE
from tests.support.node import PASSWORD, NodeFixture


@dataclass
class Site:
    """A running portal."""

    node: NodeFixture
    app: web.Application
    sessions: Sessions
    listener: Listener
    context: ssl.SSLContext
    metrics: HttpMetrics

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.listener.port}"

    async def person(
        self, login: str, role: Role = Role.CLINICIAN, *, treats: Sequence[str] = (), name: str = ""
    ) -> None:
        """Make an account that can sign in with PASSWORD."""
        await self.node.registry.add_person(login, name or login.title(), role, "Radiology", PASSWORD)
        for patient in treats:
            await self.node.care.record(login, patient)

    @asynccontextmanager
    async def stranger(self, **headers: str) -> AsyncIterator[aiohttp.ClientSession]:
        """A client that has not signed in; redirects are left to the test."""
        connector = aiohttp.TCPConnector(ssl=self.context)
        jar = aiohttp.CookieJar(unsafe=True)
        async with aiohttp.ClientSession(
            self.url, connector=connector, cookie_jar=jar, headers=headers
        ) as one:
            yield one

    @asynccontextmanager
    async def client(self, login: str, **headers: str) -> AsyncIterator[aiohttp.ClientSession]:
        """A client with a session of this person."""
        session = await self.sessions.sign_in(login, PASSWORD, "127.0.0.1")
        async with self.stranger(**{"X-CSRF-Token": session.csrf, **headers}) as one:
            one.cookie_jar.update_cookies({COOKIE: session.cookie}, URL(self.url))
            yield one


@asynccontextmanager
async def portal(
    node: NodeFixture,
    *,
    limits: Limits | None = None,
    routes: Sequence[web.RouteDef] = (),
    services: Mapping[web.AppKey[Any], Any] | None = None,
    boxes: Mapping[str, Sequence[Box]] | None = None,
) -> AsyncIterator[Site]:
    """Serve the node's portal on loopback with a certificate of its own authority."""
    sessions = Sessions(
        node.database,
        node.log,
        node.clock,
        key=await node.keys.secret("registry"),
        node=node.node_id,
        passwords=node.registry.passwords,
    )
    consents = Consents(
        node.database, node.records, node.log, node.policies, node.care, node.identity, node.clock
    )
    gate = Gate(node.registry, Services(node.ingest, node.log), node.clock, "ACCORD")
    watch = DeviceWatch(
        database=node.database, log=node.log, clock=node.clock, registry=node.registry, gate=gate
    )
    settings = Settings(
        node=NodeSection(id=node.node_id, name="General Hospital", ae_title="ACCORD"),
        dicom=DicomSection(),
        folder=node.path,
    )
    rotation = Rotation(node.keys, node.database, node.log, node.policies, node.clock)
    duty = asyncio.Event()
    regrading = Regrading(
        vault=node.vault,
        blobs=node.blobs,
        keys=node.keys,
        index=node.index,
        ingest=node.ingest,
        log=node.log,
        database=node.database,
        clock=node.clock,
    )
    metrics = HttpMetrics()
    app = make_app(
        routes=[*ROUTES, *routes],
        nav=NAV,
        name="General Hospital",
        metrics=metrics,
        boxes=boxes,
        services={
            keys.GATEWAY: node.gateway,
            keys.RENDERER: node.renderer,
            keys.REPLICATION: Replication(node.replicas or node.blobs, log=node.log, pace=Throttle(10**9)),
            keys.SCRUBBING: Scrubbing(
                blobs=node.replicas or node.blobs,
                vault=node.vault,
                index=node.index,
                rebuilding=Rebuilding(node.vault, node.index, node.log, node.database),
                compaction=node.compaction,
                log=node.log,
                database=node.database,
                clock=node.clock,
                pace=Throttle(10**9),
                every=timedelta(days=7),
                deep_every=timedelta(days=30),
            ),
            keys.INGEST: node.ingest,
            keys.INDEX: node.index,
            keys.PSEUDONYMS: node.index.pseudonyms,
            keys.LOG: node.log,
            keys.REGISTRY: node.registry,
            keys.RESETS: Resets(
                node.database,
                node.registry,
                Approvals(
                    node.database,
                    node.records,
                    node.log,
                    node.clock,
                    node_id=node.node_id,
                    key=node.identity.signing,
                ),
                node.log,
            ),
            keys.SESSIONS: sessions,
            keys.CARE: node.care,
            keys.RECORDS: node.records,
            keys.CONSENTS: consents,
            keys.POLICIES: node.policies,
            keys.CLOCK: node.clock,
            keys.IDENTITY: node.identity,
            keys.DATABASE: node.database,
            keys.SETTINGS: settings,
            keys.DEVICE_WATCH: watch,
            keys.KEYS: node.keys,
            keys.ROTATION: rotation,
            keys.GRADE_LOCKS: GradeLocks({}, node.keys, node.log, node.clock),
            keys.KEY_DUTY: duty.set,
            keys.REGRADING: regrading,
            **(services or {}),
        },
    )
    leaf = node.identity.leaf(["127.0.0.1", "localhost"], node.clock.now())
    trusting = client_context([node.identity.authority_pem])
    # The node's clock stands at a moment of the test; the certificate's days are not what is tested here.
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    async with Listener(app, "127.0.0.1", 0, server_context(leaf), limits, metrics) as listener:
        yield Site(node, app, sessions, listener, trusting, metrics)
