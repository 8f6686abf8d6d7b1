"""The device gate: AE titles, address and certificate must all fit, and a refusal says which did not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from consent.errors import Denied, Invalid, NotFound
from consent.vocabulary import EventKind, Purpose, Role
from node.access.devices import DeviceState
from node.access.registry import Registry
from node.audit.log import Log
from node.database import Database
from tests.node.access.conftest import NODE, Desk
from tests.support.seeds import ROWS


@cache
def certificate(name: str = "CT1") -> x509.Certificate:
    key = generate_private_key(SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    start = datetime(2026, 1, 1, tzinfo=UTC)
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
    return builder.not_valid_before(start).not_valid_after(start + timedelta(days=900)).sign(key, SHA256())


def pem(name: str = "CT1") -> str:
    return certificate(name).public_bytes(Encoding.PEM).decode()


def der(name: str = "CT1") -> bytes:
    return certificate(name).public_bytes(Encoding.DER)


async def knock(desk: Desk, **changes: Any) -> Any:
    asked: dict[str, Any] = {
        "calling_ae": "CT1",
        "called_ae": "A_GENERAL",
        "address": "10.1.2.3",
        "certificate_der": der(),
        "tls": True,
    }
    return await desk.registry.admit_device(**(asked | changes))


@pytest.mark.requirement("C1")
async def test_a_registered_device_comes_in(desk: Desk) -> None:
    """Everything fits: the device is a principal of this node; padding of the AE titles does not matter."""
    await desk.registry.add_device("CT1 ", "10.1.2.3", pem(), department="Radiology")
    principal = await knock(desk, calling_ae="CT1             ", called_ae=" A_GENERAL ")

    assert (principal.id, principal.role, principal.node) == ("CT1", Role.DEVICE, NODE)
    assert principal.department == "Radiology"
    assert len(await desk.events(EventKind.DEVICE_REGISTERED)) == 1


@pytest.mark.requirement("C1", "F5")
async def test_a_device_has_the_services_that_it_is_registered_for(desk: Desk) -> None:
    """To send and to ask for commitment unless more is said; the rules see them, and why it queries."""
    await desk.registry.add_device("CT1", "10.1.2.3", pem())
    await desk.registry.add_device(
        "WS1", "10.1.2.3", pem(), services=["query", "retrieve"], purpose="HQUALIMP", port=11112
    )
    sender, workstation = await knock(desk), await knock(desk, calling_ae="WS1")
    device = await desk.registry.device("WS1")

    assert (sender.attributes, sender.purpose) == ({"store", "commit"}, Purpose.TREATMENT)
    assert (workstation.attributes, workstation.purpose) == ({"query", "retrieve"}, Purpose.QUALITY)
    assert (device.host, device.port) == ("10.1.2.3", 11112)


@pytest.mark.requirement("C1")
@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"services": []}, "device-services"),
        ({"services": ["print"]}, "device-services"),
        ({"purpose": "HRESCH"}, "device-purpose"),
        ({"port": 0}, "device-port"),
        ({"port": 104, "address": "10.1.2.0/24"}, "device-port"),
    ],
)
async def test_a_device_is_registered_for_what_exists(desk: Desk, wrong: dict[str, Any], code: str) -> None:
    """No service at all, an unknown one, research, and a range that nobody can call are refused."""
    with pytest.raises(Invalid) as refusal:
        await desk.registry.add_device("CT1", **{"address": "10.1.2.3", "certificate_pem": pem()} | wrong)

    assert refusal.value.code == code and refusal.value.mend


@pytest.mark.requirement("C1", "T1")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"calling_ae": "CT9"}, 'No device with the AE title "CT9" is registered'),
        ({"calling_ae": "ct1"}, 'No device with the AE title "ct1"'),
        ({"calling_ae": "\x00\n' OR 1=1--"}, 'No device with the AE title "??\' OR 1=1--"'),
        ({"called_ae": "ELSEWHERE"}, 'called "ELSEWHERE"; the AE title of this node is "A_GENERAL"'),
        ({"address": "10.1.2.4"}, "came from 10.1.2.4; CT1 is registered at 10.1.2.3"),
        ({"address": "nonsense"}, "came from nonsense"),
        ({"certificate_der": None}, "no client certificate"),
        ({"certificate_der": b"other"}, "is not the registered one"),
        ({"tls": False, "certificate_der": None}, "came in plain; this device is registered for TLS"),
    ],
)
async def test_a_refusal_names_what_was_wrong(desk: Desk, change: dict[str, Any], words: str) -> None:
    """Each mismatch has its own sentence and a remedy."""
    await desk.registry.add_device("CT1", "10.1.2.3", pem())
    with pytest.raises(Denied) as refusal:
        await knock(desk, **change)

    assert words in refusal.value.message
    assert refusal.value.mend


@pytest.mark.requirement("C1")
async def test_everything_that_was_wrong_is_named_at_once(desk: Desk) -> None:
    """Nobody mends one fault after the other."""
    await desk.registry.add_device("CT1", "10.1.2.3", pem())
    with pytest.raises(Denied) as refusal:
        await knock(desk, called_ae="X", address="10.9.9.9", certificate_der=der("other"))

    assert len(refusal.value.reasons) == 3


@pytest.mark.requirement("T1")
async def test_plain_dicom_only_where_a_reason_is_on_record(desk: Desk) -> None:
    """A device registered with a reason sends in plain; its reason is in the log; with TLS it is not known."""
    await desk.registry.add_device("OLD1", "10.1.2.3", plain_reason="2009 console without TLS")

    assert (await knock(desk, calling_ae="OLD1", tls=False, certificate_der=None)).id == "OLD1"
    with pytest.raises(Denied, match="this device is registered for plain DICOM"):
        await knock(desk, calling_ae="OLD1")
    (event,) = await desk.events(EventKind.DEVICE_REGISTERED)
    assert event.reason == "2009 console without TLS"


@pytest.mark.requirement("C1")
@pytest.mark.parametrize(
    ("registered", "address", "fits"),
    [
        ("10.1.2.0/24", "10.1.2.200", True),
        ("10.1.2.0/24", "10.1.3.1", False),
        ("10.1.2.3", "::ffff:10.1.2.3", True),
        ("fd00::/64", "fd00::17%eth0", True),
        ("fd00::/64", "10.1.2.3", False),
    ],
)
async def test_an_address_or_a_range(desk: Desk, registered: str, address: str, fits: bool) -> None:
    """One address or a CIDR range, IPv4 (also as a dual-stack listener reports it) or IPv6."""
    await desk.registry.add_device("CT1", registered, pem())
    if fits:
        assert (await knock(desk, address=address)).id == "CT1"
        return
    with pytest.raises(Denied, match="came from"):
        await knock(desk, address=address)


@pytest.mark.requirement("C1")
@pytest.mark.parametrize(
    ("state", "words"),
    [
        (DeviceState.MAINTENANCE, "This device is in maintenance and cannot send."),
        (DeviceState.RETIRED, "This device is retired and cannot send."),
    ],
)
async def test_a_device_out_of_use_cannot_send(desk: Desk, state: DeviceState, words: str) -> None:
    """In maintenance or retired, even the right device is refused, in words; the change is on record with its reason."""
    await desk.registry.add_device("CT1", "10.1.2.3", pem())
    await desk.registry.set_device_state("CT1", state, reason="repair")
    with pytest.raises(Denied, match=words):
        await knock(desk)

    device = await desk.registry.device("CT1")
    assert (device.state, device.state_reason, device.since) == (state, "repair", desk.clock.now())
    [changed] = await desk.events(EventKind.DEVICE_CHANGED)
    assert (changed.detail["before"], changed.detail["state"], changed.reason) == ("active", state, "repair")


@pytest.mark.requirement("C1")
async def test_registering_again_replaces_the_certificate(desk: Desk) -> None:
    """After a renewal only the new certificate is let in; both registrations are on record."""
    await desk.registry.add_device("CT1", "10.1.2.3", pem())
    await desk.registry.add_device("CT1", "10.1.2.3", pem("renewed"))

    assert (await knock(desk, certificate_der=der("renewed"))).id == "CT1"
    with pytest.raises(Denied, match="is not the registered one"):
        await knock(desk)
    assert len((await desk.registry.survey()).devices) == 1
    assert len(await desk.events(EventKind.DEVICE_REGISTERED)) == 2


@pytest.mark.requirement("C1")
async def test_a_device_registered_by_another_process_is_known_at_once(desk: Desk) -> None:
    """The command line writes the same database; the gate asks it at every association."""
    with pytest.raises(Denied):
        await knock(desk)
    other = Database(desk.database.url)
    log = Log(other, key=bytes(32), origin=NODE, signer=desk.log.signer, clock=desk.clock)
    command = Registry(
        other,
        log,
        desk.clock,
        key=ROWS,
        node=NODE,
        ae_title="A_GENERAL",
        passwords=desk.registry.passwords,
    )
    await command.add_device("CT1", "10.1.2.3", pem())
    await other.close()

    assert (await knock(desk)).id == "CT1"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ae_title": ""}, "not an AE title"),
        ({"ae_title": "X" * 17}, "not an AE title"),
        ({"ae_title": "A\\B"}, "not an AE title"),
        ({"ae_title": "超声"}, "not an AE title"),
        ({"address": "10.1.2.300"}, "not a network address"),
        ({"address": "10.1.2.3/24"}, "not a network address"),
        ({"address": "ct1.hospital"}, "not a network address"),
        (
            {"certificate_pem": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"},
            "not a certificate",
        ),
        ({"certificate_pem": "x" * 100_000}, "not a certificate"),
        ({"certificate_pem": None}, "needs a certificate, or a reason"),
        ({"certificate_pem": None, "plain_reason": " x "}, "needs a reason in words"),
    ],
)
async def test_a_bad_registration_is_refused_by_name(desk: Desk, change: dict[str, Any], words: str) -> None:
    """Each field of a registration has its own sentence; nothing is kept."""
    fields: dict[str, Any] = {"ae_title": "CT1", "address": "10.1.2.3", "certificate_pem": pem()}
    with pytest.raises(Invalid, match=words):
        await desk.registry.add_device(**(fields | change))

    assert (await desk.registry.survey()).devices == ()


async def test_an_unknown_device_is_not_found(desk: Desk) -> None:
    """Asking for one that is not there says so."""
    with pytest.raises(NotFound):
        await desk.registry.device("CT1")
    with pytest.raises(NotFound):
        await desk.registry.set_device_state("CT1", DeviceState.RETIRED)
