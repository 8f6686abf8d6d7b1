"""Work that ends although its caller is cancelled."""

from __future__ import annotations

import asyncio

import pytest

from node.completion import to_its_end


async def test_the_work_is_over_when_the_cancelled_caller_is() -> None:
    """However often the caller is cancelled meanwhile; and the cancellation is not lost."""
    told: list[str] = []

    async def tidy() -> None:
        told.append("begun")
        await asyncio.sleep(0.05)
        told.append("over")

    caller = asyncio.create_task(to_its_end(tidy()))
    while not told:
        await asyncio.sleep(0)
    for _ in range(3):
        caller.cancel()
        await asyncio.sleep(0.005)
        assert not caller.done()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert told == ["begun", "over"]


async def test_the_result_or_the_error_is_the_works() -> None:
    """For a coroutine and for a future alike."""

    async def fails() -> None:
        raise ValueError("no")

    assert await to_its_end(asyncio.sleep(0, "yes")) == "yes"
    assert await to_its_end(asyncio.get_running_loop().run_in_executor(None, int, "7")) == 7
    with pytest.raises(ValueError, match="no"):
        await to_its_end(fails())
