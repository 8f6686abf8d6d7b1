"""Small instances by the thousand, each with a UID and bytes of its own, and the truth about what was sent.

Made by putting fixed-length values in place of a template's, so that making them costs next to nothing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256

from node.dicom.sender import Outgoing
from tests.support.dicom import EXPLICIT, Instance, ct_slice

SIDE = 64
_DIGITS = 30
_STUDY, _SERIES, _INSTANCE = (f"2.25.{kind}{'1' * _DIGITS}" for kind in (7, 8, 9))
_PATIENT = "PATIENT-000000"
_SALT_BYTES = 16


@cache
def _template(side: int) -> bytes:
    made = ct_slice(
        size=side,
        patient_id=_PATIENT,
        StudyInstanceUID=_STUDY,
        SeriesInstanceUID=_SERIES,
        SOPInstanceUID=_INSTANCE,
    )
    return made.data[:-_SALT_BYTES]


def study_uid(study: int) -> str:
    """The Study Instance UID of study `study`."""
    return _numbered(_STUDY, study)


def slice_of(study: int, number: int, side: int = SIDE) -> Instance:
    """A new slice of a study: its UID follows from the two numbers, its last bytes are random."""
    unique = study * 1_000_000 + number
    data = (
        _template(side)
        .replace(_STUDY.encode(), study_uid(study).encode())
        .replace(_SERIES.encode(), _numbered(_SERIES, study).encode())
        .replace(_INSTANCE.encode(), _numbered(_INSTANCE, unique).encode())
        .replace(_PATIENT.encode(), f"PATIENT-{study:06d}".encode())
    )
    return Instance(
        "1.2.840.10008.5.1.4.1.1.2", _numbered(_INSTANCE, unique), EXPLICIT, data + os.urandom(_SALT_BYTES)
    )


def outgoing(instance: Instance) -> Outgoing:
    """As our sender takes it."""
    return Outgoing(
        instance.sop_instance_uid,
        instance.sop_class_uid,
        instance.sop_instance_uid,
        instance.transfer_syntax_uid,
        instance.data,
    )


@dataclass
class Truth:
    """What was sent, by SOP Instance UID: its study and digest; and which of it was acknowledged."""

    sent: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    acknowledged: set[str] = field(default_factory=set)
    numbers: dict[int, int] = field(default_factory=dict)

    def next(self, study: int, side: int = SIDE) -> Instance:
        """One more slice of the study, put on record as sent."""
        number = self.numbers.get(study, 0) + 1
        self.numbers[study] = number
        instance = slice_of(study, number, side)
        self.sent[instance.sop_instance_uid] = (study, sha256(instance.data).digest())
        return instance


def _numbered(uid: str, number: int) -> str:
    return f"{uid[:6]}{10 ** (_DIGITS - 1) + number:0{_DIGITS}d}"
