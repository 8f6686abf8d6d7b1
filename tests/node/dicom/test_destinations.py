"""By which certificates a device that this node calls is known."""

from __future__ import annotations

import ssl
from datetime import timedelta
from pathlib import Path

import pytest

from node.access.certificates import read_certificate
from node.access.devices import Device
from node.dicom.destinations import CallableDevices
from node.tls import dicom_client_context
from tests.support.node import small_node

pytestmark = pytest.mark.requirement("T1", "C1")


async def test_former_certificate_is_taken_while_it_overlaps_and_no_longer(tmp_path: Path) -> None:
    """A device that is called may show either during a renewal; afterwards the one that it was given."""
    async with small_node(tmp_path) as node:
        now = node.clock.now()
        own = node.identity.leaf(["127.0.0.1"], now)
        authority = node.identity.authority_pem

        def tls(_: Device) -> ssl.SSLContext:
            return dicom_client_context(own, [authority])

        devices = CallableDevices(
            node.registry, node.log, node.clock, calling="ACCORD", node=node.node_id, tls=tls
        )
        first, second = (
            node.identity.issue_device_certificate("ST1", now, serves=True).certificate.decode()
            for _ in range(2)
        )
        known = [read_certificate(pem)[1] for pem in (first, second)]
        await node.registry.add_device("ST1", "127.0.0.1", first, port=104)
        assert (await devices.callable("ST1")).peer.fingerprints == {known[0]}
        await node.registry.renew_certificate("ST1", second, overlap=timedelta(days=7))
        assert (await devices.callable("ST1")).peer.fingerprints == set(known)
        node.clock.tick(days=7)
        assert (await devices.callable("ST1")).peer.fingerprints == {known[1]}
