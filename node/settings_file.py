"""A settings file in TOML that explains itself: read with errors that name the key, written with every key and its meaning.

Holds reading, writing and the words of errors; leaves what may be set to the models (`node.config`, `node.edge.settings`).
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from consent.errors import Conflict, Invalid, NotFound
from node.durable import write_over
from node.vault.blobs import sync_folder

MAX_FILE_BYTES = 256 * 1024
NEW_SUFFIX = ".new"
"""A file that is about to take the place of another lies beside it under this name."""


class Section(BaseModel):
    """A table of the file; unknown keys are refused, so that a typing error is not silently ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SettingsFile:
    """One kind of settings file: its name, its first line, and the words for each section and key (`section.key`)."""

    def __init__(self, name: str, title: str, sections: Mapping[str, str], keys: Mapping[str, str]) -> None:
        self.name = name
        self._title = title
        self._sections = sections
        self._keys = keys

    def read(self, folder: Path, *, mend: str) -> dict[str, Any]:
        """The tables of the file in `folder`. Raises NotFound (with `mend`) or Invalid."""
        file = folder / self.name
        if not file.is_file():
            raise NotFound(f"{file} is not there.", mend=mend)
        if file.stat().st_size > MAX_FILE_BYTES:
            raise Invalid(f"{file} is larger than {MAX_FILE_BYTES // 1024} KiB.")
        try:
            data: dict[str, Any] = tomllib.loads(file.read_text("utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise Invalid(
                f"{file} is not valid TOML: {error}.", mend="Correct that line.", code="bad-toml"
            ) from error
        if "folder" in data:
            raise Invalid(f"{file}: folder: unknown key.", code="bad-setting")
        return data

    def refused(self, folder: Path, error: ValidationError) -> Invalid:
        """The error for a file whose values do not fit."""
        words = f"{folder / self.name}: {words_of(error)}"
        return Invalid(words, mend="Correct the key and start again.", code="bad-setting")

    def write(self, folder: Path, settings: BaseModel) -> Path:
        """Write a new file with every key and what it is for. Raises Conflict when one is there."""
        file = folder / self.name
        if file.exists():
            raise Conflict(f"{file} is there already.", mend="Choose another folder, or edit that file.")
        file.write_text(self._render(settings), "utf-8")
        return file

    def changed(self, folder: Path, changes: Mapping[str, object]) -> str:
        """The text of the file with other values for some keys (`section.key`); the rest, comments too, as it is."""
        lines = (folder / self.name).read_text("utf-8").splitlines()
        for key, value in changes.items():
            section, _, name = key.partition(".")
            _put(lines, section, name, f"{name} = {_toml(value)}")
        return "\n".join(lines) + "\n"

    def replace(self, folder: Path, text: str) -> None:
        """Put `text` in the file's place, whole and durably."""
        file, temporary = folder / self.name, folder / (self.name + NEW_SUFFIX)
        write_over(temporary, text.encode())
        temporary.chmod(file.stat().st_mode & 0o777)
        temporary.replace(file)
        sync_folder(folder)

    def _render(self, settings: BaseModel) -> str:
        lines = [f"# {self._title} Every key is here; a line left out keeps its default.", ""]
        for section, model in settings:
            if not isinstance(model, Section):
                continue
            lines += [f"# {self._sections[section]}", f"[{section}]"]
            for key, value in model:
                lines += [f"# {self._keys[f'{section}.{key}']}", f"{key} = {_toml(value)}"]
            lines.append("")
        return "\n".join(lines)


def _put(lines: list[str], section: str, name: str, line: str) -> None:
    """Set one key among the lines of a TOML file whose tables stand one below the other."""
    header = re.compile(r"\s*\[\s*" + re.escape(section) + r"\s*\]\s*(#.*)?")
    start = next((at for at, text in enumerate(lines) if header.fullmatch(text)), None)
    if start is None:
        lines += ["", f"[{section}]", line]
        return
    end = next((at for at in range(start + 1, len(lines)) if lines[at].lstrip().startswith("[")), len(lines))
    own = re.compile(rf"\s*{re.escape(name)}\s*=")
    at = next((at for at in range(start + 1, end) if own.match(lines[at])), None)
    if at is None:
        lines.insert(start + 1, line)
    else:
        lines[at] = line


def words_of(error: ValidationError) -> str:
    """The first thing that is wrong, with its key."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"]) or "(file)"
    return f"{key}: {first['msg'].removeprefix('Value error, ')}."


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    escaped = str(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
