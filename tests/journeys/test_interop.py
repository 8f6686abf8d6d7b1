"""Tools that hospitals use, unchanged, against a node that an operator made with the command line: DCMTK, pynetdicom,
dicomweb-client, Orthanc. Real processes, real sockets, mutual TLS and HTTPS under the node's own authority.

What is not installed is skipped, visibly.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import pydicom
import pynetdicom
import pytest
import pytest_asyncio
import requests
from dicomweb_client.api import DICOMwebClient
from PIL import Image
from pynetdicom.sop_class import (
    CTImageStorage,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)

from consent.vocabulary import EventKind
from node.audit.log import Entry
from node.dicom.sender import Peer, echo
from node.ports import free_ports
from node.tls import KeyPair
from ops.demo.processes import accord
from ops.foundation import opened
from tests.faults.examination import all_entries
from tests.support.dicom import EXPLICIT, Instance, from_file, pydicom_sample_paths, study
from tests.support.served import AE, CHIEF, DIGITISER, SCANNER, Served

ORTHANC = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin")
ORTHANC_TITLE, ASKER = "ORTHANC", "ACCORDSCU"
SECURE_STATION, OLD_STATION, SECURE_STORE, ELSEWHERE = "WS1", "WS2", "STORE1", "MR9"
"""Workstations over TLS and in plain, a store over TLS that C-MOVE sends to, a device that is registered at another address."""
QUERYING = ("--service", "query", "--service", "retrieve")
START_SECONDS = 40.0
needs_dcmtk = pytest.mark.skipif(shutil.which("storescu") is None, reason="DCMTK is not installed")
needs_orthanc = pytest.mark.skipif(ORTHANC is None, reason="Orthanc is not installed")
pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.journey,
    pytest.mark.slow,
    pytest.mark.requirement("F5"),
    pytest.mark.timeout(180),
]


@dataclass(frozen=True)
class Hospital:
    """A node that was made by commands, and the files that belong to it."""

    node: Served
    keys: Path
    certificate: Path
    key: Path
    ca: Path
    station_port: int
    store_port: int

    def tls(self, *, certificate: Path | None = None, key: Path | None = None) -> list[str]:
        """DCMTK's words for mutual TLS as the registered scanner."""
        return ["+tls", str(key or self.key), str(certificate or self.certificate), "+cf", str(self.ca)]

    def station(self, *, secured: bool) -> list[str]:
        """DCMTK's words for a workstation: AE titles, TLS, address and port of the node."""
        title, port = (SECURE_STATION, self.node.tls_port) if secured else (OLD_STATION, self.node.plain_port)
        own = (self.keys / f"{title}.crt", self.keys / f"{title}.key")
        tls = self.tls(certificate=own[0], key=own[1]) if secured else []
        return ["-aet", title, "-aec", AE, *tls, "127.0.0.1", str(port)]

    def web(self, token: str | None = None) -> DICOMwebClient:
        """dicomweb-client over HTTPS, trusting the node's authority alone."""
        session = requests.Session()
        session.trust_env = False
        session.verify = str(self.ca)
        session.headers["Authorization"] = f"Bearer {self.node.token if token is None else token}"
        return DICOMwebClient(f"{self.node.web}/dicom-web", session=session)

    async def send(self, folder: Path, *made: Instance) -> None:
        """Store instances as the scanner does."""
        call = ["-aet", SCANNER, "-aec", AE, *self.tls(), "127.0.0.1", str(self.node.tls_port)]
        status, printed = await run("storescu", *call, *written(folder, *made))
        assert status == 0, printed
        await arrived(self, str(made[0].dataset().StudyInstanceUID), {one.sop_instance_uid for one in made})

    async def entries(self, kind: EventKind) -> list[Entry]:
        """What the log says."""
        return [entry for entry in await all_entries(self.node.folder) if entry.event.kind is kind]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hospital(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Hospital]:
    """Made and registered by commands as in the manual; one process for all tests."""
    root = tmp_path_factory.mktemp("interop")
    folder, keys = root / "node", root / "keys"
    plain, tls, http = free_ports(3)
    await accord(
        "init", folder, "--name", "General Hospital", "--ae-title", AE, "--node-id", "a-general",
        "--http-port", str(http), "--dicom-port", str(tls), "--plain-dicom-port", str(plain), "--peer-port", "0",
    )  # fmt: skip
    await accord("device", "issue-certificate", folder, "--ae-title", SCANNER, "--out", keys)
    at_home = ("--address", "127.0.0.1")
    await accord(
        "device", "add", folder, "--ae-title", SCANNER, *at_home, "--certificate", keys / f"{SCANNER}.crt"
    )
    for title, reason in (
        (DIGITISER, "A film digitiser that cannot do TLS"),
        (ORTHANC_TITLE, "An old archive"),
    ):
        await accord("device", "add", folder, "--ae-title", title, *at_home, "--plain", reason)
    station_port, store_port = free_ports(2)
    await accord(
        "device", "add", folder, "--ae-title", OLD_STATION, *at_home, "--port", str(station_port), *QUERYING,
        "--plain", "A workstation that cannot do TLS",
    )  # fmt: skip
    async with opened(folder) as made:
        for title, address, port in (
            (SECURE_STATION, "127.0.0.1", None),
            (SECURE_STORE, "127.0.0.1", store_port),
            (ELSEWHERE, "10.1.2.3", None),
        ):
            own = made.identity.issue_device_certificate(title, made.clock.now(), serves=port is not None)
            (keys / f"{title}.crt").write_bytes(own.certificate)
            (keys / f"{title}.key").write_bytes(own.key)
            await made.registry.add_device(
                title, address, own.certificate.decode(), services=["query", "retrieve"], port=port
            )
    await accord("user", "add", folder, "--name", CHIEF, "--role", "chief-physician")
    token = (await accord("token", "create", folder, "--user", CHIEF, "--scope", "dicomweb"))["token"]
    pair = KeyPair((keys / f"{SCANNER}.crt").read_bytes(), (keys / f"{SCANNER}.key").read_bytes())
    node = Served(folder, plain, tls, http, 0, pair, (keys / "ca.crt").read_text(), token)
    await node.start()
    try:
        yield Hospital(
            node,
            keys,
            keys / f"{SCANNER}.crt",
            keys / f"{SCANNER}.key",
            keys / "ca.crt",
            station_port,
            store_port,
        )
        assert "Traceback" not in node.output.read_text("utf-8"), node.said()
        assert await node.stop() == 0
    finally:
        if node.alive:
            await node.kill()


