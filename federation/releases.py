"""Handing out sealed packs at the home hospital: under a living grant, decided again while bytes flow.

No key passes here and nothing is decrypted: what leaves is what the disk holds, under a manifest that was signed
when the grant was. Leaves keys to `leases`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from time import monotonic

from consent.decision import Request, Resource, decide
from consent.errors import Denied, NotFound
from consent.grants import Grant
from consent.principals import Principal
from consent.signed import Signed
from consent.vocabulary import Action, EventKind, ResourceKind, Role
from federation.archive import Archive, Packs
from federation.grants import Grants
from federation.roster import Member
from node.audit.event import Event
from node.audit.log import Log
from node.clearance import Clearance
from node.clock import Clock
from node.identity import Identity
from node.policies import Policies
from node.records import Records
from node.vault.manifest import Manifest

RELEASE_CHUNK_BYTES = 256 * 1024
"""What is read and written at once: larger single writes are slower over TLS."""


DECIDE_AGAIN_SECONDS = 1.0


@dataclass(frozen=True)
class Granted:
    """A grant that lives, what it covers, and the permit to release that."""

    grant: Signed[Grant]
    manifest: Signed[Manifest]
    cleared: Clearance


class Release:
    """One pack being read by one member; whether it still may is decided again every second."""

    def __init__(self, packs: Packs, granted: Callable[[], Awaitable[Granted]], now: Granted) -> None:
        self._packs = packs
        self._granted = granted
        self._manifest, self._cleared = now.manifest.body, now.cleared
        self._decided = monotonic()

    @property
    def size(self) -> int:
        """How many bytes of the pack the grant covers."""
        return self._manifest.size

    async def read(self, offset: int, length: int) -> bytes:
        """Sealed bytes of the pack. Raises Denied when the grant lives no more, Conflict when the pack was written anew."""
        if monotonic() - self._decided > DECIDE_AGAIN_SECONDS:
            now = await self._granted()
            self._manifest, self._cleared = now.manifest.body, now.cleared
            self._decided = monotonic()
        length = min(length, self.size - offset)
        manifest = self._manifest
        return await self._packs.pack_bytes(
            manifest.study, offset, length, self._cleared, manifest.generation
        )


class Releases:
    """Sealed packs of this node's studies, for the members that hold grants."""

    def __init__(
        self,
        *,
        log: Log,
        clock: Clock,
        identity: Identity,
        archive: Archive,
        records: Records,
        grants: Grants,
        policies: Policies,
    ) -> None:
        self._log = log
        self._clock = clock
        self._identity = identity
        self._archive = archive
        self._records = records
        self._grants = grants
        self._policies = policies

    async def manifest(self, member: Member, grant_id: str, address: str | None) -> Signed[Manifest]:
        """The manifest that the grant names; the release is on record. Raises Denied or NotFound."""
        granted = await self._granted(member, grant_id)
        grant, manifest = granted.grant, granted.manifest
        await self._log.record(
            Event(
                EventKind.PACK_RELEASED,
                f"member:{member.id}",
                patient=grant.body.patient,
                study=grant.body.study,
                purpose=grant.body.purpose,
                address=address,
                detail={"grant": grant.id, "manifest": manifest.digest, "size_bytes": manifest.body.size},
            )
        )
        return manifest

    async def open(self, member: Member, grant_id: str) -> Release:
        """The pack, to be read range by range. Raises Denied or NotFound."""

        async def granted() -> Granted:
            return await self._granted(member, grant_id)

        return Release(self._archive.packs, granted, await granted())

    async def _granted(self, member: Member, grant_id: str) -> Granted:
        grant = await self._grants.held_by(member, grant_id)
        found = await self._archive.study(grant.body.study)
        if found is None:
            raise NotFound("The study is not here any more.", code="study")
        node = Principal(member.id, Role.MEMBER, member.name, member.id)
        home = self._identity.node_id
        resource = Resource(
            ResourceKind.STUDY, found.study, found.patient, home, found.grade, found.department
        )
        request = Request(node, Action.FETCH, resource, grant.body.purpose, self._clock.now())
        verdict = decide(self._policies.current, request, await self._grants.facts(grant))
        cleared = Clearance.of(request, verdict)
        if grant.body.holder_key != member.hpke_thumbprint:
            raise Denied(
                "The grant was made for another key of this hospital.",
                mend="Ask for a new grant.",
                code="holder-key",
            )
        return Granted(grant, await self._records.by_digest(grant.body.manifest, Manifest), cleared)
