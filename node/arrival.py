"""An instance on its way in, and the attributes object that lies beside it in the study's pack.

Holds no step of the procedure (`ingest` does). The attributes object carries everything that the index needs to
know the instance again without touching its pixels; a crash loses nothing, and a node that holds a copy of the
pack reads it the same way. Format: docs/formats/index.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from typing import Literal

from consent.errors import Corrupt
from consent.principals import Principal
from node.imaging.attributes import Attributes, AttributesReader
from node.index import Entry, Placement, Pseudonyms
from node.refusals import Refusals
from node.vault.pack import StoredObject
from node.vault.vault import ATTRIBUTES, INSTANCE

ATTRIBUTES_SUFFIX = ".a"
"""The attributes object of instance `in_…` has the id `in_….a`."""

Buffer = bytes | bytearray | memoryview
Channel = Literal["dimse", "stow", "import", "peer"]


@dataclass(frozen=True)
class Arrival:
    """An instance as it came: the data set's bytes alone, and their SHA-256 taken as they arrived.

    `study_instance_uid` is the study that the sender announced, "" when none.
    """

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    data: Buffer = field(repr=False)
    sha256: bytes = field(repr=False)
    study_instance_uid: str = ""

    @classmethod
    def of(cls, sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str, data: Buffer) -> Arrival:
        """For doors that have the whole data set at once."""
        return cls(sop_class_uid, sop_instance_uid, transfer_syntax_uid, data, sha256(data).digest())


@dataclass(frozen=True)
class Source:
    """Who sends, by which door, from where: one for each request or association.

    `heads` reads what it sends: one instance is much like the one before.
    """

    principal: Principal
    channel: Channel
    address: str
    refusals: Refusals = field(default_factory=Refusals, compare=False, repr=False)
    heads: AttributesReader = field(default_factory=AttributesReader, compare=False, repr=False)


@dataclass(frozen=True)
class Receipt:
    """The pseudonyms of a durable instance, the size of its data set, and where the sender finds it again.

    `duplicate`: it was here before.
    """

    study: str
    series: str
    instance: str
    duplicate: bool
    bytes: int
    study_instance_uid: str = field(default="", repr=False)
    series_instance_uid: str = field(default="", repr=False)


def describe(attributes: Attributes, digest: bytes, received: datetime, source: Source) -> bytes:
    """The attributes object. Fields that are empty are left out."""
    known = {
        name: value for name, value in attributes.to_json().items() if value not in ("", None, False, ())
    }
    document = {
        "attributes": known,
        "sha256": digest.hex(),
        "received": received.isoformat(),
        "source": {"actor": source.principal.actor, "channel": source.channel},
    }
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "surrogatepass")


def entry_of(document: bytes, names: Pseudonyms, description: StoredObject, data_set: StoredObject) -> Entry:
    """What the index is told of an instance, from its attributes object. Raises Corrupt when it is not one."""
    try:
        content = json.loads(document.decode("utf-8", "surrogatepass"))
        attributes = Attributes.from_json(content["attributes"])
        digest = bytes.fromhex(content["sha256"])
        received = datetime.fromisoformat(content["received"])
    except (ValueError, KeyError, TypeError) as error:
        raise Corrupt("An attributes object is malformed.", code="attributes-object") from error
    patient = names.patient(attributes.patient_id, attributes.study_instance_uid)
    return new_entry(attributes, patient, digest, received, names, description, data_set)


def new_entry(
    attributes: Attributes,
    patient: str,
    digest: bytes,
    received: datetime,
    names: Pseudonyms,
    description: StoredObject,
    data_set: StoredObject,
) -> Entry:
    """What the index is told of an instance that is durable in its pack."""
    return Entry(
        study=names.study(attributes.study_instance_uid),
        series=names.series(attributes.series_instance_uid),
        instance=names.instance(attributes.sop_instance_uid),
        patient=patient,
        grade=data_set.grade,
        received=received,
        attributes=attributes,
        sha256=digest,
        size_bytes=data_set.plain_length,
        data_set=placement(data_set),
        description=placement(description),
    )


def placement(stored: StoredObject) -> Placement:
    """Where the vault put an object, as the index keeps it."""
    return Placement(stored.offset, stored.length, stored.plain_length, stored.blake3, stored.grade)


def instance_pairs(objects: Iterable[StoredObject]) -> list[tuple[StoredObject, StoredObject]]:
    """Attributes and data set of every instance that is there with both; of an id that occurs twice the first."""
    first: dict[str, StoredObject] = {}
    for stored in objects:
        first.setdefault(stored.object_id, stored)
    return [
        (first[stored.object_id + ATTRIBUTES_SUFFIX], stored)
        for stored in first.values()
        if stored.kind == INSTANCE
        and stored.object_id + ATTRIBUTES_SUFFIX in first
        and first[stored.object_id + ATTRIBUTES_SUFFIX].kind == ATTRIBUTES
    ]
