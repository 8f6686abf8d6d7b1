"""How sensitive a study is: who may say so says it here, with a reason, and the study is sealed anew.

The page names the study by its pseudonym and shows nothing of the patient: a security officer opens no images.
"""

from __future__ import annotations

from aiohttp import web

from consent.errors import AccordError, Denied
from consent.vocabulary import Action, Grade
from node.web.api.keys import MAX_REASON, regrade
from node.web.decisions import permitted
from node.web.keys import INDEX
from node.web.kit import render
from node.web.problems import Problem, problem_of
from node.web.text import N_


async def grade_page(request: web.Request) -> web.Response:
    """GET /studies/{study}/grade"""
    await permitted(request, Action.REGRADE)
    return await _page(request)


async def change(request: web.Request) -> web.StreamResponse:
    """POST /studies/{study}/grade {grade, reason}: the page again, with the grade that holds now."""
    await permitted(request, Action.REGRADE)
    form = await request.post()
    try:
        await regrade(request, form.get("grade"), form, needed=N_("A change of grade needs a reason."))
    except Denied:
        raise
    except AccordError as error:
        return await _page(request, problem_of(error), str(form.get("reason", ""))[:MAX_REASON])
    raise web.HTTPSeeOther(f"/studies/{request.match_info['study']}/grade")


async def _page(request: web.Request, problem: Problem | None = None, reason: str = "") -> web.Response:
    row = await request.app[INDEX].study(request.match_info["study"])
    context = {
        "row": row,
        "grades": tuple(Grade),
        "problem": problem,
        "reason": reason,
        "longest": MAX_REASON,
    }
    return render(request, "grade.html", context, status=problem.status if problem else 200)


ROUTES = [
    web.get("/studies/{study}/grade", grade_page),
    web.post("/studies/{study}/grade", change),
]
