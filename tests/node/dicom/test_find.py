"""C-FIND against a whole node, asked by an independent client: models, levels, matching, rights, bounds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio
from pydicom.dataset import Dataset
from pynetdicom.pdu_primitives import SOPClassExtendedNegotiation
from pynetdicom.sop_class import (
    CTImageStorage,
    PatientRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelFind,
)

from consent.vocabulary import EventKind
from node.dicom import find
from node.dicom.messages import CANCELLED, Command, Verb, encode_request
from node.dicom.pdu import AssociateAc, Proposal
from tests.node.dicom.archive import READING_ROOM, SCANNER, WORKSTATION, Archive, archive_in, identifier
from tests.node.dicom.raw import Raw, data_pdu
from tests.node.dicom.test_identifiers import encoded
from tests.support.dicom import EXPLICIT, nested_sequences, study, uid

PATIENT_ROOT, STUDY_ROOT = (
    str(PatientRootQueryRetrieveInformationModelFind),
    str(StudyRootQueryRetrieveInformationModelFind),
)
pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.requirement("F5"),
    pytest.mark.timeout(60),
]


def codes(value: str, meaning: str) -> list[Dataset]:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "LN", meaning
    return [item]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def archive(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Archive]:
    """Two studies of Wang, one of Müller made by radiology, one restricted."""
    async with archive_in(tmp_path_factory.mktemp("find")) as archive:
        await archive.node.store(
            *study(
                name="w1", slices=2, series=2, patient_id="W", patient_name="Wang^Wei=王^伟",
                study_date="20260301", StudyTime="235000", ProcedureCodeSequence=codes("24627-2", "Chest"),
            ),
            *study(
                name="w2", slices=1, patient_id="W", patient_name="Wang^Wei=王^伟", study_date="20260302",
                StudyTime="001000", modality="MR", accession_number="A-2",
            ),
            *study(
                name="m1", slices=1, patient_id="M", patient_name="Müller^Jörg", study_date="20260303",
                StudyTime="1200", InstitutionalDepartmentName="RADIOLOGY", accession_number="",
            ),
            *study(
                name="secret", slices=1, patient_id="S", patient_name="Wang^Secret",
                InstitutionalDepartmentName="STAFF HEALTH",
            ),
        )  # fmt: skip
        yield archive


def ask(
    archive: Archive,
    model: str,
    question: Dataset,
    *,
    calling: str = WORKSTATION,
    extended: bytes = b"",
) -> tuple[list[Dataset], int, str]:
    """Answers, final status and its words; blocks."""
    more = []
    if extended:
        item = SOPClassExtendedNegotiation()
        item.sop_class_uid, item.service_class_application_information = model, extended
        more.append(item)
    association = archive.associate([model], calling=calling, more=more)
    try:
        answers, status, words = [], 0, ""
        for answer, data in association.send_c_find(question, model):
            status, words = answer.Status, answer.get("ErrorComment", "")
            if data is not None:
                answers.append(data)
        return answers, status, words
    finally:
        association.release()


Ask = Callable[..., Any]


async def asked(archive: Archive, model: str, level: str, **more: Any) -> tuple[list[Dataset], int, str]:
    options = {name: more.pop(name) for name in ("calling", "extended") if name in more}
    return await asyncio.to_thread(ask, archive, model, identifier(level, **more), **options)


def uids(answers: list[Dataset]) -> set[str]:
    return {str(one.StudyInstanceUID) for one in answers}


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        ({}, {"w1", "w2", "m1"}),
        ({"PatientName": "wang*"}, {"w1", "w2"}),
        ({"PatientName": "王*"}, {"w1", "w2"}),
        ({"PatientName": "M?ller^*"}, {"m1"}),
        ({"PatientID": "W"}, {"w1", "w2"}),
        ({"StudyDate": "20260302-"}, {"w2", "m1"}),
        ({"StudyDate": "20260301-20260302", "StudyTime": "0000-0100"}, {"w2"}),
        ({"StudyTime": "12"}, {"m1"}),
        ({"ModalitiesInStudy": "MR"}, {"w2"}),
        ({"StudyInstanceUID": [uid("w1"), uid("m1"), uid("none")]}, {"w1", "m1"}),
        ({"AccessionNumber": "A-2"}, {"w2"}),
        ({"AccessionNumber": "*"}, {"w1", "w2", "m1"}),
        ({"ProcedureCodeSequence": codes("24627-2", "")}, {"w1"}),
        ({"ProcedureCodeSequence": codes("24627-2", "Head")}, set()),
        ({"PatientName": "Nobody"}, set()),
    ],
)
async def test_studies_are_matched(archive: Archive, keys: dict[str, Any], found: set[str]) -> None:
    """Single values, wildcards, ranges, UID lists, sequences; what is restricted is not shown to a device."""
    charset = {"SpecificCharacterSet": "ISO_IR 192"}
    answers, status, words = await asked(
        archive, STUDY_ROOT, "STUDY", **{"StudyInstanceUID": "", **charset, **keys}
    )

    assert (status, words) == (0, "")
    assert uids(answers) == {uid(name) for name in found}


@pytest.mark.parametrize(
    ("fields", "keys", "found"),
    [
        (b"\0\1", {"StudyDate": "20260301-20260302", "StudyTime": "234500-001500"}, {"w1", "w2"}),
        (b"\0\1", {"StudyDate": "20260301-20260302", "StudyTime": "235500-001500"}, {"w2"}),
        (b"\0\0\0\0\0\1", {"AccessionNumber": '""'}, {"m1"}),
        (b"", {"AccessionNumber": '""'}, set()),
    ],
    ids=["two-midnights", "after-the-first", "empty", "not-agreed"],
)
async def test_what_was_negotiated_is_done(
    archive: Archive, fields: bytes, keys: dict[str, str], found: set[str]
) -> None:
    """Combined date and time is one moment; a pair of quotation marks asks for no value, where both agreed."""
    answers, status, _ = await asked(
        archive, STUDY_ROOT, "STUDY", extended=fields, StudyInstanceUID="", **keys
    )

    assert status == 0 and uids(answers) == {uid(name) for name in found}


async def test_patients_are_answered_once_with_their_totals(archive: Archive) -> None:
    """The patient level of the patient root: one answer each, counts of what may be found."""
    answers, status, _ = await asked(
        archive, PATIENT_ROOT, "PATIENT", PatientID="", PatientName="", NumberOfPatientRelatedStudies="",
        NumberOfPatientRelatedSeries="", NumberOfPatientRelatedInstances="",
    )  # fmt: skip
    totals = {
        one.PatientID: tuple(
            int(one[f"NumberOfPatientRelated{what}"].value) for what in ("Studies", "Series", "Instances")
        )
        for one in answers
    }

    assert status == 0
    assert totals == {"W": (2, 3, 5), "M": (1, 1, 1)}
    assert {one.RetrieveAETitle for one in answers} == {"ACCORD"}


async def test_levels_below_a_study(archive: Archive) -> None:
    """Series and images with the attributes of their level and those above."""
    series, _, _ = await asked(
        archive, STUDY_ROOT, "SERIES", StudyInstanceUID=uid("w1"), SeriesInstanceUID="", SeriesNumber="",
        Modality="", NumberOfSeriesRelatedInstances="", PatientName="",
    )  # fmt: skip
    images, _, _ = await asked(
        archive, PATIENT_ROOT, "IMAGE", PatientID="W", StudyInstanceUID=uid("w1"),
        SeriesInstanceUID=uid("w1", 1), SOPInstanceUID="", InstanceNumber="", Rows=None, InstanceAvailability="",
    )  # fmt: skip

    assert [
        (int(one.SeriesNumber), one.Modality, int(one.NumberOfSeriesRelatedInstances)) for one in series
    ] == [
        (1, "CT", 2),
        (2, "CT", 2),
    ]
    assert series[0].PatientName.ideographic == "王^伟"
    assert [(int(one.InstanceNumber), one.Rows, one.InstanceAvailability) for one in images] == [
        (1, 32, "ONLINE"),
        (2, 32, "ONLINE"),
    ]


@pytest.mark.parametrize(
    ("model", "level", "keys", "status", "words"),
    [
        (STUDY_ROOT, "PATIENT", {"PatientID": "W"}, 0xA900, "not of this information model"),
        (STUDY_ROOT, "", {"PatientID": "W"}, 0xA900, "Level missing"),
        (STUDY_ROOT, "SERIES", {"PatientID": "W"}, 0xA900, "StudyInstanceUID: relational"),
        (PATIENT_ROOT, "STUDY", {"StudyInstanceUID": ""}, 0xA900, "PatientID: relational"),
        (PATIENT_ROOT, "STUDY", {"PatientID": "W*"}, 0xA900, "PatientID: relational"),
        (
            STUDY_ROOT, "IMAGE", {"StudyInstanceUID": uid("w1"), "SeriesInstanceUID": [uid(1), uid(2)]}, 0xA900,
            "SeriesInstanceUID: relational",
        ),
        (STUDY_ROOT, "STUDY", {"StudyTime": "-"}, 0xC000, "StudyTime takes"),
    ],
)  # fmt: skip
async def test_what_does_not_fit_the_model_is_refused_in_words(
    archive: Archive, model: str, level: str, keys: dict[str, Any], status: int, words: str
) -> None:
    """Relational queries, levels of the other model, values that are none: a status and why."""
    answers, answered, said = await asked(archive, model, level, **keys)

    assert not answers and answered == status and words in said


async def test_keys_that_are_not_known_are_said_to_be(archive: Archive) -> None:
    """FF01 warns that something was not matched; a timezone is passed over and said so."""
    for keys, status in (
        ({"PatientID": ""}, 0xFF00),
        ({"TimezoneOffsetFromUTC": "+0800"}, 0xFF01),
        ({"Modality": ""}, 0xFF01),
    ):
        question = identifier("STUDY", StudyInstanceUID="", **keys)

        def pending(question: Dataset = question) -> set[int]:
            association = archive.associate([STUDY_ROOT])
            try:
                return {answer.Status for answer, _ in association.send_c_find(question, STUDY_ROOT)}
            finally:
                association.release()

        assert await asyncio.to_thread(pending) == {status, 0}


@pytest.mark.requirement("U1", "V4")
async def test_a_device_finds_what_it_is_registered_for(archive: Archive) -> None:
    """One registered to send finds nothing and is on record; one of a department finds that department's."""
    answers, status, words = await asked(archive, STUDY_ROOT, "STUDY", calling=SCANNER, StudyInstanceUID="")
    assert (answers, status, words) == ([], 0x0124, "This device is not registered to query.")
    refused = await archive.node.events(EventKind.ACCESS_REFUSED)
    assert refused[-1].event.actor == f"device:{SCANNER}"

    answers, status, _ = await asked(archive, STUDY_ROOT, "STUDY", calling=READING_ROOM, StudyInstanceUID="")
    assert status == 0 and uids(answers) == {uid("m1")}
    totals, _, _ = await asked(
        archive, PATIENT_ROOT, "PATIENT", calling=READING_ROOM, PatientID="", NumberOfPatientRelatedStudies=""
    )
    assert [(one.PatientID, int(one.NumberOfPatientRelatedStudies)) for one in totals] == [("M", 1)]


