"""The index: pseudonyms, sealed rows, and every kind of matching."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from consent.errors import Corrupt, Invalid, NotFound
from consent.vocabulary import Grade
from node.database import Database
from node.imaging.attributes import Attributes
from node.index import Entry, Index, Level, Placement, Pseudonyms, Query, Visible
from node.index import index as index_module
from node.index import names as names_module
from node.index import search as search_module
from node.index.names import NameTable, folded_groups, wildcard
from node.index.query import dicom_json
from node.index.tables import INSTANCES, SERIES, STUDIES

KEY = bytes(range(32))
NAMES = Pseudonyms(KEY)
NOW = datetime(2026, 11, 22, 9, 0, tzinfo=UTC)


def entry(
    study: int = 1, series: int = 1, number: int = 1, grade: Grade = Grade.ORDINARY, **more: Any
) -> Entry:
    attributes = Attributes(
        **{
            "sop_class_uid": "1.2.840.10008.5.1.4.1.1.2",
            "transfer_syntax_uid": "1.2.840.10008.1.2.1",
            "study_instance_uid": f"1.2.3.{study}",
            "series_instance_uid": f"1.2.3.{study}.{series}",
            "sop_instance_uid": f"1.2.3.{study}.{series}.{number}",
            "patient_id": f"P-{study}",
            "patient_name": f"Name{study}^Given",
            "birth_date": "19700101",
            "sex": "F",
            "study_date": f"202611{study:02d}",
            "study_time": "101500",
            "accession_number": f"ACC{study}",
            "modality": "CT",
            "study_description": "Chest routine",
            "series_number": series,
            "instance_number": number,
            "rows": 4,
            "columns": 4,
        }
        | more
    )
    return Entry(
        study=NAMES.study(attributes.study_instance_uid),
        series=NAMES.series(attributes.series_instance_uid),
        instance=NAMES.instance(attributes.sop_instance_uid),
        patient=NAMES.patient(attributes.patient_id, attributes.study_instance_uid),
        grade=grade,
        received=NOW,
        attributes=attributes,
        sha256=hashlib.sha256(attributes.sop_instance_uid.encode()).digest(),
        size_bytes=1000,
        data_set=Placement(100, 1100, 1000, bytes(32), grade),
        description=Placement(0, 100, 60, bytes(32), grade),
    )


async def add(index: Index, database: Database, *entries: Entry) -> tuple[Entry, ...]:
    async with database.write() as tx:
        added = await index.add(tx, entries, {})
    index.remember(added)
    return added


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(f"sqlite+aiosqlite:///{tmp_path}/index.db")
    async with database.write() as tx:
        for table in (STUDIES, SERIES, INSTANCES):
            await tx.run_sync(table.create)
    yield database
    await database.close()


@pytest.fixture
async def index(database: Database) -> AsyncIterator[Index]:
    index = Index(database, KEY)
    await index.load()
    yield index
    index.close()


async def uids_found(index: Index, level: Level = Level.STUDY, **keys: str) -> list[str]:
    page = await index.search(Query.of(level, keys))
    keyword = {Level.STUDY: "StudyInstanceUID", Level.SERIES: "SeriesInstanceUID"}.get(
        level, "SOPInstanceUID"
    )
    return [str(match.values[keyword]) for match in page.matches]


@pytest.mark.requirement("V1")
def test_pseudonyms_are_stable_keyed_and_distinct_by_kind() -> None:
    """The same value names the same thing under one key, another under another, and never across kinds."""
    again, other = Pseudonyms(KEY), Pseudonyms(bytes(32))

    assert NAMES.study("1.2.3") == again.study("1.2.3") != other.study("1.2.3")
    assert re.fullmatch(r"st_[a-z2-7]{26}", NAMES.study("1.2.3"))
    assert NAMES.study("1.2.3")[3:] != NAMES.series("1.2.3")[3:]
    assert NAMES.patient("", "1.2.3") != NAMES.patient("", "1.2.4")


@pytest.mark.parametrize("key", [b"", bytes(31)], ids=["empty", "short"])
def test_an_index_key_of_the_wrong_length_is_refused(key: bytes) -> None:
    """A key that is not 32 bytes makes no pseudonyms."""
    with pytest.raises(ValueError, match="32 bytes"):
        Pseudonyms(key)


async def test_totals_are_kept_as_instances_arrive(
    index: Index, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Study and series rows count what was added, once, and gather modalities."""
    await add(index, database, entry(number=1), entry(number=2), entry(series=2, modality="SR"))
    await add(index, database, entry(number=2), entry(number=3))

    study = await index.study(NAMES.study("1.2.3.1"))
    series = await index.series(study.study)
    assert (study.series_count, study.instance_count, study.size_bytes) == (2, 4, 4000)
    assert study.modalities == ("CT", "SR")
    assert [(one.number, one.instance_count) for one in series] == [(1, 3), (2, 1)]
    instances = await index.instances(study.study)
    assert [one.number for one in instances if one.series == series[0].series] == [1, 2, 3]
    monkeypatch.setattr(index_module, "OPENED_IN_PLACE", 0)
    assert await index.instances(study.study) == instances
    assert (await index.totals()).instances == 4


