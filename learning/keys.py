"""Typed keys by which handlers find the learning services on an application. Names only; `ops.compose` fills them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from learning.planbook import PlanBook
    from learning.runs import Runs
    from learning.site import TrainingSite

RUNS: web.AppKey[Runs] = web.AppKey("runs")
"""At the hub."""

SITE: web.AppKey[TrainingSite] = web.AppKey("training_site")
"""At a hospital."""

PLANBOOK: web.AppKey[PlanBook] = web.AppKey("planbook")
"""At both."""
