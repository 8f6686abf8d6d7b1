"""The learning doors for people, as JSON: at the hub for researchers, at a hospital for those who decide on plans.

Handlers read the request, call one service and shape the answer. Pages are in `pages`, the peers' door in
`service`.
"""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

from consent.errors import Invalid, NotFound
from consent.signed import Signed
from consent.vocabulary import Role
from learning.intake import FOLLOWERS, READERS, decide_on, plan_of
from learning.keys import PLANBOOK, RUNS, SITE
from learning.models import ModelVersion
from learning.pages import HUB_NAV, HUB_PAGES, NODE_NAV, NODE_PAGES
from learning.planbook import Listed
from learning.plans import Verdict
from learning.runs import RunView
from learning.runtables import Run
from node.web.events import Feed
from node.web.kit import (
    N_,
    _,
    address_of,
    current_person,
    event_stream,
    last_event_id,
    read_json,
    require_role,
    respond,
)

MAX_REASON = 500
SVG_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
"""The plot's own policy: matplotlib writes style attributes; nothing else may load or run."""


async def propose(request: web.Request) -> web.Response:
    """POST /api/v1/plans: a plan without `researcher`, `app` and `privacy`, which are filled in. → its digest"""
    person = current_person(request)
    plan = plan_of(await read_json(request), person)
    signed = await request.app[RUNS].propose(plan, person, address=address_of(request))
    return respond(plan_json(Listed(signed, {})), status=201)


async def plans(request: web.Request) -> web.Response:
    """GET /api/v1/plans: the open plans with every site's decision."""
    require_role(request, *FOLLOWERS)
    book = request.app[PLANBOOK]
    return respond({"plans": [plan_json(await book.listed(plan.digest)) for plan in await book.plans()]})


async def plan(request: web.Request) -> web.Response:
    """GET /api/v1/plans/{digest}"""
    require_role(request, *FOLLOWERS)
    return respond(plan_json(await request.app[PLANBOOK].listed(request.match_info["digest"])))


async def launch(request: web.Request) -> web.Response:
    """POST /api/v1/runs {plan}: start a run. → the run"""
    digest = (await read_json(request)).get("plan")
    if not isinstance(digest, str):
        raise Invalid(N_("It does not say which plan."))
    run = await request.app[RUNS].launch(digest, current_person(request), address=address_of(request))
    return respond(run_json(run), status=201)


async def runs(request: web.Request) -> web.Response:
    """GET /api/v1/runs"""
    require_role(request, *FOLLOWERS)
    return respond({"runs": [run_json(run) for run in await request.app[RUNS].runs()]})


async def run(request: web.Request) -> web.Response:
    """GET /api/v1/runs/{id}: state, rounds, sites, curve."""
    require_role(request, *FOLLOWERS)
    return respond(view_json(await request.app[RUNS].view(request.match_info["id"])))


async def stop(request: web.Request) -> web.Response:
    """POST /api/v1/runs/{id}/stop"""
    await request.app[RUNS].stop(request.match_info["id"], current_person(request))
    return web.Response(status=202)


async def events(request: web.Request) -> web.StreamResponse:
    """GET /api/v1/runs/{id}/events: `state`, `round` and `ended`, each followed by `refresh` or `end`."""
    require_role(request, *FOLLOWERS)
    found = await request.app[RUNS].run_of(request.match_info["id"])
    feed = request.app[RUNS].feed(found.id)
    if feed is None:
        feed = Feed()
        feed.publish("ended", {"state": found.state.value, "words": found.words})
        feed.publish("end", {})
        feed.close()
    return await event_stream(request, feed.watch(last_event_id(request)))


async def plot(request: web.Request) -> web.Response:
    """GET /api/v1/runs/{id}/plot.svg"""
    require_role(request, *FOLLOWERS)
    view = await request.app[RUNS].view(request.match_info["id"])
    from learning.plots import PlotWords, draw  # matplotlib: half a second that a start need not wait for

    words = PlotWords(
        _("Round"), _("Accuracy"), _("Federated"), _("alone"), _("Nothing has been measured yet.")
    )
    picture = await asyncio.to_thread(draw, view.progress, view.run.rounds, words)
    headers = {"Content-Security-Policy": SVG_POLICY}
    return web.Response(body=picture, content_type="image/svg+xml", headers=headers)


async def models(request: web.Request) -> web.Response:
    """GET /api/v1/models"""
    require_role(request, *FOLLOWERS)
    return respond({"models": [model_json(model) for model in await request.app[RUNS].models()]})


async def model(request: web.Request) -> web.Response:
    """GET /api/v1/models/{id}: the signed record, read and as signed."""
    require_role(request, *FOLLOWERS)
    return respond(model_json(await request.app[RUNS].model(request.match_info["id"])))


async def parameters(request: web.Request) -> web.Response:
    """GET /api/v1/models/{id}/parameters: the npz. For researchers."""
    require_role(request, Role.RESEARCHER)
    runs_service = request.app[RUNS]
    signed = await runs_service.model(request.match_info["id"])
    content = await runs_service.store.get(signed.body.parameters)
    return web.Response(
        body=content,
        content_type="application/octet-stream",
        headers={"Content-Disposition": f'attachment; filename="model-{signed.id[:12]}.npz"'},
    )