async def test_an_instance_is_added_once(index: Index, database: Database) -> None:
    """Adding what is there already, or twice in one go, adds nothing."""
    first = await add(index, database, entry(), entry())
    again = await add(index, database, entry())

    assert len(first) == 1
    assert again == ()


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, ["3", "2", "1"]),
        ({"PatientID": "P-2"}, ["2"]),
        ({"00100020": "P-2"}, ["2"]),
        ({"PatientID": "P-?"}, ["3", "2", "1"]),
        ({"PatientID": "p-2"}, []),
        ({"AccessionNumber": "ACC3"}, ["3"]),
        ({"AccessionNumber": "*C3"}, ["3"]),
        ({"StudyInstanceUID": "1.2.3.1,1.2.3.3"}, ["3", "1"]),
        ({"StudyInstanceUID": "1.2.3.1\\1.2.3.9"}, ["1"]),
        ({"PatientName": "name2^given"}, ["2"]),
        ({"PatientName": "NAME*"}, ["3", "2", "1"]),
        ({"PatientName": "*3^g*"}, ["3"]),
        ({"PatientName": "n?me1*"}, ["1"]),
        ({"PatientName": "Name2"}, []),
        ({"StudyDate": "20261102"}, ["2"]),
        ({"StudyDate": "20261102-"}, ["3", "2"]),
        ({"StudyDate": "-20261102"}, ["2", "1"]),
        ({"StudyDate": "20261102-20261103"}, ["3", "2"]),
        ({"StudyTime": "1000-1030"}, ["3", "2", "1"]),
        ({"StudyTime": "11-"}, []),
        ({"PatientBirthDate": "19691231-19700101"}, ["3", "2", "1"]),
        ({"ModalitiesInStudy": "CT"}, ["3", "2", "1"]),
        ({"ModalitiesInStudy": "MR\\CT"}, ["3", "2", "1"]),
        ({"ModalitiesInStudy": "C"}, []),
        ({"StudyDescription": "*routine"}, ["3", "2", "1"]),
        ({"PatientSex": "M"}, []),
        ({"PatientName": "*", "PatientID": ""}, ["3", "2", "1"]),
        ({"PatientName": "name*", "StudyDate": "20261103", "PatientID": "P-3"}, ["3"]),
    ],
    ids=str,
)
async def test_studies_are_matched(
    index: Index, database: Database, keys: dict[str, str], expected: list[str]
) -> None:
    """Every kind of matching of PS3.4 §C.2.2.2, newest study first."""
    await add(index, database, entry(1), entry(2), entry(3))

    assert await uids_found(index, **keys) == [f"1.2.3.{one}" for one in expected]


async def test_name_groups_match_each_on_its_own(index: Index, database: Database) -> None:
    """A Chinese name is found by its alphabetic and by its ideographic group, in any spelling of case."""
    await add(index, database, entry(patient_name="Wang^XiaoDong=王^小东"))

    for pattern in ("wang^xiaodong", "王*", "WANG*=王^小东", "*小东"):
        assert await uids_found(index, PatientName=pattern) == ["1.2.3.1"], pattern
    assert await uids_found(index, PatientName="Wang*=李*") == []


async def test_series_and_instances_are_found_by_keys_of_every_level(
    index: Index, database: Database
) -> None:
    """A search below the study takes study keys too and answers in the order of the study."""
    await add(index, database, entry(1, 1, 2), entry(1, 1, 1), entry(1, 2, 1, modality="SR"), entry(2))

    assert await uids_found(index, Level.SERIES, PatientID="P-1") == ["1.2.3.1.1", "1.2.3.1.2"]
    assert await uids_found(index, Level.SERIES, Modality="SR") == ["1.2.3.1.2"]
    assert await uids_found(index, Level.SERIES, SeriesNumber="2") == ["1.2.3.1.2"]
    found = await uids_found(index, Level.INSTANCE, SeriesInstanceUID="1.2.3.1.1")
    assert found == ["1.2.3.1.1.1", "1.2.3.1.1.2"]
    assert await uids_found(index, Level.INSTANCE, SOPInstanceUID="1.2.3.1.1.2") == ["1.2.3.1.1.2"]


