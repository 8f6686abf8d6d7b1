"""Devices that may send: the table, and the examination of one association against it.

A device is its AE title, a network address (one, or a CIDR range), and either the SHA-256 of its client
certificate or a written reason why it may send in plain. `examine` names everything that does not fit, and how to
mend it. PS3.15 Annex B (secure transport), PS3.5 §6.2 (AE).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from hashlib import sha256
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import Column, Integer, String, Table, Text

from consent.errors import Denied, Invalid
from consent.principals import Principal
from consent.vocabulary import Purpose, Role
from node.access.rows import mac_column
from node.database import UtcDateTime, metadata

MAX_AE_CHARACTERS = 16
MIN_PLAIN_REASON_CHARACTERS = 5
MAX_PLAIN_REASON_CHARACTERS = 500
MAX_CERTIFICATE_CHARACTERS = 64 * 1024

device_table = Table(
    "device",
    metadata,
    Column("ae_title", String(MAX_AE_CHARACTERS), primary_key=True),
    Column("address", String(64), nullable=False),
    Column("certificate", Text),
    Column("fingerprint", String(64)),
    Column("plain_reason", String(MAX_PLAIN_REASON_CHARACTERS)),
    Column("department", String(120)),
    Column("services", String(120), nullable=False),
    Column("purpose", String(16), nullable=False),
    Column("port", Integer),
    Column("state", String(16), nullable=False),
    Column("registered", UtcDateTime, nullable=False),
    mac_column(),
)


class Service(StrEnum):
    """What a device may ask of this node (PS3.4 Annexes B, C and J); the rules see it in a device's attributes."""

    STORE = "store"
    COMMIT = "commit"
    QUERY = "query"
    RETRIEVE = "retrieve"


SENDING = frozenset({Service.STORE, Service.COMMIT})
"""What a device is registered for when nobody says otherwise."""
CARE = frozenset({Purpose.TREATMENT, Purpose.EMERGENCY, Purpose.QUALITY})
"""What a device can query and retrieve for."""


class DeviceState(StrEnum):
    """Only an active device may send."""

    ACTIVE = "active"
    MAINTENANCE = "maintenance"
    RETIRED = "retired"


@dataclass(frozen=True)
class Device:
    """One registered device. `certificate` is PEM, `fingerprint` the SHA-256 of its DER form, hex."""

    ae_title: str
    address: str
    certificate: str | None
    fingerprint: str | None
    plain_reason: str | None
    department: str | None
    state: DeviceState
    registered: datetime
    services: frozenset[Service] = SENDING
    purpose: Purpose = Purpose.TREATMENT
    port: int | None = None

    @property
    def host(self) -> str | None:
        """Where this node calls the device; None when it has a range of addresses."""
        network = ip_network(self.address)
        return str(network.network_address) if network.num_addresses == 1 else None

    def principal(self, node: str) -> Principal:
        """The device as the rules see it at `node`."""
        services = frozenset(service.value for service in self.services)
        return Principal(
            self.ae_title, Role.DEVICE, self.ae_title, node, self.department, services, purpose=self.purpose
        )

    def at(self, address: str) -> bool:
        """Whether `address` is the device's, or lies in its range."""
        actual = _ip(address)
        return actual is not None and actual in ip_network(self.address)


def device_of(row: Any) -> Device:
    """Read a row of `device_table`."""
    return Device(
        row.ae_title,
        row.address,
        row.certificate,
        row.fingerprint,
        row.plain_reason,
        row.department,
        DeviceState(row.state),
        row.registered,
        frozenset(map(Service, row.services.split())),
        Purpose(row.purpose),
        row.port,
    )


def examine(
    device: Device | None,
    *,
    calling: str,
    called: str,
    own_ae_title: str,
    address: str,
    certificate: bytes | None,
    tls: bool,
) -> Device:
    """Return the device when everything fits. Raises Denied naming each thing that was wrong.

    `certificate` is the DER form that the peer proved in the handshake, None without one.
    """
    if device is None:
        raise _refused(
            [f"No device with the AE title {shown(calling)!r} is registered here."],
            "Register it: accord device add DIR --ae-title AET --address IP --certificate FILE",
            "device-unknown",
        )
    examined = {
        "device-called": _called(called, own_ae_title),
        "device-state": _state(device),
        "device-address": _address(device, address),
        "device-channel": _channel(device, certificate, tls),
    }
    faults = {code: fault for code, fault in examined.items() if fault}
    if faults:
        mend = " ".join(mend for _, mend in faults.values())
        raise _refused([words for words, _ in faults.values()], mend, next(iter(faults)))
    return device


def shown(ae_title: str) -> str:
    """An AE title from outside, safe to repeat."""
    return "".join(sign if sign.isascii() and sign.isprintable() else "?" for sign in ae_title)[
        :MAX_AE_CHARACTERS
    ]


def check_ae_title(ae_title: str) -> str:
    """Return it without surrounding spaces. Raises Invalid when it is not one (PS3.5 §6.2)."""
    stripped = ae_title.strip(" ")
    allowed = stripped.isascii() and stripped.isprintable() and "\\" not in stripped
    if not allowed or not 0 < len(stripped) <= MAX_AE_CHARACTERS:
        raise Invalid(
            "This is not an AE title.",
            mend=f"Use 1 to {MAX_AE_CHARACTERS} printable ASCII characters without a backslash.",
            code="ae-title",
        )
    return stripped


