"""`accord deidentify`: files in, files out, each at the same path below the output folder."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from consent.errors import Invalid, NotFound
from node.imaging.confidentiality import Option
from ops.console import JSON_OPTION, speaks, tell

MIN_KEY_BYTES = 16


@speaks
def deidentify(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A DICOM file, or a folder of them.")],
    target: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder for the results; must be new or empty.")
    ],
    project_key: Annotated[Path, typer.Option(help="File with the project's secret (16 bytes or more).")],
    option: Annotated[
        list[Option] | None, typer.Option(help="A PS3.15 option; may be given several times.")
    ] = None,
    as_json: Annotated[bool, JSON_OPTION] = False,
) -> None:
    """Remove identities by PS3.15 Annex E.

    What cannot be made safe by rule is refused and named with the reason; nothing of it is written. Exits 1 when
    anything was refused.

    Example: accord deidentify study/ out/ --project-key project.key --option modified-dates
    """
    from ops.deidentification import deidentify_all

    key = _read_key(project_key)
    results = asyncio.run(deidentify_all(source, target, key, frozenset(option or ())))
    refused = [result for result in results if result.reason]
    words = [f"{result.path}: refused ({result.code}): {result.reason}" for result in refused]
    words.append(f"{len(results) - len(refused)} written to {target}, {len(refused)} refused.")
    value = {
        "written": [result.path for result in results if not result.reason],
        "refused": [vars(result) for result in refused],
    }
    tell("\n".join(words), value, as_json=as_json)
    if refused:
        raise typer.Exit(1)


def _read_key(file: Path) -> bytes:
    if not file.is_file():
        raise NotFound(
            f"The project key {file} is not there.", mend=f"Make one: head -c 32 /dev/urandom > {file}"
        )
    key = file.read_bytes()
    if len(key) < MIN_KEY_BYTES:
        raise Invalid(
            f"The project key {file} is shorter than {MIN_KEY_BYTES} bytes.", mend="Use 32 random bytes."
        )
    return key
