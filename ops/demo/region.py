"""The demonstration's region: a hub and three hospitals set up by the command line, with people and devices.

A is a general hospital, B the central hospital, C a small clinic. D is a node that nobody lists. Other members
reach A through a `Wire`, so that the story can cut and spoil what passes.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from consent.errors import Unavailable
from node.config import Settings
from node.ports import free_ports
from ops.demo.person import Person
from ops.demo.processes import Site, accord, compile_own_code, start, stop_all, tune
from ops.demo.wire import Wire

LEASE_SECONDS = 6.0
REGISTERED_SECONDS = 2.5
"""A node looks for newly registered certificates every two seconds."""
FAST = {
    "intervals__roster_seconds": 2.0,
    "intervals__checkpoint_seconds": 2.0,
    "intervals__sweep_seconds": 1.0,
    "intervals__report_seconds": 3.0,
}
"""A story of minutes cannot wait for the intervals of a hospital's day."""

ROOTS = ("storage/1", "storage/2", "storage/3")
"""Three copies of every study, as a hospital has them on three disks."""

HOSPITALS = (
    ("a-general", "General Hospital", "GENERAL"),
    ("b-central", "Central Hospital", "CENTRAL"),
    ("c-clinic", "Riverside Clinic", "CLINIC"),
)
PEOPLE = (
    ("a-general", "it.sun", "Sun Hao", "administrator"),
    ("a-general", "dr.li", "Li Wei", "clinician"),
    ("a-general", "dr.chen", "Chen Yu", "clinician"),
    ("a-general", "chief.zhao", "Zhao Min", "chief-physician"),
    ("a-general", "officer.wu", "Wu Jing", "security-officer"),
    ("b-central", "dr.wang", "Wang Fang", "clinician"),
    ("b-central", "chief.he", "He Lin", "chief-physician"),
    ("b-central", "officer.gao", "Gao Yan", "security-officer"),
    ("c-clinic", "dr.ma", "Ma Jun", "clinician"),
    ("c-clinic", "chief.luo", "Luo Dan", "chief-physician"),
    ("c-clinic", "officer.xie", "Xie Rui", "security-officer"),
    ("hub", "operator.hu", "Hu Qiang", "hub-operator"),
    ("hub", "researcher.tan", "Tan Lei", "researcher"),
)


@dataclass
class Region:
    """The running region. `passwords` are by (site, login)."""

    folder: Path
    hub: Site
    hospitals: tuple[Site, Site, Site]
    stranger: Site
    wire: Wire
    passwords: dict[tuple[str, str], str] = field(default_factory=dict)
    authorities: dict[str, str] = field(default_factory=dict)

    @property
    def sites(self) -> tuple[Site, ...]:
        return (self.hub, *self.hospitals)

    def site(self, site_id: str) -> Site:
        """One site by its id."""
        return next(site for site in (*self.sites, self.stranger) if site.id == site_id)

    def person(self, site_id: str, login: str) -> Person:
        """Somebody who will sign in at a site."""
        site = self.site(site_id)
        return Person(site.portal, self.authorities[site_id], login, self.passwords[site_id, login])


@asynccontextmanager
async def founded(folder: Path) -> AsyncIterator[Region]:
    """Make the folders, start every process, let the hospitals join; end all of it with the block."""
    await asyncio.to_thread(compile_own_code)
    ports = iter(free_ports(5 * 5))
    hub = Site("hub", "Regional hub", folder / "hub", _ports(ports))
    hospitals = tuple(Site(id_, name, folder / id_, _ports(ports), aet) for id_, name, aet in HOSPITALS)
    stranger = Site("d-unlisted", "Unlisted node", folder / "d-unlisted", _ports(ports), "UNLISTED")
    async with Wire(hospitals[0].ports["peer"]).running() as wire:
        region = Region(folder, hub, (hospitals[0], hospitals[1], hospitals[2]), stranger, wire)
        try:
            await _found(region)
            yield region
        finally:
            await stop_all(region.sites)


async def _found(region: Region) -> None:
    """Every site by itself as far as it can; the hospitals wait for the hub only to join."""
    operator: asyncio.Future[Person] = asyncio.get_running_loop().create_future()

    async def hub() -> None:
        await _make_hub(region)
        await start(region.hub, "hub", "serve")
        operator.set_result(await stack.enter_async_context(region.person("hub", "operator.hu")))

    async def hospital(site: Site) -> None:
        await _make_hospital(region, site)
        await start(site, "serve")
        await _join(region, site, await operator)

    async with AsyncExitStack() as stack:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(hub())
                group.create_task(_make_hospital(region, region.stranger))
                for site in region.hospitals:
                    group.create_task(hospital(site))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from failed


def _ports(ports: Iterator[int]) -> Mapping[str, int]:
    return {name: next(ports) for name in ("http", "dicom", "plain", "peer", "metrics")}


async def _make_hub(region: Region) -> None:
    hub = region.hub
    await accord(
        "hub", "init", hub.folder, "--region", "demo", "--name", hub.name,
        "--http-port", hub.ports["http"], "--peer-port", hub.ports["peer"],
    )  # fmt: skip
    tune(hub, metrics__port=hub.ports["metrics"], learning__enabled=True, **FAST)
    await _people(region, hub)


async def _make_hospital(region: Region, site: Site) -> None:
    await accord(
        "init", site.folder, "--name", site.name, "--node-id", site.id, "--ae-title", site.ae_title,
        "--http-port", site.ports["http"], "--dicom-port", site.ports["dicom"],
        "--plain-dicom-port", site.ports["plain"], "--peer-port", site.ports["peer"],
    )  # fmt: skip
    tune(
        site,
        metrics__port=site.ports["metrics"],
        learning__enabled=True,
        storage__roots=list(ROOTS),
        policy__lease_seconds=LEASE_SECONDS,
        **FAST,
    )
    if site is region.hospitals[0]:
        tune(site, peer__url=f"https://127.0.0.1:{region.wire.port}")
    await _people(region, site)


async def _people(region: Region, site: Site) -> None:
    """Accounts and the authority's certificate, in one process: the same services as `accord user add` uses."""
    from consent.vocabulary import Role
    from ops.foundation import opened

    async with opened(site.folder) as node:
        for at, login, name, role in PEOPLE:
            if at == site.id:
                password = secrets.token_urlsafe(12)
                await node.registry.add_person(login, name, Role(role), "Radiology", password)
                region.passwords[at, login] = password
        region.authorities[site.id] = node.identity.authority_pem


async def _join(region: Region, site: Site, operator: Person) -> None:
    """The hub's operator invites on the hub's page; the file goes to the hospital, whose command it ends with."""
    made = await operator.post("/api/v1/hub/invitations", {"note": site.name, "hours": 1})
    invitation = region.folder / f"{site.id}.accord"
    invitation.write_text(made["invitation"] + "\n", "ascii")
    joined = await accord("join", site.folder, invitation)
    if not (joined["listed"] and joined["seen"]):
        raise Unavailable(f"{site.name} is not in the region: {joined}")


def settings_of(site: Site) -> Settings:
    """What the site's node.toml says now."""
    from node.config import load_settings

    return load_settings(site.folder)
