"""TLS for the doors of one node: its own leaf certificates, and which device certificates the DICOM door lets in.

The DICOM handshake only asks that a certificate is under our authority or is a registered device's own; which
device it is, and whether it may associate, is `Registry.admit_device`'s to say.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from datetime import datetime, timedelta

from node.access.devices import Device
from node.access.registry import Registry
from node.clock import Clock
from node.identity import LEAF_DAYS, Identity
from node.tls import (
    KeyPair,
    add_authorities,
    dicom_client_context,
    dicom_server_context,
    load_pair,
    server_context,
)

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
ANY_ADDRESS = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 (what a door that is bound to all answers at)


def url_of(host: str, port: int, path: str) -> str:
    """Where this machine reaches one of its own doors, by the host that the settings bind it to."""
    host = ANY_ADDRESS.get(host, host)
    return f"https://{f'[{host}]' if ':' in host else host}:{port}{path}"


class Doors:
    """Contexts for the people's and the device's listeners; leaves are renewed at half of their life."""

    def __init__(self, *, identity: Identity, registry: Registry, clock: Clock, names: Sequence[str]) -> None:
        self._identity = identity
        self._registry = registry
        self._clock = clock
        self._names = tuple(names)
        self._leaf: KeyPair | None = None
        self._renew_at: datetime | None = None
        self._people: tuple[KeyPair, ssl.SSLContext] | None = None
        self._dicom: ssl.SSLContext | None = None
        self._trusted: set[str] = set()

    def people(self) -> ssl.SSLContext:
        """For the portal: TLS 1.3, no client certificate."""
        leaf = self._current_leaf()
        if self._people is None or self._people[0] is not leaf:
            self._people = (leaf, server_context(leaf))
        return self._people[1]

    async def dicom(self) -> ssl.SSLContext:
        """For devices: mutual, TLS 1.2 or 1.3 with AEAD suites (BCP 195)."""
        context = dicom_server_context(self._current_leaf(), [self._identity.authority_pem])
        # Devices come with self-signed certificates and with those of a hospital's own authority that few made to
        # the letter of RFC 5280. What counts is the registered fingerprint, so a known leaf is trusted as it is.
        context.verify_flags = (
            context.verify_flags & ~ssl.VERIFY_X509_STRICT
        ) | ssl.VERIFY_X509_PARTIAL_CHAIN
        self._dicom = context
        await self.refresh()
        return context

    def calling(self, device: Device) -> ssl.SSLContext:
        """For calling a device by DICOM: mutual, and it must show a certificate that is registered for it."""
        known = [device.certificate, device.former.certificate if device.former else None]
        context = dicom_client_context(self._current_leaf(), [pem for pem in known if pem])
        context.verify_flags = (
            context.verify_flags & ~ssl.VERIFY_X509_STRICT
        ) | ssl.VERIFY_X509_PARTIAL_CHAIN
        return context

    async def refresh(self) -> None:
        """Let newly registered certificates in, and renew the DICOM leaf: a timed duty."""
        if self._dicom is None:
            return
        devices = (await self._registry.survey()).devices
        known = {device.certificate for device in devices if device.certificate}
        known |= {device.former.certificate for device in devices if device.former}
        fresh = known - self._trusted
        add_authorities(self._dicom, sorted(fresh))
        self._trusted |= fresh
        before = self._leaf
        if self._current_leaf() is not before:
            load_pair(self._dicom, self._current_leaf())

    def _current_leaf(self) -> KeyPair:
        now = self._clock.now()
        if self._leaf is None or self._renew_at is None or now >= self._renew_at:
            self._leaf = self._identity.leaf(self._names, now)
            self._renew_at = now + timedelta(days=LEAF_DAYS / 2)
        return self._leaf
