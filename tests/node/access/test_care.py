"""Treatment relationships: they begin, end, and are on record."""

from __future__ import annotations

from datetime import timedelta

import pytest

from consent.errors import Invalid, NotFound
from consent.vocabulary import EventKind, Role
from node.access.care import CareSource
from tests.node.access.conftest import Desk

PATIENT, OTHER = "pt_abc", "pt_xyz"


async def related(desk: Desk, patient: str | None = PATIENT) -> bool:
    return await desk.care.related("li", patient, desk.clock.now())


@pytest.fixture(autouse=True)
async def doctor(desk: Desk) -> None:
    await desk.registry.add_person("li", "Dr Li", Role.CLINICIAN)


@pytest.mark.requirement("U1")
async def test_a_relationship_holds_from_its_record_to_its_end(desk: Desk) -> None:
    """Half-open: at the end it is over; other patients and people are untouched."""
    assert not await related(desk)
    await desk.care.record("li", PATIENT, desk.clock.now() + timedelta(days=1), "person:it@a")

    assert await related(desk)
    assert not await related(desk, OTHER)
    assert not await related(desk, None)
    assert not await desk.care.related("wang", PATIENT, desk.clock.now())
    desk.clock.tick(days=1)
    assert not await related(desk)


@pytest.mark.requirement("U1", "V4")
async def test_ending_care_ends_access_at_once_and_both_are_on_record(desk: Desk) -> None:
    """Every present relationship of the two ends; the log has who, whom and why."""
    await desk.care.record("li", PATIENT, source=CareSource.IMPORTED)
    await desk.care.record("li", PATIENT)
    await desk.care.end("li", PATIENT, "person:it@a", reason="discharged")

    assert not await related(desk)
    (ended,) = await desk.events(EventKind.CARE_ENDED)
    assert (ended.actor, ended.patient, ended.reason) == ("person:it@a", PATIENT, "discharged")
    assert len(await desk.events(EventKind.CARE_RECORDED)) == 2
    with pytest.raises(NotFound):
        await desk.care.end("li", PATIENT)


@pytest.mark.requirement("U1")
async def test_who_treats_whom_can_be_listed(desk: Desk) -> None:
    """By person and by patient, present ones only."""
    await desk.care.record("li", PATIENT)
    await desk.care.record("li", OTHER, desk.clock.now() + timedelta(hours=1))

    assert await desk.care.patients_of("li") == {PATIENT, OTHER}
    desk.clock.tick(hours=1)
    assert await desk.care.patients_of("li") == {PATIENT}
    assert [carer.login for carer in await desk.care.carers_of(PATIENT)] == ["li"]
    assert await desk.care.carers_of(OTHER) == []


async def test_care_in_the_callers_transaction_is_taken_back_with_it(desk: Desk) -> None:
    """A failed transaction leaves neither relationship nor entry."""
    with pytest.raises(RuntimeError):
        async with desk.database.write() as tx:
            await desk.care.record("li", PATIENT, tx=tx)
            raise RuntimeError

    assert not await related(desk)
    assert await desk.events(EventKind.CARE_RECORDED) == []


async def test_a_bad_relationship_is_refused_by_name(desk: Desk) -> None:
    """An unknown login, an end in the past and an impossible pseudonym."""
    with pytest.raises(NotFound, match="no such account"):
        await desk.care.record("wang", PATIENT)
    with pytest.raises(Invalid, match="over already"):
        await desk.care.record("li", PATIENT, desk.clock.now())
    for bad in ("", "x" * 65, "病人"):
        with pytest.raises(Invalid, match="pseudonym"):
            await desk.care.record("li", bad)