async def test_pages_follow_one_another(index: Index, database: Database) -> None:
    """limit and offset cut one order into pages without gap or repeat, and say whether more follows."""
    await add(index, database, *(entry(number) for number in range(1, 8)))
    pages = [
        await index.search(Query.of(Level.STUDY, {"PatientName": "name*"}, limit=3, offset=offset))
        for offset in (0, 3, 6)
    ]

    assert [len(page.matches) for page in pages] == [3, 3, 1]
    assert [page.more for page in pages] == [True, True, False]
    assert len({match.study for page in pages for match in page.matches}) == 7


@pytest.mark.requirement("U1")
@pytest.mark.requirement("F5", "F1")
@pytest.mark.parametrize("at_once", [2, 500], ids=["by the dates of names", "by the database"])
async def test_a_common_name_is_found_in_the_order_of_the_answer(
    index: Index, database: Database, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    """Newest first, page by page, without those of other names, other dates, or whom the asker may not see."""
    monkeypatch.setattr(search_module, "PAGE_ROWS", at_once)
    grades = [Grade.ORDINARY, Grade.SENSITIVE]
    for number in range(1, 26):
        name = "Rare^One" if number % 5 == 0 else "Common^One"
        await add(index, database, entry(number, grade=grades[number % 2], patient_name=name))
    # The date of a study stays what it first was, in its row and beside its name.
    await add(index, database, entry(24, number=2, patient_name="Common^One", study_date="20261101"))
    visible = Visible(grades=frozenset({Grade.ORDINARY}))
    keys = {"PatientName": "comm*", "StudyDate": "20261104-20261124"}
    wanted = [f"1.2.3.{n}" for n in range(24, 3, -1) if n % 5 and not n % 2]
    for again in range(2):
        found: list[str] = []
        for offset in range(0, len(wanted) + 3, 3):
            page = await index.search(Query.of(Level.STUDY, keys, limit=3, offset=offset), visible)
            found += [str(match.values["StudyInstanceUID"]) for match in page.matches]
            assert page.more == (offset + 3 < len(wanted))
        assert found == wanted, again
        await index.load()


async def test_a_search_finds_only_what_is_visible(index: Index, database: Database) -> None:
    """Visibility by patient and grade is part of the search, not a filter behind the limit."""
    await add(index, database, entry(1), entry(2, grade=Grade.RESTRICTED), entry(3))
    query = Query.of(Level.STUDY)
    own = Visible(
        patients=frozenset({NAMES.patient("P-1"), NAMES.patient("P-2")}),
        patient_grades=frozenset({Grade.ORDINARY, Grade.SENSITIVE}),
    )

    assert [match.values["PatientID"] for match in (await index.search(query, own)).matches] == ["P-1"]
    assert (await index.search(query, Visible())).matches == ()


async def test_answers_are_dicom_json(index: Index, database: Database) -> None:
    """Values have their VR; what is empty has no Value; person names come in groups."""
    await add(index, database, entry(patient_name="Wang^Xiao=王^小", referring_physician=""))
    (match,) = (await index.search(Query.of(Level.STUDY))).matches
    answer = dicom_json(match.values)

    assert answer["00100010"] == {"vr": "PN", "Value": [{"Alphabetic": "Wang^Xiao", "Ideographic": "王^小"}]}
    assert answer["00080090"] == {"vr": "PN"}
    assert answer["00201208"] == {"vr": "IS", "Value": [1]}
    assert answer["00080061"] == {"vr": "CS", "Value": ["CT"]}


@pytest.mark.parametrize(
    "keys",
    [
        {"StudyDate": "2026-11-22"},
        {"StudyDate": "today"},
        {"StudyDate": "-"},
        {"StudyInstanceUID": "1.2.3; DROP TABLE index_study"},
        {"StudyInstanceUID": ",".join(["1.2"] * 501)},
        {"PatientName": "x" * 20_000},
        {"StudyTime": "noon"},
    ],
    ids=["dashes", "word", "no-end", "not-a-uid", "too-many-uids", "too-long", "not-a-time"],
)
def test_a_malformed_key_is_refused_by_name(keys: dict[str, str]) -> None:
    """The refusal names the attribute and not its value."""
    with pytest.raises(Invalid) as refused:
        Query.of(Level.STUDY, keys)
    ((keyword, value),) = keys.items()
    assert keyword in str(refused.value) or "UIDs" in str(refused.value)
    assert value == "-" or value[:20] not in str(refused.value)


@pytest.mark.parametrize("bounds", [{"offset": -1}, {"limit": -1}, {"offset": 10**9}], ids=str)
def test_pages_out_of_bounds_are_refused(bounds: dict[str, int]) -> None:
    """limit and offset have bounds."""
    with pytest.raises(Invalid):
        Query.of(Level.STUDY, **bounds)


def test_keys_that_are_not_searched_are_reported() -> None:
    """Unknown attributes, and those of a lower level, are named as ignored instead of silently matching."""
    query = Query.of(Level.STUDY, {"EthnicGroup": "x", "SOPInstanceUID": "1.2", "00400275": "y"})

    assert query.keys == {}
    assert query.ignored == ("EthnicGroup", "SOPInstanceUID", "00400275")


@pytest.mark.requirement("V1", "C3")
async def test_a_row_that_was_altered_or_moved_does_not_open(index: Index, database: Database) -> None:
    """A value put into another row is Corrupt, never somebody else's name."""
    await add(index, database, entry(1), entry(2))
    async with database.write() as tx:
        other = NAMES.study("1.2.3.2")
        query = text("UPDATE index_study SET sealed = (SELECT sealed FROM index_study WHERE study = :other)")
        await tx.execute(query, {"other": other})

    assert (await index.study(other)).values["PatientID"] == "P-2"
    with pytest.raises(Corrupt):
        await index.study(NAMES.study("1.2.3.1"))


@pytest.mark.requirement("V1")
async def test_nothing_of_the_patient_lies_in_clear(index: Index, database: Database, tmp_path: Path) -> None:
    """Name, ID, birth date, accession number, physician, descriptions and UIDs are in no file of the database."""
    planted = {
        "patient_name": "Zacharias^Quentin",
        "patient_id": "PLANTED-4711",
        "birth_date": "19431217",
        "accession_number": "ACCPLANTED",
        "referring_physician": "Hippokrates^Kos",
        "study_description": "Planted description",
        "series_description": "Planted series",
        "study_instance_uid": "1.2.826.99.1",
        "sop_instance_uid": "1.2.826.99.3",
    }
    await add(index, database, entry(**planted))
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())

    for value in planted.values():
        for part in (value, *value.split("^")):
            for form in (part.encode(), part.upper().encode(), part.encode("utf-16-le")):
                assert form not in stored, part


