"""The index: what a node knows about its studies without opening an image. Identity columns are sealed.

Format: docs/formats/index.md. `Index` writes and looks up; `Query` is what QIDO-RS and C-FIND ask.
"""

from node.index.index import Index
from node.index.pseudonyms import Pseudonyms
from node.index.query import Level, Query
from node.index.rows import Entry, InstanceRow, Match, Placement, SeriesRow, StudyRow
from node.index.search import EVERYTHING, Page, Visible

__all__ = [
    "EVERYTHING",
    "Entry",
    "Index",
    "InstanceRow",
    "Level",
    "Match",
    "Page",
    "Placement",
    "Pseudonyms",
    "Query",
    "SeriesRow",
    "StudyRow",
    "Visible",
]
