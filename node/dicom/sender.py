"""Our own sender: C-STORE of files or data sets in memory, and C-ECHO (PS3.7 §9.1.1, §9.1.5).

Bytes go out as they lie: nothing is decoded or converted, so each instance needs its own SOP class and transfer
syntax accepted. One association carries up to 128 such pairs; more need another one. Each instance is
answered before the next is sent, and one that is refused does not stop the others. Whether they
are safe there asks `commitment_request`. Serves `accord send`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from consent.errors import AccordError, Invalid, Unavailable
from node.imaging.part10 import MAX_META_BYTES, read_part10
from node.safety import Reference

from .messages import Command, Verb
from .negotiation import LITTLE_ENDIAN, VERIFICATION
from .pdu import MAX_CONTEXTS
from .requestor import Call
from .requestor import Peer as Peer

MAX_FILE_BYTES = 2 * 1024 * 1024 * 1024
MAX_HEAD_BYTES = MAX_META_BYTES + 132

# PS3.4 Table B.2-1, PS3.7 Annex C and PS3.18 Table I.2-2, without the low bits that vary.
_STATUS_WORDS = {
    0x0110: "processing failed there",
    0x0111: "another instance with this UID is there already",
    0x0112: "no such instance",
    0x0122: "this kind of object is not taken there",
    0x0124: "not authorised",
    0x0211: "the operation is not known there",
    0xA7: "out of resources",
    0xA9: "the data set does not match its SOP class or UID",
    0xC122: "its transfer syntax is not taken there",
    0xB: "taken with a change or a remark",
    0xC: "it could not be understood",
}


@dataclass(frozen=True)
class Outgoing:
    """One instance to send: in memory as `data` (data set alone), or the file at `path` from `offset` on."""

    label: str
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    data: bytes | None = field(default=None, repr=False)
    path: Path | None = None
    offset: int = 0
    size_bytes: int = 0
    """Of the whole file, header and all, when it was listed."""

    def read(self) -> bytes:
        """The data set. Blocks; raises OSError, or an error family of whoever keeps it."""
        if self.data is not None:
            return self.data
        assert self.path is not None
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read()


@dataclass(frozen=True)
class Sent:
    """What became of one instance. `status` is the peer's, None when it was not asked."""

    label: str
    sop_instance_uid: str
    ok: bool
    status: int | None
    reason: str
    bytes: int = 0
    sop_class_uid: str = ""

    @property
    def reference(self) -> Reference:
        """As storage commitment names it."""
        return Reference(self.sop_class_uid, self.sop_instance_uid)


def outgoing(path: Path) -> Outgoing:
    """Read the head of a DICOM file. Raises Invalid when it is none, Unavailable when it cannot be read."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(MAX_HEAD_BYTES)
    except OSError as error:
        raise Unavailable(f"{path.name} cannot be read: {error.strerror}.") from error
    if size > MAX_FILE_BYTES:
        raise Invalid(f"{path.name} is larger than {MAX_FILE_BYTES >> 30} GiB.", code="too-large")
    head = read_part10(start)
    return Outgoing(
        str(path),
        head.sop_class_uid,
        head.sop_instance_uid,
        head.transfer_syntax_uid,
        path=path,
        offset=head.dataset_offset,
        size_bytes=size,
    )


def files_under(paths: Iterable[Path]) -> Iterator[Path]:
    """The files named, and those below the folders named, in order."""
    for path in paths:
        if path.is_dir():
            yield from sorted(inner for inner in path.rglob("*") if inner.is_file())
        else:
            yield path


async def readable(paths: Iterable[Path]) -> AsyncIterator[Outgoing | Sent]:
    """The DICOM files among `paths` and below them; for a file that is none, why it is not sent."""
    for path in files_under(paths):
        try:
            yield await asyncio.to_thread(outgoing, path)
        except AccordError as error:
            yield Sent(str(path), "", False, None, str(error))


async def send(peer: Peer, instances: Sequence[Outgoing]) -> AsyncIterator[Sent]:
    """Send `instances`; yield what became of each.

    Raises Unavailable when the peer cannot be reached or breaks off, Denied when it rejects the association.
    """
    for group in _groups(instances):
        pairs = list(dict.fromkeys((one.sop_class_uid, one.transfer_syntax_uid) for one in group))
        async with Call(peer, pairs) as call:
            for one in group:
                yield await _store(call, one)


async def send_files(peer: Peer, paths: Iterable[Path]) -> AsyncIterator[Sent]:
    """Send every DICOM file among `paths` and below them; a file that is none is reported, not sent."""
    found: list[Outgoing] = []
    async for one in readable(paths):
        if isinstance(one, Sent):
            yield one
        else:
            found.append(one)
    async for sent in send(peer, found):
        yield sent


async def echo(peer: Peer) -> None:
    """C-ECHO. Raises Unavailable or Denied when the peer does not answer with success."""
    async with Call(peer, [(VERIFICATION, syntax) for syntax in LITTLE_ENDIAN]) as call:
        if not call.contexts:
            raise Unavailable("The peer does not offer verification.")
        answer = await call.exchange(Verb.C_ECHO_RQ, call.contexts[0])
        if answer.status != 0:
            raise Unavailable(f"The peer answered the echo with status {answer.status:04X}.")


async def _store(call: Call, one: Outgoing) -> Sent:
    context = call.context(one.sop_class_uid, one.transfer_syntax_uid)
    if context is None:
        reason = "The peer does not take this SOP class in this transfer syntax."
        return Sent(one.label, one.sop_instance_uid, False, None, reason)
    try:
        data = await asyncio.to_thread(one.read)
    except OSError as error:
        return Sent(one.label, one.sop_instance_uid, False, None, f"It cannot be read: {error.strerror}.")
    except AccordError as error:  # this one is lost where it was kept; the others are not
        return Sent(one.label, one.sop_instance_uid, False, None, error.message)
    answer = await call.exchange(Verb.C_STORE_RQ, context, sop_instance=one.sop_instance_uid, data=data)
    ok = answer.status == 0 or answer.status >> 12 == 0xB  # 0xBxxx: stored, with a warning
    reason = "" if answer.status == 0 else status_words(answer)
    return Sent(one.label, one.sop_instance_uid, ok, answer.status, reason, len(data), one.sop_class_uid)


def _groups(instances: Sequence[Outgoing]) -> Iterator[list[Outgoing]]:
    """Runs of instances that need no more presentation contexts than one association has."""
    group: list[Outgoing] = []
    pairs: set[tuple[str, str]] = set()
    for one in instances:
        pair = (one.sop_class_uid, one.transfer_syntax_uid)
        if pair not in pairs and len(pairs) == MAX_CONTEXTS:
            yield group
            group, pairs = [], set()
        pairs.add(pair)
        group.append(one)
    if group:
        yield group


def words_of(status: int) -> str:
    """What a status of C-STORE, or a failure reason of STOW-RS, means."""
    return (
        _STATUS_WORDS.get(status)
        or _STATUS_WORDS.get(status >> 8)
        or _STATUS_WORDS.get(status >> 12)
        or "refused"
    )


def status_words(answer: Command) -> str:
    """A response's status and comment for a person."""
    plain = "".join(character if character.isprintable() else " " for character in answer.comment).strip()
    comment = f": {plain}" if plain else ""
    return f"Status {answer.status:04X}, {words_of(answer.status)}{comment}"
