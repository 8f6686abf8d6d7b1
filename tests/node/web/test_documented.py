"""The API's document names every route that there is, and none that there is not."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
ROUTE = re.compile(r"""web\.(get|post|delete|put)\(\s*r?"(/api/v1/[^"]+)\"""")
DOCUMENTED = re.compile(r"^\| `(GET|POST|DELETE|PUT) (/api/v1/[^`]+)` \|", re.MULTILINE)


def test_every_route_is_documented_and_every_documented_route_exists() -> None:
    """docs/formats/http-api.md is the contract with programs."""
    served = {
        (method.upper(), re.sub(r"\{(\w+):[^/]*\}", r"{\1}", path))
        for package in ("node", "federation", "learning", "ops")
        for source in (ROOT / package).rglob("*.py")
        for method, path in ROUTE.findall(source.read_text(encoding="utf-8"))
    }
    documented = set(DOCUMENTED.findall((ROOT / "docs/formats/http-api.md").read_text(encoding="utf-8")))

    assert documented == served
