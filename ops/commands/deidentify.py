"""`accord deidentify`: files in, files out, each at the same path below the output folder."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from consent.errors import AccordError, Conflict, Invalid, NotFound
from node.imaging.confidentiality import Option
from node.imaging.part10 import part10_head, read_part10
from node.imaging.reidentification import Refusal
from node.imaging.rendering import Renderer
from ops.console import JSON_OPTION, speaks, tell

MAX_FILE_BYTES = 2 * 1024**3
MIN_KEY_BYTES = 16
WORKERS = 2


@dataclass(frozen=True)
class FileResult:
    """What became of one file; `reason` is empty when it was written."""

    path: str
    code: str = ""
    reason: str = ""


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
    key = _read_key(project_key)
    results = asyncio.run(_deidentify_all(source, target, key, frozenset(option or ())))
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


async def _deidentify_all(
    source: Path, target: Path, key: bytes, options: frozenset[Option]
) -> list[FileResult]:
    if not source.exists():
        raise NotFound(f"{source} is not there.")
    if target.exists() and any(target.iterdir()):
        raise Conflict(
            f"{target} is not empty.", mend="Give a new folder, so that old and new results do not mix."
        )
    base = source if source.is_dir() else source.parent
    files = list(_files(source))
    turns = asyncio.Semaphore(WORKERS)
    async with Renderer(WORKERS) as renderer:

        async def one(file: Path) -> FileResult:
            async with turns:
                return await _deidentify_file(renderer, file, base, target, key, options)

        return list(await asyncio.gather(*(one(file) for file in files)))


def _files(source: Path) -> Iterator[Path]:
    if source.is_file():
        yield source
        return
    for path in sorted(source.rglob("*")):
        if path.is_file() and not path.is_symlink():
            yield path


async def _deidentify_file(
    renderer: Renderer, file: Path, base: Path, target: Path, key: bytes, options: frozenset[Option]
) -> FileResult:
    name = file.relative_to(base).as_posix()
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            return FileResult(name, "too-large", f"It is larger than {MAX_FILE_BYTES // 1024**3} GiB.")
        raw = file.read_bytes()
        head = read_part10(raw)
        if head.sop_class_uid == "1.2.840.10008.1.3.10":
            return FileResult(name, "dicomdir", "A DICOMDIR lists patients; make a new one from the results.")
        result = await renderer.deidentify(
            raw[head.dataset_offset :], head.transfer_syntax_uid, project_key=key, options=options
        )
    except AccordError as error:
        return FileResult(name, error.code, error.message)
    if isinstance(result, Refusal):
        return FileResult(name, result.code, result.reason)
    written = target / name
    written.parent.mkdir(parents=True, exist_ok=True)
    written.write_bytes(
        part10_head(result.sop_class_uid, result.sop_instance_uid, result.transfer_syntax) + result.data
    )
    return FileResult(name)
