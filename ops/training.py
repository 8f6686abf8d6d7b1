"""Composing the learning floor: the site's part at a hospital, the runs and their Flower processes at the hub."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import structlog
from aiohttp import web

from federation.channel import Channel
from federation.client import PeerClient
from federation.members import Members
from federation.roster import HOSPITAL, Standing
from learning import api, keys
from learning.cohort import Cohorts
from learning.door import FLEET_DOOR, FleetDoor
from learning.hublink import HubLink
from learning.models import ModelStore
from learning.planbook import PlanBook
from learning.runs import Runs
from learning.service import HUB_PEER_ROUTES
from learning.site import TrainingSite
from learning.superlink import Superlink
from node.gateway import Gateway
from node.imaging.rendering import Renderer
from node.web.pages import NavItem
from node.web.problems import where
from ops.foundation import Foundation

MODEL_KEY = "learning/models"
FIRST_PAUSE_SECONDS = 2.0
LONGEST_PAUSE_SECONDS = 300.0

_log = structlog.get_logger("training")


@dataclass(frozen=True)
class Training:
    """What a listener needs of the learning floor, and what runs behind it."""

    services: Mapping[web.AppKey[Any], Any]
    routes: Sequence[web.AbstractRouteDef]
    peer_routes: Sequence[web.AbstractRouteDef]
    nav: Sequence[NavItem]
    run: Callable[[], Coroutine[Any, Any, None]]
    close: Callable[[], Coroutine[Any, Any, None]]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run until the block ends; the Flower processes end with it."""
        task = asyncio.create_task(self._keep_running(), name="training")
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await self.close()

    async def _keep_running(self) -> None:
        """Start again after an error, ever later: training must not end with one full disk."""
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                await self.run()
            except Exception as error:
                _log.error(
                    "training stopped", kind=type(error).__name__, at=where(error), again_in_seconds=pause
                )
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


async def build_site(
    base: Foundation, channel: Channel, client: PeerClient, gateway: Gateway, renderer: Renderer
) -> Training:
    """A hospital's part: offers, the gate, cohorts, the supervised supernode and runner."""
    book = _book(base)
    site = TrainingSite(
        node_id=base.identity.node_id,
        book=book,
        cohorts=Cohorts(
            node_id=base.identity.node_id,
            gateway=gateway,
            renderer=renderer,
            secret=base.keys.secret,
            approved=book.approves,
            policies=base.policies,
        ),
        link=HubLink(members=base.members, channel=channel, client=client),
        learning_key=base.identity.learning_private,
        log=base.log,
        clock=base.clock,
        folder=base.settings.folder / "learning",
    )
    return Training(
        services={keys.SITE: site, keys.PLANBOOK: book},
        routes=api.NODE_ROUTES,
        peer_routes=(),
        nav=api.NODE_NAV,
        run=site.run,
        close=_nothing,
    )


async def build_runs(base: Foundation) -> Training:
    """The hub's part: plans, runs, the loopback SuperLink behind its door, models."""
    book = _book(base)
    busy: list[Runs] = []
    door = FleetDoor(holding=lambda: any(runs.busy for runs in busy))
    superlink = Superlink(
        folder=base.settings.folder / "learning",
        door=door,
        learning_keys=lambda: _learning_keys(base.members),
    )
    runs = Runs(
        node_id=base.identity.node_id,
        key=base.identity.signing,
        book=book,
        superlink=superlink,
        store=ModelStore(base.settings.folder / "models", await base.keys.secret(MODEL_KEY)),
        database=base.database,
        records=base.records,
        log=base.log,
        clock=base.clock,
        policies=base.policies,
        members=lambda: tuple(_learning_keys(base.members)),
    )
    busy.append(runs)
    return Training(
        services={keys.RUNS: runs, keys.PLANBOOK: book, FLEET_DOOR: door},
        routes=api.HUB_ROUTES,
        peer_routes=HUB_PEER_ROUTES,
        nav=api.HUB_NAV,
        run=runs.run,
        close=door.close,
    )


def _book(base: Foundation) -> PlanBook:
    return PlanBook(
        node_id=base.identity.node_id,
        key=base.identity.signing,
        database=base.database,
        records=base.records,
        log=base.log,
        clock=base.clock,
    )


def _learning_keys(members: Members) -> Mapping[str, str]:
    """The active hospitals' learning keys; none while there is no roster."""
    if members.anchor is None:
        return {}
    return {
        member.id: member.learning_key
        for member in members.current().members
        if HOSPITAL in member.roles and member.status is Standing.ACTIVE and member.learning_key
    }


async def _nothing() -> None:
    return None
