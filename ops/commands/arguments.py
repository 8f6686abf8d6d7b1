"""What many commands take: the node's folder, --json; and who acts when somebody types a command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ops.console import JSON_OPTION

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The node's folder.")]
Json = Annotated[bool, JSON_OPTION]


def operator() -> str:
    """Who acts, for the log: the account of the operating system."""
    import getpass

    return f"system:{getpass.getuser()}"
