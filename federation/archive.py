"""What the exchange needs of this node's own archive: find a study, who treats its patient, its sealed pack.

The pack side is a protocol that the gateway fulfils, because only the gateway reads the vault: sealed bytes as they
lie, the signed manifest over them, and, for a lease, the keys of single objects, each against the permit that was
given for it. No plaintext passes here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from consent.errors import NotFound
from consent.signed import Signed
from consent.vocabulary import Grade
from node.access.care import Care
from node.clearance import Clearance
from node.clock import Clock
from node.index import Index, Pseudonyms
from node.vault.manifest import Manifest


class Packs(Protocol):
    """Sealed packs of this node's studies; see `node.gateway`."""

    async def manifest(self, study: str, cleared: Clearance) -> Signed[Manifest]:
        """The signed manifest over the pack as it lies now, for a grant. Raises NotFound, Denied."""
        ...

    async def pack_bytes(
        self, study: str, offset: int, length: int, cleared: Clearance, generation: int | None = None
    ) -> bytes:
        """Sealed bytes of the pack; fewer at its end. Raises NotFound, Denied, Conflict (another generation now)."""
        ...

    async def object_keys(
        self, study: str, object_ids: Sequence[str], cleared: Clearance
    ) -> Mapping[str, bytes]:
        """The 32-byte keys of these objects, never the study key. Raises NotFound, Denied."""
        ...


@dataclass(frozen=True)
class FoundStudy:
    """A study of this node by its pseudonyms."""

    study: str
    patient: str
    grade: Grade
    department: str | None


class Archive:
    """The node below, as seen from the exchange."""

    def __init__(
        self, *, index: Index, pseudonyms: Pseudonyms, care: Care, clock: Clock, packs: Packs
    ) -> None:
        self.packs = packs
        self._index = index
        self._pseudonyms = pseudonyms
        self._care = care
        self._clock = clock

    async def find(self, study_instance_uid: str, accession: str, patient_id: str) -> FoundStudy | None:
        """The study that the particulars of a request name, or None.

        Accession number and patient ID must both fit, and fit one study only: two would be a guess.
        """
        if study_instance_uid:
            return await self.study(self._pseudonyms.study(study_instance_uid))
        fitting = []
        for study in await self._index.studies_of(self._pseudonyms.patient(patient_id)):
            row = await self._index.study(study)
            if row.values.get("AccessionNumber") == accession:
                fitting.append(study)
        return await self.study(fitting[0]) if len(fitting) == 1 else None

    async def study(self, study: str) -> FoundStudy | None:
        """One study by its pseudonym, or None when it is not here (any more)."""
        try:
            row = await self._index.study(study)
        except NotFound:
            return None
        return FoundStudy(row.study, row.patient, row.grade, row.department)

    async def related(self, login: str, patient: str | None) -> bool:
        """Whether this person treats this patient now."""
        return await self._care.related(login, patient, self._clock.now())
