"""Who reads the log from the command line is on record in it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from consent.vocabulary import EventKind
from ops.foundation import opened
from tests.support.cli import accord


@pytest.mark.requirement("V4")
async def test_a_proof_that_was_made_is_on_record(tmp_path: Path) -> None:
    """`accord log prove` discloses an entry: which one and by whom is an entry of its own."""
    folder = tmp_path / "a"
    words = ("init", folder, "--name", "General Hospital", "--ae-title", "GENERAL")
    assert (await asyncio.to_thread(accord, *words)).code == 0
    assert (await asyncio.to_thread(accord, "log", "prove", folder, "1")).code == 0

    async with opened(folder) as node:
        (read,) = await node.log.search(kind=EventKind.LOG_READ)
    assert read.event.actor.startswith("system:")
    assert read.event.detail["asked"] == {"entry": 1}
