"""The learning floor as composed: an error in it is logged and it starts again; the rest of the node goes on."""

from __future__ import annotations

import asyncio

import pytest

from ops import training
from ops.training import Training


@pytest.mark.requirement("R4")
async def test_training_starts_again_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run loop that fails is started again, and ends with the block."""
    monkeypatch.setattr(training, "FIRST_PAUSE_SECONDS", 0.01)
    starts: list[int] = []
    closed: list[bool] = []
    again = asyncio.Event()

    async def run() -> None:
        starts.append(len(starts))
        if len(starts) < 3:
            raise OSError("the disk is full")
        again.set()
        await asyncio.Event().wait()

    async def close() -> None:
        closed.append(True)

    built = Training(services={}, routes=(), peer_routes=(), nav=(), run=run, close=close)
    async with built.running():
        await asyncio.wait_for(again.wait(), 5)

    assert starts == [0, 1, 2]
    assert closed == [True]
