"""Damage in the database's own pages: found, mended from what is whole, or named; never a driver's error.

`ACCORD_PAGE_TRIALS` flips so many bytes at drawn places of the index's pages (default 12).
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from consent.errors import Corrupt, NotFound, Unavailable
from consent.vocabulary import EventKind, Grade
from node.database import DAMAGED, Database
from node.index.query import Level, Query
from node.index.tables import INSTANCES, SERIES, STUDIES
from node.rebuilding import INDEX_TABLES, Rebuilding
from node.scrubbing import Progress
from node.search_trees import LOST, Damage
from node.soundness import Soundness, keep_sound
from tests.node.test_scrubbing import scrubbing
from tests.support.dicom import ct_slice
from tests.support.node import NodeFixture, arrival, small_node
from tests.support.pages import PAGE, flip, leaves, roots

STUDY_COUNT = 130
TRIALS = int(os.environ.get("ACCORD_PAGE_TRIALS", "12"))
TREES = [
    "ix_index_study_study_date",
    "ix_index_study_patient",
    "ix_index_study_accession",
    "ix_index_instance_study",
    "sqlite_autoindex_index_study_1",
    "sqlite_autoindex_index_series_1",
    "sqlite_autoindex_index_instance_1",
]
LOG_TREES = ["ix_log_entry_kind", "ix_log_entry_study"]


@pytest.fixture(scope="module")
async def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stopped node with enough studies for every search tree to have leaves below its root."""
    folder = tmp_path_factory.mktemp("archive")
    async with small_node(folder) as node:
        slices = [
            ct_slice(
                size=8,
                patient_id=f"P{number}",
                accession_number=f"A{number}",
                study_date=f"2024{number % 12 + 1:02}01",
                StudyInstanceUID=f"1.2.{number}",
                SeriesInstanceUID=f"1.2.{number}.1",
                SOPInstanceUID=f"1.2.{number}.1.1",
            )
            for number in range(STUDY_COUNT)
        ]
        await asyncio.gather(*(node.ingest.receive(arrival(one), node.source) for one in slices))
        await node.ingest.descriptions.settled()
        await node.ingest.flushed()
    return folder


@asynccontextmanager
async def few(path: Path, count: int = 3) -> AsyncIterator[tuple[NodeFixture, list[str]]]:
    """A running node with a few studies."""
    async with small_node(path) as node:
        receipts = await node.store(
            *(
                ct_slice(
                    size=8,
                    patient_id=f"P{number}",
                    StudyInstanceUID=f"1.2.{number}",
                    SOPInstanceUID=f"1.2.{number}.1",
                )
                for number in range(count)
            )
        )
        await node.ingest.descriptions.settled()
        await node.ingest.flushed()
        await node.database.purge_journal()
        yield node, [receipt.study for receipt in receipts]


async def changed_by_another(node: NodeFixture) -> None:
    """Let no connection of the node trust the pages that it has in memory, and the journal be empty."""
    with closing(sqlite3.connect(node.path / "node.db", isolation_level=None)) as other:
        (version,) = other.execute("PRAGMA user_version").fetchone()
        other.execute(f"PRAGMA user_version = {version + 1}")
    await node.database.purge_journal()


async def rows(database: Database) -> list[tuple[Any, ...]]:
    async with database.read() as tx:
        return [
            tuple(row)
            for table in (STUDIES, SERIES, INSTANCES)
            for row in (await tx.execute(select(table).order_by(*table.primary_key.columns))).all()
        ]


