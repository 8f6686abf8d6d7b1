"""A witness (C2SP tlog-witness): cosigns another log's checkpoint after seeing that it only grew.

Holds the latest cosigned checkpoint per log and the rule of `add-checkpoint`; which log keys are trusted comes in,
and HTTP is left to the peer door. Checking the old size and persisting the new checkpoint happen in one write
transaction, so two requests cannot roll each other back.

Invariant: for one origin this witness never cosigns two checkpoints that are inconsistent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from sqlalchemy import insert, select, update

from consent.errors import AccordError, Conflict, Corrupt, Denied, Invalid, NotFound
from node.audit.merkle import EMPTY_ROOT, HASH_BYTES, MAX_PROOF_HASHES, check_consistency
from node.audit.note import (
    MAX_NOTE_BYTES,
    Checkpoint,
    Note,
    SignatureType,
    Signer,
    Verifier,
    decode,
    encode,
    open_checkpoint,
)
from node.audit.tables import witness_state
from node.clock import Clock
from node.database import Database, Tx

MAX_REQUEST_BYTES = MAX_NOTE_BYTES + 64 * 48
SIZE_MEDIA_TYPE = "text/x.tlog.size"

VerifiersOf = Callable[[str], Sequence[Verifier]]
"""Given an origin, the log keys trusted for it (empty when the log is unknown)."""

_OLD = re.compile(r"old (0|[1-9][0-9]{0,18})")


class StaleSize(Conflict):
    """The request starts from another size than the one cosigned last: answer 409 with `known_size`."""

    def __init__(self, known_size: int) -> None:
        super().__init__(
            f"This witness has cosigned size {known_size}.",
            mend="Send the consistency proof from there.",
            code="stale-size",
        )
        self.known_size = known_size

    @property
    def body(self) -> str:
        """The answer's body (media type SIZE_MEDIA_TYPE)."""
        return f"{self.known_size}\n"


class HistoryRewritten(Corrupt):
    """A trusted key signed a checkpoint that was not shown to extend the one cosigned before: answer 422, and alarm.

    `known` and `offered` are the two notes. Of one size, they prove the misbehaviour to anybody; of two sizes,
    they are what the log owes a consistency proof for.
    """

    def __init__(self, known: str, offered: str, why: str) -> None:
        super().__init__(
            f"The log is not shown to extend what it was before. {why}", code="history-rewritten"
        )
        self.known = known
        self.offered = offered


@dataclass(frozen=True)
class AddCheckpoint:
    """The body of an `add-checkpoint` request."""

    old_size: int
    proof: tuple[bytes, ...]
    note: str

    def __str__(self) -> str:
        lines = [f"old {self.old_size}", *map(encode, self.proof), "", self.note]
        return "\n".join(lines)

    @classmethod
    def parse(cls, text: str) -> AddCheckpoint:
        """Raises Invalid when the body is malformed or past its bounds."""
        if len(text) > MAX_REQUEST_BYTES:
            raise Invalid(f"The request is larger than {MAX_REQUEST_BYTES} bytes.", code="bad-request")
        head, found, note = text.partition("\n\n")
        old, *lines = head.split("\n")
        size = _OLD.fullmatch(old)
        if not found or size is None:
            raise Invalid("Not an add-checkpoint request: `old SIZE` is needed first.", code="bad-request")
        if len(lines) > MAX_PROOF_HASHES:
            raise Invalid(f"A proof has at most {MAX_PROOF_HASHES} hashes.", code="bad-request")
        proof = tuple(decode(line, "consistency proof") for line in lines)
        if any(len(value) != HASH_BYTES for value in proof):
            raise Invalid(f"A hash of the proof is not {HASH_BYTES} bytes.", code="bad-request")
        return cls(int(size[1]), proof, note)


