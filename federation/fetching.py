"""Fetching a shared study: the sealed pack as it lies at its home, resumed after a cut, verified before it counts.

The bytes go to a place where nothing counts (`Holdings.incoming`). Only when the home's signed manifest was verified,
the file has exactly its length, and every object lies where the manifest says with the BLAKE3 digest that it says,
is the pack moved to its place. What does not match is thrown away, on record, and nothing of it was ever shown.
"""

from __future__ import annotations

import asyncio

from consent.errors import AccordError, Corrupt, Denied, Invalid, NotFound, Sentence
from consent.grants import Grant
from consent.signed import Signed, verify
from consent.vocabulary import EventKind, Outcome
from federation.client import PeerClient
from federation.fields import read_object
from federation.holdings import Holdings
from federation.members import Members
from federation.protocol import MAX_MANIFEST_BYTES, MAX_PACK_BYTES, MAX_RANGE_BYTES, PREFIX
from node.audit.event import Event
from node.audit.log import Log
from node.clock import Clock
from node.vault.blobs import FileAppendable, FileBlobs
from node.vault.manifest import Manifest
from node.vault.pack import check_bodies, pack_name, survey

MAX_FAULTS = 3
"""How often a pack may come damaged before nobody tries again by itself."""


class Fetching:
    """Brings the packs of held grants here."""

    def __init__(
        self, *, log: Log, clock: Clock, members: Members, client: PeerClient, holdings: Holdings
    ) -> None:
        self._log = log
        self._clock = clock
        self._members = members
        self._client = client
        self._holdings = holdings

    async def fetch_waiting(self) -> None:
        """A job: fetch every pack that was granted and is not here yet. One failure stops no other."""
        for grant_id in await self._holdings.waiting(MAX_FAULTS):
            try:
                await self.fetch(grant_id)
            except AccordError:
                continue  # the reason is kept with the grant

    async def fetch(self, grant_id: str) -> Manifest:
        """Fetch and verify the pack of one held grant; resumes what came before.

        Raises Unavailable (cut: what came is kept), Corrupt (damaged: nothing is kept), Denied (the home says no),
        Conflict (the grant has ended here: what came now would outlive it).
        """
        grant = await self._holdings.grant(grant_id)
        home, study = grant.body.home, grant.body.study
        async with self._holdings.shredding.turn(home, study):
            await self._holdings.require_living(grant_id)
            try:
                manifest = await self._manifest(grant)
                await self._bring(grant, manifest.body)
                await self._holdings.fetched(grant, manifest)
            except Corrupt as error:
                await self._integrity_failed(grant, error)
                await self._holdings.failed(grant_id, error.message, fault=True)
                raise
            except AccordError as error:
                changed = error.code == "pack-changed"
                if changed:  # what came is of a file that is no more
                    await asyncio.to_thread(self._holdings.incoming(home).delete, pack_name(study))
                await self._holdings.failed(
                    grant_id, error.message, fault=changed or isinstance(error, Invalid)
                )
                raise
        return manifest.body

    async def _manifest(self, grant: Signed[Grant]) -> Signed[Manifest]:
        home = grant.body.home
        path = f"{PREFIX}/packs/{grant.id}/manifest"
        answer = await self._client.get(home, path, limit=MAX_MANIFEST_BYTES)
        token = read_object(answer, "manifest").text("token", limit=MAX_MANIFEST_BYTES)
        manifest = verify(token, Manifest, keys_of=self._members.keys_of, now=self._clock.now())
        body = manifest.body
        if manifest.issuer != home or body.home != home or manifest.digest != grant.body.manifest:
            raise Corrupt("The manifest is not the one that the grant names.", code="wrong-manifest")
        if body.study != grant.body.study or body.grade > grant.body.grade_max:
            raise Denied("The manifest is of another study, or of a higher grade.", code="wrong-manifest")
        if not 0 < body.size <= MAX_PACK_BYTES:
            raise Invalid(Sentence("A pack has 1 to %(most)s bytes.", most=MAX_PACK_BYTES), code="too-large")
        return manifest

    async def _bring(self, grant: Signed[Grant], manifest: Manifest) -> None:
        home, name = grant.body.home, pack_name(manifest.study)
        kept, incoming = self._holdings.blobs(home), self._holdings.incoming(home)
        if await self._is_here(kept, name, manifest):
            return
        blob = await asyncio.to_thread(incoming.append, name)
        try:
            await self._pull(grant, manifest, blob)
        finally:
            await asyncio.to_thread(blob.close)
        faults = await asyncio.to_thread(_check, incoming, name, manifest)
        if faults:
            await asyncio.to_thread(incoming.delete, name)
            raise Corrupt(
                Sentence(
                    "%(faults)s of %(all)s objects from %(home)s are not what it signed for.",
                    faults=faults,
                    all=len(manifest.objects),
                    home=home,
                ),
                mend="It is fetched again; if it stays so, call the home hospital's security officer.",
                code="pack-damaged",
            )
        await asyncio.to_thread(kept.delete, name)
        await asyncio.to_thread(incoming.hand_over, name, kept)

    async def _pull(self, grant: Signed[Grant], manifest: Manifest, blob: FileAppendable) -> None:
        """Append what is missing, in bounded ranges, each durable before the next is asked for."""
        at = await asyncio.to_thread(blob.size)
        if at > manifest.size:  # left over from another version of the pack
            await asyncio.to_thread(blob.truncate, 0)
            at = 0
        path = f"{PREFIX}/packs/{grant.id}/bytes"
        while at < manifest.size:
            length = min(MAX_RANGE_BYTES, manifest.size - at)
            try:
                async for piece in self._client.stream(grant.body.home, path, offset=at, length=length):
                    await asyncio.to_thread(blob.write, [piece], at)
                    at += len(piece)
            finally:
                await asyncio.to_thread(blob.sync)

    async def _is_here(self, kept: FileBlobs, name: str, manifest: Manifest) -> bool:
        """Whether a copy that an earlier grant brought is just what this one covers."""
        try:
            if await asyncio.to_thread(kept.size, name) != manifest.size:
                return False
        except NotFound:
            return False
        return await asyncio.to_thread(_check, kept, name, manifest) == 0

    async def _integrity_failed(self, grant: Signed[Grant], error: Corrupt) -> None:
        await self._log.record(
            Event(
                EventKind.INTEGRITY_FAILED,
                "system",
                outcome=Outcome.FAILED,
                study=grant.body.study,
                reason=error.message,
                detail={"grant": grant.id, "home": grant.body.home, "code": error.code, "where": "transfer"},
            )
        )


def _check(blobs: FileBlobs, name: str, manifest: Manifest) -> int:
    """How many things in a pack are not what its manifest says; 0 when it is whole. Needs no key."""
    size = blobs.size(name)
    with blobs.opened(name) as read:
        try:
            found = survey(read, size, manifest.study)
        except (Corrupt, Invalid):
            return max(1, len(manifest.objects))
        there = {
            (stored.object_id, stored.kind, stored.grade, stored.offset, stored.length, stored.blake3.hex())
            for stored in found.objects
        }
        listed = {
            (entry.object_id, entry.kind, entry.grade, entry.offset, entry.length, entry.blake3)
            for entry in manifest.objects
        }
        damaged = set(check_bodies(read, found.objects))
    # Records that the manifest does not list are inert: nobody leases their keys, and the gateway reads by manifest.
    wrong = {item[0] for item in listed - there} | {item[0] for item in listed if item[0] in damaged}
    return len(wrong) + int(size != manifest.size)
