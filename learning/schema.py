"""Every table of this floor, gathered for the migrations; each is defined beside the code that owns it."""

from __future__ import annotations

import learning.runtables  # noqa: F401  (its tables are made with it)
from node.database import metadata

__all__ = ["metadata"]
