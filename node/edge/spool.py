"""The spool: instances sealed beside a modality until the node has them for good.

Holds segments (study packs of a random name), the bound on their size, and what is left after a crash. Leaves receiving to
`agent` and sending to `forwarding`. Format: docs/formats/edge-spool.md.

Invariants: `add` returns only when the instance is durable; nothing lies in clear; a segment is removed only when every
instance in it was committed; the spool never takes more than its bound.
"""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256

import structlog

from consent.errors import AccordError, Conflict, Corrupt, Unavailable
from consent.vocabulary import Grade
from node.arrival import ATTRIBUTES_SUFFIX, Arrival
from node.clock import Clock
from node.vault.blobs import BlobStore
from node.vault.commit import GroupCommit
from node.vault.pack import StoredObject, pack_name, padded, survey
from node.vault.seal import ObjectHeader, object_key, open_digest, open_sealed
from node.vault.vault import ATTRIBUTES, INSTANCE
from node.vault.writer import Draft

KEY_BYTES = 32
NAME_CHARACTERS = 26
SEGMENT_BYTES = 64 * 1024 * 1024
SEGMENT_INSTANCES = 256
MAX_INSTANCES = 1_000_000
"""However small they are, no more than these wait: each has a few hundred bytes in memory."""

logger = structlog.get_logger()


@dataclass(frozen=True)
class Spooled:
    """An instance in the spool. Its UIDs are the patient's business: they are never shown."""

    id: str
    sop_class_uid: str = field(repr=False)
    sop_instance_uid: str = field(repr=False)
    transfer_syntax_uid: str = field(repr=False)
    sha256: bytes = field(repr=False)
    received: datetime
    place: StoredObject = field(repr=False)


@dataclass
class Segment:
    """A run of instances in one file. `closed`: nothing is added any more. `damaged`: not all of it can be told."""

    name: str
    instances: list[Spooled] = field(default_factory=list)
    size_bytes: int = 0
    adding: int = 0
    closed: bool = False
    damaged: bool = False
    committed: set[str] = field(default_factory=set)

    @property
    def left(self) -> list[Spooled]:
        """What the node has not committed yet."""
        return [one for one in self.instances if one.id not in self.committed]


