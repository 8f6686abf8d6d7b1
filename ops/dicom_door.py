"""What stands behind a node's DICOM door: its services and what they are made of, put together."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from node.dicom.commitment import Commitment
from node.dicom.destinations import CallableDevices
from node.dicom.find import Find
from node.dicom.gate import DicomMetrics, Gate, Limits
from node.dicom.messages import Verb
from node.dicom.promises import Promises
from node.dicom.retrieve import Retrieve
from node.dicom.services import Service, Services
from node.gateway import Gateway
from node.imaging.rendering import Renderer
from node.index import Index
from node.ingest import Ingest
from ops.doors import Doors
from ops.foundation import Foundation

COMMITMENT_SECONDS = 5.0
"""How often commitment reports that are owed are looked at."""


async def build_commitment(
    base: Foundation, ingest: Ingest, gateway: Gateway, devices: CallableDevices
) -> Commitment:
    """Storage commitment, with the reports that are still owed from before."""
    promises = Promises(base.database, await base.keys.secret("commitment"))
    return Commitment(gateway, promises, devices, base.log, base.clock, ingest.flushed)


def build_devices(base: Foundation, doors: Doors) -> CallableDevices:
    """The devices that this node calls."""
    settings = base.settings.node
    return CallableDevices(
        base.registry,
        base.log,
        base.clock,
        calling=settings.ae_title,
        node=base.identity.node_id,
        tls=doors.calling,
    )


def build_gate(
    base: Foundation,
    *,
    ingest: Ingest,
    index: Index,
    gateway: Gateway,
    renderer: Renderer,
    devices: CallableDevices,
    commitment: Commitment,
    registry: CollectorRegistry,
) -> Gate:
    """The gate of both DICOM listeners, with every service behind it."""
    settings = base.settings
    retrieve = Retrieve(gateway, index.pseudonyms, renderer, devices)
    others: dict[int, Service] = {
        Verb.C_FIND_RQ: Find(gateway, settings.node.ae_title),
        Verb.C_GET_RQ: retrieve,
        Verb.C_MOVE_RQ: retrieve,
        Verb.N_ACTION_RQ: commitment,
    }
    return Gate(
        devices=base.registry,
        services=Services(ingest, base.log, others),
        clock=base.clock,
        ae_title=settings.node.ae_title,
        limits=Limits(associations=settings.dicom.max_associations, operations=settings.dicom.max_operations),
        metrics=DicomMetrics(registry),
        private_sop_classes=frozenset(settings.dicom.private_sop_classes),
    )
