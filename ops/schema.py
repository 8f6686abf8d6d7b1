"""Every table of the system on one metadata, for the migrations."""

from __future__ import annotations

import federation.schema  # noqa: F401  (its tables are made with it)
import learning.schema  # noqa: F401  (its tables are made with it)
import node.schema  # noqa: F401  (its tables are made with it)
import ops.findingtables  # noqa: F401  (its tables are made with it)
from node.database import metadata

__all__ = ["metadata"]
