"""The conformance statement says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from node.config import DicomSection
from node.dicom import (
    commitment,
    commitment_forms,
    find,
    identifiers,
    promises,
    retrieve,
    statuses,
    suboperations,
)
from node.dicom.commitment_request import REPORT_SECONDS
from node.dicom.gate import Limits
from node.dicom.messages import CANCELLED
from node.dicom.negotiation import SERVICES, STORAGE_CLASSES, STORAGE_COMMITMENT
from node.dicom.pdu import MAX_DATA_BYTES
from node.dicom.services import STATUS_OF_CODE, STATUS_OF_FAMILY
from node.imaging.elements import TRANSFER_SYNTAXES
from node.imaging.part10 import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from node.index.query import ATTRIBUTES, MAX_KEYS, MAX_LIST_VALUES
from node.safety import Fate

TEXT = (Path(__file__).parents[3] / "docs" / "dicom-conformance.md").read_text(encoding="utf-8")


def test_tables_list_what_is_accepted() -> None:
    """Every storage SOP class, service class and transfer syntax, and no other."""
    listed = set(re.findall(r"^\| .+ \| (1\.2\.840\.10008\.[0-9.]+) \|$", TEXT, re.MULTILINE))
    taken = STORAGE_CLASSES | TRANSFER_SYNTAXES | SERVICES - {STORAGE_COMMITMENT}
    assert listed - {"1.2.840.10008.3.1.1.1"} == taken
    assert f"({STORAGE_COMMITMENT}," in TEXT


def test_the_table_of_keys_is_the_indexs() -> None:
    """Every attribute that can be asked for, with its tag, and those inside sequences."""
    rows = set(
        re.findall(r"^\| [A-Z]* ?\| \(([0-9A-F]{4}),([0-9A-F]{4})\) \| ([A-Za-z.]+)", TEXT, re.MULTILINE)
    )
    known = {(one.tag[:4], one.tag[4:], one.keyword) for one in ATTRIBUTES.values()}
    known |= {
        (inner.tag[:4], inner.tag[4:], f"{one.keyword}.{inner.keyword}")
        for one in ATTRIBUTES.values()
        for inner in one.items.values()
    }
    assert rows == known


def test_identification_and_bounds_are_the_codes() -> None:
    """Implementation identity, PDU length, limits and statuses as written."""
    assert IMPLEMENTATION_CLASS_UID in TEXT and IMPLEMENTATION_VERSION_NAME in TEXT
    assert f"{MAX_DATA_BYTES:,} bytes" in TEXT
    limits = Limits()
    assert limits.operations == DicomSection().max_operations
    for words in (
        f"{limits.associations} in all, {limits.associations_per_peer} from one address",
        f"{limits.connections} in all, {limits.connections_per_peer} from one address",
        f"{limits.instance_bytes >> 20} MiB by default",
        f"up to {limits.operations} operations invoked by the peer",
        f"does not read for {limits.stall_seconds:g} s",
        f"at most {identifiers.MAX_IDENTIFIER_BYTES >> 10} KiB and {identifiers.MAX_KEYS:,} keys, of which {MAX_KEYS}",
        f"list of UIDs ({MAX_LIST_VALUES} at most)",
        f"at most {find.MAX_ANSWERS:,} answers",
        f"{retrieve.MAX_STUDIES} studies and {retrieve.MAX_INSTANCES:,} instances at once",
        f"({suboperations.MAX_CONVERTED_BYTES >> 20} MiB at most)",
        f"open {commitment.HERE_AFTER_SECONDS:g} s later",
        f"after {commitment.FIRST_PAUSE.seconds} s, then with doubling pauses up to an hour, {commitment.MAX_ATTEMPTS} times",
        f"{commitment_forms.MAX_REFERENCES:,} instances and {commitment_forms.MAX_ASKED_BYTES >> 20} MiB in a request, "
        f"{promises.MAX_OWED:,} reports owed",
        f"{promises.MAX_OWED_BYTES >> 20} MiB of what they name",
        f"waits {REPORT_SECONDS:g} s",
    ):
        assert words in TEXT, words
    answered = [status for _, status in STATUS_OF_FAMILY] + list(STATUS_OF_CODE.values())
    for status in [*answered, statuses.SOME_FAILED, CANCELLED]:
        assert f"| {status:04X} |" in TEXT, f"{status:04X}"
    for fate in set(Fate) - {Fate.SAFE}:
        assert f"| {fate:04X} |" in TEXT
