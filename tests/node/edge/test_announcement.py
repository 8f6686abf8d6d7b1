"""An agent finds its node on the local network: by the authority it trusts, whoever else answers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from zeroconf.asyncio import AsyncServiceInfo

from consent.errors import Unavailable
from node import mdns
from node.edge.announcement import SERVICE, announcing, find
from node.identity import Identity
from node.mdns import Announced, LocalNetwork
from tests.support.seeds import seeds

pytestmark = pytest.mark.requirement("C2")

LOOPBACK = "127.0.0.1"


def liar(digit: str) -> LocalNetwork:
    """Somebody who announces an authority that nobody trusts."""
    return LocalNetwork(SERVICE, interface=LOOPBACK, own=Announced(digit * 64, LOOPBACK, 9))


async def authority(seed: str) -> str:
    """The authority (PEM) that the agent trusts: another for each test, for tests that run beside each other hear all."""
    return (await Identity.load_or_create(seeds(seed), "a-general", "General Hospital")).authority_pem


async def anybody(_host: str, _port: int) -> bool:
    """Whoever answers is taken for the node."""
    return True


async def test_agent_finds_the_node_under_its_authority_and_no_other() -> None:
    """Another announcement on the same network is passed over."""
    trusted = await authority("two")
    async with (
        liar("0"),
        announcing(interface=LOOPBACK, authority=trusted, port=2762),
    ):
        assert await find(trusted, anybody, interface=LOOPBACK, seconds=20) == (LOOPBACK, 2762)


async def test_nobody_announces_it() -> None:
    """Looking ends in time, and a false announcement is no answer."""
    async with liar("1"):
        assert await find(await authority("nobody"), anybody, interface=LOOPBACK, seconds=1) is None


async def test_name_that_never_answers_holds_the_node_up_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names are looked up beside each other: one that is announced and not there costs no time."""

    class Slow(AsyncServiceInfo):
        async def async_request(self, zc: Any, timeout: float, *others: Any, **more: Any) -> bool:
            if self.name.startswith("2" * 32):
                await asyncio.sleep(3600)
            return await super().async_request(zc, timeout, *others, **more)

    trusted = await authority("slow")
    monkeypatch.setattr(mdns, "AsyncServiceInfo", Slow)
    async with liar("2"), announcing(interface=LOOPBACK, authority=trusted, port=2762):
        assert await find(trusted, anybody, interface=LOOPBACK, seconds=20) == (LOOPBACK, 2762)


async def test_interface_that_is_not_there_is_named() -> None:
    """The forwarder says in words why it does not find the node."""
    with pytest.raises(Unavailable, match=r"192\.0\.2\.1"):
        await find(await authority("none"), anybody, interface="192.0.2.1", seconds=1)