def check_address(address: str) -> str:
    """Return the range in canonical form. Raises Invalid when it is neither an address nor a CIDR range."""
    try:
        network: IPv4Network | IPv6Network = ip_network(address.strip(), strict=True)
    except ValueError as error:
        raise Invalid(
            "This is not a network address.",
            mend="Give one address such as 10.1.2.3, or a range such as 10.1.2.0/24.",
            code="address",
        ) from error
    return str(network)


def read_certificate(pem: str) -> tuple[str, str]:
    """Return the first certificate of `pem` as PEM, and its SHA-256. Raises Invalid when there is none."""
    try:
        if len(pem) > MAX_CERTIFICATE_CHARACTERS:
            raise ValueError("too long")
        certificate = x509.load_pem_x509_certificate(pem.encode("ascii"))
    except ValueError as error:
        raise Invalid(
            "This is not a certificate.",
            mend="Give the device's own certificate as a PEM file (-----BEGIN CERTIFICATE-----).",
            code="certificate",
        ) from error
    return certificate.public_bytes(Encoding.PEM).decode("ascii"), sha256(
        certificate.public_bytes(Encoding.DER)
    ).hexdigest()


def check_plain_reason(reason: str) -> str:
    """Return the reason. Raises Invalid when it says nothing."""
    if not MIN_PLAIN_REASON_CHARACTERS <= len(reason.strip()) <= MAX_PLAIN_REASON_CHARACTERS:
        raise Invalid(
            "Plain DICOM needs a reason in words.",
            mend=f"Say in {MIN_PLAIN_REASON_CHARACTERS} to {MAX_PLAIN_REASON_CHARACTERS} characters "
            "why this device cannot use TLS.",
            code="plain-reason",
        )
    return reason.strip()


def check_services(services: Iterable[str]) -> frozenset[Service]:
    """Return them. Raises Invalid when there is none, or one that does not exist."""
    try:
        wanted = frozenset(map(Service, services))
    except ValueError:
        wanted = frozenset()
    if not wanted:
        raise Invalid(
            "A device is registered for one service or more.",
            mend=f"Give some of: {', '.join(Service)}.",
            code="device-services",
        )
    return wanted


def check_purpose(purpose: str) -> Purpose:
    """Return it. Raises Invalid when a device cannot act for it."""
    if purpose not in CARE:
        raise Invalid(
            "A device queries and retrieves for care or for its quality.",
            mend=f"Give one of: {', '.join(sorted(CARE))}.",
            code="device-purpose",
        )
    return Purpose(purpose)


def check_port(port: int | None, address: str) -> int | None:
    """Return the port at which this node calls the device. Raises Invalid when it is none, or calls no one machine."""
    if port is None:
        return None
    if not 1 <= port <= 65535 or ip_network(address).num_addresses != 1:
        raise Invalid(
            "A device is called at one address and a port from 1 to 65535.",
            mend="Give the device's own address instead of a range.",
            code="device-port",
        )
    return port


def _refused(faults: list[str], mend: str, code: str) -> Denied:
    """`code` names the first thing that was wrong: one kind of refusal must not hide another in counters and log."""
    return Denied(" ".join(faults), reasons=tuple(faults), mend=mend, code=code)


def _called(called: str, own_ae_title: str) -> tuple[str, str] | None:
    if called.strip(" ") == own_ae_title:
        return None
    return (
        f"It called {shown(called)!r}; this node's AE title is {own_ae_title!r}.",
        "Set the called AE title at the device.",
    )


def _state(device: Device) -> tuple[str, str] | None:
    if device.state is DeviceState.ACTIVE:
        return None
    return f"This device is in state {device.state.value}.", "Set it active before it sends."


def _address(device: Device, address: str) -> tuple[str, str] | None:
    if device.at(address):
        return None
    return (
        f"It came from {address}; {device.ae_title} is registered at {device.address}.",
        "Register the new address, if the device has moved.",
    )


def _channel(device: Device, certificate: bytes | None, tls: bool) -> tuple[str, str] | None:
    if not tls:
        if device.plain_reason:
            return None
        return (
            "It came in plain; this device is registered for TLS.",
            "Switch the device to DICOM TLS, or register it with a reason for plain.",
        )
    if certificate is None:
        return "It showed no client certificate.", "Give the device its certificate."
    shown_fingerprint = sha256(certificate).hexdigest()
    if shown_fingerprint == device.fingerprint:
        return None
    return (
        f"Its certificate (SHA-256 {shown_fingerprint[:16]}…) is not the registered one.",
        "Register the device's present certificate.",
    )


def _ip(address: str) -> IPv4Address | IPv6Address | None:
    try:
        actual = ip_address(address.partition("%")[0])
    except ValueError:
        return None
    # A dual-stack listener reports an IPv4 peer as ::ffff:a.b.c.d.
    mapped = actual.ipv4_mapped if isinstance(actual, IPv6Address) else None
    return mapped or actual
