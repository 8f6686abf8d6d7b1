"""The rule files that ship with the product, read from the installed package; consent itself reads no files."""

from __future__ import annotations

from importlib.resources import files


def shipped_cedar() -> dict[str, str]:
    """Return the shipped rules, text by file name."""
    folder = files("consent").joinpath("policies")
    return {
        item.name: item.read_text(encoding="utf-8")
        for item in folder.iterdir()
        if item.name.endswith(".cedar")
    }
