"""What somebody with the disk in hand might do: flip a byte of a pack, rewrite an entry of the log."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from consent.errors import Unavailable
from consent.vocabulary import EventKind
from node.audit.note import Checkpoint, Note, cosigned_by
from ops.demo import forgery
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
    """Somebody with the disk alters an entry at C; somebody with all keys of A rewrites one. Both must come out."""
    disk = await _altered_on_disk(story)
    keys = await _rewritten_with_keys(story)
    return f"{disk}; {keys}"


async def _altered_on_disk(story: Story) -> str:
    """Change one entry of C's log in its database; the check names it and C signs no more. Then mend it."""
    database = story.c.folder / "accord.db"
    with closing(sqlite3.connect(database, timeout=15)) as connection:
        position, leaf = connection.execute(
            "SELECT position, leaf FROM log_entry ORDER BY position LIMIT 1 OFFSET 2"
        ).fetchone()
        forged = bytes([leaf[0] ^ 1]) + leaf[1:]
        with connection:
            connection.execute("UPDATE log_entry SET leaf = ? WHERE position = ?", (forged, position))
        try:
            check, alarm = await asyncio.gather(_verification(story), _own_alarm(story))
        finally:
            with connection:
                connection.execute("UPDATE log_entry SET leaf = ? WHERE position = ?", (leaf, position))
    hold((await accord("log", "verify", story.c.folder))["ok"], "the mended log does not verify")
    return f"changed on C's disk, the check says: {check}; C itself: {alarm}"


async def _verification(story: Story) -> str:
    try:
        checked = await accord("log", "verify", story.c.folder)
    except Unavailable as error:
        found = re.search(r"Entry \d+ was altered[^\"]*", error.message)
        if found is None:
            raise NotHeld(f"the check failed without naming the entry: {error.message[-200:]}") from error
        return found[0]
    raise NotHeld(f"the altered log verifies: {checked}")


async def _own_alarm(story: Story) -> str:
    words: list[str] = []

    async def raised() -> None:
        alarms = await story.entries(story.c, kind="WitnessAlarmed")
        hold(alarms, "no alarm yet")
        words.append(alarms[0]["reason"])

    await story.entries(story.c, kind="SignedIn")  # the log must have grown, or there is nothing new to sign
    await story._eventually(raised, "C's node did not notice")
    return words[0]


async def _rewritten_with_keys(story: Story) -> str:
    """A forger with A's keys hides who opened the study at B: A's own check is content, every witness refuses.

    What counts is what the witnesses have on record, and that the true log goes on being cosigned.
    """
    copy = await asyncio.to_thread(forgery.copy_of, story.a.folder, story.scratch / "forged")
    async with forgery.as_the_node(copy) as (forger, witnessing):
        (entry,) = await forger.log.search(kind=EventKind.LEASE_RELEASED, limit=1)
        await forgery.rewrite(forger.log, entry, "person:nobody@b-central")
        content = await accord("log", "verify", copy)
        hold(content["ok"], f"A's own check finds the forgery: {content['faults'][:1]}")
        said: dict[str, str] = {}

        async def refused() -> None:
            await witnessing.submit()  # the true log may have come first with something new: then once more
            said.update(await _alarms_about_a(story))

        await story._eventually(refused, "the forged log was not refused by every witness")
        shown = await forger.log.checkpoint()
        vouched = cosigned_by(shown, witnessing.verifiers())
        hold(not vouched, f"{', '.join(vouched)} cosigned the forged log")
        size = Checkpoint.parse(Note.parse(shown).text).size
    await story._eventually(
        lambda: _true_log_is_vouched_for(story, entry.index, size), "the true log is cosigned no more"
    )
    return f"entry {entry.index} rewritten with A's keys, A's check finds nothing; B, to its officer: {said['b']}"


async def _alarms_about_a(story: Story) -> dict[str, str]:
    """What B's security officer and the hub's operator see of A's log. Raises NotHeld until both see an alarm."""
    at_b = [
        entry
        for entry in await story.entries(story.b, kind="WitnessAlarmed")
        if entry["actor"] == f"member:{story.a.id}"
    ]
    hold(at_b, "B's officer sees no alarm")
    region = await (await story.person("hub", "operator.hu")).get("/api/v1/hub")
    at_hub = [
        alarm
        for alarm in region["alarms"]
        if (alarm["kind"], alarm["node"]) == ("WitnessAlarmed", story.a.id)
    ]
    hold(at_hub, "the hub's operator sees no alarm")
    return {"b": at_b[0]["reason"]}


async def _true_log_is_vouched_for(story: Story, index: int, forged_size: int) -> None:
    """B and the hub have cosigned A's true log past the entry, and not as far as the forged one goes."""
    region = await (await story.person("hub", "operator.hu")).get("/api/v1/hub")
    members = await (await story.person(story.b.id, "officer.gao")).get("/api/v1/members")
    for place in (region, members):
        size = next(one["cosigned_size"] for one in place["members"] if one["id"] == story.a.id)
        hold(index < size < forged_size, f"a witness has vouched for {size} entries of A")
    checked = await accord("log", "verify", story.a.folder)
    hold(checked["ok"] and len(checked["cosigned_by"]) == 3, f"A's true log: {checked}")
