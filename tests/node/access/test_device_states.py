"""What becomes of a device: states, renewals with an overlap, moves, agents that must wipe, rows altered outside."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import insert, text

from consent.errors import Conflict, Corrupt, Denied, Invalid, NotFound
from consent.signed import sign
from consent.vocabulary import EventKind
from node.access.activity import Activity, activity_table, values_of
from node.access.admission import WORDS, DeviceRefused
from node.access.certificates import MAX_OVERLAP, OVERLAP
from node.access.devices import TRANSITIONS, DeviceState
from node.access.wiping import KEY_DESTROYED, WIPE_LASTS, WipeCertificate, issuer_of
from tests.node.access.conftest import Desk
from tests.node.access.test_devices import certificate, der, knock, pem

AGENT = Ed25519PrivateKey.from_private_bytes(b"edge agent's own signing seed...")
AGENT_KEY = AGENT.public_key().public_bytes_raw().hex()
ENDS = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=900)
EVERY_PAIR = [(before, after) for before in DeviceState for after in DeviceState]


async def in_state(desk: Desk, state: DeviceState) -> None:
    """CT1, registered and put into `state`."""
    await desk.registry.add_device("CT1", "10.1.2.3", pem())
    if state is not DeviceState.ACTIVE:
        await desk.registry.set_device_state("CT1", state)


@pytest.mark.requirement("C1")
@pytest.mark.parametrize(("before", "after"), EVERY_PAIR, ids=lambda state: state.value)
async def test_states_change_as_the_table_says_and_not_otherwise(
    desk: Desk, before: DeviceState, after: DeviceState
) -> None:
    """Every pair: what the table allows happens and is on record; the rest is a Conflict and changes nothing."""
    await in_state(desk, before)
    known = len(await desk.events(EventKind.DEVICE_CHANGED))
    if after in TRANSITIONS[before]:
        await desk.registry.set_device_state("CT1", after, reason="as planned")
    else:
        with pytest.raises(Conflict):
            await desk.registry.set_device_state("CT1", after)

    device = await desk.registry.device("CT1")
    changed = after in TRANSITIONS[before]
    assert device.state is (after if changed else before)
    assert len(await desk.events(EventKind.DEVICE_CHANGED)) == known + changed


@pytest.mark.requirement("C1")
async def test_registering_anew_does_not_put_a_device_back_in_use(desk: Desk) -> None:
    """A new certificate is no way round maintenance."""
    await in_state(desk, DeviceState.MAINTENANCE)
    await desk.registry.add_device("CT1", "10.1.2.3", pem("renewed"))
    with pytest.raises(DeviceRefused) as refusal:
        await knock(desk, certificate_der=der("renewed"))

    assert [fault.code for fault in refusal.value.faults] == ["device-maintenance"]


@pytest.mark.requirement("C1")
async def test_a_retired_device_begins_anew_with_another_certificate(desk: Desk) -> None:
    """Nobody knows where the old key went: with it, it stays out."""
    await in_state(desk, DeviceState.RETIRED)
    with pytest.raises(Conflict, match="registered already"):
        await desk.registry.add_device("CT1", "10.1.2.3", pem())
    await desk.registry.add_device("CT1", "10.1.2.3", pem("second life"))

    assert (await knock(desk, certificate_der=der("second life"))).id == "CT1"
    with pytest.raises(Denied):
        await knock(desk)


@pytest.mark.requirement("C1")
async def test_every_fault_of_a_refusal_is_a_code_with_words_and_a_way_out(desk: Desk) -> None:
    """The log learns what each sentence was made of, so that a page says it in any language."""
    await in_state(desk, DeviceState.MAINTENANCE)
    with pytest.raises(DeviceRefused) as refusal:
        await knock(desk, called_ae="OTHER", address="10.9.9.9", certificate_der=der("other"))

    error = refusal.value
    told = {"device-called", "device-maintenance", "device-address", "device-certificate"}
    assert {fault.code for fault in error.faults} == told and error.device == "CT1"
    detail: dict[str, Any] = error.detail
    for code in detail["faults"]:
        assert WORDS[code].fault % detail["values"] in error.message
        assert WORDS[code].mend % detail["values"] in error.mend


@pytest.mark.requirement("C1")
async def test_during_a_renewal_both_certificates_are_let_in_and_then_one(desk: Desk) -> None:
    """The registration stays; the former one is out when the overlap is over, in words."""
    before = await in_use(desk)
    device = await desk.registry.renew_certificate("CT1", pem("renewed"))
    assert (device.registered, device.address, device.former.until if device.former else None) == (
        before.registered,
        before.address,
        desk.clock.now() + OVERLAP,
    )
    for name in ("CT1", "renewed"):
        assert (await knock(desk, certificate_der=der(name))).id == "CT1"
    desk.clock.tick(days=OVERLAP.days)
    with pytest.raises(Denied, match="former certificate; the overlap ended on"):
        await knock(desk)
    assert (await knock(desk, certificate_der=der("renewed"))).id == "CT1"
    [renewed] = await desk.events(EventKind.DEVICE_CERTIFICATE_RENEWED)
    assert renewed.detail["fingerprint"] == device.fingerprint
    assert renewed.detail["former"] == before.fingerprint


async def in_use(desk: Desk) -> Any:
    await in_state(desk, DeviceState.ACTIVE)
    return await desk.registry.device("CT1")


@pytest.mark.requirement("C1")
async def test_an_overlap_can_be_ended_or_left_out(desk: Desk) -> None:
    """Ended by hand, or no days at all: only the new certificate is let in, at once."""
    await in_use(desk)
    await desk.registry.renew_certificate("CT1", pem("second"))
    await desk.registry.end_overlap("CT1")
    with pytest.raises(Denied, match="is not the registered one"):
        await knock(desk)
    await desk.registry.renew_certificate("CT1", pem("third"), overlap=timedelta(0))
    with pytest.raises(Denied, match="is not the registered one"):
        await knock(desk, certificate_der=der("second"))

    assert (await knock(desk, certificate_der=der("third"))).id == "CT1"


@pytest.mark.requirement("C1")
async def test_an_overlap_never_outlasts_the_former_certificate(desk: Desk) -> None:
    """It ends with it, however many days were asked for."""
    await in_use(desk)
    desk.clock.moment = ENDS - timedelta(days=5)
    device = await desk.registry.renew_certificate("CT1", pem("CT1-next"), overlap=timedelta(days=20))

    assert device.former is not None and device.former.until == ENDS


@pytest.mark.requirement("C1")
@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"certificate_pem": "nonsense"}, Invalid, "not a certificate"),
        ({"certificate_pem": pem()}, Conflict, "registered already"),
        ({"overlap": MAX_OVERLAP + timedelta(days=1)}, Invalid, "overlap for 0 to 60 days"),
        ({"overlap": timedelta(days=-1)}, Invalid, "overlap for 0 to 60 days"),
        ({"ae_title": "CT9"}, NotFound, "no such device"),
    ],
    ids=["no-certificate", "the-same", "too-long", "negative", "unknown"],
)
async def test_a_bad_renewal_is_refused_and_the_old_certificate_stays(
    desk: Desk, given: dict[str, Any], error: type[Exception], words: str
) -> None:
    """Each in its own words; the device goes on sending."""
    await in_use(desk)
    asked = {"ae_title": "CT1", "certificate_pem": pem("renewed"), **given}
    with pytest.raises(error, match=words):
        await desk.registry.renew_certificate(**asked)

    assert (await knock(desk)).id == "CT1"


@pytest.mark.requirement("C1")
async def test_a_certificate_that_has_ended_is_refused_by_name_and_not_registered(desk: Desk) -> None:
    """At the gate with the day it ended; at the desk before anything is written."""
    await in_use(desk)
    desk.clock.moment = ENDS
    with pytest.raises(Denied, match=f"Its certificate ended on {ENDS.date()}"):
        await knock(desk)
    with pytest.raises(Invalid, match="has ended"):
        await desk.registry.add_device("CT2", "10.1.2.4", pem("too late"))

    assert certificate().not_valid_after_utc == ENDS


@pytest.mark.requirement("C1")
async def test_a_device_that_moved_keeps_its_certificate(desk: Desk) -> None:
    """Only the address changes, on record; a bad one, or an unknown device, is refused."""
    await in_use(desk)
    await desk.registry.move_device("CT1", "10.1.2.0/28")
    assert (await knock(desk, address="10.1.2.9")).id == "CT1"
    with pytest.raises(Invalid, match="not a network address"):
        await desk.registry.move_device("CT1", "somewhere")
    with pytest.raises(NotFound):
        await desk.registry.move_device("CT9", "10.1.2.9")
    [moved] = await desk.events(EventKind.DEVICE_CHANGED)

    assert (moved.detail["before"], moved.detail["address"]) == ("10.1.2.3/32", "10.1.2.0/28")


def wiped(
    desk: Desk, *, key: Ed25519PrivateKey = AGENT, issuer: str = issuer_of("CT1"), **changes: Any
) -> str:
    """A wipe certificate of CT1's agent, with something else than usual where a test says so."""
    now = desk.clock.now()
    body: dict[str, Any] = {
        "device": "CT1",
        "wiped": now,
        "done": (KEY_DESTROYED, "spool-overwritten"),
        "unproven": ("flash",),
    }
    signed = sign(
        WipeCertificate(**(body | changes)),
        record_id="0f" * 16, issuer=issuer, key=key, issued=now, expires=now + timedelta(days=30),
    )  # fmt: skip
    return signed.token


