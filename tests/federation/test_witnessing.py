"""Members cosign each other's logs, and notice a log that was rewritten or cut back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import delete, update

from consent.errors import Corrupt
from consent.vocabulary import EventKind
from federation.protocol import PREFIX
from federation.witnessing import Witnessing
from node.audit.event import Event
from node.audit.log import Log
from node.audit.note import cosigned_by
from node.audit.tables import log_checkpoint, log_entry, witness_state
from node.audit.witness import AddCheckpoint, Witness
from tests.support.databases import database_in
from tests.support.region import Region, region


@pytest.fixture
async def r(tmp_path: Path) -> AsyncIterator[Region]:
    async with region(tmp_path) as built:
        yield built


async def grow(r: Region, count: int = 1) -> None:
    for number in range(count):
        await r.a.log.record(Event(EventKind.STUDY_OPENED, "system", reason=f"deed {number}"))


@pytest.mark.requirement("A1")
async def test_checkpoint_is_cosigned_by_every_other_member_and_the_hub(r: Region) -> None:
    """After one round A's checkpoint bears three cosignatures; after growth and another, again."""
    for _ in range(2):
        await grow(r, 3)
        await r.a.witnessing.submit()
        note = await r.a.log.checkpoint()
        names = cosigned_by(note, r.a.witnessing.verifiers())
        assert set(names) == {"accord/hub", "accord/b-central", "accord/c-clinic"}


@pytest.mark.requirement("A1")
async def test_cosigning_comes_to_rest(r: Region) -> None:
    """Two logs that witness each other do not grow for ever by it."""
    for _ in range(3):
        for member in (r.a, r.b, r.c, r.hub):
            await member.witnessing.submit()
    sizes = [await member.log.size() for member in (r.a, r.b, r.c, r.hub)]
    for member in (r.a, r.b, r.c, r.hub):
        await member.witnessing.submit()

    assert [await member.log.size() for member in (r.a, r.b, r.c, r.hub)] == sizes


@pytest.mark.requirement("A1")
async def test_rewritten_history_is_refused_and_alarmed_by_the_witness(r: Region, tmp_path: Path) -> None:
    """A node that signs another history under the same key is found out by the next witness."""
    await grow(r, 5)
    await r.a.witnessing.submit()
    forged = database_in(tmp_path / "forged.db")
    identity = r.a.node.identity
    log = Log(forged, key=b"f" * 32, origin=identity.origin, signer=identity.log_signer, clock=r.clock)
    for number in range(40):
        await log.record(Event(EventKind.STUDY_OPENED, "system", reason=f"invented {number}"))
    size = await r.b.client.post_text("a-general", f"{PREFIX}/add-checkpoint", "x", limit=4096)
    assert size[0] == 400
    fork = Witnessing(
        log=log,
        witness=Witness(forged, signer=identity.cosigner, clock=r.clock),
        members=r.a.members,
        client=r.a.client,
    )

    await fork.submit()

    for witness in (r.b, r.c, r.hub):
        (alarm,) = await witness.log.search(kind=EventKind.WITNESS_ALARMED)
        assert alarm.event.detail["origin"] == "accord/a-general"
    assert not cosigned_by(await log.checkpoint(), r.a.witnessing.verifiers())
    await log.close()
    await forged.close()


@pytest.mark.requirement("A1")
async def test_log_that_was_cut_back_is_alarmed(r: Region) -> None:
    """A log restored from an old backup is behind its witnesses: they say so, and it is on record."""
    await grow(r, 5)
    await r.a.witnessing.submit()
    note = await r.a.log.checkpoint()
    async with r.b.node.database.write() as tx:
        # What B would remember had A's log been larger before.
        larger = note.replace(note.split("\n")[1], str(int(note.split("\n")[1]) + 100), 1)
        await tx.execute(
            update(witness_state)
            .where(witness_state.c.origin == "accord/a-general")
            .values(size=int(note.split("\n")[1]) + 100, note=larger)
        )
    await grow(r)
    await r.a.witnessing.submit()

    (alarm,) = await r.a.log.search(kind=EventKind.WITNESS_ALARMED)
    assert "cut back" in alarm.event.reason


@pytest.mark.requirement("A1")
async def test_altered_entry_stops_signing_and_is_reported(r: Region) -> None:
    """An entry altered in the database: nothing more is signed, the alarm is on record, and the hub hears it."""
    await grow(r, 5)
    await r.a.witnessing.submit()
    async with r.a.node.database.write() as tx:
        await tx.execute(update(log_entry).where(log_entry.c.position == 2).values(sealed=b"\0" * 64))
    await grow(r)

    with pytest.raises(Corrupt):
        await r.a.witnessing.submit()
    assert await r.a.log.search(kind=EventKind.WITNESS_ALARMED)
    await r.a.reporter.send()
    state = next(one for one in await r.hub.reports.members() if one.member.id == "a-general")
    assert state.report is not None and not state.report.log_sound


