"""De-identifying files in bulk: each through the confined workers, written at the same path below the target."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from consent.errors import AccordError, Conflict, NotFound
from node.imaging.confidentiality import Option
from node.imaging.deidentified import Refusal
from node.imaging.part10 import part10_head, read_part10
from node.imaging.rendering import Renderer

MAX_FILE_BYTES = 2 * 1024**3
WORKERS = 2
MEDIA_STORAGE_DIRECTORY = "1.2.840.10008.1.3.10"


@dataclass(frozen=True)
class FileResult:
    """What became of one file; `reason` is empty when it was written."""

    path: str
    code: str = ""
    reason: str = ""


async def deidentify_all(
    source: Path, target: Path, key: bytes, options: frozenset[Option]
) -> list[FileResult]:
    """De-identify a file, or all below a folder. Raises NotFound, or Conflict when `target` is not empty."""
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
        if head.sop_class_uid == MEDIA_STORAGE_DIRECTORY:
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
