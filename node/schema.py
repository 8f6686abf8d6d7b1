"""Every table of this floor, gathered for the migrations; each is defined beside the code that owns it."""

from __future__ import annotations

import node.access.care
import node.access.ledger
import node.access.registry
import node.access.sessions
import node.approvals
import node.audit.log
import node.audit.witness
import node.compaction
import node.dicom.promises
import node.index.tables
import node.records
import node.scrubbing
import node.vault.keys
import node.vault.roots  # noqa: F401
from node.database import metadata

__all__ = ["metadata"]
