"""Findings for people and programs: pages for hospital IT and the security officer, JSON, a stream, and numbers.

Handlers read, call `Findings` and answer. Whoever administers the node or reads its log sees the findings; both may
acknowledge and resolve, in words. What is wrong is said in the person's language from the finding's code and values.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

from aiohttp import web
from prometheus_client import CollectorRegistry, Gauge

from consent.errors import AccordError, Invalid
from consent.principals import Principal
from consent.vocabulary import Action, Role
from node.access.devices import Device
from node.web.decisions import permitted, verdict_of
from node.web.inputs import choice_of, whole_number
from node.web.keys import CLOCK
from node.web.kit import (
    N_,
    NavItem,
    Part,
    StreamEvent,
    _,
    current_person,
    event_stream,
    read_json,
    render,
    respond,
)
from node.web.problems import Problem, problem_of
from ops.findings import MAX_PAGE, MAX_WORDS_CHARACTERS, Findings
from ops.findingtables import CHOICES, LIVING, Finding, FindingKind, FindingState, Severity
from ops.findingwords import finding_json, tell

PAGE_FINDINGS: Final = 200
BOX_FINDINGS: Final = 5
LOOK_SECONDS: Final = 2.0
LOOKS_PER_STREAM: Final = 300
"""After so many looks (ten minutes) a stream ends and the browser comes again, with its session checked anew."""
FINDING_ID: Final = re.compile(r"[0-9a-f]{16}")
WATCHERS: Final = (Role.ADMINISTRATOR, Role.SECURITY_OFFICER)
FINDINGS: web.AppKey[Findings] = web.AppKey("findings")

SEVERITY_WORDS: Final = {
    Severity.INCIDENT: N_("Incident"),
    Severity.WARNING: N_("Warning"),
    Severity.NOTICE: N_("Notice"),
}
SEVERITY_TONES: Final = {Severity.INCIDENT: "bad", Severity.WARNING: "warn", Severity.NOTICE: "info"}
STATE_WORDS: Final = {
    FindingState.OPEN: N_("New"),
    FindingState.ACKNOWLEDGED: N_("Acknowledged"),
    FindingState.RESOLVED: N_("Resolved"),
}
STATE_TONES: Final = {
    FindingState.OPEN: "warn",
    FindingState.ACKNOWLEDGED: "info",
    FindingState.RESOLVED: "good",
}


class FindingMetrics:
    """The number of living findings for Prometheus, by severity and state."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._gauge = Gauge(
            "accord_findings", "Findings that are not resolved.", ("severity", "state"), registry=registry
        )

    def show(self, counts: Mapping[tuple[Severity, FindingState], int]) -> None:
        """Set every number anew."""
        for severity in Severity:
            for state in LIVING:
                self._gauge.labels(severity.value, state.value).set(counts.get((severity, state), 0))


async def findings_page(request: web.Request) -> web.Response:
    """GET /findings?state=&severity=: the gravest first."""
    await _watcher(request)
    states, severity = _asked(request)
    findings = request.app[FINDINGS]
    found = await findings.listed(states=states, severity=severity, limit=PAGE_FINDINGS)
    counts = await findings.counts()
    context = {
        "rows": [(one, tell(one, _)) for one in found],
        "full": len(found) == PAGE_FINDINGS,
        "choice": request.query.get("state") or "living",
        "severity": severity,
        "numbers": {each: counts.get((each, FindingState.OPEN), 0) for each in Severity},
        "acknowledged": sum(counts.get((each, FindingState.ACKNOWLEDGED), 0) for each in Severity),
        "choices": tuple(CHOICES),
    }
    return render(request, "oversight/findings.html", context | _WORDS)


async def finding_page(request: web.Request) -> web.Response:
    """GET /findings/{id}"""
    await _watcher(request)
    return await _finding(request)


async def handle_on_page(request: web.Request) -> web.StreamResponse:
    """POST /findings/{id} {do: acknowledge | resolve, words}"""
    person = await _watcher(request)
    form = await request.post()
    try:
        await _handle(request, str(form.get("do", "")), str(form.get("words", "")), person)
    except AccordError as error:
        return await _finding(request, problem=problem_of(error), given=str(form.get("words", ""))[:2000])
    raise web.HTTPSeeOther(f"/findings/{_id(request)}")


async def events_for_page(request: web.Request) -> web.StreamResponse:
    """GET /findings/events: `refresh` at each change."""
    await _watcher(request)
    return await event_stream(request, _changes(request, with_values=False))


async def findings(request: web.Request) -> web.Response:
    """GET /api/v1/findings?state=living|open|acknowledged|resolved|all&severity=&kind=&limit= → findings."""
    await _watcher(request)
    states, severity = _asked(request)
    kind = request.query.get("kind")
    found = await request.app[FINDINGS].listed(
        states=states,
        severity=severity,
        kind=choice_of(FindingKind, kind, "kind") if kind else None,
        subject=request.query.get("subject", "")[:200] or None,
        limit=min(whole_number(request.query, "limit", 100), MAX_PAGE),
    )
    return respond([finding_json(one, _) for one in found])


async def events(request: web.Request) -> web.StreamResponse:
    """GET /api/v1/findings/events: `findings` with the numbers by severity and state at each change."""
    await _watcher(request)
    return await event_stream(request, _changes(request, with_values=True))


async def finding(request: web.Request) -> web.Response:
    """GET /api/v1/findings/{id}"""
    await _watcher(request)
    return respond(finding_json(await request.app[FINDINGS].one(_id(request)), _))


async def acknowledge(request: web.Request) -> web.Response:
    """POST /api/v1/findings/{id}/acknowledge {words}"""
    return await _handle_as_json(request, "acknowledge")


