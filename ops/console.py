"""How the command line speaks: results for people or machines, errors that say what to do, exit codes.

Every command prints through here. With `--json` standard output holds exactly one JSON value. Errors go to
standard error as one line (or one JSON object), and the exit code names the family.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import typer

from consent.errors import AccordError, Conflict, Corrupt, Denied, Invalid, NotFound, Unavailable

P = ParamSpec("P")
R = TypeVar("R")

EXIT_CODES: Mapping[type[AccordError], int] = {
    Denied: 3,
    NotFound: 4,
    Conflict: 5,
    Corrupt: 6,
    Invalid: 7,
    Unavailable: 8,
}
"""0 is success, 1 a failed check, 2 wrong usage; the rest are the error families."""

JSON_OPTION = typer.Option("--json", help="Print one JSON value instead of words.")


def tell(words: str, value: Any, *, as_json: bool) -> None:
    """Print `words` for a person, or `value` for a machine."""
    if as_json:
        sys.stdout.write(json.dumps(value, ensure_ascii=False, default=str) + "\n")
    else:
        sys.stdout.write(words + "\n")


def tell_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], value: Any, *, as_json: bool) -> None:
    """Print a table for a person, or `value` for a machine."""
    if as_json:
        tell("", value, as_json=True)
        return
    from rich.console import Console  # takes as long to load as all the rest of the command line
    from rich.table import Table

    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    Console(highlight=False, soft_wrap=True).print(table)


def fail(error: AccordError, *, as_json: bool) -> typer.Exit:
    """Print an error and return the Exit to raise."""
    family = next((kind for kind in EXIT_CODES if isinstance(error, kind)), AccordError)
    if as_json:
        body: dict[str, Any] = {"error": error.code, "message": error.message, "mend": error.mend}
        if isinstance(error, Denied) and error.reasons:
            body["reasons"] = list(error.reasons)
        sys.stderr.write(json.dumps(body, ensure_ascii=False) + "\n")
    else:
        sys.stderr.write(f"accord: {error}\n")
    return typer.Exit(EXIT_CODES.get(family, 1))


def speaks(command: Callable[P, R]) -> Callable[P, R]:
    """Turn error families raised by a command into one line and an exit code."""

    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except (AccordError, OSError, ExceptionGroup) as error:
            known = _known(error)
            if known is None:
                raise
            raise fail(known, as_json=bool(kwargs.get("as_json"))) from error

    return wrapped


def _known(error: Exception) -> AccordError | None:
    """The family that an exception is of, or None. A task group's is that of the first of what ended it."""
    match error:
        case AccordError():
            return error
        case PermissionError():
            return Denied(f"No permission: {error.filename}.", mend="Run as the owner of this folder.")
        case OSError():
            return Unavailable(f"{error.strerror or error}: {error.filename or ''}".rstrip(": ") + ".")
        case ExceptionGroup():
            families = [_known(one) for one in error.exceptions]
            return families[0] if all(families) else None
    return None
