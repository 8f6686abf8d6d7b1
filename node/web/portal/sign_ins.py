"""One-time sign-ins that wait for a second person: a security officer or chief physician decides and hands over."""

from __future__ import annotations

from aiohttp import web

from consent.approvals import Voice
from consent.errors import AccordError
from node.access.resets import APPROVERS
from node.web.inputs import choice_of
from node.web.keys import REGISTRY, RESETS
from node.web.kit import address_of, current_person, render, require_role
from node.web.problems import Problem, problem_of


async def sign_ins_page(request: web.Request) -> web.Response:
    """GET /sign-ins: the requests that wait."""
    require_role(request, *APPROVERS)
    return await _page(request)


async def answer(request: web.Request) -> web.StreamResponse:
    """POST /sign-ins/{proposal} {voice: approve | refuse}: shows the one-time sign-in once."""
    person = require_role(request, *APPROVERS)
    form = await request.post()
    try:
        made = await request.app[RESETS].answer(
            person,
            request.match_info["proposal"],
            choice_of(Voice, str(form.get("voice", "")), "voice"),
            address=address_of(request),
        )
    except AccordError as error:
        return await _page(request, problem=problem_of(error))
    return await _page(request, made=made)


async def _page(
    request: web.Request, *, made: tuple[str, str] | None = None, problem: Problem | None = None
) -> web.Response:
    names = {person.login: person for person in await request.app[REGISTRY].people()}
    waiting = [
        {
            "id": one.proposal.id,
            "login": one.proposal.body.subject,
            "person": names.get(one.proposal.body.subject),
            "asked_by": names.get(one.proposal.body.proposer),
            "reason": one.proposal.body.reason,
            "at": one.proposal.issued,
            "own": one.proposal.body.subject == current_person(request).id,
        }
        for one in await request.app[RESETS].waiting()
    ]
    context = {"waiting": waiting, "made": made, "problem": problem}
    return render(request, "sign_ins.html", context, status=problem.status if problem else 200)


ROUTES = [
    web.get("/sign-ins", sign_ins_page),
    web.post("/sign-ins/{proposal:[0-9a-f]{32}}", answer),
]
