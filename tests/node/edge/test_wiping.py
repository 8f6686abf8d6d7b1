"""The wipe: keys first, then ciphertext, then a statement that the registry accepts."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import pytest

from consent.errors import Conflict, Corrupt, NotFound
from node.access.wiping import KEY_DESTROYED, check_wipe
from node.edge.agent import agent_key_of, create, read_agent_key, read_spool_key
from node.edge.settings import EdgeSettings, new_edge
from node.edge.spool import Spool
from node.edge.wiping import DEVICE_KEY_DESTROYED, SPOOL_OVERWRITTEN, UNPROVEN_BACKUPS, forget, wipe
from node.vault.blobs import FileBlobs
from tests.node.edge.conftest import ROOM, device, instance
from tests.support.clock import FakeClock

pytestmark = pytest.mark.requirement("C2")


@pytest.fixture
async def agent(tmp_path: Path) -> EdgeSettings:
    """An agent's folder."""
    settings = new_edge(
        tmp_path / "edge",
        edge={"ae_title": "CT1"},
        listen={"port": 0, "ae_title": "EDGE"},
        node={"ae_title": "ACCORD", "host": "127.0.0.1", "port": 1},
    )
    pair, authority = await device()
    create(settings, pair.certificate, pair.key, authority)
    return settings


async def fill(settings: EdgeSettings, clock: FakeClock) -> None:
    spool = Spool(FileBlobs(settings.spool_folder), read_spool_key(settings), clock, max_bytes=ROOM)
    await spool.add(instance(1))
    await spool.close()


async def test_wiped_spool_is_gone_and_the_registry_accepts_the_statement(agent: EdgeSettings) -> None:
    """Nothing readable is left, and the certificate holds for this device and this agent only."""
    clock = FakeClock()
    await fill(agent, clock)
    key = agent_key_of(agent)
    wiped = wipe(agent, read_agent_key(agent), clock, discard=True)
    assert not agent.spool_key.exists()
    assert not agent.device_key.exists()
    assert [path for path in agent.spool_folder.rglob("*") if path.is_file()] == []
    assert wiped.statement.body.done[0] == KEY_DESTROYED
    assert {SPOOL_OVERWRITTEN, DEVICE_KEY_DESTROYED} <= set(wiped.statement.body.done)
    assert UNPROVEN_BACKUPS in wiped.statement.body.unproven
    assert wiped.segments == 1
    later = clock.now() + timedelta(hours=1)
    check_wipe(wiped.statement.token, ae_title="CT1", agent=key, last_seen=clock.now(), now=later)
    with pytest.raises(Corrupt):
        check_wipe(wiped.statement.token, ae_title="MR1", agent=key, last_seen=None, now=later)
    with pytest.raises(NotFound):
        read_spool_key(agent)


async def test_wipe_leaves_nothing_of_the_bytes_behind_another_name_or_an_open_file(
    agent: EdgeSettings, tmp_path: Path
) -> None:
    """Segments, leftovers and keys are overwritten where they lie, not only unlinked: who still holds them holds noise."""
    await fill(agent, FakeClock())
    stray = agent.spool_folder / "left-over.new"
    stray.write_bytes(b"planted" * 300_000)  # more than is overwritten at once
    (segment,) = agent.spool_folder.rglob("*.pack")
    files = [segment, stray, agent.spool_key, agent.device_key, agent.agent_key]
    before = [file.read_bytes() for file in files]
    links = [tmp_path / f"link-{number}" for number, _ in enumerate(files)]
    for file, link in zip(files, links, strict=True):
        link.hardlink_to(file)
    held = [os.open(file, os.O_RDONLY) for file in files]
    try:
        wipe(agent, read_agent_key(agent), FakeClock(), discard=True)
        forget(agent)
        assert not any(file.exists() for file in files)
        for number, (link, descriptor) in enumerate(zip(links, held, strict=True)):
            size = len(before[number])
            found = os.pread(descriptor, size + 1, 0)
            assert link.read_bytes() == found and len(found) == size
            for start in range(0, size - 16, 16):
                assert found[start : start + 16] != before[number][start : start + 16]
    finally:
        for descriptor in held:
            os.close(descriptor)


async def test_spool_with_instances_is_not_wiped_by_mistake(agent: EdgeSettings) -> None:
    """What the node may not have is only destroyed by somebody who says so."""
    await fill(agent, FakeClock())
    with pytest.raises(Conflict):
        wipe(agent, read_agent_key(agent), FakeClock(), discard=False)
    assert agent.spool_key.exists()
    assert len(list(FileBlobs(agent.spool_folder).names())) == 1


async def test_agent_is_made_once(agent: EdgeSettings) -> None:
    """A second init over an agent would lose what its key opens."""
    pair, authority = await device()
    with pytest.raises(Conflict):
        create(agent, pair.certificate, pair.key, authority)


async def test_keys_are_for_the_owner_alone(agent: EdgeSettings) -> None:
    """No other account of the machine reads them."""
    for file in agent.keys.iterdir():
        assert file.stat().st_mode & 0o077 == 0
    assert agent.keys.stat().st_mode & 0o077 == 0
