"""DCMTK and pynetdicom against the DICOM door of a real small node: registry, TLS, ingest, vault, log."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from consent.errors import Denied, Invalid
from consent.vocabulary import EventKind
from node.dicom.gate import Gate, Limits
from node.dicom.listener import Listener
from node.dicom.sender import Peer, echo, send_files
from node.dicom.services import Services
from node.identity import Identity
from node.tls import KeyPair, dicom_client_context, dicom_server_context
from tests.support.dicom import pydicom_sample_paths, study
from tests.support.node import NodeFixture, small_node

needs_dcmtk = pytest.mark.skipif(shutil.which("storescu") is None, reason="DCMTK is not installed")
pytestmark = [pytest.mark.timeout(60)]
AE, NODE = "ACCORD", "a-general"


@dataclass
class Hospital:
    """A node with both DICOM doors open, a registered scanner, and that scanner's files."""

    node: NodeFixture
    gate: Gate
    plain: Listener
    tls: Listener
    folder: Path
    scanner: KeyPair
    leaf: bytes
    """The node's own certificate, DER."""

    def key_files(self, pair: KeyPair, name: str) -> list[str]:
        """DCMTK's arguments for mutual TLS with `pair`."""
        key, certificate, authority = (self.folder / f"{name}.{end}" for end in ("key", "crt", "ca"))
        key.write_bytes(pair.key)
        certificate.write_bytes(pair.certificate)
        authority.write_text(self.node.identity.authority_pem)
        return ["+tls", str(key), str(certificate), "+cf", str(authority)]

    async def refusal(self, *words: str) -> None:
        """Wait until the reasons of refused associations, taken together, say all of `words`."""
        async with asyncio.timeout(5):
            while True:
                entries = await self.node.events(EventKind.ASSOCIATION_REFUSED)
                said = " ".join(entry.event.reason for entry in entries)
                if all(word in said for word in words):
                    return
                await asyncio.sleep(0.02)


@pytest.fixture
async def hospital(tmp_path: Path) -> AsyncIterator[Hospital]:
    """CT1 is registered with a certificate, OLD1 with a reason for plain."""
    (tmp_path / "node").mkdir()
    async with small_node(tmp_path / "node") as node, _doors(node, tmp_path) as found:
        yield found


@asynccontextmanager
async def _doors(node: NodeFixture, folder: Path) -> AsyncIterator[Hospital]:
    now = datetime.now(UTC)
    scanner = node.identity.issue_device_certificate("CT1", now)
    await node.registry.add_device("CT1", "127.0.0.1", scanner.certificate.decode())
    await node.registry.add_device("OLD1", "127.0.0.1", plain_reason="A film digitiser that cannot do TLS")
    limits = Limits(artim_seconds=2.0, stop_seconds=2.0, handshake_seconds=2.0)
    gate = Gate(node.registry, Services(node.ingest, node.log), node.clock, AE, limits)
    own = node.identity.leaf(["127.0.0.1"], now)
    context = dicom_server_context(own, [node.identity.authority_pem])
    leaf = x509.load_pem_x509_certificate(own.certificate).public_bytes(Encoding.DER)
    async with (
        Listener(gate, node.log, "127.0.0.1", 0) as plain,
        Listener(gate, node.log, "127.0.0.1", 0, tls=context) as tls,
    ):
        yield Hospital(node, gate, plain, tls, folder, scanner, leaf)


