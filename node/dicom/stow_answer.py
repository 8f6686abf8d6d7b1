"""What STOW-RS answers: the Store Instances Response Module, instance by instance (PS3.18 §10.5.3, §I.2)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from consent.errors import AccordError, Conflict, Corrupt, Denied, Invalid, Unavailable
from node.arrival import Receipt
from node.imaging.part10 import Part10

FAILURE_REASONS = {
    Denied: 0x0124,  # not authorized
    Conflict: 0x0111,  # duplicate SOP instance, other contents
    Unavailable: 0xA700,  # out of resources
    Invalid: 0xC000,  # cannot understand
    Corrupt: 0x0110,  # processing failure
}
"""PS3.18 Table I.2-2 and PS3.7 Annex C by error family."""
FAILURE_OF_CODE = {"uid-mismatch": 0xA900, "study-mismatch": 0xA901, "transfer-syntax": 0xC122}


@dataclass
class Outcome:
    """What became of the instances of one request."""

    stored: list[tuple[Part10, Receipt]] = field(default_factory=list)
    failed: list[tuple[Part10 | None, AccordError]] = field(default_factory=list)

    @property
    def status(self) -> int:
        """PS3.18 Table 10.5.3-1: 200 all, 202 some, 409 none stored."""
        return 200 if not self.failed else 202 if self.stored else 409


def answer_of(outcome: Outcome, origin: str) -> dict[str, Any]:
    """The module in DICOM JSON. `origin` is scheme, host and port of this node as the client knows it."""
    studies = f"{origin}/dicom-web/studies/"
    answer: dict[str, Any] = {}
    stored = {receipt.study_instance_uid for _, receipt in outcome.stored}
    if len(stored) == 1:
        answer["00081190"] = _uri(studies + stored.pop())
    named = [(head, error) for head, error in outcome.failed if head is not None]
    if named:
        answer["00081198"] = _sequence([{**_names(head), **_reason(error)} for head, error in named])
    if len(named) < len(outcome.failed):
        # What cannot be read has no name to be listed by.
        answer["0008119A"] = _sequence([_reason(error) for head, error in outcome.failed if head is None])
    if outcome.stored:
        answer["00081199"] = _sequence(
            [
                {**_names(head), "00081190": _uri(_address(studies, head, receipt))}
                for head, receipt in outcome.stored
            ]
        )
    return answer


def failure_reason(error: AccordError) -> int:
    """The code of a failure (0008,1197)."""
    if error.code in FAILURE_OF_CODE:
        return FAILURE_OF_CODE[error.code]
    return next((code for family, code in FAILURE_REASONS.items() if isinstance(error, family)), 0x0110)


def _address(studies: str, head: Part10, receipt: Receipt) -> str:
    return f"{studies}{receipt.study_instance_uid}/series/{receipt.series_instance_uid}/instances/{head.sop_instance_uid}"


def _names(head: Part10) -> dict[str, Any]:
    return {
        "00081150": {"vr": "UI", "Value": [head.sop_class_uid]},
        "00081155": {"vr": "UI", "Value": [head.sop_instance_uid]},
    }


def _reason(error: AccordError) -> dict[str, Any]:
    return {"00081197": {"vr": "US", "Value": [failure_reason(error)]}}


def _sequence(items: list[dict[str, Any]]) -> dict[str, Any]:
    return {"vr": "SQ", "Value": items}


def _uri(value: str) -> dict[str, Any]:
    return {"vr": "UR", "Value": [value]}
