"""The data sets of storage commitment: what is asked and what is reported (PS3.4 §J.3).

Pure. Read within bounds; what does not belong there is passed over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from consent.errors import Invalid
from node.imaging.charsets import charset_of
from node.imaging.elements import Buffer, Element, elements, encoding_of, items
from node.imaging.part10 import valid_uid
from node.safety import Fate, Reference

from .identifiers import write_identifier

INSTANCE = "1.2.840.10008.1.20.1.1"
"""The well-known SOP instance that a request names."""
REQUEST = 1
"""Action Type ID."""
ALL_SAFE, SOME_FAILED = 1, 2
"""Event Type IDs."""
MAX_REFERENCES = 10_000
MAX_ASKED_BYTES = 2 * 1024 * 1024

_TRANSACTION = 0x00081195
_SOP_CLASS, _SOP_INSTANCE = 0x00081150, 0x00081155
_FAILURE_REASON = 0x00081197
_FAILED, _REFERENCED = 0x00081198, 0x00081199


@dataclass(frozen=True)
class Asked:
    """A transaction: which instances somebody wants to know safe."""

    transaction: str
    references: tuple[Reference, ...] = field(repr=False)


@dataclass(frozen=True)
class Report:
    """What became of a transaction's instances; `failed` maps SOP Instance UIDs to failure reasons (0008,1197)."""

    transaction: str
    safe: tuple[Reference, ...] = field(repr=False)
    failed: Mapping[Reference, int] = field(repr=False)

    @property
    def event(self) -> int:
        return SOME_FAILED if self.failed else ALL_SAFE


def report_of(asked: Asked, fates: Sequence[Fate]) -> Report:
    """What to report."""
    told = dict(zip(asked.references, fates, strict=True))
    return Report(
        asked.transaction,
        tuple(one for one, fate in told.items() if fate is Fate.SAFE),
        {one: int(fate) for one, fate in told.items() if fate is not Fate.SAFE},
    )


def write_asked(asked: Asked, transfer_syntax: str) -> bytes:
    """Action Information of an N-ACTION."""
    return _written(
        {_TRANSACTION: ("UI", asked.transaction), _REFERENCED: _list(asked.references)}, transfer_syntax
    )


def write_report(report: Report, transfer_syntax: str) -> bytes:
    """Event Information of an N-EVENT-REPORT; a list without items is left out."""
    values: dict[int, tuple[str, Any]] = {_TRANSACTION: ("UI", report.transaction)}
    if report.safe:
        values[_REFERENCED] = _list(report.safe)
    if report.failed:
        failed = [{**_item(one), _FAILURE_REASON: ("US", reason)} for one, reason in report.failed.items()]
        values[_FAILED] = ("SQ", failed)
    return _written(values, transfer_syntax)


def read_asked(data: Buffer, transfer_syntax: str) -> Asked:
    """Raises Invalid when it is malformed, names nothing or more than MAX_REFERENCES instances."""
    transaction, lists = _read(data, transfer_syntax)
    if not lists[_REFERENCED]:
        raise Invalid("A commitment request names no instance.", code="commitment")
    return Asked(transaction, tuple(dict.fromkeys(reference for reference, _ in lists[_REFERENCED])))


def read_report(data: Buffer, transfer_syntax: str) -> Report:
    """What is named as safe and as failed is not safe. Raises Invalid when it is malformed."""
    transaction, lists = _read(data, transfer_syntax)
    failed = dict(lists[_FAILED])
    return Report(transaction, tuple(one for one, _ in lists[_REFERENCED] if one not in failed), failed)


def _read(data: Buffer, transfer_syntax: str) -> tuple[str, dict[int, list[tuple[Reference, int]]]]:
    if len(data) > MAX_ASKED_BYTES:
        raise Invalid(f"A commitment has at most {MAX_ASKED_BYTES >> 20} MiB.", code="commitment")
    form = encoding_of(transfer_syntax).form
    transaction = b""
    lists: dict[int, list[tuple[Reference, int]]] = {_REFERENCED: [], _FAILED: []}
    for element in elements(data, form):
        if element.tag == _TRANSACTION:
            transaction = _value(data, element)
        elif element.tag in lists:
            found = [_entry(data, item) for item in items(data, element, form, limit=MAX_REFERENCES + 1)]
            if len(found) > MAX_REFERENCES:
                raise Invalid(f"At most {MAX_REFERENCES} instances in one commitment.", code="commitment")
            lists[element.tag] = found
    return valid_uid(transaction, "TransactionUID"), lists


def _entry(data: Buffer, item: Sequence[Element]) -> tuple[Reference, int]:
    found = {element.tag: _value(data, element) for element in item if element.tag in _OF_ITEMS}
    reference = Reference(
        valid_uid(found.get(_SOP_CLASS, b""), "ReferencedSOPClassUID"),
        valid_uid(found.get(_SOP_INSTANCE, b""), "ReferencedSOPInstanceUID"),
    )
    return reference, int.from_bytes(found.get(_FAILURE_REASON, b"")[:2], "little")


_OF_ITEMS = frozenset({_SOP_CLASS, _SOP_INSTANCE, _FAILURE_REASON})
_MAX_VALUE_BYTES = 1024


def _value(data: Buffer, element: Element) -> bytes:
    if element.length > min(_MAX_VALUE_BYTES, len(data) - element.start):
        raise Invalid("A value of a commitment is too long.", code="commitment")
    return bytes(data[element.start : element.start + element.length])


def _list(references: Sequence[Reference]) -> tuple[str, Any]:
    return "SQ", [_item(one) for one in references]


def _item(one: Reference) -> dict[int, tuple[str, Any]]:
    return {_SOP_CLASS: ("UI", one.sop_class_uid), _SOP_INSTANCE: ("UI", one.sop_instance_uid)}


def _written(values: Mapping[int, tuple[str, Any]], transfer_syntax: str) -> bytes:
    return write_identifier(values, transfer_syntax, charset_of(b""))
