"""/api/v1/keys: versions, ages and counts of the keys, rotation, the guarded grade; and the grade of a study.

Only counts and dates leave here, never a key. Hospital IT rotates; the holders of a guarded grade unlock it, each with a
passphrase of their own, and either of them, or hospital IT, locks it again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from aiohttp import web

from consent.errors import Invalid, Sentence
from consent.principals import Principal
from consent.signed import Json
from consent.verdict import Permit
from consent.vocabulary import Action, Grade
from node.grade_locks import LockState
from node.regrading import Regraded
from node.rotation import Progress, max_ages
from node.vault.keys import GradeStatus, KeyStatus
from node.web.decisions import permitted, verdict_of
from node.web.inputs import text_of
from node.web.keys import CLOCK, GATEWAY, GRADE_LOCKS, KEY_DUTY, KEYS, POLICIES, REGRADING, ROTATION
from node.web.kit import StreamEvent, address_of, current_person, event_stream, read_json, respond
from node.web.text import N_

LOOK_SECONDS: Final = 10.0
LOOKS_PER_STREAM: Final = 600
MAX_PASSPHRASE: Final = 4096
MAX_REASON: Final = 500
GRADES: Final = {grade.name.lower(): grade for grade in Grade}


async def status(request: web.Request) -> web.Response:
    """GET → custody, versions and counts per grade, guarded grades, how far a rewrapping is."""
    await permitted(request, Action.ADMINISTER)
    found = await request.app[KEYS].status()
    return respond(status_json(found, request))


async def events(request: web.Request) -> web.StreamResponse:
    """GET /events: `progress` at each batch of a rewrapping."""
    await permitted(request, Action.ADMINISTER)

    async def changes() -> AsyncIterator[StreamEvent]:
        async for progress in progress_of(request):
            yield StreamEvent(progress_json(progress), "progress")

    return await event_stream(request, changes())


async def rotate(request: web.Request) -> web.Response:
    """POST /rotate {grade} → {grade, version}; study keys follow in the background."""
    person = await permitted(request, Action.ADMINISTER)
    grade = grade_of((await read_json(request)).get("grade"))
    version = await request.app[ROTATION].rotate(grade, person.actor)
    request.app[KEY_DUTY]()
    return respond({"grade": grade.name.lower(), "version": version}, status=201)


async def rewrap(request: web.Request) -> web.Response:
    """POST /rewrap → 202: what is behind is rewrapped in the background."""
    await permitted(request, Action.ADMINISTER)
    request.app[KEY_DUTY]()
    return respond(progress_json(request.app[ROTATION].progress), status=202)


async def unlock(request: web.Request) -> web.Response:
    """POST /unlock {grade?, passphrase} → {grade, locked, holders, waiting}. It takes two different holders."""
    data = await read_json(request)
    grade = grade_of(data.get("grade", "restricted"))
    await give_passphrase(request, grade, data.get("passphrase"))
    return respond(lock_json(_lock_state(request, grade)))


async def lock(request: web.Request) -> web.Response:
    """POST /lock {grade?} → the same. By a holder or hospital IT."""
    data = await read_json(request)
    grade = grade_of(data.get("grade", "restricted"))
    await lock_grade(request, grade)
    return respond(lock_json(_lock_state(request, grade)))


async def set_grade(request: web.Request) -> web.Response:
    """POST /api/v1/studies/{study}/grade {grade, reason} → what was done. The study's images are sealed anew."""
    await permitted(request, Action.REGRADE)
    data = await read_json(request)
    done = await regrade(request, data.get("grade"), data)
    return respond(
        {
            "study": done.study,
            "before": done.before.name.lower(),
            "grade": done.after.name.lower(),
            "objects": done.objects,
        }
    )


async def regrade(
    request: web.Request, grade: object, given: Mapping[str, object], *, needed: str = ""
) -> Regraded:
    """Seal the study of the path anew under a grade, for the `reason` given; who looks at it now must open it again.

    `needed` is what to say when there is no reason; without it none is asked for.
    """
    reason = text_of(given, "reason", limit=MAX_REASON, needed=needed)
    study = request.match_info["study"]
    done = await request.app[REGRADING].regrade(
        study, grade_of(grade), current_person(request).actor, reason=reason
    )
    await request.app[GATEWAY].end_study(study)
    return done


