"""docs/requirements.md: each requirement and the test files that claim to prove it. `python -m tests.support.requirements_page`.

Made from docs/requirements.toml and the marks in the tests' source, so it needs no test run; whether the claims hold is
what a test run says (`make test` ends with those that do not).
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from pathlib import Path

from tests.support.requirements import KNOWN

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "requirements.md"
HEAD = """# Requirements and their tests

Made by `make requirements` from `requirements.toml` and the tests' marks. A file may hold several tests of one requirement;
`make test` ends with the requirements that no passing test proves.

| | requirement | claimed by |
| --- | --- | --- |
"""


def claims() -> dict[str, list[str]]:
    """Requirement ID to the test files (relative to tests/) that claim it."""
    found: dict[str, set[str]] = defaultdict(set)
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.requirement":
                for argument in node.args:
                    if isinstance(argument, ast.Constant):
                        found[str(argument.value)].add(file.relative_to(ROOT / "tests").as_posix())
    return {name: sorted(files) for name, files in found.items()}


def page() -> str:
    """The page's text."""
    claimed = claims()
    rows = []
    for name, words in KNOWN.items():
        files = ", ".join(f"`{file}`" for file in claimed.get(name, [])) or "none yet"
        rows.append(f"| {name} | {words} | {files} |\n")
    return HEAD + "".join(rows)


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
    sys.stdout.write(f"{PAGE}\n")
