"""What people send to the learning doors: a plan, as JSON or as a form, and a site's word on one.

Used by the JSON API and by the pages, so both check the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiohttp import web

from consent.decision import Facts, Request, Resource, decide
from consent.errors import Invalid
from consent.principals import Principal
from consent.signed import Json, Signed
from consent.vocabulary import Action, Purpose, ResourceKind, Role
from learning.bundle import bundle_digest
from learning.corpus import ATTRIBUTE, BODY_PART, CODES, MODALITY, REFERENCE, SCHEME
from learning.keys import PLANBOOK, SITE
from learning.plans import PlanDecision, TrainingPlan, Verdict
from node.web.keys import CLOCK, IDENTITY, POLICIES
from node.web.kit import N_, address_of, current_person

FOLLOWERS = (Role.RESEARCHER, Role.HUB_OPERATOR)
"""Who sees plans, runs and models at the hub."""

DECIDERS = (Role.SECURITY_OFFICER, Role.CHIEF_PHYSICIAN)
READERS = (*DECIDERS, Role.ADMINISTRATOR)
"""Who sees at a hospital what is asked of it."""

TEMPLATE: dict[str, str] = {
    "title": "Handwritten digits",
    "purpose": "Show that hospitals with different cases learn more together than each alone.",
    "attribute": ATTRIBUTE,
    "scheme": SCHEME,
    "codes": ", ".join(CODES),
    "modality": MODALITY,
    "body_part": BODY_PART,
    "minimum_patients": "5",
    "rows": "8",
    "columns": "8",
    "holdout": REFERENCE,
    "fraction": "0.2",
    "width": "16",
    "hidden": "64",
    "learning_rate": "0.05",
    "momentum": "0.9",
    "batch_size": "8",
    "local_epochs": "4",
    "update_norm_max": "25",
    "seed": "1",
    "rounds": "6",
    "minimum_sites": "2",
    "round_seconds": "120",
    "deadline_seconds": "1800",
    "baseline": "yes",
}
"""What the composer starts with: the teaching corpus (`digits`)."""


def plan_of(data: Json, person: Principal) -> TrainingPlan:
    """A plan from what a researcher sent; who asks, the code and the privacy are filled in. Raises Invalid."""
    filled: dict[str, Any] = {
        **data,
        "researcher": f"{person.name} ({person.node})",
        "app": bundle_digest(),
        "privacy": {"differential_privacy": False, "secure_aggregation": False},
    }
    return TrainingPlan.from_json(filled)


def plan_of_form(form: Mapping[str, Any], person: Principal) -> TrainingPlan:
    """A plan from the composer's form. Raises Invalid."""
    text = {name: str(form.get(name, "")).strip() for name in TEMPLATE}
    codes = [code.strip() for code in text["codes"].replace("\n", ",").split(",")]
    return plan_of(
        {
            "title": text["title"],
            "purpose": text["purpose"],
            "model": {
                "network": "small-cnn",
                "width": _whole(text, "width"),
                "hidden": _whole(text, "hidden"),
            },
            "labels": {
                "attribute": text["attribute"],
                "scheme": text["scheme"],
                "codes": [code for code in codes if code],
            },
            "cohort": {
                "modality": text["modality"].upper(),
                "body_part": text["body_part"].upper() or None,
                "minimum_patients": _whole(text, "minimum_patients"),
            },
            "image": {"rows": _whole(text, "rows"), "columns": _whole(text, "columns")},
            "holdout": {"fraction": _number(text, "fraction"), "code": text["holdout"] or None},
            "training": {
                "learning_rate": _number(text, "learning_rate"),
                "momentum": _number(text, "momentum"),
                "batch_size": _whole(text, "batch_size"),
                "local_epochs": _whole(text, "local_epochs"),
                "update_norm_max": _number(text, "update_norm_max"),
                "seed": _whole(text, "seed"),
            },
            "schedule": {
                name: _whole(text, name)
                for name in ("rounds", "minimum_sites", "round_seconds", "deadline_seconds")
            },
            "baseline": text["baseline"] == "yes",
        },
        person,
    )


def may_decide(request: web.Request, digest: str) -> Principal:
    """The person, when the policy lets them decide on plans here. Raises Denied."""
    person, app = current_person(request), request.app
    resource = Resource(ResourceKind.PLAN, digest, None, app[IDENTITY].node_id)
    asked = Request(person, Action.APPROVE_PLAN, resource, Purpose.RESEARCH, app[CLOCK].now())
    decide(app[POLICIES].current, asked, Facts()).or_raise()
    return person


async def decide_on(
    request: web.Request, digest: str, verdict: Verdict, reason: str, max_rounds: int | None = None
) -> Signed[PlanDecision]:
    """Decide on a plan as the person of this request, and tell the hub at once where it can be reached."""
    person = may_decide(request, digest)
    decision = await request.app[PLANBOOK].decide(
        digest, verdict, person, reason=reason, max_rounds=max_rounds, address=address_of(request)
    )
    request.app[SITE].hurry()
    return decision


def _whole(text: Mapping[str, str], name: str) -> int:
    value = text[name]
    if not value.isdecimal() or len(value) > 12:
        raise Invalid(N_("A field that needs a whole number holds something else."), mend=name)
    return int(value)


def _number(text: Mapping[str, str], name: str) -> float:
    try:
        return float(text[name][:32])
    except ValueError:
        raise Invalid(N_("A field that needs a number holds something else."), mend=name) from None
