"""DICOM JSON metadata of whole series, made once, away from the answer's path, and sealed into the study's pack.

The payload is a JSON array with one instance a line, in the order of their numbers, so that instances can be
picked out without parsing it. Made from the heads of data sets that have just arrived, once a series has been
quiet for a moment; what was not made here (too large, restart) the gateway makes at the first request and keeps
by `keep`. Bounded: heads wait in memory up to MAX_WAITING_BYTES, the rest is left to the gateway.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import structlog

from consent.errors import AccordError
from consent.vocabulary import Grade
from node.arrival import Buffer, placement
from node.flusher import Derived, Flusher
from node.imaging.attributes import Attributes
from node.imaging.model_lines import ModelLines
from node.imaging.syntaxes import DEFLATED
from node.index import Entry, Index
from node.index.rows import MetadataPlace
from node.vault.pack import StoredObject
from node.vault.vault import METADATA, NewObject, Vault

QUIET_SECONDS = 1.5
POLL_SECONDS = 0.25
MAX_HEAD_BYTES = 512 * 1024
LARGE_HEAD_BYTES = 64 * 1024
MAX_WAITING_BYTES = 64 * 1024 * 1024

logger = structlog.get_logger()


@dataclass(frozen=True)
class _Head:
    """A data set up to its pixels, and what is needed to read it."""

    number: int
    uid: str
    path: str = field(repr=False)
    transfer_syntax: str
    data: bytes = field(repr=False)


@dataclass
class _Series:
    """Heads of one series that wait to be described."""

    grade: Grade
    last: float
    heads: dict[str, _Head] = field(default_factory=dict)


class Descriptions:
    """Makes and keeps the metadata of series; runs in the background between `start` and `stop`."""

    def __init__(self, vault: Vault, index: Index, flusher: Flusher) -> None:
        self._vault = vault
        self._index = index
        self._flusher = flusher
        self._waiting: OrderedDict[tuple[str, str], _Series] = OrderedDict()
        self._bytes = 0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Run in the background until `stop`."""
        self._task = asyncio.create_task(self._run(), name="descriptions")

    async def stop(self) -> None:
        """End; what waits is left to the gateway."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        self._waiting.clear()
        self._bytes = 0

    def note(self, entry: Entry, data: Buffer) -> None:
        """Remember the head of an instance that has just become durable."""
        attributes = entry.attributes
        whole = attributes.pixel_offset is None or attributes.deflated
        size = len(data) if whole else attributes.pixel_offset or 0
        if size > MAX_HEAD_BYTES or self._task is None:
            return
        key = (entry.study, entry.series)
        series = self._waiting.setdefault(key, _Series(entry.grade, 0.0))
        series.last = asyncio.get_running_loop().time()
        series.grade = max(series.grade, entry.grade)
        series.heads[entry.instance] = _Head(
            _number(attributes),
            attributes.sop_instance_uid,
            bulk_path(
                attributes.study_instance_uid, attributes.series_instance_uid, attributes.sop_instance_uid
            ),
            attributes.transfer_syntax_uid,
            bytes(memoryview(data)[:size]),
        )
        self._bytes += size
        self._waiting.move_to_end(key)
        while self._bytes > MAX_WAITING_BYTES:
            self._forget(next(iter(self._waiting)))

    async def settled(self) -> None:
        """Describe everything that waits now, without waiting for quiet."""
        for key in list(self._waiting):
            await self._describe(key)

    async def keep(self, study: str, series: str, grade: Grade, lines: Mapping[str, bytes]) -> None:
        """Keep the metadata of a series: one JSON object an instance, in order.

        Raises Unavailable or Corrupt as the vault does.
        """
        payload = joined(lines.values())
        self._flusher.begin(study)
        try:
            object_id = f"{series}.m.{len(lines)}"
            (stored,) = await self._vault.append(study, grade, [NewObject(object_id, METADATA, payload)])
        except BaseException:
            self._flusher.abandon(study)
            raise
        self._flusher.put(Derived(study, series, MetadataPlace(object_id, len(lines), placement(stored))))

    async def _run(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(POLL_SECONDS)
            quiet = [key for key, one in self._waiting.items() if clock() - one.last > QUIET_SECONDS]
            for key in quiet:
                await self._describe(key)

    async def _describe(self, key: tuple[str, str]) -> None:
        if key not in self._waiting:
            return  # described meanwhile: this runs in the background and from `settled`
        series = self._forget(key)
        try:
            lines: dict[str, bytes] = {}
            writing = ModelLines()
            for instance, head in sorted(
                series.heads.items(), key=lambda item: (item[1].number, item[1].uid)
            ):
                lines[instance] = await described(head.data, head.transfer_syntax, head.path, writing)
                await asyncio.sleep(0)  # others come first, for nobody waits for this
            rows = await self._index.series(key[0])
            counts = {row.series: row.instance_count for row in rows}
            if counts.get(key[1]) == len(lines):
                await self.keep(*key, series.grade, lines)
        except Exception as error:  # one strange series must not end the duty for all that follow
            words = error.message if isinstance(error, AccordError) else type(error).__name__
            logger.warning("series not described", series=key[1], error=words)

    def _forget(self, key: tuple[str, str]) -> _Series:
        series = self._waiting.pop(key)
        self._bytes -= sum(len(head.data) for head in series.heads.values())
        return series


def kept_metadata(objects: Iterable[StoredObject]) -> dict[str, MetadataPlace]:
    """What was kept of each series in a pack, by series; of several the last, which is of the most instances."""
    found: dict[str, MetadataPlace] = {}
    for stored in objects:
        series, mark, count = stored.object_id.partition(".m.")
        if stored.kind == METADATA and mark and count.isdecimal():
            found[series] = MetadataPlace(stored.object_id, int(count), placement(stored))
    return found


def bulk_path(study_uid: str, series_uid: str, sop_uid: str) -> str:
    """Where an instance's bulk data is found, relative to the door's `studies/`."""
    return f"{study_uid}/series/{series_uid}/instances/{sop_uid}/"


async def described(head: Buffer, transfer_syntax: str, path: str, writing: ModelLines) -> bytes:
    """The line of one data set of a series (`ModelLines.line`); a long head, or a deflated one, holds nobody else up."""
    if len(head) > LARGE_HEAD_BYTES or transfer_syntax == DEFLATED:
        return await asyncio.to_thread(writing.line, head, transfer_syntax, path)
    return writing.line(head, transfer_syntax, path)


def joined(lines: Iterable[bytes]) -> bytes:
    """One JSON array, one line an element."""
    return b"[" + b",\n".join(lines) + b"]"


def split(payload: bytes) -> list[bytes]:
    """The elements of `joined`."""
    return payload[1:-1].split(b",\n") if len(payload) > 2 else []


def _number(attributes: Attributes) -> int:
    return attributes.instance_number if attributes.instance_number is not None else 2**31 - 1
