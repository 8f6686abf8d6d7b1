"""For other hospitals: sealed bytes, the signed list of them, and single keys.

The exchange decides who may have them, because it knows the grants; each time it shows its permit, which is checked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from consent.signed import Signed
from node.clearance import OPENINGS, RELEASES, Clearance
from node.clock import Clock
from node.gateway.reading import Reading
from node.identity import Identity
from node.index import Index
from node.vault.manifest import Manifest


class Releases:
    """Releases of this node's own studies."""

    def __init__(self, identity: Identity, reading: Reading, index: Index, clock: Clock) -> None:
        self._identity = identity
        self._reading = reading
        self._index = index
        self._clock = clock

    async def manifest(self, study: str, cleared: Clearance) -> Signed[Manifest]:
        """The signed manifest over the study's pack as it lies now, with the digest of every object.

        `cleared` is a permit to grant access to this patient's studies. Raises NotFound, Denied.
        """
        row = await self._index.study(study)
        cleared.require_grant(row.patient, self._identity.node_id, self._clock.now())
        objects = await self._reading.packs.objects(study)
        keys = await self._reading.object_keys(study, [stored.object_id for stored in objects])
        return await self._reading.packs.manifest(
            study,
            home=self._identity.node_id,
            keys=keys,
            signing_key=self._identity.signing,
            now=self._clock.now(),
        )

    async def pack_bytes(
        self, study: str, offset: int, length: int, cleared: Clearance, generation: int | None = None
    ) -> bytes:
        """Sealed bytes of the pack as they lie; fewer at its end.

        Raises NotFound, Denied without a permit to fetch, Conflict when the pack is of another `generation` now.
        """
        cleared.require_study(study, self._identity.node_id, RELEASES, self._clock.now())
        return await self._reading.packs.pack_bytes(study, offset, length, generation)

    async def object_keys(
        self, study: str, object_ids: Sequence[str], cleared: Clearance
    ) -> Mapping[str, bytes]:
        """The keys of single objects, never the study key. Raises NotFound, Denied without a permit to open."""
        cleared.require_study(study, self._identity.node_id, OPENINGS, self._clock.now())
        return await self._reading.object_keys(study, object_ids)
