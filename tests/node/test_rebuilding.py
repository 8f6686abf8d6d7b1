"""The index against the packs: rebuilt bit for bit, and altered rows found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, select, text

from consent.vocabulary import EventKind
from node.index.tables import INSTANCES, SERIES, STUDIES
from node.rebuilding import Rebuilding
from tests.support.dicom import ct_slice
from tests.support.node import NodeFixture, small_node


async def filled(node: NodeFixture) -> None:
    """Three studies, several series, a department, an instance without Patient ID, kept metadata."""
    for study in range(3):
        uid = f"1.2.3.{study}"
        await node.store(
            *(
                ct_slice(
                    size=16,
                    patient_id=f"P{study}" if study else "",
                    StudyInstanceUID=uid,
                    SeriesInstanceUID=f"{uid}.{number % 2}",
                    SOPInstanceUID=f"{uid}.9.{number}",
                )
                for number in range(4)
            )
        )
    await node.ingest.descriptions.settled()
    await node.ingest.flushed()


async def dump(node: NodeFixture) -> list[tuple[Any, ...]]:
    async with node.database.read() as tx:
        return [
            tuple(row)
            for table in (STUDIES, SERIES, INSTANCES)
            for row in (await tx.execute(select(table).order_by(*table.primary_key.columns))).all()
        ]


def rebuilding(node: NodeFixture) -> Rebuilding:
    return Rebuilding(node.vault, node.index, node.log, node.database)


@pytest.mark.requirement("V2", "F4")
async def test_index_from_packs_alone_is_the_old_one_bit_for_bit(tmp_path: Path) -> None:
    """All rows deleted, then made again: the dump is the same, and the log has one more entry and no other."""
    async with small_node(tmp_path) as node:
        await filled(node)
        before, entries = await dump(node), len(await node.events())
        async with node.database.write() as tx:
            for table in (STUDIES, SERIES, INSTANCES):
                await tx.execute(delete(table))
        result = await rebuilding(node).everything("system")
        assert await dump(node) == before
        assert (result.studies, result.instances, len(result.differing), result.failed) == (3, 12, 3, {})
        assert len(await node.events()) == entries + 1
        (event,) = await node.events(EventKind.INDEX_REBUILT)
        assert event.event.detail["instances"] == 12
        assert (await rebuilding(node).everything("system")).differing == []


def flipped(column: str, place: int = 1) -> str:
    """SQL for a column of bytes in which the byte at `place` (from 1) is certainly another."""
    byte = f"(CASE substr({column}, {place}, 1) WHEN x'00' THEN x'01' ELSE x'00' END)"
    return f"CAST(substr({column}, 1, {place - 1}) || {byte} || substr({column}, {place + 1}) AS BLOB)"


ALTERATIONS = {
    "patient": "UPDATE index_study SET patient = 'pt_' || substr(patient, 5) || 'q' WHERE study = :study",
    "study date": "UPDATE index_study SET study_date = '19990101' WHERE study = :study",
    "count": "UPDATE index_study SET instance_count = instance_count + 1 WHERE study = :study",
    "sealed study": f"UPDATE index_study SET sealed = {flipped('sealed', 21)} WHERE study = :study",
    "sealed name": f"UPDATE index_study SET sealed_name = {flipped('sealed_name')} WHERE study = :study",
    "sealed series": f"UPDATE index_series SET sealed = {flipped('sealed')} WHERE study = :study",
    "metadata place": "UPDATE index_series SET metadata = replace(metadata, 'offset', 'ofset') WHERE study = :study",
    "sealed instance": f"UPDATE index_instance SET sealed = {flipped('sealed')} WHERE study = :study",
    "text for bytes": "UPDATE index_instance SET fingerprint = x'ff' || substr(fingerprint, 2) WHERE study = :study",
    "fingerprint": f"UPDATE index_instance SET fingerprint = {flipped('fingerprint')} WHERE study = :study",
    "instance taken away": "DELETE FROM index_instance WHERE study = :study",
    "instance moved": "UPDATE index_instance SET study = 'st_stolen' WHERE study = :study",
}


@pytest.mark.requirement("C3")
@pytest.mark.parametrize("statement", ALTERATIONS.values(), ids=ALTERATIONS)
async def test_an_altered_byte_in_an_index_row_is_named_and_mended(tmp_path: Path, statement: str) -> None:
    """A look names the study and changes nothing; a rebuild puts the very bytes back."""
    async with small_node(tmp_path) as node:
        await filled(node)
        before = await dump(node)
        study = node.index.pseudonyms.study("1.2.3.1")
        async with node.database.write() as tx:
            await tx.execute(text(statement), {"study": study})
        looked = await rebuilding(node).everything("system", mend=False)
        assert looked.differing == [study]
        assert (await rebuilding(node).everything("system", mend=False)).differing == [study]
        event = (await node.events(EventKind.INTEGRITY_FAILED))[0].event
        assert (event.study, event.reason) == (study, "Rows of the index were altered.")
        assert (await rebuilding(node).everything("system")).differing == [study]
        assert await dump(node) == before


@pytest.mark.requirement("F4")
async def test_study_without_a_readable_pack_keeps_its_rows_and_is_named(tmp_path: Path) -> None:
    """A lost or damaged pack is no reason to forget what was in it."""
    async with small_node(tmp_path) as node:
        await filled(node)
        before = await dump(node)
        lost, damaged = node.index.pseudonyms.study("1.2.3.0"), node.index.pseudonyms.study("1.2.3.1")
        node.blobs._path(f"{lost}.pack").unlink()
        with node.blobs._path(f"{damaged}.pack").open("r+b") as file:
            file.write(b"?")
        result = await rebuilding(node).everything("system")
        assert set(result.failed) == {lost, damaged}
        assert result.studies == 1
        assert await dump(node) == before
        named = {entry.event.study for entry in await node.events(EventKind.INTEGRITY_FAILED)}
        assert named == {lost, damaged}


async def test_metadata_is_found_again_after_a_crash(tmp_path: Path) -> None:
    """What was pre-made and not yet noted when the process died is noted at the next start."""
    async with small_node(tmp_path) as node:
        await filled(node)
        before = await dump(node)
        study = node.index.pseudonyms.study("1.2.3.1")
        async with node.database.write() as tx:
            await tx.execute(text("UPDATE index_series SET metadata = NULL WHERE study = :s"), {"s": study})
            await tx.execute(text("UPDATE index_study SET indexed_to = 4096 WHERE study = :s"), {"s": study})
        await node.ingest.recover()
        assert await dump(node) == before
