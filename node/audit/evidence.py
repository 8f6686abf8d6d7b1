"""Evidence to carry away: a C2SP tlog-proof file, and its checking without the node, offline.

The file holds an entry's index, its inclusion proof and a checkpoint with cosignatures; its `extra` line holds the
salted record itself, so that one file is enough. Pure. Format: docs/formats/log.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Self

from consent.errors import Corrupt, Invalid
from node.audit.event import MAX_RECORD_BYTES, SALT_BYTES, Event, read_record
from node.audit.merkle import HASH_BYTES, MAX_PROOF_HASHES, check_inclusion, leaf_hash
from node.audit.note import MAX_NOTE_BYTES, SignatureType, Verifier, Vouched, decode, encode, open_checkpoint

FIRST_LINE = "c2sp.org/tlog-proof@v1"
MAX_PROOF_FILE_BYTES = MAX_NOTE_BYTES + 2 * MAX_RECORD_BYTES + 8192

_INDEX = re.compile(r"0|[1-9][0-9]{0,18}")


@dataclass(frozen=True)
class ProofFile:
    """A tlog-proof: `extra` is the salted record, or None when the record is handed over otherwise."""

    index: int
    proof: tuple[bytes, ...]
    checkpoint: str
    extra: bytes | None = None

    def __str__(self) -> str:
        extra = [] if self.extra is None else [f"extra {encode(self.extra)}"]
        lines = [FIRST_LINE, *extra, f"index {self.index}", *map(encode, self.proof), "", self.checkpoint]
        return "\n".join(lines)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises Invalid when the text is not a tlog-proof or breaks a bound."""
        if len(text.encode(errors="replace")) > MAX_PROOF_FILE_BYTES:
            raise _malformed(f"it is larger than {MAX_PROOF_FILE_BYTES} bytes")
        head, found, checkpoint = text.partition("\n\n")
        lines = head.split("\n")
        if not found or lines.pop(0) != FIRST_LINE or not lines:
            raise _malformed(f"it does not begin with {FIRST_LINE}")
        extra = None
        if lines[0].startswith("extra "):
            extra = decode(lines.pop(0).removeprefix("extra "), "extra line")
        index = lines.pop(0).removeprefix("index ") if lines and lines[0].startswith("index ") else ""
        if not _INDEX.fullmatch(index):
            raise _malformed("the index line is missing or not a plain number")
        proof = tuple(decode(line, "inclusion proof") for line in lines)
        if len(proof) > MAX_PROOF_HASHES or any(len(value) != HASH_BYTES for value in proof):
            raise _malformed("the inclusion proof is not up to 63 hashes of 32 bytes")
        return cls(int(index), proof, checkpoint, extra)


@dataclass(frozen=True)
class Evidence:
    """What a good proof file shows: this entry is at this index of this log, as these witnesses saw it."""

    origin: str
    index: int
    size: int
    at: datetime
    event: Event
    witnesses: tuple[Vouched, ...]


def verify_proof_file(
    text: str, vkeys: Iterable[str], quorum: int = 0, record: bytes | None = None
) -> Evidence:
    """Check a proof file with nothing but the keys that the reader trusts.

    `vkeys` are the log's key and its witnesses' keys; at least `quorum` witnesses other than the log itself must
    have cosigned. `record` is the salted record when the file does not carry it. Raises Invalid when
    malformed, Corrupt when anything does not hold.
    """
    file = ProofFile.parse(text)
    verifiers = [Verifier.from_vkey(vkey) for vkey in vkeys]
    checkpoint, vouched = open_checkpoint(file.checkpoint, verifiers)
    origins = {v.name for v in verifiers if v.type is SignatureType.ED25519}
    if checkpoint.origin not in origins or not _signed_by_origin(checkpoint.origin, vouched):
        raise Corrupt(f"The checkpoint is not signed by the log {checkpoint.origin!r}.", code="wrong-log")
    witnesses = independent(vouched)
    if len(witnesses) < quorum:
        raise Corrupt(
            f"{len(witnesses)} of the {quorum} witnesses needed have cosigned.",
            mend="Ask for a proof under a later checkpoint.",
            code="no-quorum",
        )
    salted = record if record is not None else file.extra
    if salted is None or len(salted) <= SALT_BYTES:
        raise Invalid("The proof file carries no record, and none was given.", mend="Give the record too.")
    check_inclusion(file.index, checkpoint.size, leaf_hash(salted), file.proof, checkpoint.root)
    at, event = read_record(salted)
    return Evidence(checkpoint.origin, file.index, checkpoint.size, at, event, witnesses)


def independent(vouched: Iterable[Vouched]) -> tuple[Vouched, ...]:
    """The cosignatures by keys other than the log's own, one per key: nobody is his own witness."""
    vouched = tuple(vouched)
    own = {one.verifier.key for one in vouched if one.verifier.type is SignatureType.ED25519}
    witnesses = {one.verifier.key: one for one in vouched if one.at is not None}
    return tuple(one for key, one in witnesses.items() if key not in own)


def _signed_by_origin(origin: str, vouched: Iterable[Vouched]) -> bool:
    return any(one.verifier.name == origin and one.verifier.type is SignatureType.ED25519 for one in vouched)


def _malformed(why: str) -> Invalid:
    return Invalid(f"Not a log proof file: {why}.", code="bad-proof-file")
