"""What the gateway hands out when it opens a study, and what it remembers of each visit.

Holds no rule and reads nothing. An `Opening` is a receipt that names a visit; whether the next picture may still
be shown is decided each time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property

from consent.decision import Resource
from consent.emergency import EmergencyClaim
from consent.obligations import Obligation
from consent.principals import Principal
from consent.verdict import Permit
from consent.vocabulary import Action, Grade, Purpose
from node.index import InstanceRow


@dataclass(frozen=True)
class Opening:
    """A study opened for somebody. `home` is "" for a study of this node, else the node it is a copy from.

    `expires` is when it ends by itself at the latest, None when nothing but idleness ends it. `recipient` is who gets
    what is taken, when that is another than `who`.
    """

    id: str
    study: str
    home: str
    who: Principal
    purpose: Purpose
    action: Action
    obligations: tuple[Obligation, ...]
    reasons: tuple[str, ...]
    expires: datetime | None
    session: str | None = None
    recipient: Principal | None = None


@dataclass(frozen=True)
class InstanceView:
    """An instance as a viewer lists it."""

    uid: str
    number: int | None
    frames: int
    rows: int | None
    cols: int | None


@dataclass(frozen=True)
class SeriesView:
    """A series as a viewer lists it, its instances in order."""

    uid: str
    number: int | None
    modality: str
    description: str
    instances: tuple[InstanceView, ...]


@dataclass(frozen=True)
class Rendered:
    """A picture, encoded."""

    content: bytes = field(repr=False)
    media_type: str


@dataclass(frozen=True)
class InstanceBytes:
    """A data set as it arrived, verified against the digest taken then."""

    data: bytes = field(repr=False)
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str


@dataclass(frozen=True)
class Contents:
    """What a study holds: its series in order, every instance by SOP Instance UID, and whose it is.

    `patient_id` is what a watermark says; it is the patient's own ID and goes nowhere else.
    """

    study_instance_uid: str = field(repr=False)
    patient_id: str = field(repr=False)
    series: tuple[SeriesView, ...]
    instances: Mapping[str, InstanceRow] = field(repr=False)

    @cached_property
    def series_of(self) -> Mapping[str, str]:
        """The Series Instance UID of every instance, by SOP Instance UID."""
        return {one.uid: series.uid for series in self.series for one in series.instances}


@dataclass
class Visit:
    """An opening while it lasts: the present permit, what was looked at, and when it was last used.

    `asked` is when the rules last permitted it, by the monotonic clock.
    """

    opening: Opening
    resource: Resource
    claim: EmergencyClaim | None
    address: str | None
    permit: Permit
    opened: datetime
    used: datetime
    asked: float
    contents: Contents | None = None
    seen: set[tuple[str, int]] = field(default_factory=set)
    pictures: int = 0
    instances: int = 0
    sent_bytes: int = 0

    def saw(self, sop_uid: str, frame: int) -> None:
        """Count a picture that is about to be shown."""
        self.pictures += 1
        self.seen.add((sop_uid, frame))

    @property
    def grade(self) -> Grade:
        return self.resource.grade

    @property
    def expires(self) -> datetime | None:
        return self.permit.expires
