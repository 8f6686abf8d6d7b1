"""The scrub: what is damaged is healed or named, in words, on record; nothing is said of what is in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from consent.errors import Corrupt, Unavailable
from consent.vocabulary import Action, EventKind, Role
from node.rebuilding import Rebuilding
from node.replication import Replication
from node.scrubbing import STUDY_BYTES, Progress, Scrubbing
from node.vault.pack import Survey, pack_name
from node.vault.throttle import Throttle
from tests.support.dicom import ct_slice
from tests.support.node import NodeFixture, small_node


def scrubbing(node: NodeFixture, pace: Throttle | None = None) -> Scrubbing:
    return Scrubbing(
        blobs=node.replicas or node.blobs,
        vault=node.vault,
        index=node.index,
        rebuilding=Rebuilding(node.vault, node.index, node.log, node.database),
        compaction=node.compaction,
        log=node.log,
        database=node.database,
        clock=node.clock,
        pace=pace or Throttle(10**9),
        every=timedelta(days=7),
        deep_every=timedelta(days=30),
    )


@asynccontextmanager
async def stocked(path: Path, roots: int) -> AsyncIterator[tuple[NodeFixture, list[str]]]:
    """A node with three studies of two slices."""
    async with small_node(path, roots=roots) as node:
        studies = []
        for study in range(3):
            slices = [
                ct_slice(size=32, StudyInstanceUID=f"1.2.{study}", SOPInstanceUID=f"1.2.{study}.{number}")
                for number in range(2)
            ]
            (receipt, *_) = await node.store(*slices)
            studies.append(receipt.study)
        await node.ingest.descriptions.settled()
        await node.ingest.flushed()
        yield node, studies


def flip(path: Path, place: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))


def packs(node: NodeFixture, study: str) -> list[Path]:
    stores = [root.blobs for root in node.replicas.quorum.in_sync] if node.replicas else [node.blobs]
    return [store._path(pack_name(study)) for store in stores]


@pytest.mark.requirement("V2", "C3")
@pytest.mark.parametrize("roots", [1, 3])
async def test_a_sound_archive_has_nothing_to_tell(tmp_path: Path, roots: int) -> None:
    """A plain and a deep pass over everything: no fault, no event, and the next is not due."""
    async with stocked(tmp_path, roots) as (node, _):
        scrub = scrubbing(node)
        await scrub.run()
        progress = await scrub.progress()
        assert (progress.packs, progress.faults, progress.healed_bytes, progress.deep) == (3, 0, 0, False)
        assert progress.finished == node.clock.now()
        await scrub.ask(deep=True)
        await scrub.run()
        assert (await scrub.progress()).deep_finished == node.clock.now()
        before = await scrub.progress()
        await scrub.run()
        assert await scrub.progress() == before
        node.clock.tick(days=8)
        await scrub.run()
        assert (await scrub.progress()).started == node.clock.now()
        kinds = {entry.event.kind for entry in await node.events()}
        assert not kinds & {EventKind.INTEGRITY_FAILED, EventKind.REPLICA_HEALED}


@pytest.mark.requirement("V2", "C3")
async def test_damage_on_one_root_is_healed_and_on_record(tmp_path: Path) -> None:
    """A missing copy, a flipped bit and a cut end on three roots: all alike again, each healing with its root."""
    async with stocked(tmp_path, 3) as (node, studies):
        good = [packs(node, study)[0].read_bytes() for study in studies]
        flip(packs(node, studies[0])[1], 3000)
        packs(node, studies[1])[2].unlink()
        cut = packs(node, studies[2])[0]
        cut.write_bytes(cut.read_bytes()[:5000])
        progress = await scrubbing(node).go_on(Progress(started=node.clock.now()))
        assert progress.faults == 0
        assert progress.healed_bytes > 0
        for study, data in zip(studies, good, strict=True):
            assert [path.read_bytes() for path in packs(node, study)] == [data] * 3
        healed = {
            (entry.event.study, entry.event.detail["root"])
            for entry in await node.events(EventKind.REPLICA_HEALED)
        }
        assert healed == {(studies[0], 2), (studies[1], 3), (studies[2], 1)}


@pytest.mark.requirement("V2", "C3")
@pytest.mark.parametrize("roots", [1, 3])
async def test_damage_everywhere_is_named_and_never_shown(tmp_path: Path, roots: int) -> None:
    """The event names study, object and place; the image is refused, on record; the others open."""
    async with stocked(tmp_path, roots) as (node, studies):
        rows = await node.index.instances(studies[0])
        for path in packs(node, studies[0]):
            flip(path, rows[0].data_set.offset + 100)
        progress = await scrubbing(node).go_on(Progress(started=node.clock.now()))
        assert progress.faults == 1
        (event,) = await node.events(EventKind.INTEGRITY_FAILED)
        assert event.event.study == studies[0]
        assert event.event.detail["objects"] == [rows[0].instance]
        chief = await node.person(Role.CHIEF_PHYSICIAN)
        opening = await node.gateway.open(chief, studies[0], action=Action.DOWNLOAD)
        with pytest.raises(Corrupt, match="not what arrived"):
            await node.gateway.instance(opening, rows[0].sop_instance_uid)
        assert (await node.gateway.instance(opening, rows[1].sop_instance_uid)).data


@pytest.mark.requirement("C3")
async def test_a_pack_that_is_gone_everywhere_is_named(tmp_path: Path) -> None:
    """The index knows the study, and no root has its pack."""
    async with stocked(tmp_path, 3) as (node, studies):
        for path in packs(node, studies[1]):
            path.unlink()
        assert await scrubbing(node).study(studies[1]) == (0, 1)
        (event,) = await node.events(EventKind.INTEGRITY_FAILED)
        assert (event.event.study, event.event.reason) == (studies[1], "The pack is missing.")


@pytest.mark.requirement("C3")
async def test_deep_pass_mends_altered_rows(tmp_path: Path) -> None:
    """Clear columns of the index and sealed ones: what was altered is told of, and made anew from the packs."""
    async with stocked(tmp_path, 1) as (node, studies):
        async with node.database.write() as tx:
            await tx.execute(
                text("UPDATE index_study SET study_date = '19000101' WHERE study = :s"), {"s": studies[0]}
            )
            await tx.execute(
                text(
                    "UPDATE index_instance SET sealed = CAST((CASE substr(sealed, 1, 1) WHEN x'00' THEN x'01' ELSE x'00'"
                    " END) || substr(sealed, 2) AS BLOB) WHERE study = :s"
                ),
                {"s": studies[1]},
            )
        progress = await scrubbing(node).go_on(Progress(started=node.clock.now(), deep=True))
        assert progress.faults == 2
        told = {
            entry.event.study: entry.event.reason for entry in await node.events(EventKind.INTEGRITY_FAILED)
        }
        assert told[studies[0]] == "Rows of the index were altered; they were made anew from the pack."
        assert told[studies[1]] == "A row of index_instance was altered."
        rebuilding = Rebuilding(node.vault, node.index, node.log, node.database)
        for study in studies:
            assert (await rebuilding.one(study, mend=False))[1]


@pytest.mark.requirement("C3")
async def test_deep_pass_holds_every_instance_against_its_first_digest(tmp_path: Path) -> None:
    """An object that opens and is not what arrived (its digest in the row is another) is a fault."""
    async with stocked(tmp_path, 1) as (node, studies):
        found = {stored.object_id: stored for stored in (await node.vault.objects(studies[0])).objects}
        (row, *_) = await node.index.instances(studies[0])
        await node.vault.require_digest(studies[0], found[row.instance], row.sha256)
        with pytest.raises(Corrupt, match="digest"):
            await node.vault.require_digest(studies[0], found[row.instance], bytes(32))


async def test_what_comes_in_during_a_deep_pass_is_no_fault_and_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An instance that is stored between the reading of a pack and of its rows: found afterwards, and nothing is on record."""
    async with stocked(tmp_path, 1) as (node, studies):
        objects, asked = node.vault.objects, list[str]()

        async def and_then(study: str, start: int = 0) -> Survey:
            found = await objects(study, start)
            asked.append(study)
            if len(asked) == 2:  # the first time it looks at the digests, the second time at the rows
                await node.store(ct_slice(size=32, StudyInstanceUID="1.2.0", SOPInstanceUID="1.2.0.99"))
            return found

        monkeypatch.setattr(node.vault, "objects", and_then)
        assert await scrubbing(node).study(studies[0], deep=True) == (0, 0)
        assert "1.2.0.99" in {row.sop_instance_uid for row in await node.index.instances(studies[0])}
        assert not await node.events(EventKind.INTEGRITY_FAILED)


