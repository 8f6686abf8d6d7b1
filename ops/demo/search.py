"""Searching a node's whole folder for a patient, as a thief with the disk would: every file, every usual encoding."""

from __future__ import annotations

import base64
import mmap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

TEXT_ENCODINGS = ("utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "gb18030", "latin-1", "shift_jis")


def encodings(word: str) -> Mapping[str, bytes]:
    """The byte strings that stand for `word`: text encodings, letter cases, hex, base64 at its three offsets."""
    found: dict[str, bytes] = {}
    for case in {word, word.upper(), word.lower()}:
        for encoding in TEXT_ENCODINGS:
            try:
                found[f"{encoding}:{case}"] = case.encode(encoding)
            except UnicodeEncodeError:
                continue
    plain = word.encode()
    found["hex"], found["HEX"] = plain.hex().encode(), plain.hex().upper().encode()
    found["reversed"] = plain[::-1]
    for offset in range(3):
        # Base64 of the word inside a longer text: the letters that do not depend on its neighbours.
        encoded = base64.b64encode(bytes(offset) + plain)
        found[f"base64+{offset}"] = encoded[-(-offset * 4 // 3) : (offset + len(plain)) * 4 // 3]
    return {name: value for name, value in found.items() if len(value) >= 5}


def search(folder: Path, words: Iterable[str], *, also: Iterable[Path] = ()) -> Iterator[str]:
    """Every place where a word stands in a file below `folder` or in `also`: the file and the encoding."""
    patterns = {value: name for word in words for name, value in encodings(word).items()}
    for path in [*sorted(folder.rglob("*")), *also]:
        if not path.is_file() or path.stat().st_size == 0:
            continue
        for word in words:
            if word in path.name:
                yield f"{path.name}: in the file's name"
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for value, name in patterns.items():
                if data.find(value) >= 0:
                    yield f"{path.relative_to(folder) if path.is_relative_to(folder) else path.name}: {name}"