async def answers(node: NodeFixture) -> list[object]:
    """What look-ups through every search tree of the index say."""
    study = node.index.pseudonyms.study
    instance = node.index.pseudonyms.instance
    found: list[object] = []
    for number in range(0, STUDY_COUNT, 9):
        one = study(f"1.2.{number}")
        found.append(await node.index.studies_of(node.index.pseudonyms.patient(f"P{number}")))
        found.append([row.instance for row in await node.index.instances(one)])
        found.append([row.series for row in await node.index.series(one)])
        found.append(await node.index.has_study(one))
        found.append(await node.index.holder(instance(f"1.2.{number}.1.1")))
    for key, value in (("AccessionNumber", "A7"), ("StudyDate", "20240301")):
        page = await node.index.search(Query.of(Level.STUDY, {key: value}))
        found.append(sorted(match.study for match in page.matches))
    return found


@pytest.mark.requirement("V2", "C3")
@pytest.mark.parametrize("place", ["root", "leaf"])
async def test_a_damaged_search_tree_is_found_and_made_anew_while_the_node_runs(
    archive: Path, tmp_path: Path, place: str
) -> None:
    """Trees of index and log in turn, at the root's head and inside a key: look-ups are right again, rows untouched."""
    folder = Path(shutil.copytree(archive, tmp_path / "node"))
    file = folder / "node.db"
    async with small_node(folder) as node:
        before, said = await rows(node.database), await answers(node)
        for tree in [*TREES, *LOG_TREES]:
            await node.database.purge_journal()
            root = roots(file)[tree]
            if place == "root":
                flip(file, root, 0)
            else:
                leaf = leaves(file, root)[-1]
                assert (
                    leaf != root or tree.endswith("accession") or tree in LOG_TREES
                )  # of short entries, or few
                flip(file, leaf, PAGE - 8)
            kept = await keep_sound(node.database, node.log, "system")
            assert not kept.found.sound and kept.left.sound, tree
            assert await Soundness(node.database).look() == kept.left, tree
            assert await answers(node) == said and await rows(node.database) == before, tree
        events = [entry.event for entry in await node.events(EventKind.INTEGRITY_FAILED)]
        assert [event.detail["mended"] for event in events] == [True] * (len(TREES) + len(LOG_TREES))
        if place == "leaf":
            assert [event.detail["database"] for event in events] == [[tree] for tree in [*TREES, *LOG_TREES]]
        assert (await node.log.verify()).ok


@pytest.mark.requirement("V2", "C3")
async def test_a_tree_that_hides_rows_is_named_by_a_check_and_mended_by_a_rebuild(tmp_path: Path) -> None:
    """A look-up by patient that says nothing, without an error: check names it and changes nothing, rebuild mends it."""
    file = tmp_path / "node.db"
    async with few(tmp_path) as (node, studies):
        patient = node.index.pseudonyms.patient("P0")
        await changed_by_another(node)
        flip(file, roots(file)["ix_index_study_patient"], PAGE - 8)
        assert await node.index.studies_of(patient) == ()
        assert await node.index.has_study(studies[0])
        rebuilding = Rebuilding(node.vault, node.index, node.log, node.database)
        looked = await rebuilding.everything("system", mend=False)
        assert (looked.damaged, looked.lost) == (["ix_index_study_patient"], [])
        assert await node.index.studies_of(patient) == ()
        mended = await rebuilding.everything("system")
        assert (mended.damaged, mended.lost, mended.failed) == (["ix_index_study_patient"], [], {})
        assert await node.index.studies_of(patient) == (studies[0],)


@pytest.mark.requirement("V2", "C3")
async def test_a_damaged_table_of_the_index_is_named_and_filled_again_from_the_packs(tmp_path: Path) -> None:
    """Each table of the index: a running node names it and keeps its hands off; a rebuild puts the same rows back."""
    file = tmp_path / "node.db"
    async with few(tmp_path) as (node, _):
        before = await rows(node.database)
        rebuilding = Rebuilding(node.vault, node.index, node.log, node.database)
        for table in INDEX_TABLES:
            await node.database.purge_journal()
            flip(file, leaves(file, roots(file)[table])[0], 0)
            kept = await keep_sound(node.database, node.log, "system")
            assert kept.left.tables == (table,)
            looked = await rebuilding.everything("system", mend=False)
            assert (looked.damaged, looked.lost) == ([table], [])
            mended = await rebuilding.everything("system")
            assert (mended.lost, mended.failed) == ([], {})
            assert await rows(node.database) == before
            assert await Soundness(node.database).look() == Damage()


