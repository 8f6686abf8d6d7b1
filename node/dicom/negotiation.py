"""What is agreed at the start of an association (PS3.8 §7.1, PS3.7 Annex D, PS3.4 §B.4, §C.5 and §J.3).

Pure: from a peer's request to the node's answer. Accepts verification, storage, query/retrieve and storage commitment;
whether the device may use a service is the rules' word, later, so that a refusal has a reason in words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from node.imaging.dictionary import UIDS
from node.imaging.elements import TRANSFER_SYNTAXES
from node.imaging.syntaxes import (
    DEFLATED,
    EXPLICIT_BIG_ENDIAN,
    EXPLICIT_LITTLE_ENDIAN,
    IMPLICIT_LITTLE_ENDIAN,
    UNPACKED,
)

from .messages import Context
from .pdu import Answer, AssociateRq, Extended, Proposal, Result, Roles, Window

VERIFICATION = "1.2.840.10008.1.1"
STORAGE_COMMITMENT = "1.2.840.10008.1.20.1"
PATIENT_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.1.1"
PATIENT_ROOT_MOVE = "1.2.840.10008.5.1.4.1.2.1.2"
PATIENT_ROOT_GET = "1.2.840.10008.5.1.4.1.2.1.3"
STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
STUDY_ROOT_MOVE = "1.2.840.10008.5.1.4.1.2.2.2"
STUDY_ROOT_GET = "1.2.840.10008.5.1.4.1.2.2.3"

LITTLE_ENDIAN = UNPACKED
"""What identifiers and reports are written in, the better first; every image can be brought into both."""

STORAGE_CLASSES: frozenset[str] = frozenset(
    uid
    for uid, (name, kind, *_) in UIDS.items()
    if kind == "SOP Class"
    and "Storage" in name
    and not name.startswith(("Storage Commitment", "Media Storage"))
)
"""Every storage SOP class of the dictionary, retired ones too: archives still send them."""

_UNCOMPRESSED = (IMPLICIT_LITTLE_ENDIAN, DEFLATED, EXPLICIT_BIG_ENDIAN)


class Root(StrEnum):
    """The two information models (PS3.4 §C.6)."""

    PATIENT = "patient root"
    STUDY = "study root"


FIND = {PATIENT_ROOT_FIND: Root.PATIENT, STUDY_ROOT_FIND: Root.STUDY}
MOVE = {PATIENT_ROOT_MOVE: Root.PATIENT, STUDY_ROOT_MOVE: Root.STUDY}
GET = {PATIENT_ROOT_GET: Root.PATIENT, STUDY_ROOT_GET: Root.STUDY}
SERVICES = frozenset({*FIND, *MOVE, *GET, STORAGE_COMMITMENT})

DATE_TIME, EMPTY_VALUE = 1, 5
"""Places of what is offered among the fields of a C-FIND class (PS3.4 Table C.5-1); relational queries and the rest are not."""
_OFFERED = {uid: frozenset({DATE_TIME, EMPTY_VALUE}) for uid in FIND} | {
    uid: frozenset[int]() for uid in (*MOVE, *GET)
}


@dataclass(frozen=True)
class Terms:
    """What was agreed. `contexts` are those accepted; `peer_stores` are the storage classes that the peer provides, to
    be sent to it in a C-GET; `operations` is how many operations the peer may have under way at once."""

    answers: tuple[Answer, ...]
    contexts: Mapping[int, Context]
    roles: tuple[Roles, ...] = ()
    extended: tuple[Extended, ...] = ()
    window: Window | None = None
    peer_stores: frozenset[str] = frozenset()
    operations: int = 1

    def agreed(self, sop_class: str, field: int) -> bool:
        """Whether one field of a class's extended negotiation was agreed upon."""
        fields = next((one.fields for one in self.extended if one.sop_class == sop_class), b"")
        return fields[field : field + 1] == b"\x01"


def negotiate(request: AssociateRq, *, private: frozenset[str] = frozenset(), operations: int = 1) -> Terms:
    """Answer a request. `private` are storage classes taken beside the standard's; `operations` bounds the window."""
    asked = {one.sop_class: one for one in request.roles}
    storage = STORAGE_CLASSES | private
    gets = frozenset(uid for uid, one in asked.items() if one.scp and uid in storage)
    answers = tuple(_answer(proposal, storage, gets) for proposal in request.contexts)
    contexts = {
        proposal.id: Context(proposal.id, proposal.abstract_syntax, answer.transfer_syntax)
        for proposal, answer in zip(request.contexts, answers, strict=True)
        if answer.result == Result.ACCEPTANCE
    }
    accepted = {context.abstract_syntax for context in contexts.values()}
    window = request.window
    invoked = 1 if window is None else min(window.invoked or operations, operations)
    return Terms(
        answers,
        contexts,
        tuple(Roles(uid, one.scu, one.scp and uid in gets) for uid, one in asked.items() if uid in accepted),
        tuple(_fields(one) for one in request.extended if one.sop_class in _OFFERED.keys() & accepted),
        # This side invokes its own operations, the sub-operations of a C-GET, one at a time.
        None if window is None else Window(invoked, 1),
        gets & accepted,
        invoked,
    )


def _answer(proposal: Proposal, storage: frozenset[str], gets: frozenset[str]) -> Answer:
    """The transfer syntax of one context: storage in the first that a node keeps, identifiers in plain ones.

    The proposer's order decides, so that data need not be converted to be sent; only a first choice that is
    uncompressed gives way to Explicit VR Little Endian when that is offered too, since it keeps private VRs. What is to
    be sent *to* the peer goes uncompressed where it offers that beside others: every image can be brought into it.
    """
    uid, offered = proposal.abstract_syntax, proposal.transfer_syntaxes
    if uid not in storage and uid != VERIFICATION and uid not in SERVICES:
        return Answer(proposal.id, Result.ABSTRACT_SYNTAX, offered[0])
    kept = [
        syntax for syntax in offered if syntax in (LITTLE_ENDIAN if uid in SERVICES else TRANSFER_SYNTAXES)
    ]
    if not kept:
        return Answer(proposal.id, Result.TRANSFER_SYNTAXES, offered[0])
    if uid in gets and (plain := [syntax for syntax in LITTLE_ENDIAN if syntax in kept]):
        return Answer(proposal.id, Result.ACCEPTANCE, plain[0])
    if kept[0] in _UNCOMPRESSED and EXPLICIT_LITTLE_ENDIAN in kept:
        return Answer(proposal.id, Result.ACCEPTANCE, EXPLICIT_LITTLE_ENDIAN)
    return Answer(proposal.id, Result.ACCEPTANCE, kept[0])


def _fields(asked: Extended) -> Extended:
    """As many fields as were asked about, each 1 where it was asked for and is offered."""
    offered = _OFFERED[asked.sop_class]
    fields = bytes(value == 1 and place in offered for place, value in enumerate(asked.fields))
    return Extended(asked.sop_class, fields)
