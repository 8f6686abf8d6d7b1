"""Pages of an SQLite file, seen and spoilt from outside: which tree begins where, and one byte changed on the disk."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

PAGE = 4096


def roots(file: Path) -> dict[str, int]:
    with closing(sqlite3.connect(file)) as database:
        return dict(database.execute("SELECT name, rootpage FROM sqlite_schema"))


def leaves(file: Path, root: int) -> list[int]:
    """The leaf pages of a tree (SQLite's file format, section 1.6)."""
    data = file.read_bytes()[(root - 1) * PAGE : root * PAGE]
    if data[0] in (10, 13):
        return [root]
    count = int.from_bytes(data[3:5])
    cells = [int.from_bytes(data[12 + 2 * cell : 14 + 2 * cell]) for cell in range(count)]
    below = [int.from_bytes(data[cell : cell + 4]) for cell in cells] + [int.from_bytes(data[8:12])]
    return [leaf for page in below for leaf in leaves(file, page)]


def flip(file: Path, page: int, offset: int, by: int = 0xFF) -> None:
    """Change one byte of a page on the disk, behind SQLite's back; its journal is empty."""
    with file.open("r+b") as opened:
        place = (page - 1) * PAGE + offset
        opened.seek(place)
        byte = opened.read(1)[0]
        opened.seek(place)
        opened.write(bytes([byte ^ by]))
