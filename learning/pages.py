"""The learning pages: at the hub the plans, runs and models of a region; at a hospital what is asked of it.

Each page shows what its service knows; a live run's page refreshes itself from the run's events.
"""

from __future__ import annotations

from typing import Any

from aiohttp import web

from consent.errors import AccordError
from consent.vocabulary import Role
from learning.intake import DECIDERS, FOLLOWERS, READERS, TEMPLATE, decide_on, plan_of_form
from learning.keys import PLANBOOK, RUNS, SITE
from learning.plans import LABEL_ATTRIBUTES, Verdict
from learning.runtables import RunState
from node.web.inputs import choice_of, text_of
from node.web.keys import CLOCK, IDENTITY
from node.web.kit import N_, NavItem, address_of, current_person, render, require_role
from node.web.problems import Problem, problem_of

HOME = "/training"
MAX_REASON = 500

STATE_WORDS = {
    RunState.STARTING: N_("Starting"),
    RunState.RUNNING: N_("Running"),
    RunState.FINISHED: N_("Finished"),
    RunState.FAILED: N_("Failed"),
    RunState.STOPPED: N_("Stopped"),
}
STATE_TONES = {
    RunState.STARTING: "info",
    RunState.RUNNING: "info",
    RunState.FINISHED: "good",
    RunState.FAILED: "bad",
    RunState.STOPPED: "warn",
}
REPORT_WORDS = {
    "trained": N_("Trained"),
    "measured": N_("Measured"),
    "refused": N_("Refused"),
    "failed": N_("Failed"),
    "silent": N_("No answer"),
}
REPORT_TONES = {"trained": "good", "measured": "good", "refused": "warn", "failed": "bad", "silent": "warn"}
REFUSAL_WORDS = (
    N_("This site has not approved the plan."),
    N_("This site refused the plan."),
    N_("This site's approval has ended."),
    N_("This site does not know the plan."),
    N_("The training code is not the code that the plan names."),
    N_("The run asks for more rounds than this site approved."),
    N_("Too few patients here consented to research and match the plan."),
    N_("The update broke the plan's bounds and was withheld."),
    N_("Training failed at this site."),
    N_("This site cannot train now."),
)
"""`plans.Refusal`, marked for translation; a test keeps the two the same."""

ENDING_WORDS = (
    N_("Too few sites are connected."),
    N_("Too few sites took part in a round."),
    N_("The plan's deadline passed before the last round."),
    N_("The averaged model is not finite."),
    N_("The run ended without a measured model."),
    N_("Stopped by the researcher."),
    N_("The hub stopped during the run."),
    N_("The learning service ended during the run."),
    N_("The run was stopped, or Flower failed."),
    N_("The run failed in the hub."),
)
"""`wording.Ending`, marked for translation; a test keeps the two the same."""

WORDS: dict[str, Any] = {
    "state_words": STATE_WORDS,
    "state_tones": STATE_TONES,
    "report_words": REPORT_WORDS,
    "report_tones": REPORT_TONES,
    "roles": {role.value: role for role in Role},
}


async def overview(request: web.Request) -> web.Response:
    """GET /training (hub): plans with the sites' decisions, runs, models."""
    return await _overview(request, None)


async def launch(request: web.Request) -> web.StreamResponse:
    """POST /training/runs {plan}"""
    form = await request.post()
    digest = text_of(form, "plan", limit=64)
    try:
        run = await request.app[RUNS].launch(digest, current_person(request), address=address_of(request))
    except AccordError as error:
        return await _overview(request, problem_of(error))
    raise web.HTTPSeeOther(f"{HOME}/runs/{run.id}")


async def compose(request: web.Request) -> web.Response:
    """GET /training/plans/new"""
    require_role(request, *FOLLOWERS)
    return _composer(request, TEMPLATE, None)


async def propose(request: web.Request) -> web.StreamResponse:
    """POST /training/plans/new"""
    person, form = current_person(request), await request.post()
    try:
        plan = await request.app[RUNS].propose(
            plan_of_form(form, person), person, address=address_of(request)
        )
    except AccordError as error:
        given = {name: str(form.get(name, ""))[:4096] for name in TEMPLATE}
        return _composer(request, given, problem_of(error))
    raise web.HTTPSeeOther(f"{HOME}/plans/{plan.digest}")


async def plan_page(request: web.Request) -> web.Response:
    """GET /training/plans/{digest} (hub)"""
    require_role(request, *FOLLOWERS)
    listed = await request.app[PLANBOOK].listed(request.match_info["digest"])
    approving = await request.app[PLANBOOK].approvals(listed.plan.digest)
    context = WORDS | {"listed": listed, "plan": listed.plan.body, "approving": approving}
    return render(request, "learning/plan.html", context)


