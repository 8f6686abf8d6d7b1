"""The servers beside ours, each started in a folder of its own, and the floors under C-STORE and HTTPS.

Orthanc runs as it ships (SQLite, MD5, fsync of each file) but for TCP_NODELAY=1, without which DCMTK's two small writes an
answer wait for the sender's delayed acknowledgement; its web is plain HTTP. A second Orthanc takes mutual DICOM TLS.
storescp writes raw bytes, with neither index, encryption nor fsync. What is not installed is left out.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from node.ports import free_ports
from tests.bench.client import Web
from tests.bench.servers import AE, Door, Keys, Server, find, process


@contextmanager
def rivals(folder: Path, keys: Keys) -> Iterator[list[Server]]:
    """Start every one that is installed."""
    with ExitStack() as stack:
        servers = []
        if find("Orthanc"):
            servers.append(stack.enter_context(orthanc(folder / "orthanc", keys, secure=False)))
            servers.append(stack.enter_context(orthanc(folder / "orthanc-tls", keys, secure=True)))
        if find("storescp"):
            servers.append(stack.enter_context(storescp(folder / "storescp", keys, secure=False)))
            servers.append(stack.enter_context(storescp(folder / "storescp-tls", keys, secure=True)))
        yield servers


@contextmanager
def orthanc(folder: Path, keys: Keys, *, secure: bool) -> Iterator[Server]:
    """Orthanc with its SQLite index; `secure`: mutual DICOM TLS and no web (Debian's 1.10.1 ends at its first HTTPS request)."""
    dicom, http = free_ports(2)
    folder.mkdir(parents=True)
    settings: dict[str, object] = {
        "StorageDirectory": str(folder / "db"),
        "IndexDirectory": str(folder / "db"),
        "HttpPort": http,
        "HttpBindAddresses": ["127.0.0.1"],
        "HttpCompressionEnabled": False,
        "KeepAlive": True,
        "AuthenticationEnabled": False,
        "DicomAet": AE,
        "DicomPort": dicom,
        "DicomCheckCalledAet": False,
        "DicomAlwaysAllowStore": True,
        "DicomAlwaysAllowEcho": True,
        "OverwriteInstances": True,
        "Plugins": [str(plugin) for plugin in Path("/usr/share/orthanc/plugins").glob("*OrthancDicomWeb.so")],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    if secure:
        certificate, key = keys.server
        settings |= {
            "HttpServerEnabled": False,
            "DicomTlsEnabled": True,
            "DicomTlsCertificate": str(certificate),
            "DicomTlsPrivateKey": str(key),
            "DicomTlsTrustedCertificates": str(keys.authority),
        }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with process([find("Orthanc"), folder / "orthanc.json"], dicom) as pid:
        if secure:
            yield Server("Orthanc", pid, tls=Door(dicom, AE, keys))
        else:
            yield Server("Orthanc", pid, Door(dicom, AE), web=Web("127.0.0.1", http))


@contextmanager
def storescp(folder: Path, keys: Keys, *, secure: bool) -> Iterator[Server]:
    """DCMTK's storescp, one process for each association."""
    (port,) = free_ports(1)
    folder.mkdir(parents=True)
    arguments: list[object] = [find("storescp"), "-q", "-aet", AE, "+B", "--fork", "-od", folder]
    if secure:
        certificate, key = keys.server
        arguments += ["+tls", key, certificate, "+cf", keys.authority]
    with process([*arguments, port], port) as pid:
        door = Door(port, AE, keys if secure else None)
        yield Server("storescp", pid, None if secure else door, door if secure else None)


@contextmanager
def wire(folder: Path, kind: str) -> Iterator[Server]:
    """See `tests.bench.wire`: `kind` is wire or sealed."""
    (port,) = free_ports(1)
    name = {"wire": "our wire alone", "sealed": "our wire and vault alone"}[kind]
    with process([sys.executable, "-m", "tests.bench.wire", kind, port, folder / kind], port) as pid:
        yield Server(name, pid, Door(port, AE))


@contextmanager
def floor(keys: Keys) -> Iterator[Server]:
    """See `tests.bench.floor`."""
    (port,) = free_ports(1)
    certificate, key = keys.server
    with process([sys.executable, "-m", "tests.bench.floor", port, certificate, key], port) as pid:
        yield Server("aiohttp alone", pid, web=Web("127.0.0.1", port, context=keys.trusting()))