@pytest.mark.requirement("A1")
async def test_member_shows_only_its_own_log(r: Region) -> None:
    """B cannot have A's checkpoint cosigned as its own doing."""
    await grow(r)
    note = await r.a.log.checkpoint()
    status, _ = await r.b.client.post_text(
        "c-clinic", f"{PREFIX}/add-checkpoint", str(AddCheckpoint(0, (), note)), limit=4096
    )
    assert status == 403


def keeping_time(r: Region, floors: list[datetime]) -> Witnessing:
    """A's witnessing, with a floor to look at; the machine's clock is the region's."""
    return Witnessing(
        log=r.a.log,
        witness=Witness(r.a.node.database, signer=r.a.node.identity.cosigner, clock=r.clock),
        members=r.a.members,
        client=r.a.client,
        raise_floor=floors.append,
        system_time=r.clock.now,
    )


@pytest.mark.requirement("A1", "U2")
async def test_cosignatures_raise_the_clock_but_not_on_one_witness_word(r: Region) -> None:
    """The floor is what two witnesses agree is past; one with a clock far ahead moves nothing."""
    floors: list[datetime] = []
    witnessing = keeping_time(r, floors)
    await grow(r)
    await witnessing.submit()
    assert floors == [r.clock.now()]

    honest = r.clock.now()
    witnessing._seen_at["b-central"] = honest + timedelta(days=400)
    await witnessing._take_time()
    assert floors[-1] == honest
    assert not await r.a.log.search(kind=EventKind.WITNESS_ALARMED)


@pytest.mark.requirement("A1", "U2")
async def test_witnesses_that_agree_cannot_move_time_decades_ahead(r: Region) -> None:
    """Two clocks far ahead move the floor by minutes, not by decades, and that is on record, once."""
    floors: list[datetime] = []
    witnessing = keeping_time(r, floors)
    for witness in ("b-central", "c-clinic"):
        witnessing._seen_at[witness] = r.clock.now() + timedelta(days=30 * 365)

    for _ in range(2):
        await witnessing._take_time()

    assert max(floors) == r.clock.now() + timedelta(minutes=5)
    (alarm,) = await r.a.log.search(kind=EventKind.WITNESS_ALARMED)
    assert "ahead" in alarm.event.reason
    witnessing._seen_at.clear()
    witnessing._seen_at["hub"] = r.clock.now() + timedelta(minutes=4)
    witnessing._seen_at["b-central"] = r.clock.now() + timedelta(minutes=3)
    await witnessing._take_time()
    assert floors[-1] == r.clock.now() + timedelta(minutes=3)


@pytest.mark.requirement("A1", "U2")
async def test_only_witness_cannot_move_time_decades_ahead(tmp_path: Path) -> None:
    """A region of a hub and one hospital: the one witness's word is bounded too."""
    async with region(tmp_path, nodes=("a-general",)) as r:
        floors: list[datetime] = []
        witnessing = keeping_time(r, floors)
        witnessing._seen_at["hub"] = r.clock.now() + timedelta(days=30 * 365)
        await witnessing._take_time()

        assert floors == [r.clock.now() + timedelta(minutes=5)]
        assert await r.a.log.search(kind=EventKind.WITNESS_ALARMED)


@pytest.mark.requirement("A1")
async def test_away_witness_delays_no_other(r: Region) -> None:
    """With B off the network, C and the hub cosign all the same; B catches up later."""
    r.b.wire.cut()
    await grow(r, 2)
    await r.a.witnessing.submit()
    names = cosigned_by(await r.a.log.checkpoint(), r.a.witnessing.verifiers())
    assert set(names) == {"accord/hub", "accord/c-clinic"}

    r.b.wire.mend()
    await r.a.witnessing.submit()
    assert "accord/b-central" in cosigned_by(await r.a.log.checkpoint(), r.a.witnessing.verifiers())


async def test_lost_checkpoints_are_made_again(r: Region) -> None:
    """Losing the table of checkpoints loses no trust: the witnesses' sizes lead on."""
    await grow(r, 3)
    await r.a.witnessing.submit()
    async with r.a.node.database.write() as tx:
        await tx.execute(delete(log_checkpoint))
    await grow(r)
    await r.a.witnessing.submit()

    assert len(cosigned_by(await r.a.log.checkpoint(), r.a.witnessing.verifiers())) == 3
