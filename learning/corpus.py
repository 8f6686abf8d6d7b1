"""How the digits corpus names things in DICOM: codes, modality, body part. What a plan for it asks for.

Apart from `digits`, which makes the files and needs NumPy and pydicom. Format: docs/formats/training-plan.md.
"""

from __future__ import annotations

CLASSES = 10
SCHEME = "99ACCORD-DIGITS"
CODES = tuple(f"digit-{number}" for number in range(CLASSES))
REFERENCE = "REFERENCE"
MODALITY, BODY_PART = "DX", "HAND"
ATTRIBUTE = "PrimaryAnatomicStructureSequence"