class Spool:
    """Sealed instances on disk. Belongs to one event loop and one process; `close` ends it."""

    def __init__(self, blobs: BlobStore, key: bytes, clock: Clock, *, max_bytes: int) -> None:
        self._blobs = blobs
        self._key = key
        self._clock = clock
        self._commit = GroupCommit(blobs, clock)
        self._segments: dict[str, Segment] = {}
        self._digests: dict[str, bytes] = {}
        self._adding: dict[str, asyncio.Future[None]] = {}
        """Instances on their way to the disk: whoever sends one again is answered no sooner than the first."""
        self._arrived = asyncio.Event()
        self.max_bytes = max_bytes
        self.used_bytes = 0
        self.damaged: list[str] = []
        """Segments of which something could not be read at the start; their files stay."""

    async def load(self) -> int:
        """Find what an earlier run left; return how many instances.

        A damaged segment is named and left where it is; what is sound in it waits like the rest.
        """
        for name, size in await asyncio.to_thread(lambda: sorted(self._blobs.names())):
            segment = Segment(name.partition(".")[0], size_bytes=size, closed=True)
            self.used_bytes += size
            try:
                segment.instances, fault = await asyncio.to_thread(self._read_segment, segment.name)
            except AccordError as error:
                fault = error.message
            if fault:
                logger.error("edge_segment_damaged", segment=segment.name, error=fault)
                self.damaged.append(segment.name)
                segment.damaged = True
            if segment.instances:
                self._segments[segment.name] = segment
                self._digests |= {one.sop_instance_uid: one.sha256 for one in segment.instances}
                self._arrived.set()
            elif not segment.damaged:  # made, and torn before anything in it was answered for
                await self._remove(segment)
        return self.count

    @property
    def count(self) -> int:
        """Instances that wait."""
        return len(self._digests)

    @property
    def oldest(self) -> datetime | None:
        """When the instance came that has waited longest."""
        first = next(iter(self._segments.values()), None)
        return first.instances[0].received if first and first.instances else None

    async def add(self, arrival: Arrival) -> bool:
        """Keep an instance, durably; False when it was here already.

        Raises Unavailable when the spool is full or the disk fails, Conflict for other bytes under a UID that waits here.
        """
        while (first := self._adding.get(arrival.sop_instance_uid)) is not None:
            await asyncio.wait([first])
        known = self._digests.get(arrival.sop_instance_uid)
        if known is not None:
            if known != arrival.sha256:
                raise Conflict(
                    "Another instance with this UID waits here; it was kept.",
                    mend="Give a changed instance a UID of its own.",
                    code="instance-differs",
                )
            return False
        now = self._clock.now()
        segment = self._open_segment()
        drafts = self._drafts(segment.name, arrival, now)
        # Sealing adds 88 bytes and a thousandth; the frame, the header and the padding less than two blocks.
        room = padded(sum(draft.size_bytes for draft in drafts) * 1002 // 1000 + 4096)
        self._require_room(room)
        self.used_bytes += room
        segment.adding += 1
        self._digests[arrival.sop_instance_uid] = arrival.sha256
        done = self._adding[arrival.sop_instance_uid] = asyncio.get_running_loop().create_future()
        try:
            _, place = await self._commit.append(segment.name, drafts)
        except BaseException:
            del self._digests[arrival.sop_instance_uid]
            self.used_bytes -= room
            raise
        finally:
            segment.adding -= 1
            del self._adding[arrival.sop_instance_uid]
            done.set_result(None)
            self._arrived.set()  # also when it failed: what lies in the segment can be forwarded now
        segment.instances.append(
            Spooled(
                place.object_id,
                arrival.sop_class_uid,
                arrival.sop_instance_uid,
                arrival.transfer_syntax_uid,
                arrival.sha256,
                now,
                place,
            )
        )
        # The room asked for was an upper bound; now the file tells.
        end = max(segment.size_bytes, padded(place.offset + place.length))
        self.used_bytes += end - segment.size_bytes - room
        segment.size_bytes = end
        if segment.size_bytes >= SEGMENT_BYTES or len(segment.instances) >= SEGMENT_INSTANCES:
            segment.closed = True
        return True

    async def waiting(self) -> list[Segment]:
        """Return once something waits: the segments, oldest first, closed for writing."""
        while True:
            found = [one for one in self._segments.values() if one.left and not one.adding]
            if found:
                for segment in found:
                    segment.closed = True
                return found
            self._arrived.clear()
            await self._arrived.wait()

    def read(self, segment: Segment, one: Spooled) -> bytes:
        """The data set, proved against its tags and its digest. Blocks. Raises Corrupt, Unavailable."""
        key = object_key(self._segment_key(segment.name), one.id)
        body = self._blobs.read(pack_name(segment.name), one.place.offset, one.place.length)
        data = open_sealed(body, key, one.place.header(segment.name))
        if sha256(data).digest() != one.sha256:
            raise Corrupt(
                "An instance in the spool is not what the modality sent.",
                mend="Send it again from the modality.",
                code="spool-digest",
            )
        return data

    async def committed(self, segment: Segment, ids: Iterable[str]) -> None:
        """Note what the node has for good; the segment goes once that is all of it."""
        segment.committed.update(ids)
        if segment.closed and not segment.adding and not segment.left:
            for one in segment.instances:
                self._digests.pop(one.sop_instance_uid, None)
            self._segments.pop(segment.name, None)
            if not segment.damaged:
                await self._remove(segment)

    async def close(self) -> None:
        """Finish what is on its way."""
        await self._commit.close()

    async def _remove(self, segment: Segment) -> None:
        await self._commit.release(segment.name)
        await asyncio.to_thread(self._blobs.delete, pack_name(segment.name))
        self.used_bytes -= segment.size_bytes

    def _open_segment(self) -> Segment:
        for segment in reversed(self._segments.values()):
            if not segment.closed:
                return segment
        segment = Segment(f"st_{_letters()}")
        self._segments[segment.name] = segment
        return segment

    def _require_room(self, size: int) -> None:
        if self.used_bytes + size > self.max_bytes or self.count >= MAX_INSTANCES:
            raise Unavailable(
                "The spool is full; nothing was stored.",
                mend="Let the agent reach the node, or give the spool more room (spool.max_bytes).",
                code="spool-full",
            )

    def _drafts(self, segment: str, arrival: Arrival, now: datetime) -> list[Draft]:
        name = f"in_{_letters()}"
        document = json.dumps(
            {
                "sop_class": arrival.sop_class_uid,
                "sop_instance": arrival.sop_instance_uid,
                "transfer_syntax": arrival.transfer_syntax_uid,
                "sha256": arrival.sha256.hex(),
                "received": now.isoformat(),
            }
        ).encode()
        key = self._segment_key(segment)
        described = name + ATTRIBUTES_SUFFIX
        return [
            Draft(
                ObjectHeader(segment, described, ATTRIBUTES, Grade.ORDINARY),
                document,
                object_key(key, described),
            ),
            Draft(
                ObjectHeader(segment, name, INSTANCE, Grade.ORDINARY),
                arrival.data,
                object_key(key, name),
                arrival.sha256,
            ),
        ]

    def _segment_key(self, segment: str) -> bytes:
        return object_key(self._key, segment)

    def _read_segment(self, segment: str) -> tuple[list[Spooled], str]:
        """What lies in a segment, and what is wrong with the rest ("": nothing). Raises Corrupt when it is no segment."""
        name = pack_name(segment)
        with self._blobs.opened(name) as read:
            found = survey(read, self._blobs.size(name), segment)
            fault = "Durable bytes were changed." if any(one.settled for one in found.damages) else ""
            described = {one.object_id: one for one in found.objects if one.kind == ATTRIBUTES}
            spooled = []
            for one in found.objects:
                description = described.get(one.object_id + ATTRIBUTES_SUFFIX)
                if one.kind == INSTANCE and description is not None:
                    body = read(description.offset, description.length)
                    try:
                        spooled.append(self._opened(segment, one, description, body))
                    except AccordError as error:
                        fault = error.message
        return spooled, fault

    def _opened(self, segment: str, one: StoredObject, description: StoredObject, body: bytes) -> Spooled:
        key = self._segment_key(segment)
        document = open_sealed(body, object_key(key, description.object_id), description.header(segment))
        try:
            content = json.loads(document)
            spooled = Spooled(
                one.object_id,
                content["sop_class"],
                content["sop_instance"],
                content["transfer_syntax"],
                bytes.fromhex(content["sha256"]),
                datetime.fromisoformat(content["received"]),
                one,
            )
        except (ValueError, KeyError, TypeError) as error:
            raise Corrupt("An entry of the spool is malformed.", code="spool-entry") from error
        sealed = one.sealed_digest
        if sealed is None or open_digest(sealed, object_key(key, one.object_id), one.header(segment)) != (
            spooled.sha256
        ):
            raise Corrupt("An entry of the spool names another digest than it was sealed with.")
        return spooled


def _letters() -> str:
    return base64.b32encode(secrets.token_bytes(17)).decode().lower()[:NAME_CHARACTERS]