@pytest.mark.requirement("V2", "C3")
@pytest.mark.parametrize("table", ["log_entry", "vault_study_key"])
async def test_a_damaged_table_that_the_packs_do_not_hold_is_named_and_left_alone(
    tmp_path: Path, table: str
) -> None:
    """Nothing is mended around it and nothing raw is raised; the bytes stay as they are, for the backup to be held against."""
    file = tmp_path / "node.db"
    async with few(tmp_path) as (node, _):
        flip(file, leaves(file, roots(file)[table])[0], 0)
        spoilt = file.read_bytes()
        found = await Soundness(node.database).look()
        assert found.names == (table,)
        assert await Soundness(node.database).mend(found, emptied=INDEX_TABLES) == found
        assert file.read_bytes() == spoilt
    database = Database(f"sqlite+aiosqlite:///{file}")
    try:
        with pytest.raises(Corrupt) as raised:
            async with database.read() as tx:
                await tx.exec_driver_sql(f"SELECT * FROM {table}")
        assert raised.value.code == DAMAGED and "damaged-database" in raised.value.mend
        with pytest.raises(Corrupt):
            await database.read_in_one(lambda one: one.exec_driver_sql(f"SELECT * FROM {table}").all())
    finally:
        await database.close()


async def opens(path: Path, study_uid: str) -> bool:
    """Whether a node that starts now finds the key of a study."""
    async with small_node(path) as node:
        study = node.index.pseudonyms.study(study_uid)
        try:
            await node.keys.study_key(None, study, Grade.ORDINARY)
        except NotFound:
            return False
        return True


@pytest.mark.requirement("V1", "V2")
async def test_a_key_whose_name_its_table_lost_is_left_to_the_tree_that_has_it(tmp_path: Path) -> None:
    """The tree is the only place where the study's name still stands: neither is believed, and the study opens as before."""
    file = tmp_path / "node.db"
    async with few(tmp_path) as (node, studies):
        spoilt = _name_flipped(file, "vault_study_key", studies[1])
        await changed_by_another(node)
        kept = await keep_sound(node.database, node.log, "system")
        assert kept.left.tables == ("vault_study_key",)
        (event,) = await node.events(EventKind.INTEGRITY_FAILED)
        assert event.event.detail["mended"] is False
        for root in (root for name, root in roots(file).items() if "vault_study_key" in name):
            at = slice((root - 1) * PAGE, root * PAGE)
            assert file.read_bytes()[at] == spoilt[at]
    assert await opens(tmp_path, "1.2.1")


@pytest.mark.requirement("V1", "V2")
async def test_a_key_whose_name_the_tree_lost_is_found_again(tmp_path: Path) -> None:
    """The index knows the table's name and not the tree's: the tree is made anew, and the study opens."""
    file = tmp_path / "node.db"
    async with few(tmp_path) as (node, studies):
        _name_flipped(file, "sqlite_autoindex_vault_study_key_1", studies[1])
        await changed_by_another(node)
        assert (await keep_sound(node.database, node.log, "system")).left == Damage()
    assert await opens(tmp_path, "1.2.1")


def _name_flipped(file: Path, where: str, study: str) -> bytes:
    """Change one letter of a study's name in a table or tree; return the file as it is then."""
    (leaf,) = leaves(file, roots(file)[where])
    page = file.read_bytes()[(leaf - 1) * PAGE : leaf * PAGE]
    flip(file, leaf, page.index(study.encode()) + 8, by=0x01)
    return file.read_bytes()