async def test_small_studies_count_for_something(tmp_path: Path) -> None:
    """A pass over thousands of them must not take a processor for itself because they have so few bytes."""
    charged: list[int] = []

    class Noted(Throttle):
        def __call__(self, size: int) -> None:
            charged.append(size)

    async with stocked(tmp_path, 3) as (node, studies):
        scrub = scrubbing(node, Noted(1.0))
        await scrub.go_on(await scrub.progress())
        assert sum(charged) >= len(studies) * STUDY_BYTES


@pytest.mark.parametrize("roots", [1, 3])
async def test_what_a_crash_left_beside_a_pack_goes(tmp_path: Path, roots: int) -> None:
    """A file that was to take the pack's place, of a rewriting that nobody remembers, is removed on every root."""
    async with stocked(tmp_path, roots) as (node, studies):
        packs = list(tmp_path.rglob(f"{studies[0]}.pack"))
        for pack in packs:
            pack.with_name(f".{pack.name}.new").write_bytes(b"half of it")
        assert await scrubbing(node).study(studies[0]) == (0, 0)
        assert len(packs) == roots
        assert list(tmp_path.rglob(".*.new")) == []


async def test_pass_goes_on_where_it_was_and_keeps_its_pace(tmp_path: Path) -> None:
    """A node that stops in the middle goes on after the restart; a stopped pace ends a pass at once."""
    async with stocked(tmp_path, 3) as (node, studies):
        first = sorted(studies)[0]
        began = Progress(started=node.clock.now(), reached=first, packs=1)
        progress = await scrubbing(node).go_on(began)
        assert (progress.packs, progress.total) == (3, 3)
        slow = Throttle(1000.0)
        passing = asyncio.create_task(scrubbing(node, slow).go_on(Progress(started=node.clock.now())))
        await asyncio.sleep(0.3)
        assert not passing.done()
        slow.stop()
        with pytest.raises(Unavailable):
            await passing