async def run(*arguments: str) -> tuple[int, str]:
    """Run a program; return its status and what it printed."""
    process = await asyncio.create_subprocess_exec(
        *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    printed, _ = await process.communicate()
    return process.returncode or 0, printed.decode(errors="replace")


@needs_dcmtk
@pytest.mark.requirement("C1", "T1")
async def test_dcmtk_over_mutual_tls(hospital: Hospital) -> None:
    """echoscu and storescu with a registered certificate: every instance of a real patient arrives."""
    tls = hospital.key_files(hospital.scanner, "ct1")
    call = ["-aet", "CT1", "-aec", AE, *tls, "127.0.0.1", str(hospital.tls.port)]
    status, printed = await run("echoscu", *call)
    assert status == 0, printed
    folder = pydicom_sample_paths()[0].parents[1]
    status, printed = await run("storescu", "+sd", "+r", *call, str(folder))
    assert status == 0, printed
    await hospital.node.ingest.flushed()
    stored = await hospital.node.events(EventKind.INSTANCES_STORED)
    assert {entry.event.actor for entry in stored} == {"device:CT1"}
    assert hospital.gate.memory.held == 0


@needs_dcmtk
@pytest.mark.requirement("C1", "T1")
async def test_dcmtk_in_plain_only_for_the_named_device(hospital: Hospital) -> None:
    """Plain DICOM works for the device that is registered with a reason, and for no other."""
    (hospital.folder / "one.dcm").write_bytes(study()[0].file())
    target = ["127.0.0.1", str(hospital.plain.port), str(hospital.folder / "one.dcm")]
    status, printed = await run("storescu", "-aet", "OLD1", "-aec", AE, *target)
    assert status == 0, printed
    status, printed = await run("storescu", "-aet", "CT1", "-aec", AE, *target)
    assert status != 0 and "Rejected" in printed
    await hospital.refusal("came in plain")


@needs_dcmtk
@pytest.mark.requirement("C1")
@pytest.mark.parametrize(
    ("calling", "called", "words"),
    [("CT1", "OTHER", "Called AE Title"), ("NOBODY", AE, "Calling AE Title")],
)
async def test_wrong_ae_titles_are_refused(hospital: Hospital, calling: str, called: str, words: str) -> None:
    """DCMTK prints the standard's reason, and the log has ours."""
    tls = hospital.key_files(hospital.scanner, "ct1")
    status, printed = await run(
        "echoscu", "-aet", calling, "-aec", called, *tls, "127.0.0.1", str(hospital.tls.port)
    )
    assert status != 0 and words in printed
    await hospital.refusal(calling if called == AE else called)


@needs_dcmtk
@pytest.mark.requirement("C1", "T1")
async def test_other_certificates_are_refused(hospital: Hospital) -> None:
    """Another device's certificate, one of a stranger's authority, none at all, and no TLS."""
    now, node = datetime.now(UTC), hospital.node.identity
    port = str(hospital.tls.port)
    call = ["-aet", "CT1", "-aec", AE]
    other = hospital.key_files(node.issue_device_certificate("MR1", now), "mr1")
    status, printed = await run("echoscu", *call, *other, "127.0.0.1", port)
    assert status != 0 and "Rejected" in printed

    async def seed(name: str, size: int = 32) -> bytes:
        return name.encode().ljust(size, b".")[:size]

    stranger = await Identity.load_or_create(seed, "x-stranger", "Stranger")
    foreign = hospital.key_files(stranger.issue_device_certificate("CT1", now), "foreign")
    authority = ["+cf", foreign[-1]]
    for arguments in (foreign, ["+tla", *authority], []):
        status, _ = await run("echoscu", *call, *arguments, "127.0.0.1", port)
        assert status != 0
    await hospital.refusal("not the registered one", "TLS handshake failed")


@needs_dcmtk
async def test_old_tls_is_refused(hospital: Hospital) -> None:
    """The BCP 195 profile: nothing below TLS 1.2."""
    process = await asyncio.create_subprocess_exec(
        "openssl", "s_client", "-tls1_1", "-cipher", "ALL:@SECLEVEL=0",
        "-connect", f"127.0.0.1:{hospital.tls.port}",
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    printed, _ = await process.communicate()
    assert process.returncode != 0 and b"Cipher is (NONE)" in printed


@pytest.mark.requirement("T1")
async def test_pynetdicom_stores(hospital: Hospital) -> None:
    """An independent Python stack sends a file and is acknowledged."""
    (hospital.folder / "one.dcm").write_bytes(study()[0].file())
    status, printed = await run(
        sys.executable, "-m", "pynetdicom", "storescu", "127.0.0.1", str(hospital.plain.port),
        str(hospital.folder / "one.dcm"), "-aet", "OLD1", "-aec", AE, "-v",
    )  # fmt: skip
    assert status == 0 and "0x0000" in printed, printed


@pytest.mark.requirement("C1", "C3", "T1")
async def test_our_sender_over_mutual_tls(hospital: Hospital) -> None:
    """`accord send` to the node: durable, indexed, logged; the same again is a duplicate and fine."""
    context = dicom_client_context(hospital.scanner, [hospital.node.identity.authority_pem])
    peer = Peer("127.0.0.1", hospital.tls.port, AE, "CT1", context, name=hospital.node.node_id)
    paths = list(pydicom_sample_paths())
    for _ in range(2):
        sent = [one async for one in send_files(peer, paths)]
        assert all(one.ok for one in sent), [one for one in sent if not one.ok]
    await hospital.node.ingest.flushed()
    assert (await hospital.node.log.size()) > 0
    registry = hospital.gate.metrics.registry
    assert registry.get_sample_value("accord_dicom_answers_total", {"status": "0000"}) == 2 * len(paths)


@pytest.mark.requirement("T1")
async def test_our_sender_says_nothing_to_a_peer_that_is_not_who_was_named(hospital: Hospital) -> None:
    """A name of the certificate, whatever its case, or its fingerprint is enough; where one does not fit no word is said."""
    context = dicom_client_context(hospital.scanner, [hospital.node.identity.authority_pem])
    shown = sha256(hospital.leaf).hexdigest()

    async def call(name: str = "", *fingerprints: str) -> None:
        pins = frozenset(fingerprints)
        await echo(Peer("127.0.0.1", hospital.tls.port, AE, "CT1", context, pins, name))

    for name, *pins in ((NODE,), (NODE.upper(),), ("127.0.0.1",), ("", shown), ("", "0" * 64, shown)):
        await call(name, *pins)
    met = len(await hospital.node.events(EventKind.ASSOCIATION_ACCEPTED))
    for name, *pins in (("CT1",), ("localhost",), ("", "0" * 64), (NODE, "0" * 64), ("b-central", shown)):
        with pytest.raises(Denied) as refused:
            await call(name, *pins)
        assert refused.value.code == "peer-certificate"
    assert len(await hospital.node.events(EventKind.ASSOCIATION_ACCEPTED)) == met == 5


@pytest.mark.requirement("T1")
async def test_peer_over_tls_is_named(hospital: Hospital) -> None:
    """An authority alone tells nobody from anybody else under it; without TLS nothing can be proved."""
    context = dicom_client_context(hospital.scanner, [hospital.node.identity.authority_pem])
    with pytest.raises(Invalid):
        Peer("127.0.0.1", 1, AE, "CT1", context)
    for more in ({"name": NODE}, {"fingerprints": frozenset({"0" * 64})}):
        with pytest.raises(Invalid):
            Peer("127.0.0.1", 1, AE, "CT1", **more)


async def test_same_uid_with_other_bytes_is_refused_with_the_reason(hospital: Hospital) -> None:
    """The first one stays; the second is answered 0111 and logged."""
    context = dicom_client_context(hospital.scanner, [hospital.node.identity.authority_pem])
    peer = Peer("127.0.0.1", hospital.tls.port, AE, "CT1", context, name=hospital.node.node_id)
    first, second = hospital.folder / "first.dcm", hospital.folder / "second.dcm"
    first.write_bytes(study(slices=1)[0].file())
    second.write_bytes(study(slices=1, study_description="CT HEAD")[0].file())
    sent = [one async for one in send_files(peer, [first, second])]
    assert [one.status for one in sent] == [0, 0x0111]
    assert await hospital.node.events(EventKind.INSTANCE_REFUSED)


async def test_handshake_that_never_comes_is_ended(hospital: Hospital) -> None:
    """A TLS port that is only connected to closes after its deadline, and says so in the log."""
    reader, writer = await asyncio.open_connection("127.0.0.1", hospital.tls.port)
    async with asyncio.timeout(5):
        assert await reader.read() == b""
    writer.close()
    await hospital.refusal("TLS handshake failed")
