"""Group commit: many appends, few fdatasyncs; sealed in the thread that writes them.

One pack has at most one group on its way to the disk; what arrives meanwhile forms the next group, and one
fdatasync covers all of it. Different packs sync side by side on a few threads. Holds the queues and the bounded set of
open packs; leaves the bytes to `pack`.

Invariants: an append is answered only after an fdatasync that covers it; a failed group fails for everybody in it; at most
`MAX_OPEN_PACKS` idle packs stay open; what waits in memory is bounded.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from consent.errors import Unavailable
from node.clock import Clock
from node.vault.arena import Arena
from node.vault.blobs import BlobStore
from node.vault.pack import StoredObject, pack_name
from node.vault.writer import Draft, PackGone, PackWriter

SYNC_THREADS = 4
MAX_OPEN_PACKS = 128
MAX_WAITING_BYTES = 256 * 1024 * 1024

_Answer = asyncio.Future[tuple[StoredObject, ...]]


@dataclass
class _Pack:
    study: str
    writer: PackWriter | None = None
    waiting: list[tuple[Sequence[Draft], _Answer]] = field(default_factory=list)
    running: asyncio.Future[tuple[StoredObject, ...]] | None = None


class GroupCommit:
    """Appends sealed objects to packs, durably. Belongs to one event loop; `close` ends it."""

    def __init__(self, blobs: BlobStore, clock: Clock) -> None:
        self._blobs = blobs
        self._clock = clock
        self._threads = ThreadPoolExecutor(SYNC_THREADS, thread_name_prefix="vault-sync")
        # One for each thread; the last that was used comes first, so that one busy pack fills no more than one.
        self._arenas = deque(Arena() for _ in range(SYNC_THREADS))
        self._packs: OrderedDict[str, _Pack] = OrderedDict()
        self._waiting_bytes = 0
        self._room = asyncio.Event()
        self._room.set()
        self._closed = False

    async def room(self) -> None:
        """Wait while too much is on its way to a slow disk."""
        await self._room.wait()

    async def append(self, study: str, drafts: Sequence[Draft]) -> tuple[StoredObject, ...]:
        """Return when the drafts are durable. Raises Unavailable or Corrupt; then none of them counts."""
        if self._closed:
            raise Unavailable("The vault is closing.", mend="Send again after the restart.")
        pack = self._packs.get(study)
        if pack is None:
            pack = self._packs[study] = _Pack(study)
        self._packs.move_to_end(study)
        self._count(sum(draft.size_bytes for draft in drafts))
        answer: _Answer = asyncio.get_running_loop().create_future()
        pack.waiting.append((drafts, answer))
        if pack.running is None:
            self._start(pack)
        return await answer

    async def release(self, study: str) -> None:
        """Close a pack, after what is on its way."""
        pack = self._packs.get(study)
        while pack is not None and pack.running is not None:
            await asyncio.wait([pack.running])
            await asyncio.sleep(0)
        if pack is not None and self._packs.get(study) is pack:
            self._drop(pack)

    async def close(self) -> None:
        """Finish what is on its way, close every pack, end the threads."""
        self._closed = True
        for study in list(self._packs):
            await self.release(study)
        await asyncio.to_thread(self._threads.shutdown)

    def _start(self, pack: _Pack) -> None:
        group, pack.waiting = pack.waiting, []
        drafts = [draft for part, _ in group for draft in part]
        loop = asyncio.get_running_loop()
        pack.running = loop.run_in_executor(self._threads, self._write, pack, drafts)
        pack.running.add_done_callback(partial(self._finished, pack, group))

    def _write(self, pack: _Pack, drafts: list[Draft]) -> tuple[StoredObject, ...]:
        """In a thread: one group, sealed, written and durable."""
        arena = self._arenas.pop()
        try:
            while True:
                if pack.writer is None:
                    pack.writer = PackWriter(pack.study, self._blobs.append(pack_name(pack.study)))
                try:
                    return pack.writer.append(drafts, self._clock.now(), arena)
                except PackGone:
                    pack.writer.close()
                    pack.writer = None
        finally:
            self._arenas.append(arena)

    def _finished(self, pack: _Pack, group: list[tuple[Sequence[Draft], _Answer]], done: _Answer) -> None:
        pack.running = None
        self._count(-sum(draft.size_bytes for part, _ in group for draft in part))
        error = done.exception()
        at = 0
        for part, answer in group:
            if answer.done():  # its caller was cancelled; the bytes are kept all the same
                pass
            elif error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(done.result()[at : at + len(part)])
            at += len(part)
        if pack.waiting:
            self._start(pack)
        else:
            self._close_idle()

    def _close_idle(self) -> None:
        excess = len(self._packs) - MAX_OPEN_PACKS
        if excess > 0:
            idle = [pack for pack in self._packs.values() if pack.running is None]
            for pack in idle[:excess]:
                self._drop(pack)

    def _drop(self, pack: _Pack) -> None:
        del self._packs[pack.study]
        if pack.writer is not None:
            pack.writer.close()
            pack.writer = None

    def _count(self, change: int) -> None:
        self._waiting_bytes += change
        if self._waiting_bytes < MAX_WAITING_BYTES:
            self._room.set()
        else:
            self._room.clear()
