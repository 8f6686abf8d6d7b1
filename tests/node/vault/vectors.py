"""Reads the frozen vectors of the vault's formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / "vectors" / "vault"


def load(name: str) -> dict[str, Any]:
    """The content of one file of vectors."""
    content: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
    return content


def names(cases: list[dict[str, Any]]) -> list[str]:
    return [case["name"] for case in cases]
