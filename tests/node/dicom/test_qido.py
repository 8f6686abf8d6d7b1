"""QIDO-RS: every level below every resource, what an answer holds, fields from the images, fuzzy names, pages."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from consent.vocabulary import EventKind
from node.index.names import fuzzy
from tests.support.dicom import ct_slice, uid
from tests.support.web_door import Door, chief, open_door

pytestmark = pytest.mark.asyncio(loop_scope="module")
NAMES = {"a": "García Márquez^José", "b": "Garcia^Ana", "c": "Zhang^San=张^三", "d": "O'Brien^Jo"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def door(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Door]:
    """Four patients, a study each; the first has two series of two instances."""
    async with open_door(tmp_path_factory.mktemp("node")) as door:
        slices = [
            ct_slice(
                study=name, patient_id=f"P-{name}", patient_name=patient, series=series, number=number,
                study_date=f"2026030{1 + 'abcd'.index(name)}", ManufacturerModelName="Model 7", EthnicGroup="",
            )
            for name, patient in NAMES.items()
            for series in ((1, 2) if name == "a" else (1,))
            for number in ((1, 2) if name == "a" else (1,))
        ]  # fmt: skip
        await door.node.store(*slices)
        await door.node.ingest.descriptions.settled()
        await door.node.ingest.flushed()
        yield door


async def ask(door: Door, path: str) -> tuple[list[dict[str, Any]], list[str]]:
    """The answers and the warnings."""
    headers = {"Authorization": f"Bearer {await door.token(await chief(door))}"}
    async with door.http.get(door.url + path, headers=headers) as answer:
        assert answer.status == 200, await answer.text()
        return json.loads(await answer.read()), answer.headers.getall("Warning", [])


STUDY_LEVEL = (
    *(
        "00080005",
        "00080020",
        "00080030",
        "00080050",
        "00080056",
        "00080061",
        "00080090",
        "00081190",
        "00100010",
    ),
    *("00100020", "00100030", "00100040", "0020000D", "00200010", "00201206", "00201208"),
)
SERIES_LEVEL = ("00080060", "0008103E", "0020000E", "00200011", "00201209")
INSTANCE_LEVEL = ("00080016", "00080018", "00200013", "00280010", "00280011", "00280008")


@pytest.mark.requirement("F5")
@pytest.mark.parametrize(
    ("path", "count", "tags"),
    [
        ("/studies", 4, STUDY_LEVEL),
        ("/series", 5, (*STUDY_LEVEL, *SERIES_LEVEL)),
        ("/instances", 7, (*STUDY_LEVEL, *SERIES_LEVEL, *INSTANCE_LEVEL)),
        (f"/studies/{uid('a')}/series", 2, SERIES_LEVEL),
        (f"/studies/{uid('a')}/instances", 4, (*SERIES_LEVEL, *INSTANCE_LEVEL)),
        (f"/studies/{uid('a')}/series/{uid('a', 2)}/instances", 2, INSTANCE_LEVEL),
        ("/studies/1.2.3/series", 0, ()),
        (f"/series?SeriesInstanceUID={uid('a', 2)}", 1, ()),
        (f"/instances?StudyInstanceUID={uid('a')}&InstanceNumber=2", 2, ()),
    ],
)
async def test_every_level_is_searched_below_every_resource(
    door: Door, path: str, count: int, tags: tuple[str, ...]
) -> None:
    """PS3.18 Tables 10.6.1-2 and 10.6.3-3 to -5: what is required is there, empty where it has no value, in order of the tags."""
    answers, _ = await ask(door, path)

    assert len(answers) == count
    for answer in answers:
        assert set(tags) <= set(answer)
        assert list(answer) == sorted(answer)
        assert all("vr" in element for element in answer.values())


@pytest.mark.requirement("F5", "V4")
async def test_fields_come_out_of_the_images(door: Door) -> None:
    """By keyword, by tag, several in one value; empty where there is none; on record with the search."""
    answers, warnings = await ask(
        door,
        f"/studies/{uid('a')}/series?includefield=ManufacturerModelName,00102160&includefield=PatientAge,StudyDate,Nonsense",
    )
    assert [answer["00081090"] for answer in answers] == [{"vr": "LO", "Value": ["Model 7"]}] * 2
    assert {"00102160", "00101010"} <= set(answers[0])
    assert answers[0]["00101010"] == {"vr": "AS"}
    assert [warning for warning in warnings if "Nonsense" in warning]
    event = (await door.node.events(EventKind.STUDIES_SEARCHED))[-1].event
    assert event.detail["fields"] == ["00081090", "00101010", "00102160"]
    assert event.detail["described"] == 2
    viewed = (await door.node.events(EventKind.STUDY_VIEWED))[-1].event
    assert viewed.study == door.node.index.pseudonyms.study(uid("a"))
    assert viewed.patient == await door.node.index.patient_of(viewed.study)
    assert viewed.detail == {"fields": event.detail["fields"], "described": 2}
    assert not await door.node.events(EventKind.STUDY_OPENED)


@pytest.mark.requirement("F5")
async def test_all_fields_of_an_instance_are_its_metadata_without_bulk(door: Door) -> None:
    """`includefield=all` gives each instance its own values."""
    answers, _ = await ask(door, f"/studies/{uid('a')}/series/{uid('a', 1)}/instances?includefield=all")
    (study, *_), _ = await ask(door, "/studies?includefield=all")

    assert [answer["00280100"]["Value"] for answer in answers] == [[16], [16]]
    assert len({answer["00080018"]["Value"][0] for answer in answers}) == 2
    assert "7FE00010" not in answers[0]
    assert "00101010" in study


@pytest.mark.requirement("F5", "V4")
async def test_fields_of_many_studies_are_on_record_study_by_study(door: Door) -> None:
    """Each patient's record shows that their images were looked into; of the studies that were not it says nothing."""
    before = len(await door.node.events(EventKind.STUDY_VIEWED))
    answers, _ = await ask(door, "/studies?includefield=ManufacturerModelName")
    viewed = [entry.event for entry in (await door.node.events(EventKind.STUDY_VIEWED))[before:]]

    assert len(answers) > 1
    assert sorted(event.study or "" for event in viewed) == sorted(
        door.node.index.pseudonyms.study(answer["0020000D"]["Value"][0]) for answer in answers
    )


