"""The command line in this process: `accord("init", folder, …)` and what it said."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import structlog
from typer.testing import CliRunner

from ops.cli import app


@dataclass(frozen=True)
class Said:
    """What one command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def value(self) -> Any:
        """The one JSON value on standard output."""
        return json.loads(self.out)

    @property
    def words(self) -> str:
        """The result with line breaks taken out, for looking for phrases in it."""
        return " ".join(self.out.split())


@contextmanager
def logs_kept() -> Iterator[None]:
    """How the process logs is afterwards as it was before: a command sets that for itself."""
    before = structlog.get_config() if structlog.is_configured() else None
    try:
        yield
    finally:
        if before is None:
            structlog.reset_defaults()
        else:
            structlog.configure(**before)


def accord(*words: object, stdin: str | None = None) -> Said:
    """Run one command. An exception that is not an exit is the test's failure."""
    with logs_kept():
        result = CliRunner().invoke(app, [str(word) for word in words], input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Said(result.exit_code, result.stdout, result.stderr)