async def offered(request: web.Request) -> web.Response:
    """GET /api/v1/plans (at a hospital): what waits for this site's decision, what was decided, how it runs here."""
    require_role(request, *READERS)
    book = request.app[PLANBOOK]
    listed = [plan_json(await book.listed(plan.digest)) for plan in await book.plans()]
    return respond({"plans": listed, "status": request.app[SITE].describe()})


async def approve(request: web.Request) -> web.Response:
    """POST /api/v1/plans/{digest}/approve {reason?, max_rounds?}"""
    return await _decide(request, Verdict.APPROVE)


async def refuse(request: web.Request) -> web.Response:
    """POST /api/v1/plans/{digest}/refuse {reason?}"""
    return await _decide(request, Verdict.REFUSE)


def plan_json(listed: Listed) -> dict[str, Any]:
    """A plan with the sites' decisions."""
    signed = listed.plan
    return {
        "digest": signed.digest,
        "issuer": signed.issuer,
        "issued": signed.issued.isoformat(),
        "expires": signed.expires.isoformat() if signed.expires else None,
        "plan": signed.body.to_json(),
        "decisions": {
            site: {
                "verdict": decision.body.verdict.value,
                "role": decision.body.role,
                "reason": decision.body.reason,
                "max_rounds": decision.body.max_rounds,
                "at": decision.issued.isoformat(),
                "digest": decision.digest,
            }
            for site, decision in listed.decisions.items()
        },
    }


def run_json(run: Run) -> dict[str, Any]:
    """A run's row."""
    return {
        "id": run.id,
        "plan": run.plan,
        "title": run.title,
        "launched": run.launched.isoformat(),
        "deadline": run.deadline.isoformat(),
        "ended": run.ended.isoformat() if run.ended else None,
        "state": run.state.value,
        "words": run.words,
        "rounds": run.rounds,
        "rounds_done": run.rounds_done,
        "model": run.model,
    }


def view_json(view: RunView) -> dict[str, Any]:
    """A run with its progress."""
    progress = view.progress
    return run_json(view.run) | {
        "accuracy": progress.accuracy,
        "curve": [list(point) for point in progress.curve],
        "rounds_table": [
            {
                "round": one.round,
                "loss": one.loss,
                "accuracy": one.accuracy,
                "sites": {
                    report.site: {
                        "state": report.state,
                        "words": report.words,
                        "examples": report.examples,
                        **report.metrics,
                    }
                    for report in one.sites
                },
            }
            for one in progress.rounds
        ],
        "refusals": progress.refusals,
        "federated": dict(progress.final),
        "alone": dict(progress.baseline),
    }


def model_json(signed: Signed[ModelVersion]) -> dict[str, Any]:
    """A model version, read and as signed."""
    return {
        "id": signed.id,
        "digest": signed.digest,
        "issuer": signed.issuer,
        "issued": signed.issued.isoformat(),
        "model": signed.body.to_json(),
        "record": signed.token,
    }


async def _decide(request: web.Request, verdict: Verdict) -> web.Response:
    digest = request.match_info["digest"]
    if not await _known(request, digest):
        raise NotFound(N_("There is no such plan here."), mend=N_("Reload the list of plans."))
    data = await read_json(request) if await request.read() else {}
    reason, rounds = data.get("reason", ""), data.get("max_rounds")
    if not isinstance(reason, str) or len(reason) > MAX_REASON:
        raise Invalid(N_("The reason is not a text of at most 500 characters."))
    if rounds is not None and (not isinstance(rounds, int) or isinstance(rounds, bool) or rounds < 1):
        raise Invalid(N_("The number of rounds is not a whole number from 1."))
    decision = await decide_on(request, digest, verdict, reason, rounds)
    return respond({"decision": decision.digest, "verdict": verdict.value}, status=201)


async def _known(request: web.Request, digest: str) -> bool:
    return any(plan.digest == digest for plan in await request.app[PLANBOOK].plans())


HUB_ROUTES: list[web.RouteDef] = [
    web.post("/api/v1/plans", propose),
    web.get("/api/v1/plans", plans),
    web.get("/api/v1/plans/{digest}", plan),
    web.post("/api/v1/runs", launch),
    web.get("/api/v1/runs", runs),
    web.get("/api/v1/runs/{id}", run),
    web.post("/api/v1/runs/{id}/stop", stop),
    web.get("/api/v1/runs/{id}/events", events),
    web.get("/api/v1/runs/{id}/plot.svg", plot),
    web.get("/api/v1/models", models),
    web.get("/api/v1/models/{id}", model),
    web.get("/api/v1/models/{id}/parameters", parameters),
    *HUB_PAGES,
]

NODE_ROUTES: list[web.RouteDef] = [
    web.get("/api/v1/plans", offered),
    web.post("/api/v1/plans/{digest}/approve", approve),
    web.post("/api/v1/plans/{digest}/refuse", refuse),
    *NODE_PAGES,
]

__all__ = ["HUB_NAV", "HUB_ROUTES", "NODE_NAV", "NODE_ROUTES"]
