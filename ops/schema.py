"""Every table of the system on one metadata, for the migrations."""

from __future__ import annotations

import federation.schema  # noqa: F401
import learning.schema  # noqa: F401
import node.schema  # noqa: F401
import ops.findingtables  # noqa: F401
from node.database import metadata

__all__ = ["metadata"]