@pytest.mark.requirement("V4")
async def test_a_query_is_on_record_without_what_was_typed(archive: Archive) -> None:
    """Who asked, by which keys, how many answers; the patient by pseudonym when one was named exactly."""
    await asked(archive, STUDY_ROOT, "STUDY", PatientID="W", PatientName="Wang*", StudyInstanceUID="")
    entry = (await archive.node.events(EventKind.STUDIES_SEARCHED))[-1]

    assert entry.event.actor == f"device:{WORKSTATION}"
    assert entry.event.detail["keys"] == ["PatientID", "PatientName"] and entry.event.detail["answers"] == 2
    assert entry.event.patient == archive.node.index.pseudonyms.patient("W")
    assert "Wang" not in repr(entry.event)


async def test_answers_are_bounded_and_that_is_said(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past the bound the query ends as a failure, never as if that were all."""
    monkeypatch.setattr(find, "MAX_ANSWERS", 2)
    answers, status, words = await asked(archive, STUDY_ROOT, "STUDY", StudyInstanceUID="")

    assert (len(answers), status) == (2, 0xA700) and "more than 2" in words


# Hostile peers


FIND_CONTEXTS = (Proposal(1, STUDY_ROOT, (EXPLICIT,)), Proposal(3, str(CTImageStorage), (EXPLICIT,)))


def find_message(message_id: int, data: bytes) -> bytes:
    """A C-FIND-RQ with any bytes as its identifier."""
    command = Command(Verb.C_FIND_RQ, message_id, STUDY_ROOT, has_data=True)
    out = data_pdu(1, encode_request(command), command=True, last=True)
    pieces = [data[start : start + 30_000] for start in range(0, len(data), 30_000)] or [b""]
    for number, piece in enumerate(pieces, start=1):
        out += data_pdu(1, piece, command=False, last=number == len(pieces))
    return out


def cancel(message_id: int) -> bytes:
    return data_pdu(1, encode_request(Command(Verb.C_CANCEL_RQ, message_id)), command=True, last=True)


@pytest.mark.requirement("F4")
async def test_malformed_identifiers_end_the_query_and_not_the_association(archive: Archive) -> None:
    """Noise, 400 levels, thousands of keys, megabytes: each is answered, and a good query after them too."""
    good = encoded(identifier("STUDY", StudyInstanceUID=uid("w2")))
    many = b"".join(bytes((9, 0, n & 0xFF, n >> 8)) + b"LO\0\0" for n in range(0x1000, 0x2000))
    bad = [b"\x08\0", nested_sequences(400), many, bytes(3_000_000), good + good]
    async with Raw(archive.port) as raw:
        assert isinstance(
            await raw.associate(called="ACCORD", calling=WORKSTATION, contexts=FIND_CONTEXTS), AssociateAc
        )
        for number, data in enumerate(bad, start=1):
            raw.send(find_message(number, data))
            assert (await raw.response()).status == 0xC000
        raw.send(find_message(99, good))
        assert (await raw.response()).status == 0xFF00
        await raw.receive()
        assert (await raw.response()).status == 0


@pytest.mark.requirement("F4")
async def test_cancels_end_what_is_under_way_and_nothing_else(archive: Archive) -> None:
    """A cancel behind its query ends it; a storm of cancels for nothing costs nothing and breaks nothing."""
    question = encoded(identifier("STUDY", StudyInstanceUID=""))
    async with Raw(archive.port) as raw:
        await raw.associate(called="ACCORD", calling=WORKSTATION, contexts=FIND_CONTEXTS)
        raw.send(find_message(7, question), cancel(7))
        last = await raw.response()
        assert (last.message_id, last.status) == (7, CANCELLED)
        for number in range(3000):
            raw.send(cancel(number))
        raw.send(find_message(8, encoded(identifier("STUDY", StudyInstanceUID=uid("none")))))
        last = await raw.response()
        assert (last.message_id, last.status) == (8, 0)


@pytest.mark.requirement("F4")
async def test_a_peer_that_does_not_read_its_answers_is_cut_off(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers wait for the peer, not for ever: the association ends and that is on record."""
    question = encoded(identifier("STUDY", StudyInstanceUID=""))
    loud = "x" * 60_000
    monkeypatch.setattr(find, "write_identifier", lambda *_: loud.encode() * 20)
    object.__setattr__(archive.gate.limits, "stall_seconds", 0.2)
    try:
        async with Raw(archive.port) as raw:
            await raw.associate(called="ACCORD", calling=WORKSTATION, contexts=FIND_CONTEXTS)
            for number in range(1, 9):
                raw.send(find_message(number, question))
            async with asyncio.timeout(10):
                while archive.gate.associations:
                    await asyncio.sleep(0.05)
    finally:
        object.__setattr__(archive.gate.limits, "stall_seconds", 60.0)
    stalled = [
        entry
        for entry in await archive.node.events(EventKind.INPUT_REFUSED)
        if entry.event.detail["code"] == "stalled"
    ]
    assert stalled
