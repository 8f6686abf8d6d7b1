"""Whether a device may associate: its AE title, address and certificate examined, and what is wrong in words.

Everything that does not fit is named at once, with how to mend it: nobody mends one fault after the other. `WORDS` has
the sentences, so that log, portal and command line say the same, in each language. PS3.15 Annex B (secure
transport), PS3.5 §6.2 (AE). Holds no database; `registry` looks the device up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Final

from consent.errors import Denied
from consent.principals import Principal
from node.access.certificates import certificate_end
from node.access.devices import Device, DeviceState, shown
from node.audit.event import Detail

SHOWN_FINGERPRINT: Final = 16
"""Digits of a SHA-256 that a sentence shows."""


@dataclass(frozen=True)
class Words:
    """What is wrong and how to mend it, with places for values."""

    fault: str
    mend: str


WORDS: Final[Mapping[str, Words]] = {
    "device-unknown": Words(
        'No device with the AE title "%(calling)s" is registered here.',
        "If it is one of yours, register it: under Devices in the portal, or with accord device add.",
    ),
    "device-called": Words(
        'It called "%(called)s"; the AE title of this node is "%(own)s".',
        "Set the called AE title at the device.",
    ),
    "device-maintenance": Words(
        "This device is in maintenance and cannot send.",
        "Put it in use again when the work on it is done.",
    ),
    "device-retired": Words(
        "This device is retired and cannot send.",
        "Register it anew, with a new certificate, if it is to come back.",
    ),
    "device-address": Words(
        "It came from %(address)s; %(device)s is registered at %(registered)s.",
        "If the device has moved, register its new address. If not, somebody uses its name: call the security officer.",
    ),
    "device-plain": Words(
        "It came in plain; this device is registered for TLS.",
        "Switch the device to DICOM TLS, or register it with a reason for plain.",
    ),
    "device-no-certificate": Words(
        "It showed no client certificate.",
        "Install the device's certificate and key at the device.",
    ),
    "device-certificate": Words(
        "Its certificate (SHA-256 %(shown)s…) is not the registered one (%(expected)s…).",
        "Register the device's present certificate, if the device was given a new one.",
    ),
    "device-certificate-former": Words(
        "It showed its former certificate; the overlap ended on %(ended)s.",
        "Install the renewed certificate at the device.",
    ),
    "device-certificate-ended": Words(
        "Its certificate ended on %(ended)s.",
        "Renew it: accord device renew-certificate, or on the device's page in the portal.",
    ),
    "device-changed": Words(
        "What it is registered for has changed since it came in, or its registration was altered.",
        "It may associate again if it is still registered.",
    ),
    "device-not-for-tls": Words(
        "It came with TLS; this device is registered for plain DICOM.",
        "Register the device's certificate, so that it may use TLS.",
    ),
}
"""By fault. The first part of a fault's code names what was wrong: the AE title, the address or the certificate."""


@dataclass(frozen=True)
class Fault:
    """One thing that was wrong; `values` fill the places of its words."""

    code: str
    values: Mapping[str, str]

    @property
    def words(self) -> str:
        return WORDS[self.code].fault % self.values

    @property
    def mend(self) -> str:
        return WORDS[self.code].mend % self.values


class DeviceRefused(Denied):
    """A device that may not associate. `faults` are everything that was wrong; the first one gives the code."""

    def __init__(self, faults: tuple[Fault, ...], device: str | None) -> None:
        super().__init__(
            " ".join(fault.words for fault in faults),
            reasons=tuple(fault.words for fault in faults),
            mend=" ".join(dict.fromkeys(fault.mend for fault in faults)),
            code=faults[0].code,
        )
        self.faults = faults
        self.device = device
        """The registered device whose AE title was used; None when there is none."""

    @property
    def detail(self) -> dict[str, Detail]:
        """For the log: which device it claimed to be, all faults, their values, and the way out."""
        values = {name: value for fault in self.faults for name, value in fault.values.items()}
        told: dict[str, Detail] = {
            "faults": tuple(fault.code for fault in self.faults),
            "values": values,
            "mend": self.mend,
        }
        if self.device:
            told["device"] = self.device
        return told


@dataclass(frozen=True)
class Knock:
    """One request for an association. `certificate` is the DER form that was proved in the handshake."""

    calling: str
    called: str
    address: str
    certificate: bytes | None
    tls: bool


def examine(device: Device | None, knock: Knock, *, own_ae_title: str, now: datetime) -> Device:
    """Return the device when everything fits. Raises DeviceRefused naming each thing that was wrong."""
    if device is None:
        unknown = Fault("device-unknown", {"calling": shown(knock.calling)})
        raise DeviceRefused((unknown,), None)
    faults = tuple(_faults(device, knock, own_ae_title, now))
    if faults:
        raise DeviceRefused(faults, device.ae_title)
    return device


def reexamine(
    device: Device | None, knock: Knock, was: Principal, *, own_ae_title: str, now: datetime
) -> DeviceRefused | None:
    """Why an association that was let in as `was` may not go on; None when it would be let in the same today."""
    if device is not None:
        try:
            examine(device, knock, own_ae_title=own_ae_title, now=now)
        except DeviceRefused as refused:
            return refused
        if device.principal(was.node) == was:
            return None
    return DeviceRefused((Fault("device-changed", {}),), was.id)


def bar(device: Device) -> Fault | None:
    """Why a device may not associate whatever it shows; None when it may."""
    return Fault(f"device-{device.state.value}", {}) if device.state is not DeviceState.ACTIVE else None


def _faults(device: Device, knock: Knock, own_ae_title: str, now: datetime) -> Iterator[Fault]:
    if knock.called.strip(" ") != own_ae_title:
        yield Fault("device-called", {"called": shown(knock.called), "own": own_ae_title})
    if (barred := bar(device)) is not None:
        yield barred
    if not device.at(knock.address):
        places = {"address": knock.address, "device": device.ae_title, "registered": device.place}
        yield Fault("device-address", places)
    channel = _channel(device, knock, now) if knock.tls else _plain(device)
    if channel is not None:
        yield channel


def _plain(device: Device) -> Fault | None:
    return None if device.plain_reason else Fault("device-plain", {})


def _channel(device: Device, knock: Knock, now: datetime) -> Fault | None:
    if knock.certificate is None:
        return Fault("device-no-certificate", {})
    if device.certificate is None or device.fingerprint is None:
        return Fault("device-not-for-tls", {})
    fingerprint = sha256(knock.certificate).hexdigest()
    if fingerprint == device.fingerprint:
        return _ended(device.certificate, now)
    former = device.former
    if former is not None and fingerprint == former.fingerprint:
        if now < former.until:
            return _ended(former.certificate, now)
        return Fault("device-certificate-former", {"ended": _day(former.until)})
    shown_digits, expected = fingerprint[:SHOWN_FINGERPRINT], device.fingerprint[:SHOWN_FINGERPRINT]
    return Fault("device-certificate", {"shown": shown_digits, "expected": expected})


def _ended(certificate: str, now: datetime) -> Fault | None:
    end = certificate_end(certificate)
    return Fault("device-certificate-ended", {"ended": _day(end)}) if now >= end else None


def _day(moment: datetime) -> str:
    return moment.date().isoformat()
