"""What de-identification gives: a new data set, or the reason why there is none.

Apart from the engine (`deidentify`), which needs pydicom and runs in a worker: whoever only asks for it does not.
"""

from __future__ import annotations

from dataclasses import dataclass

from node.imaging.confidentiality import Action


@dataclass(frozen=True)
class DeidentifiedInstance:
    """A new data set; `actions` says what was done, for the source's own record only."""

    data: bytes
    transfer_syntax: str
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str
    patient_id: str
    actions: tuple[tuple[str, Action], ...]


@dataclass(frozen=True)
class Refusal:
    """Why an instance was not de-identified: a slug and a sentence without identifiers."""

    code: str
    reason: str