@pytest.mark.requirement("V2")
async def test_what_a_reader_met_is_healed_at_once_and_roots_are_told_of(tmp_path: Path) -> None:
    """A viewer reads past a bad copy; the next look heals it. A root that is lost and returns is in the log, and in the status."""
    async with stocked(tmp_path, 3) as (node, studies):
        scrub = scrubbing(node)
        replication = Replication(node.replicas, log=node.log, pace=Throttle(10**9))  # type: ignore[arg-type]
        replication.examine_with(scrub.study)
        (row, *_) = await node.index.instances(studies[0])
        flip(packs(node, studies[0])[0], row.data_set.offset + 70)
        chief = await node.person(Role.CHIEF_PHYSICIAN)
        opening = await node.gateway.open(chief, studies[0], action=Action.DOWNLOAD)
        assert (await node.gateway.instance(opening, row.sop_instance_uid)).data
        assert not await node.events(EventKind.INTEGRITY_FAILED)
        await replication.watch()
        await replication.examine()
        (healed,) = await node.events(EventKind.REPLICA_HEALED)
        assert healed.event.detail["root"] == 1
        assert len({path.read_bytes() for path in packs(node, studies[0])}) == 1

        folder = packs(node, studies[0])[2].parents[1]
        folder.rename(folder.with_suffix(".out"))
        await replication.watch()
        status = await asyncio.to_thread(replication.status)
        assert [root.state for root in status.roots] == ["in-sync", "in-sync", "away"]
        assert (status.in_sync, status.writing, status.quorum) == (2, True, 2)
        assert status.roots[2].words == "The folder is not there."
        (lost,) = await node.events(EventKind.REPLICA_DEGRADED)
        assert "Storage root 3 is out of sync" in (lost.event.reason or "")
        folder.with_suffix(".out").rename(folder)
        await replication.restored()
        status = await asyncio.to_thread(replication.status)
        assert status.in_sync == 3
        assert len(await node.events(EventKind.REPLICA_HEALED)) == 2
        await replication.close()
