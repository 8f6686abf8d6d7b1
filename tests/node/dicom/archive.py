"""A small node with its whole DICOM door on loopback, in plain and over TLS: registry, gate, every service, and pynetdicom as
the peer."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pydicom
import pynetdicom
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom.association import Association

from node.access.devices import Device
from node.dicom.commitment import Commitment
from node.dicom.destinations import CallableDevices
from node.dicom.find import Find
from node.dicom.gate import Gate, Limits
from node.dicom.listener import Listener
from node.dicom.messages import Verb
from node.dicom.promises import Promises
from node.dicom.retrieve import Retrieve
from node.dicom.services import Services
from node.tls import KeyPair, dicom_client_context, dicom_server_context
from tests.support.node import NodeFixture, small_node

AE = "ACCORD"
SCANNER, WORKSTATION, READING_ROOM = "CT1", "WS1", "WS2"
PLAIN = "A machine of before TLS"
UNCOMPRESSED = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]


@dataclass
class Archive:
    """What stands behind the port."""

    node: NodeFixture
    gate: Gate
    commitment: Commitment
    promises: Promises
    port: int
    tls_port: int

    async def register(
        self,
        ae_title: str,
        services: Iterable[str],
        *,
        port: int | None = None,
        department: str | None = None,
    ) -> None:
        """A plain device on this machine."""
        await self.node.registry.add_device(
            ae_title, "127.0.0.1", plain_reason=PLAIN, services=services, port=port, department=department
        )

    async def register_secure(
        self, ae_title: str, services: Iterable[str], *, port: int | None = None
    ) -> KeyPair:
        """A device on this machine with a certificate, good for being called when it has a port."""
        own = self.node.identity.issue_device_certificate(
            ae_title, datetime.now(UTC), serves=port is not None
        )
        pem = own.certificate.decode()
        await self.node.registry.add_device(ae_title, "127.0.0.1", pem, services=services, port=port)
        return own

    def associate(
        self,
        contexts: Iterable[str],
        *,
        calling: str = WORKSTATION,
        gets: Iterable[str] = (),
        syntaxes: Iterable[str] = UNCOMPRESSED,
        more: Iterable[object] = (),
        handlers: list[object] | None = None,
        tls: KeyPair | None = None,
    ) -> Association:
        """Blocks; call in a thread. `gets` are the storage classes in which it takes instances; over TLS with a certificate."""
        entity = pynetdicom.AE(calling)
        for context in (*contexts, *gets):
            entity.add_requested_context(context, list(syntaxes))
        roles = [pynetdicom.build_role(one, scp_role=True) for one in gets]
        context = None if tls is None else dicom_client_context(tls, [self.node.identity.authority_pem])
        association = entity.associate(
            "127.0.0.1", self.port if tls is None else self.tls_port, ae_title=AE, ext_neg=[*roles, *more],
            evt_handlers=handlers or [], tls_args=None if context is None else (context, None),
        )  # fmt: skip
        assert association.is_established
        return association


@asynccontextmanager
async def archive_in(
    path: Path, *, private: frozenset[str] = frozenset(), **bounds: float
) -> AsyncIterator[Archive]:
    """Start it in a folder, or again in the same one."""
    async with small_node(path) as node:
        leaf = node.identity.leaf(["127.0.0.1"], datetime.now(UTC))

        def calling(device: Device) -> ssl.SSLContext:
            return dicom_client_context(leaf, [node.identity.authority_pem])

        devices = CallableDevices(
            node.registry, node.log, node.clock, calling=AE, node=node.node_id, tls=calling
        )
        promises = Promises(node.database, await node.keys.secret("commitment"))
        commitment = Commitment(node.gateway, promises, devices, node.log, node.clock, node.ingest.flushed)
        retrieve = Retrieve(node.gateway, node.index.pseudonyms, node.renderer, devices)
        services = Services(
            node.ingest,
            node.log,
            {
                Verb.C_FIND_RQ: Find(node.gateway, AE),
                Verb.C_GET_RQ: retrieve,
                Verb.C_MOVE_RQ: retrieve,
                Verb.N_ACTION_RQ: commitment,
            },
        )
        limits = Limits(**{"stop_seconds": 2.0, **bounds})  # type: ignore[arg-type]
        gate = Gate(node.registry, services, node.clock, AE, limits, private_sop_classes=private)
        door = dicom_server_context(leaf, [node.identity.authority_pem])
        async with (
            Listener(gate, node.log, "127.0.0.1", 0) as listener,
            Listener(gate, node.log, "127.0.0.1", 0, tls=door) as secure,
        ):
            archive = Archive(node, gate, commitment, promises, listener.port, secure.port)
            await archive.register(SCANNER, ["store", "commit"])
            await archive.register(WORKSTATION, ["query", "retrieve"])
            await archive.register(READING_ROOM, ["query", "retrieve"], department="RADIOLOGY")
            yield archive


def identifier(level: str, **keys: object) -> Dataset:
    """A query or retrieval of one level; values need not be sound."""
    ds = Dataset()
    with pydicom.config.disable_value_validation():
        for keyword, value in {"QueryRetrieveLevel": level, **keys}.items():
            setattr(ds, keyword, value)
    return ds