async def test_names_survive_a_restart(index: Index, database: Database) -> None:
    """The table of names is read back from its sealed column."""
    await add(index, database, entry(1), entry(2))
    again = Index(database, KEY)
    await again.load()

    assert await uids_found(again, PatientName="name2*") == ["1.2.3.2"]
    again.close()


async def test_a_removed_study_is_gone(index: Index, database: Database) -> None:
    """After removal no look-up and no search finds the study."""
    await add(index, database, entry(1))
    study = NAMES.study("1.2.3.1")
    async with database.write() as tx:
        await index.remove(tx, study)

    with pytest.raises(NotFound):
        await index.study(study)
    assert await uids_found(index, PatientName="name*") == []
    assert await index.holder(NAMES.instance("1.2.3.1.1.1")) is None


async def test_how_far_a_pack_is_indexed_only_rises(index: Index, database: Database) -> None:
    """A late flush cannot take back what an earlier one has covered."""
    await add(index, database, entry(1))
    study = NAMES.study("1.2.3.1")
    for end in (500, 300):
        async with database.write() as tx:
            await index.set_indexed_to(tx, study, end)

    assert await index.indexed_to() == {study: 500}


@given(
    st.lists(st.text(alphabet="abAB^=王 ", max_size=8), max_size=20), st.text(alphabet="ab^*?王", max_size=6)
)
def test_the_table_of_names_agrees_with_matching_one_by_one(names: list[str], pattern: str) -> None:
    """Whatever short cut or slices the table takes, it finds exactly the names that the pattern matches."""
    table = NameTable()
    for number, name in enumerate(names):
        table.add(f"st_{number}", name, "")
    groups = folded_groups(pattern)
    expected = {
        f"st_{number}"
        for number, name in enumerate(names)
        if groups and all(any(wildcard(p).fullmatch(group) for group in folded_groups(name)) for p in groups)
    }

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(names_module, "SLICE_NAMES", 3)
        assert (asyncio.run(table.match(pattern)) or {}).keys() == expected


async def test_a_search_in_many_names_lets_other_work_have_its_turn() -> None:
    """Names that come and go between its slices neither hide nor double what was there all along."""
    table = NameTable()
    table.load((f"st_{number}", f"Name{number:06}^X", "") for number in range(40_000))
    search = asyncio.create_task(table.match("*9^x"))
    turns = 0
    while not search.done():
        await asyncio.sleep(0)
        turns += 1
        table.remove(f"st_{turns}", f"Name{turns:06}^X")
        table.add(f"st_new{turns}", f"Aaa{turns}^Y", "")

    assert turns >= 40_000 // names_module.SLICE_NAMES
    assert {f"st_{number}" for number in range(39_009, 40_000, 10)} <= (search.result() or {}).keys()


def test_a_hostile_pattern_costs_no_more_than_a_kind_one() -> None:
    """Many stars against a long run of one letter do not backtrack."""
    table = NameTable()
    table.add("st_1", "a" * 2000 + "b", "")

    assert asyncio.run(table.match("*a" * 200 + "c")) == {}