async def run_page(request: web.Request) -> web.Response:
    """GET /training/runs/{id}"""
    require_role(request, *FOLLOWERS)
    view = await request.app[RUNS].view(request.match_info["id"])
    return render(request, "learning/run.html", WORDS | {"view": view, "run": view.run})


async def stop(request: web.Request) -> web.StreamResponse:
    """POST /training/runs/{id}/stop"""
    run_id = request.match_info["id"]
    await request.app[RUNS].stop(run_id, current_person(request))
    raise web.HTTPSeeOther(f"{HOME}/runs/{run_id}")


async def model_page(request: web.Request) -> web.Response:
    """GET /training/models/{id}"""
    require_role(request, *FOLLOWERS)
    signed = await request.app[RUNS].model(request.match_info["id"])
    return render(request, "learning/model.html", {"signed": signed, "model": signed.body})


async def site_overview(request: web.Request) -> web.Response:
    """GET /training (hospital): what waits for a decision, what ran here, how it runs."""
    require_role(request, *READERS)
    app = request.app
    node = app[IDENTITY].node_id
    book, site = app[PLANBOOK], app[SITE]
    rows = [(plan, (await book.decisions(plan.digest)).get(node)) for plan in await book.plans()]
    context = WORDS | {
        "waiting": [plan for plan, decision in rows if decision is None],
        "decided": [(plan, decision) for plan, decision in rows if decision is not None],
        "parts": list(reversed(site.parts))[:50],
        "titles": {plan.digest: plan.body.title for plan, _ in rows},
        "status": site.status,
        "now": app[CLOCK].now(),
    }
    return render(request, "learning/site.html", context)


async def site_plan(request: web.Request) -> web.Response:
    """GET /training/plans/{digest} (hospital)"""
    require_role(request, *READERS)
    return await _site_plan(request, None)


async def decide(request: web.Request) -> web.StreamResponse:
    """POST /training/plans/{digest} {verdict, reason}"""
    form = await request.post()
    verdict = choice_of(Verdict, form.get("verdict"), "verdict")
    try:
        reason = text_of(form, "reason", limit=MAX_REASON)
        await decide_on(request, request.match_info["digest"], verdict, reason)
    except AccordError as error:
        return await _site_plan(request, problem_of(error))
    raise web.HTTPSeeOther(HOME)


async def _overview(request: web.Request, problem: Problem | None) -> web.Response:
    require_role(request, *FOLLOWERS)
    app = request.app
    book, runs = app[PLANBOOK], app[RUNS]
    plans = [await book.listed(plan.digest) for plan in await book.plans()]
    ready = {
        one.plan.digest: len(await book.approvals(one.plan.digest)) >= one.plan.body.schedule.minimum_sites
        for one in plans
    }
    context = WORDS | {
        "plans": plans,
        "ready": ready,
        "runs": await runs.runs(),
        "models": await runs.models(),
        "problem": problem,
    }
    return render(request, "learning/overview.html", context, status=problem.status if problem else 200)


def _composer(request: web.Request, given: dict[str, str], problem: Problem | None) -> web.Response:
    context = {"given": given, "problem": problem, "attributes": sorted(LABEL_ATTRIBUTES)}
    return render(request, "learning/compose.html", context, status=problem.status if problem else 200)


async def _site_plan(request: web.Request, problem: Problem | None) -> web.Response:
    app = request.app
    listed = await app[PLANBOOK].listed(request.match_info["digest"])
    context = {
        "listed": listed,
        "plan": listed.plan.body,
        "decision": listed.decisions.get(app[IDENTITY].node_id),
        "may_decide": current_person(request).role in DECIDERS,
        "problem": problem,
    }
    return render(request, "learning/site_plan.html", context, status=problem.status if problem else 200)


HUB_PAGES: list[web.RouteDef] = [
    web.get(HOME, overview),
    web.get(f"{HOME}/plans/new", compose),
    web.post(f"{HOME}/plans/new", propose),
    web.get(f"{HOME}/plans/{{digest}}", plan_page),
    web.post(f"{HOME}/runs", launch),
    web.get(f"{HOME}/runs/{{id}}", run_page),
    web.post(f"{HOME}/runs/{{id}}/stop", stop),
    web.get(f"{HOME}/models/{{id}}", model_page),
]
NODE_PAGES: list[web.RouteDef] = [
    web.get(HOME, site_overview),
    web.get(f"{HOME}/plans/{{digest}}", site_plan),
    web.post(f"{HOME}/plans/{{digest}}", decide),
]

HUB_NAV = (
    NavItem(
        HOME,
        N_("Training"),
        FOLLOWERS,
        "research",
        N_("Research"),
        N_("Propose a plan, launch it where sites agree, follow it round by round."),
    ),
)
NODE_NAV = (
    NavItem(
        HOME,
        N_("Training plans"),
        READERS,
        "research",
        N_("Research"),
        N_("Decide which training plans run on this hospital's images."),
    ),
)