async def with_agent(desk: Desk) -> None:
    await in_use(desk)
    await desk.registry.set_agent("CT1", AGENT_KEY.upper())


@pytest.mark.requirement("C2")
@pytest.mark.parametrize("state", [DeviceState.MAINTENANCE, DeviceState.RETIRED])
async def test_a_device_with_an_agent_leaves_service_only_wiped(desk: Desk, state: DeviceState) -> None:
    """Without the agent's word it stays in use; with it the word is on record, whole, for a third party to check."""
    await with_agent(desk)
    with pytest.raises(Denied, match="its media must be wiped"):
        await desk.registry.set_device_state("CT1", state)
    assert (await knock(desk)).id == "CT1"
    token = wiped(desk)
    await desk.registry.set_device_state("CT1", state, wipe=token)

    assert (await desk.registry.device("CT1")).state is state
    change = (await desk.events(EventKind.DEVICE_CHANGED))[-1]
    assert change.detail["wipe"] == token and change.detail["unproven"] == ["flash"]


@pytest.mark.requirement("C2")
@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"device": "CT2"}, Denied, "another device's"),
        ({"done": ("spool-overwritten",)}, Denied, "key was not destroyed"),
        ({"key": Ed25519PrivateKey.generate()}, Corrupt, "signature"),
        ({"issuer": "edge:CT2"}, Corrupt, "signature"),
        ({"wiped": datetime(2030, 1, 1, tzinfo=UTC)}, Denied, "in the future"),
    ],
    ids=["device", "key-left", "signature", "issuer", "future"],
)
async def test_a_wipe_certificate_that_does_not_hold_changes_nothing(
    desk: Desk, changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    """Of another device, without the one step that matters, signed by somebody else, or to be used some other day."""
    await with_agent(desk)
    with pytest.raises(error, match=words):
        await desk.registry.set_device_state("CT1", DeviceState.RETIRED, wipe=wiped(desk, **changes))

    assert (await desk.registry.device("CT1")).state is DeviceState.ACTIVE


@pytest.mark.requirement("C2")
async def test_a_wipe_of_long_ago_or_before_the_last_image_does_not_count(desk: Desk) -> None:
    """What was wiped and then used again may hold images again."""
    await with_agent(desk)
    old = wiped(desk)
    desk.clock.tick(hours=WIPE_LASTS / timedelta(hours=1) + 1)
    with pytest.raises(Denied, match="too long ago"):
        await desk.registry.set_device_state("CT1", DeviceState.MAINTENANCE, wipe=old)
    fresh = wiped(desk)
    later = desk.clock.tick(minutes=5)
    seen = Activity("CT1", later.date(), last_seen=later)
    async with desk.database.write() as tx:
        await tx.execute(insert(activity_table).values(values_of(seen)))
    with pytest.raises(Denied, match="seen here since"):
        await desk.registry.set_device_state("CT1", DeviceState.MAINTENANCE, wipe=fresh)

    await desk.registry.set_device_state("CT1", DeviceState.MAINTENANCE, wipe=wiped(desk))


@pytest.mark.requirement("C2")
async def test_a_wipe_serves_one_stay_in_use(desk: Desk) -> None:
    """Put in use again, it is wiped again: the statement of before is not played twice. In maintenance no agent is named."""
    await with_agent(desk)
    token = wiped(desk)
    await desk.registry.set_device_state("CT1", DeviceState.MAINTENANCE, wipe=token)
    with pytest.raises(Conflict, match="in maintenance"):
        await desk.registry.set_agent("CT1", AGENT_KEY)
    desk.clock.tick(minutes=5)
    await desk.registry.set_device_state("CT1", DeviceState.ACTIVE)
    with pytest.raises(Denied, match="put in use since"):
        await desk.registry.set_device_state("CT1", DeviceState.RETIRED, wipe=token)

    await desk.registry.set_device_state("CT1", DeviceState.RETIRED, wipe=wiped(desk))


@pytest.mark.requirement("C2")
async def test_an_agent_is_kept_when_its_device_is_registered_anew(desk: Desk) -> None:
    """Registering again is no way round the wipe; a retired device begins without one."""
    await with_agent(desk)
    await desk.registry.add_device("CT1", "10.1.2.3", pem("renewed"))
    assert (await desk.registry.device("CT1")).agent == AGENT_KEY
    await desk.registry.set_device_state("CT1", DeviceState.RETIRED, wipe=wiped(desk))
    await desk.registry.add_device("CT1", "10.1.2.3", pem("second life"))
    assert (await desk.registry.device("CT1")).agent is None
    with pytest.raises(Invalid, match="not the key of an edge agent"):
        await desk.registry.set_agent("CT1", "abc")


ALTERED = ["agent = 'x'", "state = 'bogus'", "registered = 'soon'", "port = 'x'", "former_until = x'00'"]


@pytest.mark.requirement("C1")
@pytest.mark.parametrize("change", [*ALTERED, "mac = 'x'", "bucket = bucket + 1"])
async def test_one_altered_row_is_named_and_hides_no_other_device(desk: Desk, change: str) -> None:
    """The list goes on; the altered one is on record, once."""
    await in_use(desk)
    await desk.registry.add_device("MR1", "10.1.2.4", pem("MR1"))
    async with desk.database.write() as tx:
        await tx.execute(text(f"UPDATE device SET {change} WHERE ae_title = 'CT1'"))
    for _look in range(2):
        survey = await desk.registry.survey()
        assert [device.ae_title for device in survey.devices] == ["MR1"] and survey.altered == ("CT1",)

    [told] = await desk.events(EventKind.INTEGRITY_FAILED)
    assert told.detail["row"] == "CT1"


@pytest.mark.requirement("C1")
@pytest.mark.parametrize("change", ALTERED)
async def test_a_device_whose_columns_were_altered_is_put_right_by_registering_it_anew(
    desk: Desk, change: str
) -> None:
    """Whatever was written into them; the log has both the alteration and the registration."""
    await in_use(desk)
    async with desk.database.write() as tx:
        await tx.execute(text(f"UPDATE device SET {change} WHERE ae_title = 'CT1'"))
    await desk.registry.add_device("CT1", "10.1.2.3", pem("CT1"))

    assert (await desk.registry.device("CT1")).agent is None
    assert (await desk.registry.survey()).altered == ()
    assert await desk.events(EventKind.INTEGRITY_FAILED)


@pytest.mark.requirement("C1")
async def test_a_device_that_somebody_put_in_can_be_registered(desk: Desk) -> None:
    """Its row was never this node's, so nothing is missing when it is replaced."""
    await in_use(desk)
    async with desk.database.write() as tx:
        await tx.execute(text("CREATE TEMP TABLE own AS SELECT * FROM device"))
        await tx.execute(text("UPDATE own SET ae_title = 'XX'"))
        await tx.execute(text("INSERT INTO device SELECT * FROM own"))
    assert (await desk.registry.survey()).altered == ("XX",)
    await desk.registry.add_device("XX", "10.1.2.9", pem("XX"))

    survey = await desk.registry.survey()
    assert [device.ae_title for device in survey.devices] == ["CT1", "XX"] and survey.altered == ()
