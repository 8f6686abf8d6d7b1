"""Whether an instance is safe here: the words in which storage commitment is asked and answered (PS3.4 Annex J)."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class Reference(NamedTuple):
    """An instance that somebody asks about."""

    sop_class_uid: str
    sop_instance_uid: str


class Fate(IntEnum):
    """What became of it; the values are DICOM's failure reasons (0008,1197), 0 for none."""

    SAFE = 0
    UNREADABLE = 0x0110
    NOT_HERE = 0x0112
    OTHER_CLASS = 0x0119
