"""The timed duties of a hospital's node, with their intervals: part of `ops.compose`. Those of the packs are `storage`'s."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry

from federation.members import Members
from federation.regraded import Regraded
from node.dicom.watch import DeviceWatch
from node.gateway import Gateway
from node.jobs import Job, Jobs
from ops import oversight
from ops.checks import Checks
from ops.doors import Doors
from ops.exchange import Exchange
from ops.findings import Findings
from ops.foundation import Foundation
from ops.sightings import Overseer

SESSION_SWEEP_SECONDS = 60.0
OPENING_SWEEP_SECONDS = 5.0
KEY_SECONDS = 3600.0
FINDING_SECONDS = 2.0
"""How soon what the log says becomes a finding."""
CHECK_SECONDS = 60.0
VERIFY_SECONDS = 24 * 3600.0
NOTICE_SECONDS = 2.0
"""How soon a holder hears that a grant has ended, when it can be reached."""
DEVICE_REFRESH_SECONDS = 2.0


def node_duties(
    base: Foundation, gateway: Gateway, exchange: Exchange, doors: Doors, watch: DeviceWatch
) -> list[Job]:
    """What keeps a node's doors, keys and exchanges up to date."""
    every = base.settings.intervals

    async def keys() -> None:
        await base.rotation.run()

    regraded = Regraded(database=base.database, log=base.log, records=base.records, notices=exchange.notices)

    async def proposals() -> None:
        await base.approvals.close_expired()

    async def sessions() -> None:
        await base.sessions.sweep()

    member = exchange.members
    return [
        Job("roster", every.roster_seconds, _when_member(member, exchange.following.refresh)),
        Job("checkpoint", every.checkpoint_seconds, _when_member(member, exchange.witnessing.submit)),
        Job("holdings", every.sweep_seconds, _when_member(member, exchange.holdings.sweep)),
        Job("asking", every.sweep_seconds, _when_member(member, exchange.asking.deliver)),
        Job("fetching", every.sweep_seconds, _when_member(member, exchange.fetching.fetch_waiting)),
        Job("notices", NOTICE_SECONDS, _when_member(member, exchange.notices.sweep)),
        Job("regraded", NOTICE_SECONDS, _when_member(member, regraded.follow)),
        Job("report", every.report_seconds, _when_member(member, exchange.reporter.send)),
        Job("openings", OPENING_SWEEP_SECONDS, gateway.sweep),
        Job("sessions", SESSION_SWEEP_SECONDS, sessions),
        Job("access-rows", SESSION_SWEEP_SECONDS, base.access_rows.run),
        Job("proposals", SESSION_SWEEP_SECONDS, proposals),
        Job("devices", DEVICE_REFRESH_SECONDS, doors.refresh),
        Job("watch", DEVICE_REFRESH_SECONDS, watch.look),
        Job("keys", KEY_SECONDS, keys, delay_seconds=KEY_SECONDS / 60),
    ]


def oversight_duties(
    base: Foundation, findings: Findings, jobs: Jobs, registry: CollectorRegistry
) -> list[Job]:
    """The duties that find what needs a person."""
    overseer = Overseer(base.database, base.log, base.registry, findings)
    checks = Checks.of(base.settings, findings, base.registry, base.log, base.clock, jobs.status)
    gauge = oversight.FindingMetrics(registry)

    async def follow() -> None:
        await overseer.follow()
        gauge.show(await findings.counts())

    return [
        Job("findings", FINDING_SECONDS, follow),
        Job("checks", CHECK_SECONDS, checks.look, delay_seconds=FINDING_SECONDS),
        Job("soundness", VERIFY_SECONDS, checks.verify_database, delay_seconds=VERIFY_SECONDS / 48),
        Job("verify", VERIFY_SECONDS, checks.verify_log, delay_seconds=VERIFY_SECONDS / 24),
    ]


def _when_member(members: Members, duty: Any) -> Any:
    """A duty among members, left out while this node has joined no region."""

    async def run() -> None:
        await members.load()
        if members.anchor is not None:
            await duty()

    return run
