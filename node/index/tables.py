"""The index's tables. What may stand in clear in which column: docs/formats/index.md."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, Integer, LargeBinary, SmallInteger, Table, Text

from node.database import UtcDateTime, metadata

STUDIES = Table(
    "index_study",
    metadata,
    Column("study", Text, primary_key=True),
    Column("patient", Text, nullable=False),
    Column("grade", SmallInteger, nullable=False),
    Column("study_date", Text, nullable=False),  # YYYYMMDD, or "" when the data set has none
    Column("accession", LargeBinary),
    Column("modalities", Text, nullable=False),  # "/CT/SR/": each value between slashes
    Column("series_count", Integer, nullable=False),
    Column("instance_count", Integer, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("indexed_to", BigInteger, nullable=False),
    Column("received", UtcDateTime, nullable=False),
    Column("changed", UtcDateTime, nullable=False),
    Column("sealed", LargeBinary, nullable=False),
    Column("sealed_name", LargeBinary, nullable=False),
    Index("ix_index_study_study_date", "study_date", "study"),
    Index("ix_index_study_patient", "patient"),
    Index("ix_index_study_accession", "accession"),
)

SERIES = Table(
    "index_series",
    metadata,
    Column("study", Text, primary_key=True),
    Column("series", Text, primary_key=True),
    Column("number", Integer, nullable=False),  # NO_NUMBER when the data set has none
    Column("modality", Text, nullable=False),
    Column("instance_count", Integer, nullable=False),
    Column("metadata", Text),  # JSON: where the pre-made metadata of `count` instances lies in the pack
    Column("sealed", LargeBinary, nullable=False),
)

INSTANCES = Table(
    "index_instance",
    metadata,
    Column("instance", Text, primary_key=True),
    Column("study", Text, nullable=False),
    Column("series", Text, nullable=False),
    Column("number", Integer, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("fingerprint", LargeBinary, nullable=False),
    Column("sealed", LargeBinary, nullable=False),
    Index("ix_index_instance_study", "study", "series", "number", "instance"),
)

NO_NUMBER = 2**31 - 1
"""Series and instances without a number come last."""
