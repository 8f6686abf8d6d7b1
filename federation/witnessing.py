"""Checkpoints between members: ours shown to others for cosigning, theirs cosigned here when they only grew.

The rule itself is `node.audit.witness`. A log that does not extend what was seen of it is an alarm on record, at
the witness and at the log. Routine cosigning is not logged: two logs that recorded each other's growth would never
rest. Cosignature times raise this node's trusted clock, but never on the word of one witness where there are more, and
never far ahead of the machine's own clock: time that has run on ends every grant and session until a restart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta

from consent.errors import AccordError, Corrupt, Denied, Invalid, Unavailable
from consent.vocabulary import EventKind, Outcome
from federation.client import PeerClient
from federation.members import Members
from federation.protocol import MAX_CHECKPOINT_BODY_BYTES, PREFIX
from federation.roster import HUB, Member
from node.audit.event import Event
from node.audit.log import Log
from node.audit.note import Checkpoint, Note, Verifier
from node.audit.witness import (
    SIZE_MEDIA_TYPE,
    AddCheckpoint,
    HistoryRewritten,
    StaleSize,
    Witness,
    http_status,
)

MAX_WITNESSES = 8
MAX_AHEAD = timedelta(minutes=5)
"""How far past the machine's own clock witnesses may move this node's time, however many agree."""
PLAIN = "text/plain"


class Witnessing:
    """This node as a log that is witnessed, and as a witness."""

    def __init__(
        self,
        *,
        log: Log,
        witness: Witness,
        members: Members,
        client: PeerClient,
        raise_floor: Callable[[datetime], None] | None = None,
        system_time: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._log = log
        self._witness = witness
        self._members = members
        self._client = client
        self._raise_floor = raise_floor
        self._system_time = system_time
        self._known: dict[str, int] = {}
        self._seen_at: dict[str, datetime] = {}
        self._alarmed: set[tuple[str, str]] = set()

    async def add_checkpoint(self, member: Member, text: str) -> tuple[int, str, str]:
        """Answer one tlog-witness request of `member`: status, media type, body."""
        try:
            request = AddCheckpoint.parse(text)
            checkpoint = Checkpoint.parse(Note.parse(request.note).text)
            verifier = member.log_verifier
            if checkpoint.origin != verifier.name:
                raise Denied("A member shows its own log.", code="wrong-party")
            first = await self._witness.latest(checkpoint.origin) is None
            line = await self._witness.add_checkpoint(request, lambda _origin: (verifier,))
        except HistoryRewritten as error:
            await self._alarm(f"member:{member.id}", verifier.name, error.message, error.offered)
            return http_status(error), PLAIN, f"{error.message}\n"
        except StaleSize as error:
            return http_status(error), SIZE_MEDIA_TYPE, error.body
        except AccordError as error:
            return http_status(error), PLAIN, f"{error.message}\n"
        if first:
            await self._log.record(
                Event(
                    EventKind.CHECKPOINT_COSIGNED,
                    f"member:{member.id}",
                    reason="The first checkpoint of this log that was cosigned here.",
                    detail={"origin": verifier.name, "size": checkpoint.size},
                )
            )
        return 200, PLAIN, line

    async def own_checkpoint(self) -> str:
        """Our latest checkpoint with its cosignatures."""
        return await self._log.checkpoint()

    async def submit(self) -> None:
        """A job: sign a checkpoint if the log grew, and show it to witnesses that have not seen it.

        Raises Corrupt, after an alarm on record, when our own log contradicts itself.
        """
        try:
            note = await self._log.checkpoint()
        except Corrupt as error:
            await self._alarm("system", self._log.origin, error.message, "")
            raise
        size = Checkpoint.parse(Note.parse(note).text).size
        if size == 0:
            return
        for member in self.witnesses():
            if self._known.get(member.id) == size:
                continue
            try:
                await self._show(member, note, size)
            except (Unavailable, Denied, Invalid):
                continue  # an away witness delays no other; it is asked again next time
        await self._take_time()

    def witnesses(self) -> tuple[Member, ...]:
        """The members that we ask: the hub, and those that follow this node in the order of ids."""
        others = sorted(self._members.others(), key=lambda member: member.id)
        own = self._members.node_id
        ring = [member for member in others if member.id > own] + [
            member for member in others if member.id < own
        ]
        ring.sort(key=lambda member: HUB not in member.roles)
        return tuple(ring[:MAX_WITNESSES])

    async def cosigned_size(self, member: Member) -> int:
        """How many entries of a member's log this node has vouched for; 0 when it has seen none."""
        return await self._witness.known_size(member.log_verifier.name)

    def vouched(self) -> Mapping[str, int]:
        """Up to which size of our own log each witness has come, as far as this process has heard."""
        return dict(self._known)

    def verifiers(self) -> tuple[Verifier, ...]:
        """The keys that may cosign our log: those of every other member."""
        return tuple(member.log_verifier.as_cosigner() for member in self._members.others())

    async def _show(self, member: Member, note: str, size: int) -> None:
        status, body = await self._post(member, note, self._known.get(member.id, 0), size)
        if status == 409:
            known = _size(body)
            if known > size:
                await self._alarm(
                    f"member:{member.id}",
                    self._log.origin,
                    f"The witness has seen {known} entries of this log, more than are left here. "
                    "It was cut back, or restored from an old backup.",
                    note,
                )
                return
            self._known[member.id] = known
            status, body = await self._post(member, note, known, size)
        if status == 422:
            await self._alarm(f"member:{member.id}", self._log.origin, body.strip()[:500], note)
        if status != 200:
            return
        vouched = await self._log.add_cosignatures(size, body, [member.log_verifier.as_cosigner()])
        self._known[member.id] = size
        for one in vouched:
            if one.at is not None:
                self._seen_at[member.id] = one.at

    async def _post(self, member: Member, note: str, old: int, size: int) -> tuple[int, str]:
        proof = tuple(await self._log.prove_consistency(old, size)) if 0 < old <= size else ()
        return await self._client.post_text(
            member.id,
            f"{PREFIX}/add-checkpoint",
            str(AddCheckpoint(old if old <= size else 0, proof, note)),
            limit=MAX_CHECKPOINT_BODY_BYTES,
        )

    async def _take_time(self) -> None:
        """Raise the clock's floor to what two witnesses agree is past; to one's word when there is one only.

        What lies more than `MAX_AHEAD` past the system clock counts up to there and is an alarm: either they or this
        machine's clock are wrong, and people must say which.
        """
        if self._raise_floor is None or not self._seen_at:
            return
        times = sorted(self._seen_at.values(), reverse=True)
        if len(times) >= 2:
            agreed = times[1]
        elif len(self._members.others()) == 1:
            agreed = times[0]
        else:
            return
        latest = self._system_time() + MAX_AHEAD
        if agreed > latest:
            await self._alarm(
                "system",
                self._log.origin,
                "The witnesses' clocks are far ahead of this machine's. Check this machine's clock, then theirs.",
                "\n".join(f"{member} {at.isoformat()}" for member, at in sorted(self._seen_at.items())),
            )
        self._raise_floor(min(agreed, latest))

    async def _alarm(self, actor: str, origin: str, words: str, offered: str) -> None:
        """Put an alarm on record, once for each log and reason while this process runs."""
        if (origin, words) in self._alarmed:
            return
        self._alarmed.add((origin, words))
        await self._log.record(
            Event(
                EventKind.WITNESS_ALARMED,
                actor,
                outcome=Outcome.FAILED,
                reason=words,
                detail={"origin": origin, "offered": offered[:4000]},
            )
        )


def _size(body: str) -> int:
    text = body.strip()
    if not text.isdecimal() or len(text) > 18:
        raise Invalid("The witness did not say which size it knows.", code="bad-witness")
    return int(text)