async def give_passphrase(request: web.Request, grade: Grade, passphrase: object) -> bool:
    """Take the passphrase of who asks; return whether the grade is unlocked now."""
    if not isinstance(passphrase, str) or not 0 < len(passphrase) <= MAX_PASSPHRASE:
        raise Invalid(N_("Give your passphrase for these keys."), code="missing")
    person = current_person(request)
    return await request.app[GRADE_LOCKS].unlock(
        grade, person.id, passphrase.encode(), person.actor, address_of(request)
    )


async def lock_grade(request: web.Request, grade: Grade) -> None:
    """Lock the grade, when who asks is one of its holders or runs the node."""
    person = current_person(request)
    if not holds(request, person):
        await permitted(request, Action.ADMINISTER)
    await request.app[GRADE_LOCKS].lock(grade, person.actor, address_of(request))


def holds(request: web.Request, person: Principal) -> bool:
    """Whether the person is a holder of a guarded grade."""
    return any(person.id in state.holders for state in request.app[GRADE_LOCKS].states())


async def may_look(request: web.Request) -> bool:
    """Whether who asks runs the node; holders of a guarded grade may look too. Raises Denied for everybody else."""
    if holds(request, current_person(request)):
        return isinstance(verdict_of(request, Action.ADMINISTER), Permit)
    await permitted(request, Action.ADMINISTER)
    return True


async def progress_of(request: web.Request) -> AsyncIterator[Progress]:
    """The progress of rewrapping now, and each time it has changed."""
    rotation = request.app[ROTATION]
    seen = rotation.progress
    yield seen
    for _ in range(LOOKS_PER_STREAM):
        now = await rotation.changed(seen, LOOK_SECONDS)
        if now != seen:
            seen = now
            yield seen


def grade_of(value: object) -> Grade:
    """A grade by its name or number. Raises Invalid."""
    grade = GRADES.get(str(value).lower()) or next(
        (one for one in Grade if str(int(one)) == str(value)), None
    )
    if grade is None:
        raise Invalid(
            N_("This is not a grade."),
            mend=Sentence("Use one of: %(choices)s.", choices=", ".join(GRADES)),
            code="grade",
        )
    return grade


def status_json(found: KeyStatus, request: web.Request) -> Json:
    """Keys as the API gives them."""
    now = request.app[CLOCK].now()
    ages = max_ages(request.app[POLICIES].parameters)
    return {
        "custody": found.custody,
        "grades": [_grade_json(one, now, ages[one.grade]) for one in found.grades],
        "guarded": [lock_json(state) for state in request.app[GRADE_LOCKS].states()],
        "rewrapping": progress_json(request.app[ROTATION].progress),
    }


def progress_json(progress: Progress) -> Json:
    """How far a rewrapping is."""
    return {
        "running": progress.running,
        "moved": progress.moved,
        "total": progress.total,
        "broken": progress.broken,
        "started": _moment(progress.started),
        "ended": _moment(progress.ended),
        "error": progress.error,
    }


def lock_json(state: LockState) -> Json:
    """A guarded grade."""
    return {
        "grade": state.grade.name.lower(),
        "locked": state.locked,
        "holders": list(state.holders),
        "waiting": state.waiting,
    }


def _grade_json(one: GradeStatus, now: datetime, max_age: timedelta) -> Json:
    return {
        "grade": one.grade.name.lower(),
        "version": one.version,
        "created": one.created.isoformat(),
        "age_days": round((now - one.created) / timedelta(days=1), 1),
        "rotates": (one.created + max_age).isoformat(),
        "study_keys": one.study_keys,
        "behind": one.behind,
        "guarded": one.guarded,
        "locked": one.locked,
        "versions": [
            {
                "version": version.version,
                "state": version.state,
                "created": version.created.isoformat(),
                "study_keys": version.study_keys,
                "two_person": version.two_person,
            }
            for version in one.versions
        ],
    }


def _lock_state(request: web.Request, grade: Grade) -> LockState:
    return next(state for state in request.app[GRADE_LOCKS].states() if state.grade == grade)


def _moment(moment: datetime | None) -> Any:
    return moment.isoformat() if moment else None


ROUTES = [
    web.get("/api/v1/keys", status),
    web.get("/api/v1/keys/events", events),
    web.post("/api/v1/keys/rotate", rotate),
    web.post("/api/v1/keys/rewrap", rewrap),
    web.post("/api/v1/keys/unlock", unlock),
    web.post("/api/v1/keys/lock", lock),
    web.post("/api/v1/studies/{study}/grade", set_grade),
]
