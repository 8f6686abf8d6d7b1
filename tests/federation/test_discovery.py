"""Finding members on the local network: a hint that trust does not rest on."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from federation.discovery import Discovery
from tests.federation.conftest import entry_of, identity_of


@pytest.mark.requirement("E1")
async def test_two_nodes_on_one_interface_find_each_other() -> None:
    """Each gets the other's address by the fingerprint of its authority; nothing else is announced."""
    a, b = entry_of(await identity_of("a-general")), entry_of(await identity_of("b-central"))
    async with (
        Discovery(interface="127.0.0.1", fingerprint=a.fingerprint, port=8444) as at_a,
        Discovery(interface="127.0.0.1", fingerprint=b.fingerprint, port=9444) as at_b,
    ):
        async with asyncio.timeout(20):
            while not (at_a.addresses(b) and at_b.addresses(a)):
                await asyncio.sleep(0.05)

        assert at_a.addresses(b) == ("https://127.0.0.1:9444",)
        assert at_b.addresses(a) == ("https://127.0.0.1:8444",)
        stranger = entry_of(await identity_of("d-unlisted"))
        assert at_a.addresses(replace(stranger)) == ()
