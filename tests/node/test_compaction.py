"""Compaction: what nothing refers to goes, everything else is found before, during and after, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from hashlib import sha256
from pathlib import Path

import pytest
from sqlalchemy import insert

from consent.errors import Conflict, Unavailable
from consent.vocabulary import Action, EventKind, Role
from node.database import Database
from node.rebuilding import Rebuilding
from node.vault.blobs import FileBlobs
from node.vault.key_tables import vault_regrade
from node.vault.pack import pack_name
from node.vault.reader import Reader
from node.vault.vault import METADATA
from tests.support.dicom import Instance, ct_slice
from tests.support.node import NodeFixture, small_node

UID = "1.2.3.9"


def slices(first: int, count: int) -> list[Instance]:
    return [
        ct_slice(
            size=16, StudyInstanceUID=UID, SeriesInstanceUID=UID + ".1", SOPInstanceUID=f"{UID}.2.{number}"
        )
        for number in range(first, first + count)
    ]


async def wasteful(node: NodeFixture) -> str:
    """A study that grew four times, each time with metadata that the next one superseded."""
    chief = await node.person(Role.CHIEF_PHYSICIAN)
    for number in range(4):
        (*_, receipt) = await node.store(*slices(number * 2, 2))
        opening = await node.gateway.open(chief, receipt.study)
        await node.gateway.metadata(opening)  # made, and kept, for whoever asks next
        await node.ingest.flushed()
        await node.gateway.close_opening(opening)
    return receipt.study


async def everything(node: NodeFixture, study: str) -> dict[str, bytes]:
    """SHA-256 of every instance as the gateway hands it out."""
    chief = await node.person(Role.CHIEF_PHYSICIAN)
    opening = await node.gateway.open(chief, study, action=Action.DOWNLOAD)
    rows = await node.gateway.rows(opening)
    return {
        row.sop_instance_uid: sha256(
            (await node.gateway.instance(opening, row.sop_instance_uid)).data
        ).digest()
        for row in rows
    }


@pytest.fixture(params=[1, 3], ids=["one-root", "three-roots"])
async def node(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[NodeFixture]:
    async with small_node(tmp_path, roots=request.param) as made:
        yield made


@pytest.mark.requirement("V2")
async def test_compaction_drops_what_nothing_refers_to_and_keeps_every_instance(node: NodeFixture) -> None:
    """Superseded metadata goes, the one in force stays and is served; rows, manifest and instances fit the new file."""
    study = await wasteful(node)
    before = await everything(node, study)
    waste = await node.compaction.waste(study)
    compacted = await node.compaction.compact(study, "system")
    assert compacted is not None
    assert 0 < waste.waste <= compacted.before
    assert compacted.after < compacted.before
    objects = (await node.vault.objects(study)).objects
    assert [one.object_id.rpartition(".")[2] for one in objects if one.kind == METADATA] == ["8"]
    (series,) = await node.index.series(study)
    assert series.metadata is not None and series.metadata.count == 8
    assert await everything(node, study) == before
    assert (await Rebuilding(node.vault, node.index, node.log, node.database).one(study, mend=False))[1]
    (event,) = await node.events(EventKind.PACK_COMPACTED)
    assert event.event.detail == {"before": compacted.before, "after": compacted.after}
    assert (await node.compaction.waste(study)).waste < waste.waste


async def test_what_comes_after_a_compaction_is_appended_to_the_new_file(node: NodeFixture) -> None:
    """The pack grows on, and a restart finds nothing to recover."""
    study = await wasteful(node)
    await node.compaction.compact(study, "system")
    await node.store(*slices(20, 2))
    assert len(await everything(node, study)) == 10
    assert await node.ingest.recover() == 0


async def test_a_reader_in_the_middle_reads_on(node: NodeFixture) -> None:
    """An opening made before, with rows of the old file, gives the same bytes after."""
    study = await wasteful(node)
    chief = await node.person(Role.CHIEF_PHYSICIAN)
    opening = await node.gateway.open(chief, study, action=Action.DOWNLOAD)
    rows = await node.gateway.rows(opening)
    stream = node.gateway.stream(opening, rows)
    first = await anext(stream)
    await node.compaction.compact(study, "system")
    got = [b"".join([piece async for piece in first[1]])]
    async for _, pieces in stream:
        got.append(b"".join([piece async for piece in pieces]))
    assert [sha256(data).digest() for data in got] == [row.sha256 for row in rows]
    assert not await node.events(EventKind.INTEGRITY_FAILED)


async def test_a_pack_that_a_grant_names_is_left_alone(node: NodeFixture) -> None:
    """Its manifest says where every object lies."""
    study = await wasteful(node)

    async def named(asked: str) -> bool:
        return asked == study

    node.compaction.leave_alone(named)
    assert await node.compaction.compact(study, "system") is None
    assert await node.compaction.compact_if_worth(study, "system") is None


async def test_a_pack_whose_change_of_grade_was_cut_short_is_left_alone(node: NodeFixture) -> None:
    """What was begun names its own file by how often the pack was written anew: it is finished first."""
    study = await wasteful(node)
    note = {"study": study, "grade": 2, "generation": 1, "made_key": False, "actor": "system"}
    async with node.database.write() as tx:
        await tx.execute(insert(vault_regrade).values(**note, created=node.clock.now()))
    with pytest.raises(Conflict):
        await node.compaction.compact(study, "system")
    assert await Reader(node.replicas or node.blobs).pack_bytes(study, 0, 100, 0)
    assert await node.compaction.recover() == 0


async def test_a_compaction_whose_caller_is_cancelled_comes_to_its_end(node: NodeFixture) -> None:
    """The node stops in the middle: the new file is in place and the rows fit it, and no note is left."""
    study = await wasteful(node)
    asked = asyncio.create_task(node.compaction.compact(study, "system"))
    while not list(node.blobs.root.parent.rglob(".*.new")) and not asked.done():
        await asyncio.sleep(0)
    asked.cancel()
    await asyncio.wait([asked])
    assert asked.cancelled()
    assert await node.compaction.recover() == 0
    assert len(await node.events(EventKind.PACK_COMPACTED)) == 1
    assert (await Rebuilding(node.vault, node.index, node.log, node.database).one(study, mend=False))[1]


async def test_peer_that_pulls_a_pack_written_anew_is_told_to_start_over(node: NodeFixture) -> None:
    """Bytes of the new file are never handed out under the manifest of the old one."""
    study = await wasteful(node)
    packs = Reader(node.replicas or node.blobs)
    assert await packs.pack_bytes(study, 0, 100, 0)
    await node.compaction.compact(study, "system")
    with pytest.raises(Conflict) as changed:
        await packs.pack_bytes(study, 0, 100, 0)
    assert changed.value.code == "pack-changed"
    assert await packs.pack_bytes(study, 0, 100, 1)


class Died(BaseException):
    """The process is gone."""


CRASHES = [
    *((FileBlobs, "prepare", skipped, roots) for skipped, roots in ((0, 1), (2, 3))),
    *((FileBlobs, "install", skipped, roots) for skipped, roots in ((0, 1), (1, 3), (2, 3))),
    *((Database, "write", skipped, roots) for skipped, roots in ((0, 1), (1, 3))),
]
"""What the process dies before: the verb, how often it went well first, and with how many roots."""


@pytest.mark.requirement("V2", "F4")
@pytest.mark.parametrize(
    ("kind", "verb", "skipped", "roots"), CRASHES, ids=[f"{verb}-{n}-of-{r}" for _, verb, n, r in CRASHES]
)
async def test_crash_at_any_step_leaves_the_old_file_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type, verb: str, skipped: int, roots: int
) -> None:
    """Whichever it is, after the restart every instance is read, every copy is alike and the index fits the pack."""
    async with small_node(tmp_path, roots=roots) as node:
        study = await wasteful(node)
        before = await everything(node, study)
        left = skipped
        real: Callable[..., object] = getattr(kind, verb)

        def dies(*arguments: object, **more: object) -> object:
            nonlocal left
            if left == 0:
                raise Died
            left -= 1
            return real(*arguments, **more)

        with monkeypatch.context() as patched:
            patched.setattr(kind, verb, dies)
            if kind is FileBlobs:
                patched.setattr(FileBlobs, "discard", lambda *_: None)  # nobody tidies up after a crash
            try:
                await node.compaction.compact(study, "system")
            except (Died, Unavailable, BaseExceptionGroup):
                pass
    async with small_node(tmp_path, roots=roots) as node:
        assert await everything(node, study) == before
        alike = await Rebuilding(node.vault, node.index, node.log, node.database).one(study, mend=False)
        assert alike == (8, True)
        await node.store(*slices(30, 1))
        assert len(await everything(node, study)) == 9
        if node.replicas is not None:
            node.replicas._voted(node.replicas.quorum.in_sync)
            copies = {root.blobs.read(pack_name(study), 0, 2**30) for root in node.replicas.quorum.in_sync}
            assert len(copies) == 1
        assert await node.compaction.recover() == 0


async def test_ingest_goes_on_while_packs_are_written_anew(node: NodeFixture) -> None:
    """Instances that arrive meanwhile wait a moment and are all there."""
    study = await wasteful(node)
    arriving = [asyncio.create_task(node.store(one)) for one in slices(40, 6)]
    for _ in range(3):
        await node.compaction.compact(study, "system")
    await asyncio.gather(*arriving)
    await node.ingest.flushed()
    assert len(await everything(node, study)) == 14
    assert (await Rebuilding(node.vault, node.index, node.log, node.database).one(study, mend=False))[1]
