"""Every table of this floor, gathered for the migrations; each is defined beside the code that owns it."""

from __future__ import annotations

import federation.asking
import federation.authority
import federation.held
import federation.incoming
import federation.leases
import federation.members
import federation.notices
import federation.reporting  # noqa: F401  (its tables are made with it)
from node.database import metadata

__all__ = ["metadata"]
