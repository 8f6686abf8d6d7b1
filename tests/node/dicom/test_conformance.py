"""The conformance statement says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from node.dicom.gate import Limits
from node.dicom.negotiation import STORAGE_CLASSES
from node.dicom.pdu import MAX_DATA_BYTES
from node.dicom.services import STATUS_OF_CODE, STATUS_OF_FAMILY
from node.imaging.elements import TRANSFER_SYNTAXES
from node.imaging.part10 import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

TEXT = (Path(__file__).parents[3] / "docs" / "formats" / "dicom-conformance.md").read_text(encoding="utf-8")


def test_tables_list_what_is_accepted() -> None:
    """Every storage SOP class and transfer syntax, and no other."""
    listed = set(re.findall(r"^\| .+ \| (1\.2\.840\.10008\.[0-9.]+) \|$", TEXT, re.MULTILINE))
    assert listed - {"1.2.840.10008.3.1.1.1"} == STORAGE_CLASSES | TRANSFER_SYNTAXES


def test_identification_and_bounds_are_the_codes() -> None:
    """Implementation identity, PDU length, limits and statuses as written."""
    assert IMPLEMENTATION_CLASS_UID in TEXT and IMPLEMENTATION_VERSION_NAME in TEXT
    assert f"{MAX_DATA_BYTES:,} bytes" in TEXT
    limits = Limits()
    assert f"{limits.associations} in all, {limits.associations_per_peer} from one address" in TEXT
    assert f"{limits.connections} in all, {limits.connections_per_peer} from one address" in TEXT
    assert f"{limits.instance_bytes >> 20} MiB by default" in TEXT
    for status in [status for _, status in STATUS_OF_FAMILY] + list(STATUS_OF_CODE.values()):
        if status != 0x0112:
            assert f"| {status:04X} |" in TEXT