async def resolve(request: web.Request) -> web.Response:
    """POST /api/v1/findings/{id}/resolve {words}"""
    return await _handle_as_json(request, "resolve")


async def home_box(request: web.Request, about: Any) -> Part | None:
    """On the start page of whoever watches: what is open, the gravest first."""
    if FINDINGS not in request.app or current_person(request).role not in WATCHERS:
        return None
    found = await request.app[FINDINGS].listed(limit=BOX_FINDINGS + 1)
    rows = [(one, tell(one, _)) for one in found[:BOX_FINDINGS]]
    more = len(found) > BOX_FINDINGS
    return Part("oversight/home_box.html", {"rows": rows, "more": more} | _WORDS)


async def device_box(request: web.Request, about: Any) -> Part | None:
    """On a device's page: the findings about it."""
    if FINDINGS not in request.app or not isinstance(about, Device):
        return None
    known = await request.app[FINDINGS].listed(limit=MAX_PAGE)
    mine = [one for one in known if one.subject.partition(" ")[0] == about.ae_title]
    return Part(
        "oversight/device_box.html", {"rows": [(one, tell(one, _)) for one in mine[:PAGE_FINDINGS]]} | _WORDS
    )


async def _watcher(request: web.Request) -> Principal:
    """Whoever reads the log or administers the node. Raises Denied, on record."""
    if verdict_of(request, Action.READ_LOG).permitted:
        return current_person(request)
    return await permitted(request, Action.ADMINISTER)


async def _handle_as_json(request: web.Request, deed: str) -> web.Response:
    person = await _watcher(request)
    words = str((await read_json(request)).get("words") or "")
    return respond(finding_json(await _handle(request, deed, words, person), _))


async def _handle(request: web.Request, deed: str, words: str, person: Principal) -> Finding:
    known = request.app[FINDINGS]
    match deed:
        case "acknowledge":
            return await known.acknowledge(_id(request), words, by=person.actor)
        case "resolve":
            return await known.resolve(_id(request), words, by=person.actor)
        case _:
            raise Invalid(N_("This change is not offered."))


async def _finding(request: web.Request, *, problem: Problem | None = None, given: str = "") -> web.Response:
    one = await request.app[FINDINGS].one(_id(request))
    context = {
        "finding": one,
        "told": tell(one, _),
        "problem": problem,
        "given": given,
        "reads_log": verdict_of(request, Action.READ_LOG).permitted,
        "administers": verdict_of(request, Action.ADMINISTER).permitted,
        "device": _device_of(one),
        "max_words": MAX_WORDS_CHARACTERS,
    }
    status = problem.status if problem else 200
    return render(request, "oversight/finding.html", context | _WORDS, status=status)


def _device_of(one: Finding) -> str:
    """The AE title of the device that a finding is about, where it is about one that is registered."""
    about = (
        FindingKind.DEVICE_REFUSED,
        FindingKind.AGENT_REPLACED,
        FindingKind.CERTIFICATE_EXPIRING,
        FindingKind.CERTIFICATE_ENDED,
    )
    return one.subject.rpartition(" (")[0] or one.subject if one.kind in about else ""


async def _changes(request: web.Request, *, with_values: bool) -> AsyncIterator[StreamEvent]:
    """A `refresh`, or the numbers, whenever the findings differ from the last look."""
    before: tuple[Any, ...] | None = None
    for _number in range(LOOKS_PER_STREAM):
        now = await request.app[FINDINGS].pulse()
        if now != before:
            if with_values:
                counts = await request.app[FINDINGS].counts()
                told: dict[str, dict[str, int]] = {each.value: {} for each in Severity}
                for (severity, state), count in counts.items():
                    told[severity.value][state.value] = count
                yield StreamEvent({"at": request.app[CLOCK].now().isoformat(), "living": told}, "findings")
            elif before is not None:
                yield StreamEvent({}, "refresh")
            before = now
        await asyncio.sleep(LOOK_SECONDS)


def _asked(request: web.Request) -> tuple[tuple[FindingState, ...], Severity | None]:
    """Which states and severity a query asks for. Raises Invalid."""
    choice = request.query.get("state") or "living"
    if choice not in CHOICES:
        raise Invalid("state is not one of its values.", mend=f"Use one of: {', '.join(CHOICES)}.")
    severity = request.query.get("severity")
    return CHOICES[choice], choice_of(Severity, severity, "severity") if severity else None


def _id(request: web.Request) -> str:
    value = request.match_info["id"]
    if not FINDING_ID.fullmatch(value):
        raise Invalid(N_("This is not the id of a finding."))
    return value


_WORDS: Final[dict[str, Any]] = {
    "severity_words": SEVERITY_WORDS,
    "severity_tones": SEVERITY_TONES,
    "state_words": STATE_WORDS,
    "state_tones": STATE_TONES,
}

NAV: Final = (
    NavItem(
        "/findings",
        N_("Findings"),
        WATCHERS,
        "bell",
        N_("Oversight"),
        N_("What needs somebody: refused devices, integrity faults, full disks, expiring certificates."),
    ),
)
BOXES: Final = {"home": (home_box,), "device": (device_box,)}
ROUTES: Final[list[web.RouteDef]] = [
    web.get("/findings", findings_page),
    web.get("/findings/events", events_for_page),
    web.get("/findings/{id}", finding_page),
    web.post("/findings/{id}", handle_on_page),
    web.get("/api/v1/findings", findings),
    web.get("/api/v1/findings/events", events),
    web.get("/api/v1/findings/{id}", finding),
    web.post("/api/v1/findings/{id}/acknowledge", acknowledge),
    web.post("/api/v1/findings/{id}/resolve", resolve),
]
