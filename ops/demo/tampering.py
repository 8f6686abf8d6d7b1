"""What somebody with the disk in hand might do: flip a byte of a pack, rewrite an entry of the log."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from consent.errors import Unavailable
from ops.demo.processes import accord
from ops.demo.report import NotHeld, hold

if TYPE_CHECKING:
    from ops.demo.story import Story


def packs_of(root: Path, study: str) -> list[Path]:
    """The pack files of a study below a folder."""
    return (
        [path for path in root.rglob("*") if path.is_file() and study in path.name] if root.exists() else []
    )


def pack_of(root: Path, study: str) -> Path:
    """The one pack of a study. Raises NotHeld."""
    found = packs_of(root, study)
    hold(len(found) == 1, f"{len(found)} packs of the study lie below {root.name}")
    return found[0]


@contextmanager
def changed(pack: Path, *, everywhere: bool) -> Iterator[None]:
    """One bit in the middle of a file, or one of every 64 KiB, is wrong inside the block and right again after it."""
    size = pack.stat().st_size
    places = range(size // 7, size, 64 * 1024) if everywhere else range(size // 2, size // 2 + 1)
    _flip(pack, places)
    try:
        yield
    finally:
        _flip(pack, places)


def _flip(pack: Path, places: range) -> None:
    with pack.open("r+b") as file:
        for place in places:
            file.seek(place)
            value = file.read(1)[0]
            file.seek(place)
            file.write(bytes([value ^ 0x10]))


async def alter_and_detect(story: Story) -> str:
    """Change one entry of C's log in its database; the check and the next witness must say so. Then mend it."""
    database = story.c.folder / "accord.db"
    with closing(sqlite3.connect(database, timeout=15)) as connection:
        position, leaf = connection.execute(
            "SELECT position, leaf FROM log_entry ORDER BY position LIMIT 1 OFFSET 2"
        ).fetchone()
        forged = bytes([leaf[0] ^ 1]) + leaf[1:]
        with connection:
            connection.execute("UPDATE log_entry SET leaf = ? WHERE position = ?", (forged, position))
        try:
            check = await _verification(story)
            alarm = await _alarm(story)
        finally:
            with connection:
                connection.execute("UPDATE log_entry SET leaf = ? WHERE position = ?", (leaf, position))
    hold((await accord("log", "verify", story.c.folder))["ok"], "the mended log does not verify")
    return f"check: {check}; witness: {alarm}"


async def _verification(story: Story) -> str:
    try:
        checked = await accord("log", "verify", story.c.folder)
    except Unavailable as error:
        found = re.search(r"Entry \d+ was altered[^\"]*", error.message)
        if found is None:
            raise NotHeld(f"the check failed without naming the entry: {error.message[-200:]}") from error
        return found[0]
    raise NotHeld(f"the altered log verifies: {checked}")


async def _alarm(story: Story) -> str:
    words: list[str] = []

    async def raised() -> None:
        alarms = await story.entries(story.c, kind="WitnessAlarmed")
        hold(alarms, "no alarm yet")
        words.append(alarms[0]["reason"])

    await story.entries(story.c, kind="SignedIn")  # the log must have grown, or there is nothing new to show
    await story._eventually(raised, "no witness noticed")
    return words[0]
