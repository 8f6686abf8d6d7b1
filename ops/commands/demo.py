"""`accord demo`: a whole region on this machine, and one study's life played through it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ops.console import speaks


@speaks
def demo(
    check: Annotated[
        bool, typer.Option("--check", help="Play the story and stop; exit 0 only if every step held.")
    ] = False,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Write what each step did.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Where the region lies; a new temporary folder when left out.")
    ] = None,
) -> None:
    """Start a hub and three hospitals on loopback and play one study's whole life.

    Example: accord demo --check --report story.json
    """
    from ops.demo.play import play

    raise typer.Exit(play(check=check, report=report, folder=folder))