class Witness:
    """This node as a witness of others; `signer` is its cosignature key."""

    def __init__(self, database: Database, *, signer: Signer, clock: Clock) -> None:
        if signer.verifier.type is not SignatureType.COSIGNATURE_V1:
            raise Invalid("A witness signs with a cosignature key.")
        self._database = database
        self._signer = signer
        self._clock = clock

    async def add_checkpoint(self, request: AddCheckpoint, verifiers_of: VerifiersOf) -> str:
        """Check, persist, cosign; return the signature line.

        Raises NotFound (404: unknown log), Denied (403: no good signature by a trusted key), Invalid (400),
        StaleSize (409), Corrupt or HistoryRewritten (422: a proof or root that does not hold).
        """
        checkpoint = _trusted(request.note, verifiers_of)
        if request.old_size > checkpoint.size:
            raise Invalid("The old size is larger than the checkpoint's.", code="bad-request")
        if checkpoint.size == 0 and checkpoint.root != EMPTY_ROOT:
            raise Corrupt("The root of the empty tree is wrong.", code="bad-root")
        async with self._database.write() as tx:
            known = await _state(tx, checkpoint.origin, lock=True)
            if request.old_size != (0 if known is None else known.size):
                raise StaleSize(0 if known is None else known.size)
            _check_growth(request, checkpoint, known)
            now = self._clock.now()
            signature = self._signer.sign(checkpoint.text, now)
            note = Note.parse(request.note).with_signatures([signature])
            values = {"size": checkpoint.size, "at": now, "note": str(note)}
            if known is None:
                names = {"origin": checkpoint.origin, "origin_hash": origin_hash(checkpoint.origin)}
                await tx.execute(insert(witness_state).values(**names, **values))
            else:
                same = witness_state.c.origin == checkpoint.origin
                await tx.execute(update(witness_state).where(same).values(**values))
        return signature.line

    async def latest(self, origin: str) -> str | None:
        """The latest checkpoint of `origin` that this witness cosigned, with its signatures; None for none."""
        async with self._database.read() as tx:
            known = await _state(tx, origin)
            return None if known is None else str(known.note)

    async def latest_by_hash(self, digest: str) -> str:
        """As `latest`, by `origin_hash` (the monitoring path of tlog-witness). Raises NotFound."""
        query = select(witness_state.c.note).where(witness_state.c.origin_hash == digest)
        async with self._database.read() as tx:
            note = (await tx.execute(query)).scalar_one_or_none()
        if note is None:
            raise NotFound("This witness has cosigned no checkpoint of such a log.")
        return str(note)

    async def known_size(self, origin: str) -> int:
        """The size cosigned last for `origin`; 0 for none."""
        async with self._database.read() as tx:
            known = await _state(tx, origin)
            return 0 if known is None else int(known.size)


def http_status(error: AccordError) -> int:
    """The status that tlog-witness gives to an error of `add_checkpoint`."""
    match error:
        case Conflict():
            return 409
        case Corrupt():
            return 422
        case NotFound():
            return 404
        case Denied():
            return 403
        case _:
            return 400


def origin_hash(origin: str) -> str:
    """SHA-256 of the origin line, hex."""
    return sha256(origin.encode()).hexdigest()


def _trusted(note: str, verifiers_of: VerifiersOf) -> Checkpoint:
    origin = Checkpoint.parse(Note.parse(note).text).origin
    verifiers = verifiers_of(origin)
    if not verifiers:
        raise NotFound("This witness does not know a log of this origin.", code="unknown-log")
    try:
        checkpoint, _ = open_checkpoint(note, verifiers)
    except Corrupt as error:
        raise Denied(error.message, code="untrusted-checkpoint") from error
    return checkpoint


def _check_growth(request: AddCheckpoint, checkpoint: Checkpoint, known: Any) -> None:
    if known is None:
        if request.proof:
            raise Corrupt("A first checkpoint needs an empty proof.", code="bad-proof")
        return
    before = Checkpoint.parse(Note.parse(known.note).text)
    try:
        check_consistency(before.size, checkpoint.size, request.proof, before.root, checkpoint.root)
    except Corrupt as error:
        raise HistoryRewritten(known.note, request.note, error.message) from error


async def _state(tx: Tx, origin: str, *, lock: bool = False) -> Any:
    query = select(witness_state).where(witness_state.c.origin == origin)
    return (await tx.execute(query.with_for_update() if lock else query)).first()
