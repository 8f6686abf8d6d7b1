"""Every table of the system on one metadata, for the migrations."""

from __future__ import annotations

import federation.schema
import learning.schema
import node.schema  # noqa: F401
from node.database import metadata

__all__ = ["metadata"]
