"""The server side of a run: our fixed Flower ServerApp. A researcher supplies a plan, never server code.

Runs in a child of the hub's driver. It reports each round to the hub over its own channel and waits until the
hub has kept it, so what a researcher sees is what a crash would leave.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from consent.errors import Unavailable
from learning.channel import Channel
from learning.networks import Vector
from learning.plans import TrainingPlan
from learning.sealed import seal_bytes
from learning.strategy import Rounds, SiteResult

KEEP_SECONDS = 60.0


class HubStore:
    """`strategy.Store` over the channel to the hub."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def round_done(self, number: int, kind: str, sites: Mapping[str, SiteResult], vector: Vector) -> None:
        """Send the round and its parameters; return when the hub has kept them. Raises Closed, Unavailable."""
        message = {"event": "round", "round": number, "kind": kind}
        message["sites"] = {name: asdict(result) for name, result in sites.items()}
        descriptors = [seal_bytes("accord-checkpoint", (vector.tobytes(),))] if vector.size else []
        try:
            answer, _ = self._channel.ask(message, descriptors, timeout_seconds=KEEP_SECONDS)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        if not answer.get("kept"):
            raise Unavailable("The hub did not keep the round.", code="stopped")


def make_app(
    plan: TrainingPlan, *, run: str, digest: str, members: Mapping[int, str], channel: Channel
) -> ServerApp:
    """The app for one run over `members` (Flower's node id to member id)."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, _context: Context) -> None:
        Rounds(grid, plan, run=run, digest=digest, members=members, store=HubStore(channel)).run()

    return app