async def run(*arguments: str | Path) -> tuple[int, str]:
    """Run a program; return its status and what it printed."""
    process = await asyncio.create_subprocess_exec(
        *map(str, arguments), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    printed, _ = await process.communicate()
    return process.returncode or 0, printed.decode(errors="replace")


def written(folder: Path, *instances: Instance) -> list[Path]:
    """Instances as files."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number:03d}.dcm" for number in range(len(instances))]
    for path, one in zip(paths, instances, strict=True):
        path.write_bytes(one.file())
    return paths


def data_sets(*instances: Instance) -> dict[str, bytes]:
    """What must come back, bit for bit."""
    return {one.sop_instance_uid: one.data for one in instances}


async def arrived(hospital: Hospital, study_uid: str, wanted: set[str]) -> dict[str, pydicom.Dataset]:
    """The study as dicomweb-client retrieves it, once all of `wanted` is in the index."""
    web = hospital.web()
    async with asyncio.timeout(10):
        while True:
            found = await asyncio.to_thread(web.search_for_instances, study_uid)
            if wanted <= {item["00080018"]["Value"][0] for item in found}:
                break
            await asyncio.sleep(0.1)
    whole = await asyncio.to_thread(
        lambda: web.retrieve_study(study_uid, media_types=(("application/dicom", "*"),))
    )
    return {str(ds.SOPInstanceUID): ds for ds in whole}


# DCMTK


@needs_dcmtk
@pytest.mark.requirement("T1", "C1", "C3")
async def test_dcmtk_over_mutual_tls(hospital: Hospital) -> None:
    """echoscu, then storescu of three real patients: every byte of every instance comes back by DICOMweb."""
    call = ["-aet", SCANNER, "-aec", AE, *hospital.tls(), "127.0.0.1", str(hospital.node.tls_port)]
    status, printed = await run("echoscu", *call)
    assert status == 0, printed
    paths = pydicom_sample_paths()
    status, printed = await run("storescu", *call, *paths)
    assert status == 0, printed
    sent = {from_file(path.read_bytes()).sop_instance_uid: pydicom.dcmread(path) for path in paths}
    studies: dict[str, set[str]] = {}
    for uid, ds in sent.items():
        studies.setdefault(str(ds.StudyInstanceUID), set()).add(uid)
    for study_uid, uids in studies.items():
        back = await arrived(hospital, study_uid, uids)
        assert back.keys() == uids
        for uid in uids:
            assert back[uid].PixelData == sent[uid].PixelData
            assert back[uid].PatientName == sent[uid].PatientName


@needs_dcmtk
@pytest.mark.requirement("T1", "C1")
async def test_dcmtk_in_plain_for_the_named_device_only(hospital: Hospital, tmp_path: Path) -> None:
    """The digitiser is registered with a reason and gets in; the scanner, which has a certificate, does not."""
    made = study(name="interop/plain", slices=3)
    paths = written(tmp_path / "plain", *made)
    port = str(hospital.node.plain_port)
    status, printed = await run("echoscu", "-aet", DIGITISER, "-aec", AE, "127.0.0.1", port)
    assert status == 0, printed
    status, printed = await run("storescu", "-aet", DIGITISER, "-aec", AE, "127.0.0.1", port, *paths)
    assert status == 0, printed
    study_uid = str(made[0].dataset().StudyInstanceUID)
    assert len(await arrived(hospital, study_uid, {one.sop_instance_uid for one in made})) == 3
    status, printed = await run("storescu", "-aet", SCANNER, "-aec", AE, "127.0.0.1", port, *paths)
    assert status != 0 and "Rejected" in printed


@needs_dcmtk
@pytest.mark.requirement("T1", "C1")
@pytest.mark.parametrize(
    ("calling", "called", "secured", "door", "faults", "mend"),
    [
        (SCANNER, "OTHER", "CT1", "tls", ['It called "OTHER"; the AE title of this node is "ACCORD"'], "Set the called AE title"),
        ("NOBODY", AE, "CT1", "tls", ['No device with the AE title "NOBODY" is registered'], "register it"),
        ("NOBODY", AE, "", "plain", ['No device with the AE title "NOBODY" is registered'], "register it"),
        (DIGITISER, AE, "CT1", "tls", ["It came with TLS; this device is registered for plain"], "Register the device's certificate"),
        (SECURE_STATION, AE, "CT1", "tls", ["Its certificate (SHA-256 ", "is not the registered one"], "present certificate"),
        (ELSEWHERE, AE, "MR9", "tls", ["It came from 127.0.0.1; MR9 is registered at 10.1.2.3"], "register its new address"),
        (ELSEWHERE, "OTHER", "CT1", "tls", ['It called "OTHER"', "It came from 127.0.0.1", "Its certificate"], "present certificate"),
        (SCANNER, AE, "", "plain", ["It came in plain; this device is registered for TLS"], "Switch the device to DICOM TLS"),
        (SCANNER, AE, "", "tls", ["The TLS handshake failed"], ""),
        (SCANNER, AE, "CT1", "plain", ["type 16 is not known"], ""),
    ],
    ids=[
        "wrong-called-title", "unregistered-with-a-good-certificate", "unregistered-in-plain",
        "plain-device-over-tls", "another-device's-certificate", "another-address", "everything-wrong",
        "tls-device-in-plain", "plain-to-the-tls-door", "tls-to-the-plain-door",
    ],
)  # fmt: skip
async def test_who_is_refused(
    hospital: Hospital, calling: str, called: str, secured: str, door: str, faults: list[str], mend: str
) -> None:
    """DCMTK gets no association; the log says in words what was wrong, and how to mend it."""
    before = len(await all_entries(hospital.node.folder))
    port = hospital.node.tls_port if door == "tls" else hospital.node.plain_port
    shown = {end: hospital.keys / f"{secured}.{end}" for end in ("crt", "key")}
    tls = hospital.tls(certificate=shown["crt"], key=shown["key"]) if secured else []
    status, _ = await run(
        "echoscu", "-to", "5", "-ta", "5", "-td", "5",
        "-aet", calling, "-aec", called, *tls, "127.0.0.1", str(port),
    )  # fmt: skip
    assert status != 0
    refusal = await _refusal(hospital, faults)
    assert mend in str(refusal.event.detail.get("mend", ""))
    assert refusal.event.address == "127.0.0.1"
    new = (await all_entries(hospital.node.folder))[before:]
    assert not [entry for entry in new if entry.event.kind is EventKind.ASSOCIATION_ACCEPTED]


async def _refusal(hospital: Hospital, words: list[str]) -> Entry:
    """Wait until the log has a refusal in these words. Of those alike within a minute it has the first and their number."""
    kinds = {EventKind.ASSOCIATION_REFUSED, EventKind.INPUT_REFUSED}
    async with asyncio.timeout(10):
        while True:
            for entry in await all_entries(hospital.node.folder):
                if entry.event.kind in kinds and all(one in entry.event.reason for one in words):
                    return entry
            await asyncio.sleep(0.1)


@needs_dcmtk
@pytest.mark.requirement("T1", "C1")
async def test_a_stranger_with_a_certificate_of_his_own(hospital: Hospital, tmp_path: Path) -> None:
    """The right title and a self-made certificate do not get through the handshake."""
    key, certificate = tmp_path / "own.key", tmp_path / "own.crt"
    status, printed = await run(
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
        "-keyout", key, "-out", certificate, "-days", "2", "-subj", f"/CN={SCANNER}",
    )  # fmt: skip
    assert status == 0, printed
    tls = hospital.tls(certificate=certificate, key=key)
    status, _ = await run(
        "echoscu", "-aet", SCANNER, "-aec", AE, *tls, "127.0.0.1", str(hospital.node.tls_port)
    )
    assert status != 0
    refused = await hospital.entries(EventKind.ASSOCIATION_REFUSED)
    assert any("TLS handshake failed" in entry.event.reason for entry in refused)


def files_in(folder: Path) -> dict[str, pydicom.Dataset]:
    """What a DCMTK program wrote, by SOP Instance UID."""
    found = [pydicom.dcmread(path) for path in folder.iterdir() if path.is_file()]
    return {str(ds.SOPInstanceUID): ds for ds in found}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stored(hospital: Hospital, tmp_path_factory: pytest.TempPathFactory) -> tuple[Instance, ...]:
    """A study of two series that the scanner sent and `accord send --commit` saw committed."""
    made = study(
        name="interop/query", slices=2, series=2, patient_id="QR-1", patient_name="Query^Wang=王^查询"
    )
    paths = written(tmp_path_factory.mktemp("query"), *made)
    done = await accord(
        "send", "127.0.0.1", str(hospital.node.tls_port), *paths, "--called", AE, "--calling", SCANNER, "--commit",
        "--tls-certificate", hospital.certificate, "--tls-key", hospital.key, "--tls-authority", hospital.ca,
    )  # fmt: skip
    assert len(done["accepted"]) == 4 and not done["failed"]
    return made


@needs_dcmtk
@pytest.mark.requirement("T1", "C1")
@pytest.mark.parametrize("secured", [True, False], ids=["tls", "plain"])
async def test_dcmtk_finds(
    hospital: Hospital, stored: tuple[Instance, ...], secured: bool, tmp_path: Path
) -> None:
    """findscu of studies with a wildcard in another script, and of series."""
    study_uid = str(stored[0].dataset().StudyInstanceUID)
    station = hospital.station(secured=secured)
    levels = {
        "STUDY": ["-k", "PatientName=王*", "-k", "SpecificCharacterSet=ISO_IR 192", "-k", "StudyInstanceUID"],
        "SERIES": ["-k", f"StudyInstanceUID={study_uid}", "-k", "SeriesInstanceUID"],
    }
    for level, keys in levels.items():
        out = tmp_path / f"answers-{level}"
        out.mkdir()
        status, printed = await run(
            "findscu", "-S", "-X", "-od", out, "-k", f"QueryRetrieveLevel={level}", *keys, *station
        )
        assert status == 0, printed
        answers = [pydicom.dcmread(path, force=True) for path in out.iterdir()]
        assert len(answers) == {"STUDY": 1, "SERIES": 2}[level]
        assert {str(one.StudyInstanceUID) for one in answers} == {study_uid}


@needs_dcmtk
async def test_dcmtk_gets(hospital: Hospital, stored: tuple[Instance, ...], tmp_path: Path) -> None:
    """getscu (which has no TLS) of a study: the pixels that were sent."""
    status, printed = await run(
        "getscu", "-S", "-od", tmp_path, "-k", "QueryRetrieveLevel=STUDY",
        "-k", f"StudyInstanceUID={stored[0].dataset().StudyInstanceUID}", *hospital.station(secured=False),
    )  # fmt: skip
    assert status == 0, printed
    back = files_in(tmp_path)
    assert {uid: ds.PixelData for uid, ds in back.items()} == {
        one.sop_instance_uid: one.dataset().PixelData for one in stored
    }


@needs_dcmtk
@pytest.mark.requirement("T1", "C1", "V4")
async def test_dcmtk_moves(hospital: Hospital, stored: tuple[Instance, ...], tmp_path: Path) -> None:
    """movescu to itself in plain, then to a store that is called over mutual TLS; a stranger is never called."""
    study_uid = str(stored[0].dataset().StudyInstanceUID)
    wanted = {one.sop_instance_uid for one in stored}
    keys = ["-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={study_uid}"]
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    status, printed = await run(
        "movescu", "-S", "-aem", OLD_STATION, "--port", str(hospital.station_port), "-od", here, *keys,
        *hospital.station(secured=False),
    )  # fmt: skip
    assert status == 0, printed
    assert files_in(here).keys() == wanted
    own = hospital.tls(
        certificate=hospital.keys / f"{SECURE_STORE}.crt", key=hospital.keys / f"{SECURE_STORE}.key"
    )
    store = await asyncio.create_subprocess_exec(
        "storescp", *own, "-aet", SECURE_STORE, "-od", str(there), str(hospital.store_port)
    )
    try:
        await asyncio.sleep(0.5)
        moving = ["movescu", "-S", *keys, "-aem"]
        station = hospital.station(secured=False)  # movescu has no TLS; the store that it names has
        status, printed = await run(*moving, SECURE_STORE, *station)
        assert status == 0, printed
        assert files_in(there).keys() == wanted
        status, printed = await run(*moving, "STRANGER", *station)
        assert status != 0
    finally:
        store.terminate()
        await store.wait()
    moved = await hospital.entries(EventKind.STUDY_DOWNLOADED)
    assert f"device:{SECURE_STORE}" in {entry.event.detail.get("to") for entry in moved}
    refused = await hospital.entries(EventKind.ACCESS_REFUSED)
    assert any(entry.event.detail.get("destination") == "STRANGER" for entry in refused)


# pynetdicom


@pytest.mark.requirement("T1")
async def test_pynetdicom_asks(hospital: Hospital, stored: tuple[Instance, ...], tmp_path: Path) -> None:
    """Its command line programs find, get, and have a study sent to themselves."""
    study_uid = str(stored[0].dataset().StudyInstanceUID)
    where = ("127.0.0.1", str(hospital.node.plain_port), "-aet", OLD_STATION, "-aec", AE)
    keys = ("-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={study_uid}")
    program = (sys.executable, "-m", "pynetdicom")
    status, printed = await run(*program, "findscu", *where, "-S", *keys, "-v")
    assert status == 0 and study_uid in printed, printed
    status, printed = await run(*program, "getscu", *where, "-S", *keys, "-od", tmp_path / "got")
    assert status == 0, printed
    status, printed = await run(
        *program, "movescu", *where, "-S", *keys, "-od", tmp_path / "moved", "-aem", OLD_STATION,
        "--store", "--store-port", str(hospital.station_port), "--store-aet", OLD_STATION, "-v",
    )  # fmt: skip
    assert status == 0, printed
    for folder in ("got", "moved"):
        back = files_in(tmp_path / folder)
        assert {uid: ds.PixelData for uid, ds in back.items()} == {
            one.sop_instance_uid: one.dataset().PixelData for one in stored
        }, printed


@pytest.mark.requirement("T1", "C1")
async def test_pynetdicom_gets_over_mutual_tls(hospital: Hospital, stored: tuple[Instance, ...]) -> None:
    """The library as the workstation with a certificate: everything comes back on the one association."""
    got: list[str] = []

    def take(event: pynetdicom.events.Event) -> int:
        got.append(str(event.dataset.SOPInstanceUID))
        return 0

    def talk() -> int:
        context = ssl.create_default_context(cafile=str(hospital.ca))
        context.load_cert_chain(
            hospital.keys / f"{SECURE_STATION}.crt", hospital.keys / f"{SECURE_STATION}.key"
        )
        entity = pynetdicom.AE(SECURE_STATION)
        entity.add_requested_context(StudyRootQueryRetrieveInformationModelGet)
        entity.add_requested_context(CTImageStorage, EXPLICIT)
        association = entity.associate(
            "127.0.0.1", hospital.node.tls_port, ae_title=AE, tls_args=(context, "localhost"),
            ext_neg=[pynetdicom.build_role(CTImageStorage, scp_role=True)],
            evt_handlers=[(pynetdicom.evt.EVT_C_STORE, take)],
        )  # fmt: skip
        assert association.is_established
        question = pydicom.Dataset()
        question.QueryRetrieveLevel = "STUDY"
        question.StudyInstanceUID = stored[0].dataset().StudyInstanceUID
        try:
            return [
                answer.Status
                for answer, _ in association.send_c_get(question, StudyRootQueryRetrieveInformationModelGet)
            ][-1]
        finally:
            association.release()

    assert await asyncio.to_thread(talk) == 0
    assert set(got) == {one.sop_instance_uid for one in stored}


@pytest.mark.requirement("T1", "C1")
async def test_pynetdicom_moves_over_mutual_tls(hospital: Hospital, stored: tuple[Instance, ...]) -> None:
    """The workstation asks over TLS, and the store that it names is called over TLS: both ends prove who they are."""
    got: dict[str, bytes] = {}

    def take(event: pynetdicom.events.Event) -> int:
        got[str(event.dataset.SOPInstanceUID)] = event.dataset.PixelData
        return 0

    def context(title: str, purpose: ssl.Purpose) -> ssl.SSLContext:
        made = ssl.create_default_context(purpose, cafile=str(hospital.ca))
        made.load_cert_chain(hospital.keys / f"{title}.crt", hospital.keys / f"{title}.key")
        return made

    def talk() -> list[tuple[int, int]]:
        store = pynetdicom.AE(SECURE_STORE)
        store.add_supported_context(CTImageStorage, EXPLICIT)
        serving = context(SECURE_STORE, ssl.Purpose.CLIENT_AUTH)
        serving.verify_mode = ssl.CERT_REQUIRED
        server = store.start_server(
            ("127.0.0.1", hospital.store_port), block=False, ssl_context=serving,
            evt_handlers=[(pynetdicom.evt.EVT_C_STORE, take)],
        )  # fmt: skip
        entity = pynetdicom.AE(SECURE_STATION)
        entity.add_requested_context(StudyRootQueryRetrieveInformationModelMove)
        calling = context(SECURE_STATION, ssl.Purpose.SERVER_AUTH)
        association = entity.associate(
            "127.0.0.1", hospital.node.tls_port, ae_title=AE, tls_args=(calling, "localhost")
        )
        assert association.is_established
        question = pydicom.Dataset()
        question.QueryRetrieveLevel = "STUDY"
        question.StudyInstanceUID = stored[0].dataset().StudyInstanceUID
        try:
            answers = association.send_c_move(
                question, SECURE_STORE, StudyRootQueryRetrieveInformationModelMove
            )
            return [(answer.Status, answer.NumberOfCompletedSuboperations) for answer, _ in answers]
        finally:
            association.release()
            server.shutdown()

    answers = await asyncio.to_thread(talk)
    assert answers[-1] == (0, len(stored)) and {status for status, _ in answers[:-1]} == {0xFF00}
    assert got == {one.sop_instance_uid: one.dataset().PixelData for one in stored}


@pytest.mark.requirement("T1")
async def test_pynetdicom_in_plain(hospital: Hospital, tmp_path: Path) -> None:
    """Its command line programs echo and store."""
    (path,) = written(tmp_path / "one", *study(name="interop/pynetdicom", slices=1))
    where = ("127.0.0.1", str(hospital.node.plain_port))
    titles = ("-aet", DIGITISER, "-aec", AE, "-v")
    status, printed = await run(sys.executable, "-m", "pynetdicom", "echoscu", *where, *titles)
    assert status == 0 and "0x0000" in printed, printed
    status, printed = await run(sys.executable, "-m", "pynetdicom", "storescu", *where, path, *titles)
    assert status == 0 and "0x0000" in printed, printed


@pytest.mark.requirement("T1", "C1")
async def test_pynetdicom_over_mutual_tls(hospital: Hospital) -> None:
    """The library as a scanner with the certificate that the node issued."""
    made = study(name="interop/pynetdicom-tls", slices=2)

    def talk() -> list[int]:
        context = ssl.create_default_context(cafile=str(hospital.ca))
        context.load_cert_chain(hospital.certificate, hospital.key)
        entity = pynetdicom.AE(SCANNER)
        entity.add_requested_context(Verification)
        entity.add_requested_context(CTImageStorage, EXPLICIT)
        association = entity.associate(
            "127.0.0.1", hospital.node.tls_port, ae_title=AE, tls_args=(context, "localhost")
        )
        assert association.is_established
        try:
            answers = [association.send_c_echo()]
            answers += [association.send_c_store(one.dataset()) for one in made]
            return [answer.Status for answer in answers]
        finally:
            association.release()

    assert await asyncio.to_thread(talk) == [0, 0, 0]
    uid = str(made[0].dataset().StudyInstanceUID)
    assert len(await arrived(hospital, uid, {one.sop_instance_uid for one in made})) == 2


# dicomweb-client


@pytest.mark.requirement("C3")
async def test_dicomweb_client(hospital: Hospital) -> None:
    """Store, search at all levels, retrieve, metadata, frames and rendered pictures over HTTPS with a token."""
    made = study(
        name="interop/web", slices=3, series=2, patient_id="WEB-1", patient_name="Web^Wang=王^网", size=64
    )
    first = made[0].dataset()
    study_uid, series_uid = str(first.StudyInstanceUID), str(first.SeriesInstanceUID)
    web = hospital.web()

    def talk() -> None:
        answer = web.store_instances([one.dataset() for one in made])
        assert len(answer.ReferencedSOPSequence) == 6 and "FailedSOPSequence" not in answer
        (found,) = web.search_for_studies(search_filters={"PatientID": "WEB-1"})
        assert found["0020000D"]["Value"] == [study_uid]
        assert found["00201208"]["Value"] == [6] and found["00201206"]["Value"] == [2]
        assert found["00100010"]["Value"][0]["Ideographic"] == "王^网"
        assert len(web.search_for_studies(search_filters={"PatientName": "Web*"}, limit=5)) == 1
        assert len(web.search_for_series(study_uid)) == 2
        assert len(web.search_for_instances(study_uid, series_uid)) == 3
        assert len(web.retrieve_study_metadata(study_uid)) == 6
        metadata = web.retrieve_series_metadata(study_uid, series_uid)
        assert {item["00080018"]["Value"][0] for item in metadata} == {
            one.sop_instance_uid for one in made[:3]
        }
        for series in (web.retrieve_study(study_uid), web.retrieve_series(study_uid, series_uid)):
            for ds in series:
                assert ds.PixelData == _by_uid(made, str(ds.SOPInstanceUID)).PixelData
        uid = made[0].sop_instance_uid
        instance = web.retrieve_instance(study_uid, series_uid, uid)
        assert sha256(instance.PixelData).digest() == sha256(first.PixelData).digest()
        (frame,) = web.retrieve_instance_frames(study_uid, series_uid, uid, [1])
        assert bytes(frame) == first.PixelData
        for media_type in ("image/jpeg", "image/png"):
            picture = web.retrieve_instance_rendered(study_uid, series_uid, uid, media_types=(media_type,))
            assert Image.open(BytesIO(picture)).size[0] >= 64

    await asyncio.to_thread(talk)
    opened = await hospital.entries(EventKind.STUDY_OPENED)
    assert any(entry.event.actor == f"person:{CHIEF}@a-general" for entry in opened)


def _by_uid(made: tuple[Instance, ...], uid: str) -> pydicom.Dataset:
    return next(one for one in made if one.sop_instance_uid == uid).dataset()


@pytest.mark.requirement("T1", "U7")
@pytest.mark.parametrize("token", ["", "acc_not-a-token"], ids=["none", "wrong"])
async def test_dicomweb_without_a_token(hospital: Hospital, token: str) -> None:
    """No image, no list, not even a count."""
    with pytest.raises(requests.HTTPError, match="401"):
        await asyncio.to_thread(hospital.web(token).search_for_studies)


@pytest.mark.requirement("T1")
async def test_https_is_tls_1_3_under_the_nodes_own_authority(hospital: Hospital) -> None:
    """A client that trusts the system's authorities, or offers less than TLS 1.3, gets no connection."""

    def shake(context: ssl.SSLContext) -> str | None:
        with (
            socket.create_connection(("127.0.0.1", hospital.node.http_port), timeout=10) as raw,
            context.wrap_socket(raw, server_hostname="localhost") as wrapped,
        ):
            return wrapped.version()

    trusting = ssl.create_default_context(cafile=str(hospital.ca))
    assert await asyncio.to_thread(shake, trusting) == "TLSv1.3"
    trusting.maximum_version = ssl.TLSVersion.TLSv1_2
    for context in (trusting, ssl.create_default_context()):
        with pytest.raises(ssl.SSLError):
            await asyncio.to_thread(shake, context)


@pytest.mark.requirement("T1", "C3")
@pytest.mark.parametrize("trust", ["authority", "pin"])
async def test_we_send_to_a_node_by_dicomweb(hospital: Hospital, tmp_path: Path, trust: str) -> None:
    """`accord send --web` over HTTPS, under the node's authority or to its certificate: what was sent is what comes back."""
    made = study(name=f"interop/stow-{trust}", slices=3)
    token = tmp_path / "chief.token"
    token.write_text(hospital.node.token + "\n")
    if trust == "authority":
        whom: tuple[object, ...] = ("--tls-authority", hospital.ca)
    else:
        pem = await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", hospital.node.http_port))
        whom = ("--pin", sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest())
    paths = written(tmp_path / "files", *made)
    service = f"{hospital.node.web}/dicom-web"
    done = await accord("send", *paths, "--web", service, "--token-file", token, *whom)
    assert len(done["accepted"]) == 3 and not done["failed"]
    back = await arrived(
        hospital, str(made[0].dataset().StudyInstanceUID), {one.sop_instance_uid for one in made}
    )
    assert all(back[one.sop_instance_uid].PixelData == one.dataset().PixelData for one in made)


# Orthanc


@dataclass
class Archive:
    """A running Orthanc: `call` is its REST interface."""

    process: asyncio.subprocess.Process
    dicom_port: int
    http_port: int
    report_port: int
    """Where it calls whoever asked it for storage commitment as `ASKER`."""

    def call(self, method: str, path: str, **more: object) -> requests.Response:
        """One request, whatever the answer's status."""
        url = f"http://127.0.0.1:{self.http_port}{path}"
        return requests.request(method, url, timeout=60, **more)  # type: ignore[arg-type]

    @property
    def web(self) -> str:
        """Its DICOMweb service."""
        return f"http://127.0.0.1:{self.http_port}/dicom-web"

    def needs_dicomweb(self) -> None:
        """Skip the test, visibly, where Orthanc's plugin is not installed."""
        if self.call("GET", "/dicom-web/servers").status_code != 200:
            pytest.skip("Orthanc's DICOMweb plugin is not installed")

    def held(self) -> dict[str, bytes]:
        """The data sets that it holds, by SOP Instance UID."""
        files = [
            self.call("GET", f"/instances/{one}/file").content
            for one in self.call("GET", "/instances").json()
        ]
        return {from_file(file).sop_instance_uid: from_file(file).data for file in files}

    async def up(self) -> bool:
        """Wait until it answers: False when it ended instead."""
        async with asyncio.timeout(START_SECONDS):
            while self.process.returncode is None:
                with suppress(requests.ConnectionError):
                    (await asyncio.to_thread(self.call, "GET", "/system")).raise_for_status()
                    return True
                await asyncio.sleep(0.2)
        return False


async def start_orthanc(folder: Path, hospital: Hospital) -> Archive:
    """An Orthanc that knows the node as a modality and as a DICOMweb server. It may find its ports taken meanwhile."""
    dicom, http, report = free_ports(3)
    folder.mkdir()
    plugins = sorted(Path("/usr/share/orthanc/plugins").glob("*OrthancDicomWeb.so"))
    settings = {
        "StorageDirectory": str(folder),
        "IndexDirectory": str(folder),
        "HttpPort": http,
        "HttpBindAddresses": ["127.0.0.1"],
        "AuthenticationEnabled": False,
        "DicomAet": ORTHANC_TITLE,
        "DicomPort": dicom,
        "DicomModalities": {
            "node": [AE, "127.0.0.1", hospital.node.plain_port],
            "asker": [ASKER, "127.0.0.1", report],
        },
        "HttpsVerifyPeers": True,
        "HttpsCACertificates": str(hospital.ca),
        "Plugins": [str(plugin) for plugin in plugins],
        "DicomWeb": {
            "Enable": True,
            "Servers": {
                "node": {
                    "Url": f"{hospital.node.web}/dicom-web/",
                    "HttpHeaders": {"Authorization": f"Bearer {hospital.node.token}"},
                }
            },
        },
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    assert ORTHANC is not None
    with (folder / "orthanc.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            ORTHANC, str(folder / "orthanc.json"), stdout=log, stderr=log
        )
    return Archive(process, dicom, http, report)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def archive(hospital: Hospital, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Archive]:
    """A running Orthanc as a registered plain device; one for all tests, each of which has studies of its own."""
    folder = tmp_path_factory.mktemp("orthanc")
    for attempt in range(3):
        archive = await start_orthanc(folder / str(attempt), hospital)
        try:
            if not await archive.up():
                continue
            await accord(
                "device", "add", hospital.node.folder, "--ae-title", ORTHANC_TITLE, "--address", "127.0.0.1",
                "--plain", "An old archive", "--port", str(archive.dicom_port), "--service", "store",
                "--service", "commit", *QUERYING,
            )  # fmt: skip
            yield archive
            return
        finally:
            if archive.process.returncode is None:
                archive.process.terminate()
            await archive.process.wait()
    raise AssertionError(
        "\n".join(log.read_text("utf-8", "replace")[-2000:] for log in folder.glob("*/*.log"))
    )


@needs_orthanc
@pytest.mark.requirement("T1", "C1")
async def test_orthanc_sends_by_dicom(hospital: Hospital, archive: Archive) -> None:
    """Orthanc echoes and stores as a named plain device."""
    made = study(name="interop/orthanc", slices=3)

    def talk() -> None:
        held = [archive.call("POST", "/instances", data=one.file()).json()["ID"] for one in made]
        archive.call("POST", "/modalities/node/echo", data="").raise_for_status()
        stored = archive.call("POST", "/modalities/node/store", json={"Resources": held})
        stored.raise_for_status()
        assert stored.json()["InstancesCount"] == 3 and stored.json()["FailedInstancesCount"] == 0

    await asyncio.to_thread(talk)
    back = await arrived(
        hospital, str(made[0].dataset().StudyInstanceUID), {one.sop_instance_uid for one in made}
    )
    assert all(back[one.sop_instance_uid].PixelData == one.dataset().PixelData for one in made)


@needs_orthanc
@pytest.mark.requirement("T1", "C1")
async def test_orthanc_stores_searches_and_retrieves_by_dicomweb(
    hospital: Hospital, archive: Archive
) -> None:
    """Orthanc as user of the node's DICOMweb: STOW-RS, QIDO-RS that names the study, and WADO-RS of what it gave away."""
    made = study(name="interop/orthanc-web", slices=2)
    study_uid = str(made[0].dataset().StudyInstanceUID)
    call = archive.call

    def talk() -> None:
        archive.needs_dicomweb()
        held = [call("POST", "/instances", data=one.file()).json()["ID"] for one in made]
        node = "/dicom-web/servers/node"
        call("POST", f"{node}/stow", json={"Resources": held, "Synchronous": True}).raise_for_status()
        query = {"Uri": "/studies", "Arguments": {"StudyInstanceUID": study_uid}}
        (found,) = call("POST", f"{node}/qido", json=query).json()
        assert found["0020000D"]["Value"] == study_uid
        for held_id in held:
            call("DELETE", f"/instances/{held_id}").raise_for_status()
        wanted = {"Resources": [{"Study": study_uid}], "Synchronous": True}
        call("POST", f"{node}/retrieve", json=wanted).raise_for_status()
        assert archive.held().items() >= data_sets(*made).items()

    await asyncio.to_thread(talk)
    back = await arrived(hospital, study_uid, {one.sop_instance_uid for one in made})
    assert all(back[one.sop_instance_uid].PixelData == one.dataset().PixelData for one in made)


@needs_orthanc
@pytest.mark.requirement("T1")
async def test_we_send_to_orthanc_by_dicom(archive: Archive, tmp_path: Path) -> None:
    """Our verification, then `accord send`: Orthanc holds every data set bit for bit."""
    made = study(name="interop/to-orthanc", slices=3)
    paths = written(tmp_path / "files", *made)
    await echo(Peer("127.0.0.1", archive.dicom_port, ORTHANC_TITLE, AE))
    done = await accord(
        "send", "127.0.0.1", str(archive.dicom_port), *paths, "--called", ORTHANC_TITLE, "--calling", AE
    )
    assert len(done["accepted"]) == 3 and not done["failed"]
    held = await asyncio.to_thread(archive.held)
    assert held.items() >= data_sets(*made).items()


@needs_orthanc
@pytest.mark.requirement("T1", "C3")
async def test_orthanc_reports_to_us_that_it_is_safe(archive: Archive, tmp_path: Path) -> None:
    """Orthanc makes its storage commitment report on an association of its own, and we hear it."""
    made = study(name="interop/orthanc-commits", slices=2)
    where = ("127.0.0.1", str(archive.dicom_port), *written(tmp_path / "files", *made))
    how = ("--called", ORTHANC_TITLE, "--calling", ASKER, "--commit")
    done = await accord("send", *where, *how, "--listen-port", str(archive.report_port))
    assert len(done["accepted"]) == 2 and not done["failed"]


@needs_orthanc
@pytest.mark.requirement("T1")
async def test_we_send_to_orthanc_by_dicomweb(archive: Archive, tmp_path: Path) -> None:
    """`accord send --web` to Orthanc's STOW-RS: it holds every data set bit for bit, real patients' too."""
    made = study(name="interop/stow-orthanc", slices=2)
    paths = [*written(tmp_path / "files", *made), *pydicom_sample_paths()]
    await asyncio.to_thread(archive.needs_dicomweb)
    done = await accord("send", *paths, "--web", archive.web)
    assert len(done["accepted"]) == len(paths) and not done["failed"]
    held = await asyncio.to_thread(archive.held)
    assert held.items() >= data_sets(*(from_file(path.read_bytes()) for path in paths)).items()


@needs_orthanc
@pytest.mark.requirement("T1", "C1", "C3")
async def test_orthanc_queries_retrieves_and_asks_for_commitment(
    hospital: Hospital, archive: Archive, tmp_path: Path
) -> None:
    """Orthanc finds a study at the node, has it sent to itself by C-MOVE, and hears by a later association that what it
    stored is safe."""
    there, own = study(name="interop/qr", slices=3, patient_id="QR-2"), study(name="interop/commit", slices=2)
    await hospital.send(tmp_path / "there", *there)
    call = archive.call

    def talk() -> None:
        query = {"Level": "Study", "Query": {"PatientID": "QR-2", "StudyInstanceUID": ""}}
        found = call("POST", "/modalities/node/query", json=query).json()["ID"]
        assert len(call("GET", f"/queries/{found}/answers").json()) == 1
        call(
            "POST", f"/queries/{found}/answers/0/retrieve", json={"TargetAet": ORTHANC_TITLE}
        ).raise_for_status()
        assert archive.held().items() >= data_sets(*there).items()
        held = [call("POST", "/instances", data=one.file()).json()["ID"] for one in own]
        call("POST", "/modalities/node/store", json={"Resources": held}).raise_for_status()
        asked = call("POST", "/modalities/node/storage-commitment", json={"Resources": held})
        asked.raise_for_status()
        path = f"/storage-commitment/{asked.json()['ID']}"
        for _ in range(150):
            report = call("GET", path).json()
            if report["Status"] != "Pending":
                break
            time.sleep(0.1)
        assert report["Status"] == "Success", report
        assert {one["SOPInstanceUID"] for one in report["Success"]} == {one.sop_instance_uid for one in own}

    await asyncio.to_thread(talk)