@pytest.mark.requirement("F5", "U1")
async def test_who_may_not_view_gets_what_the_index_says(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fields are a view: where the rules let somebody find a study and not see it, they stay out."""
    from consent.errors import Denied
    from node.gateway.visits import Visits

    async def refuse(*_: object) -> None:
        raise Denied("Not now.")

    monkeypatch.setattr(Visits, "glance", refuse)
    before = len(await door.node.events(EventKind.STUDY_VIEWED))
    answers, _ = await ask(door, f"/studies?StudyInstanceUID={uid('a')}&includefield=ManufacturerModelName")

    assert "00081090" not in answers[0]
    assert (await door.node.events(EventKind.STUDIES_SEARCHED))[-1].event.detail["described"] == 0
    assert len(await door.node.events(EventKind.STUDY_VIEWED)) == before


@pytest.mark.requirement("F5")
@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("jose garcia", "a"), ("GARCIA", "ab"), ("Garcia^Jo", "a"), ("marquez", "a"), ("obrien", ""), ("o brien", "d"),
        ("张", "c"), ("zhang s", "c"), ("garcia zhang", ""), ("ga*", "ab"),
    ],
)  # fmt: skip
async def test_names_are_found_fuzzily(door: Door, asked: str, found: str) -> None:
    """Words in any order, from their beginnings, without case, accents and punctuation."""
    answers, warnings = await ask(door, f"/studies?PatientName={asked}&fuzzymatching=true")

    assert {answer["00100020"]["Value"][0] for answer in answers} == {f"P-{one}" for one in found}
    assert not warnings


async def test_without_being_asked_names_are_matched_literally(door: Door) -> None:
    """The same words find nothing; a fuzzy search without a name says that it was literal."""
    answers, _ = await ask(door, "/studies?PatientName=jose garcia")
    _, warnings = await ask(door, "/studies?PatientID=P-a&fuzzymatching=true")

    assert answers == []
    assert [warning for warning in warnings if "literal matching" in warning]
    assert not fuzzy("***")("anything")


@pytest.mark.requirement("F5")
async def test_pages_follow_each_other(door: Door) -> None:
    """limit and offset cut the same answers; all but the last page say that there are more."""
    whole, _ = await ask(door, "/instances")
    paged = []
    for offset in range(0, 8, 3):
        page, warnings = await ask(door, f"/instances?limit=3&offset={offset}")
        assert bool(warnings) == (offset < 6)
        paged += page

    assert paged == whole
    assert [one["0020000D"]["Value"][0] for one in (await ask(door, "/studies"))[0]] == [
        uid(name) for name in "dcba"
    ]


@pytest.mark.requirement("F5")
async def test_empty_values_are_searched_where_that_is_agreed(door: Door) -> None:
    """`""` finds what has no value with emptyvaluematching, and is a literal without it."""
    with_it, _ = await ask(door, '/studies?StudyDescription=""&emptyvaluematching=true')
    without, _ = await ask(door, '/studies?StudyDescription=""')

    assert len(without) == 0
    assert all("Value" not in answer["00081030"] for answer in with_it)


@pytest.mark.requirement("F4", "F5")
@pytest.mark.parametrize(
    "query",
    ["limit=x", "limit=-1", "offset=9999999999", "fuzzymatching=perhaps", "includefield=" + ",".join(["a"] * 65), "StudyDate=today"],
)  # fmt: skip
async def test_what_cannot_be_read_is_said(door: Door, query: str) -> None:
    """400 with the parameter's name."""
    status, _, body = await door.get(await chief(door), f"/studies?{query}")

    assert status == 400
    assert json.loads(body)["detail"]
