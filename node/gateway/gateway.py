"""Everything that leaves one node, by room: the verbs of `Gateway` are those of its rooms, documented there."""

from __future__ import annotations

from node.access.care import Care
from node.audit.log import Log
from node.clock import Clock
from node.descriptions import Descriptions
from node.facts import FactFinder
from node.gateway.asking import Asking
from node.gateway.data_sets import DataSets
from node.gateway.fields import FieldReader
from node.gateway.finding import Finding
from node.gateway.frames import Frames
from node.gateway.metadata import Metadata
from node.gateway.pictures import Pictures
from node.gateway.reading import Reading
from node.gateway.releases import Releases
from node.gateway.research import Research
from node.gateway.safekeeping import Safekeeping
from node.gateway.visits import Visits
from node.identity import Identity
from node.imaging.rendering import Renderer
from node.index import Index
from node.policies import Policies
from node.records import Records
from node.vault.blobs import BlobStore
from node.vault.keys import KeyRing


class Gateway:
    """Everything that leaves one node. `close` writes the last summaries."""

    def __init__(
        self,
        *,
        identity: Identity,
        policies: Policies,
        blobs: BlobStore,
        keys: KeyRing,
        index: Index,
        log: Log,
        care: Care,
        records: Records,
        renderer: Renderer,
        descriptions: Descriptions,
        clock: Clock,
    ) -> None:
        node_id = identity.node_id
        facts = FactFinder(care, records, log)
        reading = Reading(node_id=node_id, blobs=blobs, keys=keys, index=index, facts=facts, log=log)
        asking = Asking(node_id=node_id, policies=policies, reading=reading, log=log, clock=clock)
        visits = Visits(node_id=node_id, asking=asking, reading=reading, log=log, clock=clock)
        metadata = Metadata(visits, reading, index, descriptions)

        # Copies of other hospitals' studies may be opened too, once somebody holds them.
        self.hold = reading.hold

        # What somebody may find.
        finding = Finding(
            node_id=node_id, policies=policies, index=index, facts=facts,
            fields=FieldReader(visits, metadata, index), log=log, clock=clock,
        )  # fmt: skip
        self.search = finding.search
        self.search_with_fields = finding.search_with_fields
        self.find = finding.find

        # A study opened for somebody, until it is closed, idle or over.
        self.open = visits.open
        self.visit = visits.visit
        self.close_opening = visits.close_opening
        self.sweep = visits.sweep
        self.end_study = visits.end_study
        self.close = visits.close

        # What is in it.
        self.series = visits.series
        self.rows = visits.rows
        self.metadata = metadata.metadata

        # Looking: pictures, with the watermark burned in.
        frames = Frames(reading)
        pictures = Pictures(node_id, visits, reading, frames, renderer, clock)
        self.frame = pictures.frame
        self.thumbnail = pictures.thumbnail

        # Taking: data sets, frames and values, as they are stored or transcoded.
        data_sets = DataSets(visits, reading, frames, renderer)
        self.instance = data_sets.instance
        self.stream = data_sets.stream
        self.part = data_sets.part
        self.transcoded = data_sets.transcoded
        self.stored_frames = data_sets.stored_frames
        self.transcoded_frames = data_sets.transcoded_frames
        self.bulk = data_sets.bulk

        # For devices that sent: whether their instances are safe.
        safekeeping = Safekeeping(
            node_id=node_id, policies=policies, reading=reading, index=index, log=log, clock=clock
        )
        self.may_commit = safekeeping.may_commit
        self.fates = safekeeping.fates

        # For other hospitals: sealed bytes, the signed list of them, single keys.
        releases = Releases(identity, reading, index, clock)
        self.manifest = releases.manifest
        self.pack_bytes = releases.pack_bytes
        self.object_keys = releases.object_keys

        # For research: de-identified, of patients who consent.
        self.training_instances = Research(
            node_id=node_id, policies=policies, reading=reading, index=index, facts=facts, renderer=renderer,
            log=log, clock=clock,
        ).training_instances  # fmt: skip