@pytest.mark.requirement("V2", "C3")
async def test_a_deep_scrub_mends_the_trees_first_and_names_what_it_cannot_and_goes_on(
    tmp_path: Path,
) -> None:
    """A damaged tree is no fault any more when the first study is looked at; a damaged table is one of each study."""
    file = tmp_path / "node.db"
    async with few(tmp_path) as (node, studies):
        flip(file, roots(file)["ix_index_instance_study"], 0)
        progress = await scrubbing(node).go_on(Progress(started=node.clock.now(), deep=True))
        assert (progress.packs, progress.faults) == (3, 0)
        await node.database.purge_journal()
        flip(file, roots(file)["index_series"], 0)
        progress = await scrubbing(node).go_on(Progress(started=node.clock.now(), deep=True))
        assert (progress.packs, progress.reached) == (3, max(studies))
        assert progress.faults == 4
        named = {entry.event.study for entry in await node.events(EventKind.INTEGRITY_FAILED)}
        assert named == {*studies, None}


@pytest.mark.requirement("C3")
async def test_a_file_that_is_no_database_any_more_is_named(tmp_path: Path) -> None:
    """Its first bytes, and the page that says which tables there are: named, in words."""
    file = tmp_path / "node.db"
    async with few(tmp_path, 1):
        pass
    good = file.read_bytes()
    for offset in (0, 100):
        file.write_bytes(good)
        flip(file, 1, offset)
        database = Database(f"sqlite+aiosqlite:///{file}")
        try:
            assert await Soundness(database).look() == LOST
            assert await Soundness(database).mend(LOST) == LOST
            with pytest.raises(Corrupt):
                await database.read_in_one(lambda one: one.exec_driver_sql("SELECT * FROM log_entry").all())
            with pytest.raises(Corrupt):
                async with database.write() as tx:
                    await tx.exec_driver_sql("DELETE FROM log_entry")
        finally:
            await database.close()


async def test_a_look_ends_in_time_and_a_missing_file_is_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What would take for ever is interrupted and says that it did not finish. No file: Unavailable, and still none."""
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
    async with few(tmp_path, 1) as (node, _):
        with monkeypatch.context() as patch:
            patch.setattr("node.search_trees.look", lambda one: one.execute(endless).fetchall())
            assert (await Soundness(node.database).look(limit_seconds=0.1)).finished is False
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await Soundness(node.database).look()
        assert (await Soundness(node.database).look()).finished is True
    database = Database(f"sqlite+aiosqlite:///{tmp_path / 'none.db'}")
    with pytest.raises(Unavailable):
        await Soundness(database).look()
    await database.close()
    assert not (tmp_path / "none.db").exists()


@pytest.mark.requirement("V2", "C3")
async def test_no_flipped_byte_of_the_index_outlives_a_rebuild(tmp_path: Path) -> None:
    """At drawn places of its tables and trees: rows and look-ups are the former ones afterwards, and no error is raw."""
    draw = random.Random(20261122)
    file = tmp_path / "node.db"
    async with few(tmp_path) as (node, studies):
        before = await rows(node.database)
        rebuilding = Rebuilding(node.vault, node.index, node.log, node.database)
        for trial in range(TRIALS):
            await changed_by_another(node)
            page = roots(file)[draw.choice([*TREES, *INDEX_TABLES])]
            place, bit = draw.choice((draw.randrange(12), draw.randrange(PAGE))), draw.randrange(8)
            flip(file, page, place, 1 << bit)
            done = await rebuilding.everything("system")
            assert (done.lost, done.failed) == ([], {}), (trial, page, place, bit)
            assert await rows(node.database) == before, (trial, page, place, bit)
            assert (await Soundness(node.database).look()).sound
            for number, study in enumerate(studies):
                patient = node.index.pseudonyms.patient(f"P{number}")
                assert await node.index.studies_of(patient) == (study,), (trial, page, place, bit)
                assert len(await node.index.instances(study)) == 1
