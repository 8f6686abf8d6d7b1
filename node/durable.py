"""Small files that must still be there after a power cut: keys, credentials, certificates.

Settings files are `settings_file`'s, keystores `vault.custody.keystore`'s, packs `vault.blobs`'s.
"""

from __future__ import annotations

import os
from pathlib import Path

from consent.errors import Conflict
from node.vault.blobs import sync_folder


def write_new(file: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Write a file that must not be there yet; it is durable when this returns. Raises Conflict."""
    try:
        _write(file, data, os.O_EXCL, mode)
    except FileExistsError as error:
        raise Conflict(
            f"{file} is there already.", mend="Give another place; this one is never overwritten."
        ) from error


def write_over(file: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Write a file, over what was there; it is durable when this returns."""
    _write(file, data, os.O_TRUNC, mode)


def _write(file: Path, data: bytes, flags: int, mode: int) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | flags, mode)
    with os.fdopen(descriptor, "wb") as writing:
        writing.write(data)
        writing.flush()
        os.fsync(writing.fileno())
    sync_folder(file.parent)
