"""Devices: the table, what a registration may say, and the states that a device goes through.

A device is its AE title, a network address (one, or a CIDR range), and either the SHA-256 of its client
certificate or a written reason why it may send in plain. Whether one association fits is `admission`'s word, and
changing a registration `device_registry`'s. PS3.5 §6.2 (AE).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

from sqlalchemy import Column, Integer, String, Table, Text

from consent.errors import Conflict, Invalid, Sentence
from consent.principals import Principal
from consent.vocabulary import Purpose, Role
from node.access.certificates import certificate_end
from node.access.rows import seal_columns
from node.database import UtcDateTime, metadata

MAX_AE_CHARACTERS = 16
MIN_PLAIN_REASON_CHARACTERS = 5
MAX_PLAIN_REASON_CHARACTERS = 500
MAX_STATE_REASON_CHARACTERS = 500

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
    Column("since", UtcDateTime, nullable=False),
    Column("state_reason", String(MAX_STATE_REASON_CHARACTERS), nullable=False),
    Column("former_certificate", Text),
    Column("former_fingerprint", String(64)),
    Column("former_until", UtcDateTime),
    Column("agent", String(64)),
    *seal_columns(),
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


TRANSITIONS: Mapping[DeviceState, frozenset[DeviceState]] = {
    DeviceState.ACTIVE: frozenset({DeviceState.MAINTENANCE, DeviceState.RETIRED}),
    DeviceState.MAINTENANCE: frozenset({DeviceState.ACTIVE, DeviceState.RETIRED}),
    DeviceState.RETIRED: frozenset(),
}
"""Everything else is a Conflict. A retired device comes back by being registered anew, with another certificate: nobody
knows where the old key went."""


@dataclass(frozen=True)
class Former:
    """The certificate before a renewal, let in until `until`."""

    certificate: str
    fingerprint: str
    until: datetime


@dataclass(frozen=True)
class Device:
    """One registered device. `certificate` is PEM, `fingerprint` the SHA-256 of its DER form, hex.

    `since` is when it came into its state, `state_reason` why; `agent` is the key (Ed25519, hex) of the edge agent
    beside it, None without one.
    """

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
    since: datetime | None = None
    state_reason: str = ""
    former: Former | None = None
    agent: str | None = None

    @property
    def certificate_ends(self) -> datetime | None:
        """When its certificate is no longer valid; None for a device without one."""
        return None if self.certificate is None else certificate_end(self.certificate)

    def require_in_service(self) -> None:
        """Raise Conflict for a retired device."""
        if self.state is DeviceState.RETIRED:
            raise Conflict(
                "This device is retired.",
                mend="Register it anew, with a new certificate.",
                code="device-retired",
            )

    @property
    def host(self) -> str | None:
        """Where this node calls the device; None when it has a range of addresses."""
        network = ip_network(self.address)
        return str(network.network_address) if network.num_addresses == 1 else None

    @property
    def place(self) -> str:
        """Its address as people write it: one, or a range."""
        return self.host or self.address

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
        row.since,
        row.state_reason,
        Former(row.former_certificate, row.former_fingerprint, row.former_until)
        if row.former_until
        else None,
        row.agent,
    )


def check_change(present: DeviceState, wanted: DeviceState) -> None:
    """Raise Conflict when a device in one state cannot be put into the other."""
    if wanted in TRANSITIONS[present]:
        return
    if present is wanted:
        raise Conflict("The device is in this state already.", code="device-transition")
    raise Conflict(
        "A retired device does not come back by a change of state.",
        mend="Register it anew, with a new certificate.",
        code="device-transition",
    )


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
            mend=Sentence(
                "Use 1 to %(most)s printable ASCII characters without a backslash.", most=MAX_AE_CHARACTERS
            ),
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


def check_plain_reason(reason: str) -> str:
    """Return the reason. Raises Invalid when it says nothing."""
    if not MIN_PLAIN_REASON_CHARACTERS <= len(reason.strip()) <= MAX_PLAIN_REASON_CHARACTERS:
        raise Invalid(
            "Plain DICOM needs a reason in words.",
            mend=Sentence(
                "Say in %(least)s to %(most)s characters why this device cannot use TLS.",
                least=MIN_PLAIN_REASON_CHARACTERS,
                most=MAX_PLAIN_REASON_CHARACTERS,
            ),
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
            mend=Sentence("Give some of: %(choices)s.", choices=", ".join(Service)),
            code="device-services",
        )
    return wanted


def check_purpose(purpose: str) -> Purpose:
    """Return it. Raises Invalid when a device cannot act for it."""
    if purpose not in CARE:
        raise Invalid(
            "A device queries and retrieves for care or for its quality.",
            mend=Sentence("Give one of: %(choices)s.", choices=", ".join(sorted(CARE))),
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


def _ip(address: str) -> IPv4Address | IPv6Address | None:
    try:
        actual = ip_address(address.partition("%")[0])
    except ValueError:
        return None
    # A dual-stack listener reports an IPv4 peer as ::ffff:a.b.c.d.
    mapped = actual.ipv4_mapped if isinstance(actual, IPv6Address) else None
    return mapped or actual
