"""From the spool to the node: send, ask for storage commitment, and only then let go.

Holds the loop, its pauses and what became of the instances. Leaves the wire to `node.dicom`. Whatever goes wrong with the
network, nothing leaves the spool without the node's word that it is durable; what the node refuses for good stays, and is
told, until somebody removes the cause or the instance. An instance at which associations break off goes last: it holds nobody
else back.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime

import structlog

from consent.errors import AccordError
from node.clock import Clock
from node.dicom.commitment_request import commit
from node.dicom.sender import Outgoing, Peer, send
from node.edge.spool import Segment, Spool, Spooled
from node.safety import Reference

FIRST_PAUSE_SECONDS = 1.0
MAX_REFUSED_SHOWN = 100
BROKEN_OFF = "association-broken"

Reach = Callable[[], Awaitable[Peer]]
"""Where the node is now, and how to call it. Raises Unavailable when it is not to be found."""

logger = structlog.get_logger()


@dataclass(frozen=True)
class _Waiting(Outgoing):
    """An instance in the spool, read when its turn comes."""

    spool: Spool | None = None
    segment: Segment | None = None
    spooled: Spooled | None = None

    def read(self) -> bytes:
        assert self.spool is not None and self.segment is not None and self.spooled is not None
        return self.spool.read(self.segment, self.spooled)


@dataclass
class Progress:
    """What the forwarder did, in numbers and words without an identifier."""

    sent: int = 0
    committed: int = 0
    refused: dict[str, str] = field(default_factory=dict)
    """Spool id → why the node does not take it."""
    reached: datetime | None = None
    trouble: str = ""
    """What keeps it from sending now; "" when nothing does."""


class Forwarder:
    """Forwards in the background between `start` and `stop`."""

    def __init__(
        self,
        spool: Spool,
        reach: Reach,
        clock: Clock,
        *,
        retry_seconds: float,
        commit_seconds: float,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`retry_seconds` is the longest pause between two attempts, `sleep` how one passes."""
        self._spool = spool
        self._reach = reach
        self._clock = clock
        self._retry_seconds = retry_seconds
        self._commit_seconds = commit_seconds
        self._sleep = sleep
        self._task: asyncio.Task[None] | None = None
        self._broken_at: Counter[str] = Counter()
        self.progress = Progress()

    def start(self) -> None:
        """Run until `stop`."""
        self._task = asyncio.create_task(self._run(), name="edge-forwarder")

    async def stop(self) -> None:
        """End; what waits is sent after the next start."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _run(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while True:
            segments = await self._spool.waiting()
            try:
                moved = await self._round(segments)
            except (
                Exception
            ) as error:  # the duty ends with the agent only: else the spool would fill for ever
                self._troubled(f"It failed ({type(error).__name__}).")
                moved = False
            pause = FIRST_PAUSE_SECONDS if moved else min(pause * 2, self._retry_seconds)
            if not moved:
                await self._sleep(pause)

    async def _round(self, segments: list[Segment]) -> bool:
        """Forward each; whether the node has any more for good. One at which the association breaks off stops no other."""
        moved, trouble = False, ""
        for segment in segments:
            try:
                moved |= await self.forward(segment)
            except AccordError as error:
                trouble = error.message
                if error.code != BROKEN_OFF:
                    break
        self._troubled(trouble)
        return moved

    async def forward(self, segment: Segment) -> bool:
        """Send what is left of a segment and ask for commitment; whether the node has any more of it for good.

        Raises Unavailable or Denied when the node cannot be reached, does not admit us or broke off: then after asking
        for commitment of what it had taken.
        """
        peer = await self._reach()
        sent: list[Spooled] = []
        broken: AccordError | None = None
        try:
            await self._send(peer, segment, sent)
        except AccordError as error:
            if error.code != BROKEN_OFF:
                raise
            broken = error
        moved = await self._committed(peer, segment, sent) if sent else False
        if broken is not None and not moved:
            raise broken
        return moved

    async def _committed(self, peer: Peer, segment: Segment, sent: list[Spooled]) -> bool:
        """Ask whether these are safe, and let go of those that are; whether there are any."""
        references = {Reference(one.sop_class_uid, one.sop_instance_uid): one for one in sent}
        report = await commit(peer, tuple(references), seconds=self._commit_seconds)
        for reference, reason in report.failed.items():
            if reference in references:
                self._refused(
                    references[reference].id, f"The node took it and does not keep it ({reason:04X})."
                )
        held = [references[one].id for one in report.safe if one in references]
        self.progress.committed += len(held)
        for name in held:
            self.progress.refused.pop(name, None)
            del self._broken_at[name]
        await self._spool.committed(segment, held)
        return bool(held)

    async def _send(self, peer: Peer, segment: Segment, taken: list[Spooled]) -> None:
        """Send what is left; `taken` gets what the node took, also when the association breaks off."""
        left = sorted(segment.left, key=lambda one: self._broken_at[one.id])
        waiting = {one.id: one for one in left}
        outgoing = [
            _Waiting(
                one.id,
                one.sop_class_uid,
                one.sop_instance_uid,
                one.transfer_syntax_uid,
                spool=self._spool,
                segment=segment,
                spooled=one,
            )
            for one in left
        ]
        answered = 0
        try:
            async for answer in send(peer, outgoing):
                answered += 1
                self.progress.reached = self._clock.now()
                if answer.ok:
                    self.progress.sent += 1
                    taken.append(waiting[answer.label])
                else:
                    self._refused(answer.label, answer.reason)
        except AccordError as error:
            if error.code == BROKEN_OFF and answered < len(left):
                self._broken_at[left[answered].id] += 1
            raise

    def _refused(self, name: str, reason: str) -> None:
        if name not in self.progress.refused:
            logger.warning("edge_instance_refused", instance=name, reason=reason)
        self.progress.refused[name] = reason
        while len(self.progress.refused) > MAX_REFUSED_SHOWN:
            self.progress.refused.pop(next(iter(self.progress.refused)))

    def _troubled(self, words: str) -> None:
        if words and words != self.progress.trouble:
            logger.warning("edge_node_away", reason=words, waiting=self._spool.count)
        self.progress.trouble = words
